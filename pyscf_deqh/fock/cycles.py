"""The cycles between a Hamiltonian and the SCF: in fitted Fock matrices, and around an exact one.

Cheap cycles first, in ``mf``'s own functional. Then one of ``mf``'s own Fock matrices, and cycles
with fitted differences from it: they end where ``mf`` would.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from pyscf.scf import addons, hf

from ..process import one_blas_thread
from .orbitals import Orbitals, density_matrix, orthonormal_basis
from .refine import refine
from .shells import Kind, Shells

if TYPE_CHECKING:
    import torch
    from pyscf.gto import Mole

    from .fitted import FittedFock

# Open shells converge more slowly.
_MAX_CORRECTED, _MAX_CORRECTED_OPEN = 12, 20
# Cycles that are still above this gradient, in hartree per root of an electron pair, go nowhere;
# minao's own is 0.1 to 0.2, the network's 0.004 to 0.02.
_LOST = 0.05
# Corrected cycles above this at their limit, in the same unit, stand at a saddle, where the SCF
# would stay as well; others end at their goal.
_STALLED = 5e-5
# Eigenvalue of the overlap below which single precision leaves gradients of 1e-4 hartree.
_DEPENDENT = 1e-4


@dataclass(frozen=True)
class Thresholds:
    """Norms of the orbital gradient below which cycles stop.

    Attributes:
        fitted: of cheap cycles alone, hartree per root of an electron pair; the error of the fitted
            Fock matrices is of this size, so that they have no more to give.
        near: the same where an exact Fock matrix follows: its correction holds in a neighbourhood
            of this size.
        corrected: of the corrected cycles, in units of the SCF's own threshold.
    """

    fitted: float = 4e-4
    near: float = 4e-3
    corrected: float = 1.0


DEFAULT_THRESHOLDS = Thresholds()


@dataclass
class Cycles:
    """How far the cycles have come.

    Attributes:
        hamiltonian: (nao, nao) hartree, or (2, nao, nao) of either spin for unrestricted open
            shells; in the basis set of the fitted Fock matrices or, after corrected cycles, of the
            SCF.
        gradients: norm of the orbital gradient (hartree) at each cheap cycle.
        corrected_gradients: the same at each cycle after the exact Fock matrix; empty without it.
        exact_seconds: of the exact Fock matrix.
        stalled: whether the corrected cycles came to their limit far above their goal.
    """

    hamiltonian: np.ndarray
    gradients: list[float] = field(default_factory=list)
    corrected_gradients: list[float] = field(default_factory=list)
    exact_seconds: float = 0.0
    stalled: bool = False

    @property
    def all_gradients(self) -> list[float]:
        """Those of the cheap and of the corrected cycles."""
        return self.gradients + self.corrected_gradients

    @property
    def cheap_builds(self) -> int:
        """Fitted Fock matrices."""
        # The corrected cycles start with one for the density of the exact Fock matrix.
        corrected = len(self.corrected_gradients) + 1 if self.corrected_gradients else 0
        return len(self.gradients) + corrected

    @property
    def exact_builds(self) -> int:
        """Fock matrices that cost as much as the SCF's own."""
        return int(bool(self.corrected_gradients))

    def lost(self, mol: Mole) -> bool:
        """Whether the last cycles ended far from a solution."""
        gradients = self.all_gradients
        far = bool(gradients) and not gradients[-1] < _LOST * _scale(mol)
        return far or self.stalled


def _scale(mol: Mole) -> float:
    """What makes gradient norms of small and large molecules comparable."""
    return float(np.sqrt(max(mol.nelectron // 2, 1)))


def _functional(mf: hf.SCF) -> str:
    return getattr(mf, "xc", "hf")


def _precision(mol: Mole) -> torch.dtype:
    """Double for diffuse basis sets, whose nearly dependent functions amplify rounding."""
    import torch

    smallest = np.linalg.eigvalsh(mol.intor_symmetric("int1e_ovlp"))[0]
    return torch.float32 if smallest > _DEPENDENT else torch.float64


def _share_functional(mf: hf.SCF, fitted: FittedFock) -> None:
    """``mf``'s functional with what its user has set (``mf.omega``, ``mf.define_xc_``)."""
    own = getattr(mf, "_numint", None)
    if isinstance(own, type(fitted.numint)):  # not that of two-component orbitals
        fitted.numint = own


def run_cycles(
    cycles: Cycles,
    mf: hf.SCF,
    mol: Mole,
    fitted: FittedFock,
    max_cycles: int,
    exact_build: bool,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> None:
    """Cheap cycles, then corrected ones where they are possible.

    Args:
        cycles: to go on from; changed, so that what was reached before an error is kept.
        mf: whose one-electron Hamiltonian, functional and Fock matrix are taken.
        mol: the molecule that ``mf`` starts from.
        fitted: builds the cheap Fock matrices, of ``mol`` or of a copy in another basis set.
        max_cycles: limit of cheap cycles; 0 goes to the exact Fock matrix at once.
        exact_build: whether to build one of ``mf``'s own Fock matrices.
        thresholds: where to stop.

    Raises:
        UnsupportedMoleculeError: exact exchange does not fit into memory.
    """
    from .fitted import FittedFock

    _share_functional(mf, fitted)
    shells, own = Shells.of(mf, mol), fitted.mol
    exact = exact_build and mol is mf.mol and shells.kind != Kind.AVERAGED
    if shells.kind == Kind.UNRESTRICTED:
        cycles.hamiltonian = np.array([cycles.hamiltonian] * 2)
    if max_cycles:
        tolerance = thresholds.near if exact else thresholds.fitted
        with one_blas_thread():
            cycles.hamiltonian, cycles.gradients = _cheap_cycles(
                mf, shells, fitted, cycles.hamiltonian, max_cycles, tolerance * _scale(mol)
            )
    if not exact or cycles.lost(mol):
        return
    with one_blas_thread():
        if own is mol:
            overlap = mol.intor_symmetric("int1e_ovlp")
            spins = shells.occupied(cycles.hamiltonian, overlap)
        else:
            fitted = FittedFock(mol, fitted.device, _precision(mol))
            _share_functional(mf, fitted)
            spins = projected_orbitals(mol, own, cycles.hamiltonian, shells)
    goal = thresholds.corrected * (mf.conv_tol_grad or float(np.sqrt(mf.conv_tol)))
    cycles.hamiltonian, cycles.corrected_gradients, cycles.exact_seconds = _corrected_cycles(
        mf, shells, fitted, spins, goal
    )
    cycles.stalled = cycles.corrected_gradients[-1] > max(goal, _STALLED * _scale(mol))


def _cheap_cycles(
    mf: hf.SCF,
    shells: Shells,
    fitted: FittedFock,
    hamiltonian: np.ndarray,
    max_cycles: int,
    tolerance: float,
) -> tuple[np.ndarray, list[float]]:
    """Cycles in ``mf``'s own functional with fitted Fock matrices.

    Args:
        mf: whose one-electron Hamiltonian and functional are taken.
        shells: of ``mf``.
        fitted: builds the Fock matrices, perhaps in another basis set than ``mf``'s.
        hamiltonian: hartree, whose orbitals are the first.
        max_cycles: at least one.
        tolerance: of the orbital gradient, hartree.

    Returns:
        Hamiltonian and the norm of the orbital gradient in each cycle, both hartree.

    Raises:
        UnsupportedMoleculeError: exact exchange does not fit into memory.
    """
    mol = fitted.mol
    overlap = mol.intor_symmetric("int1e_ovlp")
    hcore = np.asarray(mf.get_hcore(mol))
    if hcore.shape != overlap.shape or np.iscomplexobj(hcore):
        hcore = np.asarray(hf.get_hcore(mol))
    xc = _functional(mf)
    result = refine(
        lambda orbitals: fitted(hcore, orbitals, xc)[0], overlap, shells, hamiltonian, max_cycles,
        tolerance,
    )  # fmt: skip
    return result.hamiltonian, result.gradients


def _corrected_cycles(
    mf: hf.SCF, shells: Shells, fitted: FittedFock, spins: list[np.ndarray], goal: float
) -> tuple[np.ndarray, list[float], float]:
    """One of ``mf``'s own Fock matrices, and cycles with fitted differences from it.

    Integration grid and integrals that ``mf`` makes here serve its SCF as well.

    Args:
        mf: the SCF object.
        shells: of ``mf``.
        fitted: of ``mf``'s molecule, in ``mf``'s basis set.
        spins: (nao, k) orbitals of either spin, orthonormal; near the solution.
        goal: orbital gradient at which the cycles stop, hartree.

    Returns:
        Hamiltonian in hartree, the norm of the orbital gradient in each cycle in hartree, and the
        seconds of ``mf``'s Fock matrix.

    Raises:
        UnsupportedMoleculeError: exact exchange does not fit into memory.
    """
    orbitals: Orbitals = np.sqrt(2) * spins[0] if shells.kind == Kind.CLOSED else spins
    density, overlap = density_matrix(orbitals), mf.get_ovlp()
    with one_blas_thread():
        # First of all, because there may be too little memory for it.
        difference = fitted.differences(orbitals, _functional(mf))
    started = time.perf_counter()
    # As PySCF's kernel calls it: not every object takes the density alone.
    fock = mf.get_fock(mf.get_hcore(), overlap, mf.get_veff(mf.mol, density), density)
    exact_seconds = time.perf_counter() - started
    if shells.kind == Kind.RESTRICTED_OPEN:
        exact, density = np.array([fock.focka, fock.fockb]), density.sum(0)
    else:
        exact = fock = np.asarray(fock)
    with one_blas_thread():
        result = refine(
            lambda displaced: exact + difference(displaced), overlap, shells, fock,
            _MAX_CORRECTED if shells.kind == Kind.CLOSED else _MAX_CORRECTED_OPEN,
            goal, density,
        )  # fmt: skip
    return result.hamiltonian, result.gradients, exact_seconds


def projected_orbitals(
    mol: Mole, smaller: Mole, hamiltonian: np.ndarray, shells: Shells
) -> list[np.ndarray]:
    """Occupied orbitals (nao, k) of either spin in ``mol``'s basis set, from a Hamiltonian in
    another one; orthonormal."""
    overlap = mol.intor_symmetric("int1e_ovlp")
    projected = []
    for orbitals in shells.occupied(hamiltonian, smaller.intor_symmetric("int1e_ovlp")):
        occupied = addons.project_mo_nr2nr(smaller, orbitals, mol)
        # A projection shortens orbitals and tilts them towards each other.
        metric = occupied.T @ overlap @ occupied
        projected.append(occupied @ orthonormal_basis(metric))
    return projected
