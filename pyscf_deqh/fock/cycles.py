"""The cycles between a start and the SCF: in fitted Fock matrices, and around one of the SCF's own.

Density-fitted cycles first, in the SCF's own functional. Then one full Fock build, and corrected
cycles: those with fitted differences from it. They end where the SCF would.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pyscf.scf import addons

from ..errors import NotEnoughMemoryError
from ..process import one_blas_thread
from .orbitals import Orbitals, density_matrix, orthonormal_basis
from .problem import Problem
from .refine import refine
from .shells import Kind

if TYPE_CHECKING:
    import torch

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
        fitted: of density-fitted cycles alone, hartree per root of an electron pair; the error of
            the fitted Fock matrices is of this size, so that they have no more to give.
        near: the same where a full Fock build follows: its correction holds in a neighbourhood of
            this size.
        corrected: of the corrected cycles, in units of the SCF's own threshold.
    """

    fitted: float = 4e-4
    near: float = 4e-3
    corrected: float = 1.0


DEFAULT_THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class CycleSettings:
    """Which cycles are made.

    Attributes:
        max_cycles: limit of density-fitted cycles; with none, the full Fock build comes at once.
        full_build: whether there is one, and corrected cycles after it.
        thresholds: where cycles stop.
    """

    max_cycles: int = 8
    full_build: bool = True
    thresholds: Thresholds = DEFAULT_THRESHOLDS


@dataclass(frozen=True)
class Solution:
    """Where the cycles ended.

    Attributes:
        problem: in whose basis set ``hamiltonian`` is.
        hamiltonian: (nao, nao) hartree, or (2, nao, nao) of either spin for unrestricted open
            shells.
        fitted_gradients: norm of the orbital gradient (hartree) in each density-fitted cycle.
        corrected_gradients: the same in each corrected cycle.
        full_builds: Fock matrices of the SCF's own.
        full_build_seconds: of these.
        failure: why the Hamiltonian is no good start; None where it is one.
        notes: what was left out, one sentence each.
    """

    problem: Problem
    hamiltonian: np.ndarray
    fitted_gradients: tuple[float, ...] = ()
    corrected_gradients: tuple[float, ...] = ()
    full_builds: int = 0
    full_build_seconds: float = 0.0
    failure: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def fitted_builds(self) -> int:
        """Fitted Fock matrices."""
        # The corrected cycles start with one for the density of the full Fock build.
        return len(self.fitted_gradients) + len(self.corrected_gradients) + self.full_builds


def run_cycles(
    problem: Problem,
    start: Problem,
    hamiltonian: np.ndarray,
    fitted: FittedFock,
    settings: CycleSettings,
) -> Solution:
    """Density-fitted cycles, then corrected ones where they are possible.

    Args:
        problem: the SCF's.
        start: the same, perhaps in another basis set.
        hamiltonian: (nao, nao) in the basis set of ``start``, hartree, whose orbitals are the
            first.
        fitted: builds the fitted Fock matrices of ``start``; let go where another basis set takes
            over.
        settings: which cycles are made.
    """
    if problem.shells.kind == Kind.UNRESTRICTED:
        hamiltonian = np.array([hamiltonian] * 2)
    solution = Solution(start, hamiltonian)
    full_build = settings.full_build and problem.has_fock_matrices
    try:
        if settings.max_cycles:
            solution = _density_fitted_cycles(solution, fitted, settings, full_build)
        if full_build and not solution.failure:
            solution = _corrected_cycles(solution, problem, fitted, settings)
    except NotEnoughMemoryError as error:
        fitted_ones = settings.max_cycles and not solution.fitted_gradients
        left_out = "density-fitted" if fitted_ones else "corrected"
        note = f"{left_out} cycles left out: {error}"
        solution = replace(solution, notes=(*solution.notes, note))
    return solution


def _failure(problem: Problem, gradients: list[float], above: float) -> str | None:
    """The verdict on cycles that ended with a gradient above a limit, hartree."""
    last = gradients[-1]
    if last < above:
        return None
    return f"the orbital gradient is still {last:.1g} hartree after {len(gradients)} cycles"


def _density_fitted_cycles(
    solution: Solution, fitted: FittedFock, settings: CycleSettings, full_build: bool
) -> Solution:
    """Cycles in fitted Fock matrices with the SCF's one-electron Hamiltonian and functional.

    Raises:
        NotEnoughMemoryError: exact exchange does not fit into memory.
    """
    problem, thresholds = solution.problem, settings.thresholds
    tolerance = thresholds.near if full_build else thresholds.fitted

    def build(orbitals: Orbitals) -> np.ndarray:
        return fitted(problem.core_hamiltonian, orbitals, problem.functional)[0]

    with one_blas_thread:
        refined = refine(
            build, problem.system.overlap, problem.shells, solution.hamiltonian,
            settings.max_cycles, tolerance * problem.gradient_scale,
        )  # fmt: skip
    gradients = refined.gradients
    return replace(
        solution,
        hamiltonian=refined.hamiltonian,
        fitted_gradients=tuple(gradients),
        failure=_failure(problem, gradients, _LOST * problem.gradient_scale),
    )


def _corrected_cycles(
    solution: Solution, problem: Problem, fitted: FittedFock, settings: CycleSettings
) -> Solution:
    """A full Fock build at the solution so far, and cycles with fitted differences from it.

    Integration grid and integrals that the SCF object makes here serve its SCF as well.

    Raises:
        NotEnoughMemoryError: exact exchange does not fit into memory.
    """
    from .fitted import FittedFock

    shells, overlap, start = problem.shells, problem.system.overlap, solution.problem
    with one_blas_thread:
        if start is problem:
            spins = shells.occupied(solution.hamiltonian, overlap)
        else:
            spins = projected_orbitals(solution, problem)
            fitted.free()
            dtype = _precision(overlap)
            fitted = FittedFock(problem.mol, fitted.device, dtype, memory=problem.memory)
        orbitals: Orbitals = np.sqrt(2) * spins[0] if shells.kind == Kind.CLOSED else spins
        density = density_matrix(orbitals)
        # Before the full Fock build, because there may be too little memory for it.
        difference = fitted.differences(orbitals, problem.functional)
    started = time.perf_counter()
    fock = full_build(problem, density)
    seconds = time.perf_counter() - started
    if shells.kind == Kind.RESTRICTED_OPEN:
        full, density = np.array([fock.focka, fock.fockb]), density.sum(0)
    else:
        full = fock = np.asarray(fock)
    goal = settings.thresholds.corrected * problem.gradient_tolerance
    with one_blas_thread:
        refined = refine(
            lambda displaced: full + difference(displaced), overlap, shells, fock,
            _MAX_CORRECTED if shells.kind == Kind.CLOSED else _MAX_CORRECTED_OPEN,
            goal, density,
        )  # fmt: skip
    scale = problem.gradient_scale
    return replace(
        solution,
        problem=problem,
        hamiltonian=refined.hamiltonian,
        corrected_gradients=tuple(refined.gradients),
        full_builds=1,
        full_build_seconds=seconds,
        failure=_failure(
            problem,
            [*solution.fitted_gradients, *refined.gradients],
            min(_LOST * scale, max(goal, _STALLED * scale)),
        ),
    )


def full_build(problem: Problem, density: np.ndarray) -> Any:
    """One of the SCF's own Fock matrices, tagged as its class tags it, hartree.

    Args:
        problem: the SCF's.
        density: (nao, nao), or (2, nao, nao) of either spin.
    """
    # As PySCF's kernel calls it: not every object takes the density alone.
    mf = problem.mf
    potential = mf.get_veff(problem.mol, density)
    return mf.get_fock(problem.core_hamiltonian, problem.system.overlap, potential, density)


def _precision(overlap: np.ndarray) -> torch.dtype:
    """Double for diffuse basis sets, whose nearly dependent functions amplify rounding."""
    import torch

    return torch.float32 if np.linalg.eigvalsh(overlap)[0] > _DEPENDENT else torch.float64


def projected_orbitals(solution: Solution, problem: Problem) -> list[np.ndarray]:
    """Occupied orbitals (nao, k) of either spin in the basis set of ``problem``, from a solution in
    another one; orthonormal."""
    start, overlap = solution.problem, problem.system.overlap
    projected = []
    for orbitals in problem.shells.occupied(solution.hamiltonian, start.system.overlap):
        occupied = addons.project_mo_nr2nr(start.mol, orbitals, problem.mol)
        # A projection shortens orbitals and tilts them towards each other.
        metric = occupied.T @ overlap @ occupied
        projected.append(occupied @ orthonormal_basis(metric))
    return projected
