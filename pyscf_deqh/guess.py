"""The initial guess ``deqh`` in PySCF.

Three ways to the same guess: ``mf.init_guess = 'deqh'`` after ``import pyscf_deqh``,
``mf.apply(deqh_guess)`` for one SCF object with a model or device of its own, and
``init_guess_by_deqh(mol)`` for the density matrix alone.
"""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
from pyscf.lib import logger
from pyscf.scf import addons, ghf, hf, rohf, uhf
from threadpoolctl import ThreadpoolController

from .ao import check_basis
from .checkpoint import DEFAULT_MODEL, ModelSpec, load_model, resolve_model
from .errors import CheckpointError, ConfigError, UnsupportedMoleculeError
from .orbitals import orthonormal_basis, solve_roothaan

if TYPE_CHECKING:
    from pyscf.gto import Mole

    from .fitted import FittedFock
    from .nn.deqh import DEQH

KEY = "deqh"
ON_UNSUPPORTED = ("raise", "minao")
MAX_CYCLES = 8
# Orbital gradient (hartree, norm per root of an electron pair) below which the fitted Fock matrices
# have no more to give: their own error is of this size.
_TOLERANCE = 4e-4
# The same where an exact Fock matrix follows: its correction holds in a neighbourhood of this size.
_NEAR = 4e-3
_MAX_CORRECTED = 12
# A guess whose gradient is still above this after the cheap cycles (as above) goes nowhere; minao's
# own is 0.1 to 0.2, the network's 0.004 to 0.02.
_GUARD = 0.05


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


@dataclass
class Prediction:
    """A solved Hamiltonian and how it was reached.

    Attributes:
        hamiltonian: (nao, nao) float64, hartree, PySCF's AO order.
        model: name or folder of the model.
        device: where the network ran.
        iterations, residual: of the fixed point; the residual is relative.
        fock_builds: Fock matrices built for the reference.
        graph_seconds, network_seconds: overlap, reference and features; the fixed point.
        notes: what was done differently from what was asked, one sentence each.
        fitted: builds further Fock matrices of the molecule from the reference's integrals.
    """

    hamiltonian: np.ndarray
    model: str
    device: str
    iterations: int
    residual: float
    fock_builds: int
    graph_seconds: float
    network_seconds: float
    notes: list[str]
    fitted: FittedFock


@functools.lru_cache(maxsize=4)
def _load_once(folder: Path, device: str, modified: int) -> tuple[DEQH, ModelSpec]:
    return load_model(folder, device)


def _cached_model(model: str | Path, device: str) -> tuple[DEQH, ModelSpec]:
    """A model is loaded once per process, and again once it was exported anew."""
    folder = resolve_model(model)
    return _load_once(folder, device, (folder / "config.json").stat().st_mtime_ns)


def _resolve_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}: {error}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but PyTorch sees no GPU")
    return device


def predict_hamiltonian(
    mol: Mole,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    initial: np.ndarray | None = None,
) -> Prediction:
    """Solve a model's fixed point for a molecule.

    Args:
        mol: a built molecule in the model's basis set. Models are trained on neutral closed
            shells; charge and spin change the occupation, not the prediction's kind.
        model: name of a bundled model, or folder of an exported one.
        device: ``'auto'`` (a GPU where PyTorch sees one), ``'cpu'``, ``'cuda'`` …
        initial: (nao, nao) Hamiltonian in hartree that the iteration starts from (the Fock matrix
            of PySCF's own guess, say), instead of what the model's configuration names.

    Raises:
        UnsupportedMoleculeError: the model cannot describe the molecule.
        CheckpointError: no such model, or a damaged one.
        ConfigError: no such device.
    """
    import torch

    device = _resolve_device(device)
    try:
        return _predict(mol, model, device, initial)
    except torch.OutOfMemoryError:
        prediction = _predict(mol, model, "cpu", initial)
        prediction.notes.append(f"{device} ran out of memory: solved on the CPU")
        return prediction


def _predict(mol: Mole, model: str | Path, device: str, initial: np.ndarray | None) -> Prediction:
    import torch

    from .data.graph import build_graph, check_molecule
    from .fitted import FittedFock
    from .graph import collate

    network, spec = _cached_model(model, device)
    check_molecule(mol)
    check_basis(mol, spec.basis, spec.template.numbers)
    started = time.perf_counter()
    fitted = FittedFock(mol, device)
    graph = build_graph(mol, spec.reference, fitted=fitted)
    batch = collate([graph], spec.template, spec.backbone.cutoff_bohr)
    start = None
    if initial is not None:
        if initial.shape != graph.overlap.shape:
            raise UnsupportedMoleculeError(
                f"initial has shape {initial.shape}, the molecule has {graph.nao} orbitals"
            )
        start = torch.as_tensor(initial, dtype=batch.overlap.dtype)[None].to(device)
    built = time.perf_counter()
    with torch.no_grad():
        solution = network(batch.to(device), start)
    # The network's correction is in single precision; the reference keeps its double precision.
    difference = (solution.hamiltonian.cpu() - batch.reference)[0].double().numpy()
    hamiltonian = graph.reference + difference
    if not np.isfinite(hamiltonian).all():
        raise UnsupportedMoleculeError("the network returned NaN for this molecule")
    return Prediction(
        hamiltonian=(hamiltonian + hamiltonian.T) / 2,
        model=str(model),
        device=device,
        iterations=int(solution.iterations[0]),
        residual=float(solution.residual[0]),
        fock_builds=0 if spec.reference == "none" else 1,
        graph_seconds=built - started,
        network_seconds=time.perf_counter() - built,
        notes=[],
        fitted=fitted,
    )


def _eigenvectors(mf: hf.SCF, hamiltonian: np.ndarray) -> tuple[Any, Any]:
    """``mf``'s own orbital energies and orbitals of one spatial Hamiltonian."""
    overlap = mf.get_ovlp()
    if isinstance(mf, ghf.GHF):
        zero = np.zeros_like(hamiltonian)
        hamiltonian = np.block([[hamiltonian, zero], [zero, hamiltonian]])
    fock = (hamiltonian, hamiltonian) if isinstance(mf, uhf.UHF) else hamiltonian
    if hasattr(mf, "check_linear_dependency"):  # PySCF >= 2.10
        return mf.eig(fock, overlap, x=mf.check_linear_dependency(overlap, logger.new_logger(mf)))
    return mf.eig(fock, overlap)


def guess_density(mf: hf.SCF, mol: Mole, hamiltonian: np.ndarray) -> np.ndarray:
    """Density matrix of a Hamiltonian (nao, nao) in the form that ``mf``'s class starts from."""
    mo_energy, mo_coeff = _eigenvectors(mf, hamiltonian)
    mo_occ = mf.get_occ(mo_energy, mo_coeff)
    dm = mf.make_rdm1(mo_coeff, mo_occ)
    if isinstance(mf, uhf.UHF) and mol.spin == 0 and mf.init_guess_breaksym:
        # PySCF breaks the spin symmetry of every guess of a UHF singlet; so is it asked here.
        dm = np.asarray(uhf._break_dm_spin_symm(mol, dm, mf.init_guess_breaksym))
    return dm


@dataclass
class Guess:
    """An initial guess and how it came about.

    Attributes:
        density_matrix: in the form that the SCF's class starts from.
        prediction: the network's.
        hamiltonian: (nao, nao) hartree, whose orbitals the guess fills; in the basis set of the
            model or, after corrected cycles, of the SCF.
        gradients: norm of the orbital gradient (hartree) at each cheap cycle.
        corrected_gradients: the same at each cycle after the exact Fock matrix; empty without it.
        seconds: all of the guess.
        refine_seconds, exact_seconds, orbital_seconds: all cheap cycles; the exact Fock matrix;
            diagonalization and density.
    """

    density_matrix: np.ndarray
    prediction: Prediction
    hamiltonian: np.ndarray
    gradients: list[float]
    corrected_gradients: list[float]
    seconds: float
    refine_seconds: float
    exact_seconds: float
    orbital_seconds: float

    @property
    def all_gradients(self) -> list[float]:
        """Those of the cheap and of the corrected cycles."""
        return self.gradients + self.corrected_gradients

    @property
    def cheap_builds(self) -> int:
        """Fitted Fock matrices, the reference included."""
        # The corrected cycles start with one for the density of the exact Fock matrix.
        corrected = len(self.corrected_gradients) + 1 if self.corrected_gradients else 0
        return self.prediction.fock_builds + len(self.gradients) + corrected

    @property
    def exact_builds(self) -> int:
        """Fock matrices that cost as much as the SCF's own."""
        return int(bool(self.corrected_gradients))


def _in_basis(mol: Mole, basis: str, numbers: tuple[int, ...]) -> Mole:
    """The molecule itself, or a copy of it, in a model's basis set.

    Raises:
        UnsupportedMoleculeError: other elements than the model's.
    """
    try:
        check_basis(mol, basis, numbers)
    except UnsupportedMoleculeError:
        if mol.has_ecp():
            raise
        other = mol.copy(deep=False)
        other.basis, other.cart, other.verbose = basis, False, 0
        other.build(dump_input=False, parse_arg=False)
        check_basis(other, basis, numbers)
        return other
    return mol


def _projected_orbitals(mol: Mole, smaller: Mole, hamiltonian: np.ndarray) -> list[np.ndarray]:
    """Occupied orbitals (nao, k) of either spin in ``mol``'s basis set, from a Hamiltonian in
    another one; orthonormal."""
    coefficients = solve_roothaan(hamiltonian, smaller.intor_symmetric("int1e_ovlp"))[1]
    overlap = mol.intor_symmetric("int1e_ovlp")
    projected = []
    for n_electrons in mol.nelec:
        occupied = addons.project_mo_nr2nr(smaller, coefficients[:, :n_electrons], mol)
        # A projection shortens orbitals and tilts them towards each other.
        metric = occupied.T @ overlap @ occupied
        projected.append(occupied @ orthonormal_basis(metric))
    return projected


def _project(mf: hf.SCF, mol: Mole, smaller: Mole, hamiltonian: np.ndarray) -> np.ndarray:
    """Density matrix in ``mol``'s basis set of a Hamiltonian in another one."""
    densities = [c @ c.T for c in _projected_orbitals(mol, smaller, hamiltonian)]
    if isinstance(mf, ghf.GHF):
        return scipy.linalg.block_diag(*densities)
    if isinstance(mf, (uhf.UHF, rohf.ROHF)):
        return np.array(densities)
    return sum(densities)


@functools.lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


def one_blas_thread() -> AbstractContextManager:
    """Limits NumPy's and SciPy's threads: after each of the small products of a guess they would go
    on spinning beside PySCF's and PyTorch's, which made a cheap cycle two to three times slower."""
    return _blas().limit(limits=1)


def _functional(mf: hf.SCF) -> str:
    return getattr(mf, "xc", "hf")


def cheap_cycles(
    mf: hf.SCF,
    mol: Mole,
    fitted: FittedFock,
    hamiltonian: np.ndarray,
    max_cycles: int,
    tolerance: float = _TOLERANCE,
) -> tuple[np.ndarray, list[float]]:
    """Cycles in ``mf``'s own functional with fitted Fock matrices.

    Args:
        mf: whose one-electron Hamiltonian and functional are taken.
        mol: the molecule of ``fitted``, perhaps in another basis set than ``mf``'s.
        fitted: builds the Fock matrices.
        hamiltonian: (nao, nao) hartree, whose orbitals are the first.
        max_cycles: at least one.
        tolerance: of the orbital gradient, hartree per root of an electron pair.

    Returns:
        Hamiltonian (nao, nao), and the norm of the orbital gradient in each cycle; both hartree.

    Raises:
        UnsupportedMoleculeError: exact exchange does not fit into memory.
    """
    from .refine import refine

    overlap = mol.intor_symmetric("int1e_ovlp")
    hcore = np.asarray(mf.get_hcore(mol))
    if hcore.shape != overlap.shape or np.iscomplexobj(hcore):
        hcore = np.asarray(hf.get_hcore(mol))
    xc = _functional(mf)
    result = refine(
        lambda orbitals: fitted(hcore, orbitals, xc)[0], overlap, mol.nelectron, hamiltonian,
        max_cycles, tolerance * _scale(mol), abs(mol.spin),
    )  # fmt: skip
    return result.hamiltonian, result.gradients


def takes_exact_build(mf: hf.SCF, mol: Mole) -> bool:
    """Whether :func:`corrected_cycles` are made for ``mf``: closed shells alone."""
    return mol is mf.mol and isinstance(mf, hf.RHF) and not isinstance(mf, rohf.ROHF)


def corrected_cycles(
    mf: hf.SCF, fitted: FittedFock, orbitals: np.ndarray
) -> tuple[np.ndarray, list[float], float]:
    """One of ``mf``'s own Fock matrices, and cycles with fitted differences from it.

    They end where ``mf`` would: at its convergence threshold of the orbital gradient. Integration
    grid and integrals that ``mf`` makes here serve its SCF as well.

    Args:
        mf: a closed-shell SCF object.
        fitted: of ``mf``'s molecule, in ``mf``'s basis set.
        orbitals: (nao, k) doubly occupied, orthonormal; near the solution.

    Returns:
        Hamiltonian (nao, nao) in hartree, the norm of the orbital gradient in each cycle in
        hartree, and the seconds of ``mf``'s Fock matrix.

    Raises:
        UnsupportedMoleculeError: exact exchange does not fit into memory.
    """
    from .refine import refine

    scaled = np.sqrt(2) * orbitals
    density = scaled @ scaled.T
    with one_blas_thread():
        # First of all, because there may be too little memory for it.
        difference = fitted.differences(scaled, _functional(mf))
    started = time.perf_counter()
    fock = np.asarray(mf.get_fock(dm=density))
    exact_seconds = time.perf_counter() - started
    tolerance = mf.conv_tol_grad or float(np.sqrt(mf.conv_tol))
    with one_blas_thread():
        result = refine(
            lambda displaced: fock + difference(displaced), mf.get_ovlp(), 2 * orbitals.shape[1],
            fock, _MAX_CORRECTED, tolerance, density=density,
        )  # fmt: skip
    return result.hamiltonian, result.gradients, exact_seconds


def _scale(mol: Mole) -> float:
    """What makes gradient norms of small and large molecules comparable."""
    return float(np.sqrt(max(mol.nelectron // 2, 1)))


def make_guess(mf: hf.SCF, mol: Mole, options: Options) -> Guess:
    """Predict, refine, and fill the orbitals; minao's density where that came to nothing.

    Raises:
        UnsupportedMoleculeError, CheckpointError, ConfigError: see :func:`predict_hamiltonian`.
    """
    import torch

    from .data.graph import check_molecule

    started = time.perf_counter()
    _, spec = _cached_model(options.model, _resolve_device(options.device))
    check_molecule(mol)
    own = _in_basis(mol, spec.basis, spec.template.numbers)
    with one_blas_thread():
        prediction = predict_hamiltonian(own, options.model, options.device)
    guess = Guess(np.empty(0), prediction, prediction.hamiltonian, [], [], 0.0, 0.0, 0.0, 0.0)
    solved = time.perf_counter()
    if options.max_cycles:
        try:
            try:
                _refine(guess, mf, mol, own, options, prediction.device)
            except torch.OutOfMemoryError:
                prediction.notes.append(f"{prediction.device} ran out of memory: cycles on the CPU")
                _refine(guess, mf, mol, own, options, "cpu")
        except UnsupportedMoleculeError as error:
            prediction.notes.append(f"cheap cycles left out: {error}")
    refined = time.perf_counter()
    guess.refine_seconds = refined - solved - guess.exact_seconds
    with one_blas_thread():
        guess.density_matrix = _density(guess, mf, mol, own)
    now = time.perf_counter()
    guess.seconds, guess.orbital_seconds = now - started, now - refined
    return guess


def _refine(guess: Guess, mf: hf.SCF, mol: Mole, own: Mole, options: Options, device: str) -> None:
    """Cheap cycles from the prediction, then corrected ones where they are possible."""
    from .fitted import FittedFock

    prediction = guess.prediction
    fitted = prediction.fitted
    if device != prediction.device:
        fitted = FittedFock(own, device)
    exact = options.exact_build and takes_exact_build(mf, mol)
    with one_blas_thread():
        guess.hamiltonian, guess.gradients = cheap_cycles(
            mf, own, fitted, prediction.hamiltonian, options.max_cycles,
            _NEAR if exact else _TOLERANCE,
        )  # fmt: skip
    if not exact or _lost(guess, mol):
        return
    with one_blas_thread():
        if own is mol:
            overlap = mol.intor_symmetric("int1e_ovlp")
            orbitals = solve_roothaan(guess.hamiltonian, overlap)[1][:, : mol.nelectron // 2]
        else:
            fitted = FittedFock(mol, device)
            orbitals = _projected_orbitals(mol, own, guess.hamiltonian)[0]
    guess.hamiltonian, guess.corrected_gradients, guess.exact_seconds = corrected_cycles(
        mf, fitted, orbitals
    )


def _lost(guess: Guess, mol: Mole) -> bool:
    """Whether the last cycles ended far from a solution."""
    gradients = guess.all_gradients
    return bool(gradients) and not gradients[-1] < _GUARD * _scale(mol)


def _density(guess: Guess, mf: hf.SCF, mol: Mole, own: Mole) -> np.ndarray:
    notes = guess.prediction.notes
    if _lost(guess, mol):
        gradients = guess.all_gradients
        notes.append(
            f"the orbital gradient is still {gradients[-1]:.1g} hartree after {len(gradients)} "
            "cheap cycles: the minao guess is used instead"
        )
        return mf.get_init_guess(mol, key="minao")
    if own is not mol:
        notes.append(f"predicted in {own.basis} and projected")
    if own is mol or guess.corrected_gradients:
        return guess_density(mf, mol, guess.hamiltonian)
    return _project(mf, mol, own, guess.hamiltonian)


def _guess(mf: hf.SCF, mol: Mole, options: Options) -> np.ndarray:
    log = logger.new_logger(mf)
    guess = make_guess(mf, mol, options)
    prediction = guess.prediction
    for note in prediction.notes:
        log.note("DEQH guess: %s", note)
    log.info(
        "Initial guess from DEQH model %s on %s: %d iterations, residual %.1e, %d cheap cycles, "
        "%d exact Fock matrix, %d corrected cycles, %.2f s (overlap and reference %.2f, network "
        "%.2f, cycles %.2f, exact Fock matrix %.2f, orbitals %.2f)",
        prediction.model, prediction.device, prediction.iterations, prediction.residual,
        len(guess.gradients), guess.exact_builds, len(guess.corrected_gradients), guess.seconds,
        prediction.graph_seconds, prediction.network_seconds, guess.refine_seconds,
        guess.exact_seconds, guess.orbital_seconds,
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
        exact_build: for closed shells, build one of the SCF's own Fock matrices after these cycles,
            and correct further ones by it; the time of one SCF cycle for several saved.

    Raises:
        ConfigError: ``on_unsupported`` is neither, or ``max_cycles`` is negative.
        CheckpointError: there is no such model.
    """
    if on_unsupported not in ON_UNSUPPORTED:
        raise ConfigError(f"on_unsupported must be one of {ON_UNSUPPORTED}, not {on_unsupported!r}")
    if max_cycles < 0:
        raise ConfigError(f"max_cycles must not be negative, it is {max_cycles}")
    resolve_model(model)
    mf.init_guess = KEY
    mf._deqh = Options(model, device, on_unsupported, max_cycles, exact_build)
    return mf


def init_guess_by_deqh(
    mol: Mole, model: str | Path = DEFAULT_MODEL, device: str = "auto", xc: str = "b3lyp"
) -> np.ndarray:
    """Density matrix (nao, nao) of both spins; tagged with orbitals for a closed shell.

    The plain function beside ``pyscf.scf.hf.init_guess_by_minao``; ``xc`` is the functional of the
    cycles after the network, or ``hf``. For a closed shell one of PySCF's own Fock matrices is
    built, see :func:`deqh_guess`.

    Raises:
        UnsupportedMoleculeError, CheckpointError, ConfigError: see :func:`predict_hamiltonian`.
    """
    from pyscf import dft

    mf = hf.RHF(mol) if xc.lower() == "hf" else dft.RKS(mol, xc=xc)
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
