"""SCF runs from different initial guesses, with cycles, Fock builds, seconds and errors counted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyscf import dft, gto, scf

from ..checkpoint import DEFAULT_MODEL
from ..data.geometry import Geometry
from ..fock.cycles import Cycles, run_cycles
from ..fock.fitted import FittedFock
from ..fock.reference import sad_reference, superposed_atomic_density
from ..guess import MAX_CYCLES, Guess, Options, density_of, make_guess
from ..process import one_blas_thread

CLASSICAL = ("1e", "minao", "atom", "huckel", "sap", "vsap")
CHEAP_SCF = "cheap-scf"
# The cycles that DEQH makes after the network, from the reference Hamiltonian: no network.
CHEAP_CYCLES = "cheap-cycles"
INITS = (*CLASSICAL, CHEAP_SCF, CHEAP_CYCLES)
_ENOUGH_CYCLES = 20


@dataclass(frozen=True)
class Method:
    """What is computed: PySCF's defaults for everything that is not named here.

    Attributes:
        spin: number of unpaired electrons; as few as possible if it is None.
        density_fit: PySCF's ``density_fit()`` for the SCF itself.
    """

    xc: str = "b3lyp"
    basis: str = "def2-svp"
    model: str | Path = DEFAULT_MODEL
    device: str = "auto"
    max_cycles: int = MAX_CYCLES
    exact_build: bool = True
    charge: int = 0
    spin: int | None = None
    density_fit: bool = False

    @property
    def details(self) -> dict[str, Any]:
        """What results of several runs have to agree in, beside the model."""
        names = ("xc", "basis", "charge", "spin", "density_fit")
        return {name: getattr(self, name) for name in names}

    def molecule(self, geometry: Geometry) -> gto.Mole:
        n_electrons = int(geometry.numbers.sum()) - self.charge
        spin = n_electrons % 2 if self.spin is None else self.spin
        return gto.M(
            atom=geometry.atom(), basis=self.basis, charge=self.charge, spin=spin, verbose=0
        )

    def scf(self, mol: gto.Mole) -> scf.hf.SCF:
        mf = scf.HF(mol) if self.xc.lower() == "hf" else dft.KS(mol, xc=self.xc)
        return mf.density_fit() if self.density_fit else mf


@dataclass
class SCFRun:
    """One SCF from one guess.

    Attributes:
        cycles: index of the last cycle, counted from 0 as in the paper's benchmark: PySCF prints
            one more.
        fock_builds: all Fock matrices built in the SCF (the first one and the check after
            convergence included).
        guess_exact_builds: those of the SCF's own kind hidden in the guess.
        guess_cheap_builds: cheaper ones in the guess (fitted integrals, coarse grid).
        guess_seconds, scf_seconds: wall-clock time.
        gradient: norm of the orbital gradient in each cycle, hartree.
        focks: Fock matrix of each cycle, without extrapolation.
        hamiltonian: converged Fock matrix.
    """

    init: str
    converged: bool
    energy: float
    cycles: int
    fock_builds: int
    guess_exact_builds: int
    guess_cheap_builds: int
    guess_seconds: float
    scf_seconds: float
    gradient: list[float]
    focks: list[np.ndarray]
    hamiltonian: np.ndarray

    @property
    def seconds(self) -> float:
        return self.guess_seconds + self.scf_seconds

    @property
    def exact_builds(self) -> int:
        """Fock matrices of the SCF's own kind, the guess's included."""
        return self.fock_builds + self.guess_exact_builds

    @property
    def all_fock_builds(self) -> int:
        return self.exact_builds + self.guess_cheap_builds

    def to_row(self) -> dict:
        names = ("converged", "energy", "cycles", "fock_builds", "guess_exact_builds",
                 "guess_cheap_builds", "guess_seconds", "scf_seconds", "gradient")  # fmt: skip
        return {name: getattr(self, name) for name in names}


def run_scf(
    mf: scf.hf.SCF, init: str, dm: np.ndarray, guess_seconds: float, exact: int, cheap: int
) -> SCFRun:
    """An SCF from ``dm``, for which ``exact`` and ``cheap`` Fock matrices were built; recorded."""
    gradient: list[float] = []
    focks: list[np.ndarray] = []

    def record(envs):
        gradient.append(float(envs["norm_gorb"]))
        focks.append(np.array(envs["fock"]))

    mf.callback = record
    started = time.perf_counter()
    mf.kernel(dm0=dm)
    seconds = time.perf_counter() - started
    return SCFRun(
        init=init,
        converged=bool(mf.converged),
        energy=float(mf.e_tot),
        cycles=len(gradient) - 1,
        fock_builds=len(gradient) + 1 + bool(mf.converged and mf.conv_check),
        guess_exact_builds=exact,
        guess_cheap_builds=cheap,
        guess_seconds=guess_seconds,
        scf_seconds=seconds,
        gradient=gradient,
        focks=focks,
        hamiltonian=np.asarray(mf.get_fock()),
    )


def run_classical(mol: gto.Mole, method: Method, init: str) -> SCFRun:
    """SCF from one of PySCF's guesses, or from something cheap.

    That is a converged SCF of PySCF's with density fitting and its coarsest grid (``cheap-scf``),
    or the guess that DEQH would make without its network (``cheap-cycles``).
    """
    mf = method.scf(mol)
    exact, cheap = 0, 0
    started = time.perf_counter()
    if init == CHEAP_SCF:
        dm, cheap = _cheap_scf(mol, method)
    elif init == CHEAP_CYCLES:
        dm, exact, cheap = _without_network(mf, mol, method.exact_build)
    else:
        dm = mf.get_init_guess(mol, init)
    return run_scf(mf, init, dm, time.perf_counter() - started, exact, cheap)


def _cheap_scf(mol: gto.Mole, method: Method) -> tuple[np.ndarray, int]:
    """Density matrix and number of Fock matrices; the integrals are gone when it returns."""
    coarse = method.scf(mol).density_fit()
    if hasattr(coarse, "grids"):
        coarse.grids.level = 0
    coarse.conv_tol = 1e-5
    coarse.kernel()
    builds = coarse.cycles + 1 + bool(coarse.converged and coarse.conv_check)
    return coarse.make_rdm1(), builds


def _without_network(
    mf: scf.hf.SCF, mol: gto.Mole, exact_build: bool
) -> tuple[np.ndarray, int, int]:
    """Density matrix, exact and cheap Fock matrices of DEQH's guess from the reference alone."""
    with one_blas_thread():
        fitted = FittedFock(mol)
        cycles = Cycles(sad_reference(mol, superposed_atomic_density(mol), fitted))
    run_cycles(cycles, mf, mol, fitted, _ENOUGH_CYCLES, exact_build)
    with one_blas_thread():
        density = density_of(cycles, mf, mol)
    return density, cycles.exact_builds, 1 + cycles.cheap_builds


def run_deqh(mol: gto.Mole, method: Method) -> tuple[SCFRun, Guess]:
    """SCF from the DEQH guess, and the guess."""
    mf = method.scf(mol)
    options = Options(
        method.model, method.device, max_cycles=method.max_cycles, exact_build=method.exact_build
    )
    guess = make_guess(mf, mol, options)
    run = run_scf(mf, "deqh", guess.density_matrix, guess.seconds,
                  guess.cycles.exact_builds, guess.cheap_builds)  # fmt: skip
    return run, guess
