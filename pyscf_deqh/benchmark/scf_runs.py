"""SCF runs from different initial guesses, with cycles, Fock builds, seconds and errors counted."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pyscf import dft, gto, scf
from pyscf.data.elements import ELEMENTS

from ..checkpoint import DEFAULT_MODEL
from ..data.geometry import Geometry
from ..fock.cycles import CycleSettings
from ..graph.basis import needs_ecp
from ..guess import Guess, Options, cycles_after, make_guess, starts_of
from ..process import trim_memory
from ..pyscf_api import bytes_of_integrals, full_builds, integrals_fit
from ..starts import Start
from ..starts.atoms import AtomsStart
from .memory import PeakMemory

CLASSICAL = ("1e", "minao", "atom", "huckel", "sap", "vsap")
CHEAP_SCF = "cheap-scf"
# DEQH's cycles from superposed atoms: no network.
NO_NETWORK = "no-network"
INITS = (*CLASSICAL, CHEAP_SCF, NO_NETWORK)
_ENOUGH_CYCLES = 20
_PLAIN_PROCESS = 171  # MB of a process of PySCF alone at its first Fock matrix (nicotine)


@dataclass(frozen=True)
class Method:
    """What is computed: PySCF's defaults for everything that is not named here.

    Attributes:
        spin: number of unpaired electrons; as few as possible if it is None.
        density_fit: PySCF's ``density_fit()`` for the SCF itself.
        conv_tol, conv_tol_grad: PySCF's, hartree; None for its default.
        solvent: water as ``PCM`` or ``SMD``; None for none.
        unrestricted: orbitals of either spin of their own, for singlets too.
        frugal: leave SCFs to PySCF that take no longer than a guess.
    """

    xc: str = "b3lyp"
    basis: str = "def2-svp"
    model: str | Path = DEFAULT_MODEL
    device: str = "auto"
    max_cycles: int = CycleSettings.max_cycles
    accelerate: bool = True
    charge: int = 0
    spin: int | None = None
    density_fit: bool = False
    conv_tol: float | None = None
    conv_tol_grad: float | None = None
    solvent: str | None = None
    unrestricted: bool = False
    frugal: bool = True

    @property
    def details(self) -> dict[str, Any]:
        """What results of several runs have to agree in, beside the model."""
        names = ("xc", "basis", "charge", "spin", "density_fit", "solvent", "unrestricted")
        return {name: getattr(self, name) for name in names}

    def options(self, start: Start | None = None, max_cycles: int | None = None) -> Options:
        """Of the guess: as a user gets it, or from a start of one's own."""
        n = self.max_cycles if max_cycles is None else max_cycles
        cycles = cycles_after(n, self.accelerate)
        starts = (start,) if start else starts_of("auto", self.model, self.device)
        return Options(starts, cycles, self.accelerate, frugal=self.frugal and start is None)

    def molecule(self, geometry: Geometry) -> gto.Mole:
        """With charge and spin of the geometry's comment line, if there are any; the last atoms are
        ghosts, as many as ``ghosts`` says there. Elements of which the basis set has valence
        electrons alone have its effective core potential."""
        atoms, numbers = geometry.atom(), geometry.numbers
        n_real = len(numbers) - (geometry.whole_number("ghosts") or 0)
        charge = geometry.whole_number("charge")
        charge = self.charge if charge is None else charge
        spin = geometry.whole_number("spin")
        spin = self.spin if spin is None else spin
        n_electrons = int(numbers[:n_real].sum()) - charge
        ghosts = [(f"ghost-{ELEMENTS[z]}", r) for z, r in atoms[n_real:]]
        elements = set(numbers[:n_real].tolist())
        return gto.M(
            atom=[*atoms[:n_real], *ghosts],
            basis=self.basis,
            ecp={ELEMENTS[z]: self.basis for z in elements if needs_ecp(z, self.basis)},
            charge=charge,
            spin=n_electrons % 2 if spin is None else spin,
            verbose=0,
        )

    def scf(self, mol: gto.Mole) -> scf.hf.SCF:
        if self.xc.lower() == "hf":
            mf = scf.UHF(mol) if self.unrestricted else scf.HF(mol)
        else:
            mf = (dft.UKS if self.unrestricted else dft.KS)(mol, xc=self.xc)
        if self.density_fit:
            mf = mf.density_fit()
        if self.solvent:
            mf = getattr(mf, self.solvent)()
        if self.solvent == "SMD":
            mf.with_solvent.solvent = "water"
        mf.conv_tol = self.conv_tol or mf.conv_tol
        mf.conv_tol_grad = self.conv_tol_grad
        return mf


@dataclass
class SCFRun:
    """One SCF from one guess.

    Attributes:
        cycles: that PySCF prints.
        full_builds: Fock matrices of the SCF's own kind, the first one and the check after
            convergence included.
        guess_fitted_builds: cheaper ones in the guess (fitted integrals, coarse grid).
        corrected: fitted ones of the corrected cycles, for each of the SCF's cycles; one more is
            made where there are any, of PySCF's density.
        guess_seconds, scf_seconds: wall-clock time.
        own_seconds: of it the guess's and all corrected cycles', without the two-electron integrals
            that a guess makes for the SCF; None of other SCFs.
        gradient: norm of the orbital gradient in each cycle, hartree.
        times: seconds from the beginning of the guess to the end of each cycle.
        focks: Fock matrix of each cycle, without extrapolation.
        hamiltonian: converged Fock matrix.
        in_memory: whether the SCF held two-electron integrals.
        peak_memory: most that the process held more than before, MB; None where it is not known.
    """

    init: str
    converged: bool
    energy: float
    cycles: int
    full_builds: int
    guess_fitted_builds: int
    corrected: list[int]
    guess_seconds: float
    scf_seconds: float
    gradient: list[float]
    times: list[float]
    focks: list[np.ndarray]
    hamiltonian: np.ndarray
    own_seconds: float | None = None
    in_memory: bool = False
    peak_memory: float | None = None

    @property
    def seconds(self) -> float:
        return self.guess_seconds + self.scf_seconds

    def to_row(self) -> dict:
        names = ("converged", "energy", "cycles", "full_builds", "guess_fitted_builds",
                 "corrected", "guess_seconds", "scf_seconds", "own_seconds",
                 "gradient", "times", "in_memory", "peak_memory")  # fmt: skip
        return {name: getattr(self, name) for name in names}


def run_scf(
    mf: scf.hf.SCF, init: str, dm: np.ndarray, guess_seconds: float, fitted: int, memory: PeakMemory
) -> SCFRun:
    """An SCF from ``dm``, for which fitted Fock matrices were built; recorded.

    Args:
        memory: since the beginning of the guess.
    """
    gradient: list[float] = []
    times: list[float] = []
    focks: list[np.ndarray] = []

    def record(envs):
        gradient.append(float(envs["norm_gorb"]))
        times.append(guess_seconds + time.perf_counter() - started)
        focks.append(np.array(envs["fock"]))

    mf.callback = record
    started = time.perf_counter()
    mf.kernel(dm0=dm)
    seconds, most = time.perf_counter() - started, memory()
    return SCFRun(
        init=init,
        converged=bool(mf.converged),
        energy=float(mf.e_tot),
        cycles=len(gradient),
        full_builds=full_builds(mf),
        guess_fitted_builds=fitted,
        corrected=[len(cycle.fitted_gradients) for cycle in mf.deqh_cycles],
        guess_seconds=guess_seconds,
        scf_seconds=seconds,
        gradient=gradient,
        times=times,
        focks=focks,
        hamiltonian=np.asarray(mf.get_fock()),
        in_memory=bytes_of_integrals(mf) > 0,
        peak_memory=most,
    )


def run_classical(mol: gto.Mole, method: Method, init: str) -> SCFRun:
    """SCF from one of PySCF's guesses, or from something cheap.

    That is a converged SCF of PySCF's with density fitting and its coarsest grid (``cheap-scf``),
    or the guess that DEQH would make without its network (``no-network``).
    """
    if init == NO_NETWORK:
        options = method.options(AtomsStart(method.device), max_cycles=_ENOUGH_CYCLES)
        return run_guess(mol, method, init, options)[0]
    trim_memory()
    memory = PeakMemory()
    if keeps_integrals_without_pytorch(mol, method):
        mol = mol.copy(deep=False)
        mol.incore_anyway = True
    mf, fitted = method.scf(mol), 0
    started = time.perf_counter()
    if init == CHEAP_SCF:
        dm, fitted = _cheap_scf(mol, method)
    else:
        dm = mf.get_init_guess(mol, init)
    return run_scf(mf, init, dm, time.perf_counter() - started, fitted, memory)


def keeps_integrals_without_pytorch(mol: gto.Mole, method: Method) -> bool:
    """Whether PySCF would keep a molecule's two-electron integrals in a process of its own, which
    PyTorch makes larger; density fitting decides by other rules."""
    return not method.density_fit and integrals_fit(mol, _PLAIN_PROCESS, mol.max_memory)


def _cheap_scf(mol: gto.Mole, method: Method) -> tuple[np.ndarray, int]:
    """Density matrix and number of Fock matrices; the integrals are gone when it returns."""
    coarse = method.scf(mol).density_fit()
    if hasattr(coarse, "grids"):
        coarse.grids.level = 0
    coarse.conv_tol = 1e-5
    coarse.kernel()
    return coarse.make_rdm1(), full_builds(coarse)


def run_guess(mol: gto.Mole, method: Method, init: str, options: Options) -> tuple[SCFRun, Guess]:
    """SCF from a guess of this package, and the guess.

    The guess holds the SCF object and so its two-electron integrals, which leave other SCFs less
    memory.
    """
    trim_memory()
    memory = PeakMemory()
    mf = method.scf(mol)
    mf._deqh_guessed = True  # what PySCF says where it makes the guess
    started = time.perf_counter()
    guess = make_guess(mf, mol, options, mf.get_ovlp())
    seconds = time.perf_counter() - started
    run = run_scf(mf, init, guess.density_matrix, seconds, guess.report.fitted_builds, memory)
    corrected = sum(cycle.seconds for cycle in mf.deqh_cycles)
    own = guess.report.seconds.total - guess.report.seconds.integrals + corrected
    return replace(run, own_seconds=own), guess


def run_deqh(mol: gto.Mole, method: Method) -> tuple[SCFRun, Guess]:
    """SCF from the DEQH guess, and the guess."""
    return run_guess(mol, method, "deqh", method.options())
