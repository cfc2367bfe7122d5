"""The initial guess ``deqh`` in PySCF.

Three ways to the same guess: ``mf.init_guess = 'deqh'`` after ``import pyscf_deqh``,
``mf.apply(deqh_guess)`` for one SCF object with a model or device of its own, and
``init_guess_by_deqh(mol)`` for the density matrix alone.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
from pyscf.lib import logger
from pyscf.scf import ghf, hf, rohf, uhf

from .checkpoint import DEFAULT_MODEL, list_models, resolve_model
from .errors import CheckpointError, ConfigError, UnsupportedMoleculeError
from .fock.cycles import Cycles, projected_orbitals, run_cycles
from .fock.shells import Shells, breaks_spin_symmetry
from .graph.basis import check_basis
from .predict import Prediction, cached_model, predict_with_integrals, resolve_device
from .process import one_blas_thread

if TYPE_CHECKING:
    from pyscf.gto import Mole

    from .fock.fitted import FittedFock

KEY = "deqh"
ON_UNSUPPORTED = ("raise", "minao")
MAX_CYCLES = 8
# With their subclasses all molecular ones but those of spinors.
_CLASSES = (hf.RHF, uhf.UHF, rohf.ROHF, ghf.GHF)


@dataclass(frozen=True)
class Options:
    """What :func:`deqh_guess` attaches to an SCF object."""

    model: str | Path = DEFAULT_MODEL
    device: str = "auto"
    on_unsupported: str = "raise"
    max_cycles: int = MAX_CYCLES
    exact_build: bool = True


# For objects that only name the guess: a screening run must go on past a molecule no model knows.
_BY_NAME = Options(on_unsupported="minao")


def _eigenvectors(mf: hf.SCF, mol: Mole, hamiltonian: np.ndarray) -> tuple[Any, Any]:
    """``mf``'s own orbital energies and orbitals of a spatial Hamiltonian (nao, nao), or, if it is
    unrestricted, of one for each spin (2, nao, nao)."""
    overlap = mf.get_ovlp(mol)
    if isinstance(mf, ghf.GHF):
        zero = np.zeros_like(hamiltonian)
        hamiltonian = np.block([[hamiltonian, zero], [zero, hamiltonian]])
    same = isinstance(mf, uhf.UHF) and hamiltonian.ndim == 2
    fock = (hamiltonian, hamiltonian) if same else hamiltonian
    if hasattr(mf, "check_linear_dependency"):  # PySCF >= 2.10
        return mf.eig(fock, overlap, x=mf.check_linear_dependency(overlap, logger.new_logger(mf)))
    return mf.eig(fock, overlap)


def guess_density(mf: hf.SCF, mol: Mole, hamiltonian: np.ndarray) -> np.ndarray:
    """Density matrix of a Hamiltonian in the form that ``mf``'s class starts from.

    Args:
        mf: the SCF object.
        mol: the molecule that it starts from.
        hamiltonian: (nao, nao), or (2, nao, nao) of either spin if ``mf`` is unrestricted; hartree.
    """
    mo_energy, mo_coeff = _eigenvectors(mf, mol, hamiltonian)
    mo_occ = mf.get_occ(mo_energy, mo_coeff)
    dm = mf.make_rdm1(mo_coeff, mo_occ)
    if breaks_spin_symmetry(mf, mol):
        dm = np.asarray(uhf._break_dm_spin_symm(mol, dm, mf.init_guess_breaksym))
    return dm


def density_of(cycles: Cycles, mf: hf.SCF, mol: Mole) -> np.ndarray:
    """Density matrix of a Hamiltonian in ``mf``'s basis set after its cycles, in the form that
    ``mf``'s class starts from; minao's where the cycles ended far from a solution."""
    if cycles.lost(mol):
        return mf.get_init_guess(mol, key="minao")
    return guess_density(mf, mol, cycles.hamiltonian)


@dataclass
class Guess:
    """An initial guess and how it came about.

    Attributes:
        density_matrix: in the form that the SCF's class starts from.
        prediction: the network's.
        cycles: those after the network, whose Hamiltonian's orbitals the guess fills.
        seconds: all of the guess.
        refine_seconds, orbital_seconds: cheap and corrected cycles; diagonalization and density.
    """

    density_matrix: np.ndarray
    prediction: Prediction
    cycles: Cycles
    seconds: float
    refine_seconds: float
    orbital_seconds: float

    @property
    def cheap_builds(self) -> int:
        """Fitted Fock matrices, the reference included."""
        return self.prediction.fock_builds + self.cycles.cheap_builds


def _in_basis(mol: Mole, basis: str, numbers: tuple[int, ...]) -> Mole:
    """The molecule itself, or a copy of it, in a model's basis set.

    Raises:
        UnsupportedMoleculeError: other elements than the model's.
    """
    try:
        check_basis(mol, basis, numbers)
    except UnsupportedMoleculeError:
        # The basis set may not even have an element that the model does not know.
        if mol.has_ecp() or not set(mol.atom_charges().tolist()) <= set(numbers):
            raise
        other = mol.copy(deep=False)
        # The atoms as they are now: the input may be the name of a file that has changed since.
        other.atom = [(mol.atom_symbol(i), r) for i, r in enumerate(mol.atom_coords())]
        other.unit, other.symmetry, other.output = "Bohr", False, None
        other.basis, other.cart, other.verbose = basis, False, 0
        other.build(dump_input=False, parse_arg=False)
        check_basis(other, basis, numbers)
        return other
    return mol


def _project(mf: hf.SCF, mol: Mole, smaller: Mole, hamiltonian: np.ndarray) -> np.ndarray:
    """Density matrix in ``mol``'s basis set of a Hamiltonian in another one."""
    orbitals = projected_orbitals(mol, smaller, hamiltonian, Shells.of(mf, mol))
    densities = [c @ c.T for c in orbitals]
    if isinstance(mf, ghf.GHF):
        return scipy.linalg.block_diag(*densities)
    if isinstance(mf, (uhf.UHF, rohf.ROHF)):
        return np.array(densities)
    return sum(densities)


def _check_class(mf: hf.SCF) -> None:
    if not isinstance(mf, _CLASSES):
        kind = f"{type(mf).__module__}.{type(mf).__name__}"
        known = ", ".join(c.__name__ for c in _CLASSES)
        raise UnsupportedMoleculeError(
            f"no guess for {kind}, which is none of PySCF's molecular classes {known}"
        )


def make_guess(mf: hf.SCF, mol: Mole, options: Options) -> Guess:
    """Predict, refine, and fill the orbitals; minao's density where that came to nothing.

    Raises:
        UnsupportedMoleculeError: ``mf`` is of another class, or see :func:`predict_hamiltonian`.
        CheckpointError, ConfigError: see :func:`predict_hamiltonian`.
    """
    from .graph.build import check_molecule

    started = time.perf_counter()
    _, spec = cached_model(options.model, resolve_device(options.device))
    check_molecule(mol)
    _check_class(mf)
    own = _in_basis(mol, spec.basis, spec.template.numbers)
    with one_blas_thread():
        prediction, fitted = predict_with_integrals(own, options.model, options.device)
    predicted = time.perf_counter()
    cycles = _refine(prediction, mf, mol, options, fitted)
    refined = time.perf_counter()
    with one_blas_thread():
        density = _density(prediction, cycles, mf, mol, own)
    now = time.perf_counter()
    seconds = refined - predicted - cycles.exact_seconds
    return Guess(density, prediction, cycles, now - started, seconds, now - refined)


def _refine(
    prediction: Prediction, mf: hf.SCF, mol: Mole, options: Options, fitted: FittedFock
) -> Cycles:
    """The cycles after the network, as far as there is memory for them."""
    import torch

    from .fock.fitted import FittedFock

    cycles, notes = Cycles(prediction.hamiltonian), prediction.notes
    if not options.max_cycles:
        return cycles
    try:
        run_cycles(cycles, mf, mol, fitted, options.max_cycles, options.exact_build)
    except torch.OutOfMemoryError:
        if fitted.device.type == "cpu":
            raise
        notes.append(f"{fitted.device} ran out of memory: cycles on the CPU")
        return _refine(prediction, mf, mol, options, FittedFock(fitted.mol, "cpu"))
    except UnsupportedMoleculeError as error:
        notes.append(f"{'corrected' if cycles.gradients else 'cheap'} cycles left out: {error}")
    return cycles


def _density(
    prediction: Prediction, cycles: Cycles, mf: hf.SCF, mol: Mole, own: Mole
) -> np.ndarray:
    notes = prediction.notes
    if cycles.lost(mol):
        gradients = cycles.all_gradients
        notes.append(
            f"the orbital gradient is still {gradients[-1]:.1g} hartree after {len(gradients)} "
            "cycles: the minao guess is used instead"
        )
    elif own is not mol:
        notes.append(f"predicted in {own.basis} and projected")
        if not cycles.corrected_gradients:
            return _project(mf, mol, own, cycles.hamiltonian)
    return density_of(cycles, mf, mol)


def _guess(mf: hf.SCF, mol: Mole, options: Options) -> np.ndarray:
    log = logger.new_logger(mf)
    guess = make_guess(mf, mol, options)
    prediction, cycles = guess.prediction, guess.cycles
    for note in prediction.notes:
        log.note("DEQH guess: %s", note)
    log.info(
        "Initial guess from DEQH model %s on %s: %d iterations, residual %.1e, %d cheap cycles, "
        "%d exact Fock matrix, %d corrected cycles, %.2f s (overlap and reference %.2f, network "
        "%.2f, cycles %.2f, exact Fock matrix %.2f, orbitals %.2f)",
        prediction.model, prediction.device, prediction.iterations, prediction.residual,
        len(cycles.gradients), cycles.exact_builds, len(cycles.corrected_gradients), guess.seconds,
        prediction.graph_seconds, prediction.network_seconds, guess.refine_seconds,
        cycles.exact_seconds, guess.orbital_seconds,
    )  # fmt: skip
    return guess.density_matrix


def deqh_guess(
    mf: hf.SCF,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    on_unsupported: str = "raise",
    max_cycles: int = MAX_CYCLES,
    exact_build: bool = True,
) -> hf.SCF:
    """Make an SCF object start from the DEQH guess: ``scf.RKS(mol).apply(deqh_guess).run()``.

    Args:
        mf: any molecular SCF object of PySCF; it is changed and returned.
        model: name of a bundled model, or folder of an exported one.
        device: ``'auto'``, ``'cpu'``, ``'cuda'`` …
        on_unsupported: what to do about a molecule that the model cannot describe: ``'raise'``
            an :class:`~pyscf_deqh.UnsupportedMoleculeError`, or warn and use ``'minao'``.
        max_cycles: limit of cheap SCF cycles after the network (fitted integrals, coarse grid, the
            SCF's own functional); they stop as soon as they have no more to give. 0: the network
            alone.
        exact_build: build one of the SCF's own Fock matrices after these cycles, and correct
            further ones by it; the time of one SCF cycle for several saved. Not for GHF, not for
            singlets of UHF, whose spin symmetry PySCF breaks, and not where ``irrep_nelec`` is set.

    Raises:
        ConfigError: ``on_unsupported`` is neither, or ``max_cycles`` is negative.
        CheckpointError: there is no such model.
        UnsupportedMoleculeError: the object is no molecular SCF of PySCF's with spatial orbitals
            (spinors, gpu4pyscf), and ``on_unsupported`` is ``'raise'``.
    """
    if on_unsupported not in ON_UNSUPPORTED:
        raise ConfigError(f"on_unsupported must be one of {ON_UNSUPPORTED}, not {on_unsupported!r}")
    if max_cycles < 0:
        raise ConfigError(f"max_cycles must not be negative, it is {max_cycles}")
    folder = resolve_model(model)
    if str(model) not in list_models():
        model = folder  # absolute: the process may change its directory
    if on_unsupported == "raise":
        _check_class(mf)
    mf.init_guess = KEY
    mf._deqh = Options(model, device, on_unsupported, max_cycles, exact_build)
    return mf


def init_guess_by_deqh(
    mol: Mole, model: str | Path = DEFAULT_MODEL, device: str = "auto", xc: str = "b3lyp"
) -> np.ndarray:
    """Density matrix (nao, nao) of both spins; tagged with orbitals for a closed shell.

    The plain function beside ``pyscf.scf.hf.init_guess_by_minao``; ``xc`` is the functional of the
    cycles after the network, or ``hf``. One of PySCF's own Fock matrices is built, for restricted
    orbitals, see :func:`deqh_guess`.

    Raises:
        UnsupportedMoleculeError, CheckpointError, ConfigError: see :func:`predict_hamiltonian`.
    """
    from pyscf import dft, scf

    mf = scf.RHF(mol) if xc.lower() == "hf" else dft.RKS(mol, xc=xc)
    mf.verbose = 0
    dm = make_guess(mf, mol, Options(model, device)).density_matrix
    return dm if dm.ndim == 2 else dm[0] + dm[1]


def register() -> None:
    """Make PySCF's SCF classes know the key ``'deqh'``. Called when the package is imported."""
    original = hf.SCF.get_init_guess
    if original.__module__ == __name__:
        return

    @functools.wraps(original, assigned=("__doc__", "__name__", "__qualname__"))
    def get_init_guess(self, mol=None, key="minao", **kwargs):
        if isinstance(key, str) and key.lower() == KEY:
            options = getattr(self, "_deqh", _BY_NAME)
            try:
                return _guess(self, self.mol if mol is None else mol, options)
            except (UnsupportedMoleculeError, CheckpointError) as error:
                if options.on_unsupported == "raise":
                    raise
                log = logger.new_logger(self)
                log.warn("No DEQH guess: %s. The minao guess is used instead.", error)
                key = "minao"
        return original(self, mol, key, **kwargs)

    # Every molecular SCF class comes here for its guess, through subclasses or by name.
    hf.SCF.get_init_guess = get_init_guess
