"""The cycles between a start and the SCF: in fitted Fock matrices, and around one of the SCF's own.

Density-fitted cycles first, in the SCF's own functional. Then one full Fock build, and corrected
cycles: those with fitted differences from it. They end where the SCF would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
from pyscf import gto

from ..errors import NotEnoughMemoryError, own_errors
from ..process import one_blas_thread
from .orbitals import Orbitals, density_matrix, finite, orthonormal_basis
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


@dataclass(frozen=True, eq=False)
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
    own: Problem,
    hamiltonian: np.ndarray,
    fitted: FittedFock,
    settings: CycleSettings,
) -> Solution:
    """Density-fitted cycles, then corrected ones where they are possible.

    What memory does not suffice for is left out; a GPU's cycles go on on the CPU.

    Args:
        problem: the SCF's.
        own: the same in the basis set of the start.
        hamiltonian: (nao, nao) of the start, hartree, whose orbitals are the first.
        fitted: builds the fitted Fock matrices of ``own``; let go where another basis set takes
            over.
        settings: which cycles are made.
    """
    solution = Solution(own, hamiltonian)
    corrects = settings.full_build and problem.has_fock_matrices
    stage = "density-fitted"
    try:
        with own_errors():
            if settings.max_cycles:
                solution = _density_fitted_cycles(solution, fitted, settings, corrects)
            stage = "corrected"
            if corrects and not solution.failure:
                origin = _origin(solution, problem, fitted)
                solution, full = _full_build(solution, origin)
                solution = _corrected_cycles(solution, origin, full, settings)
        return solution
    except NotEnoughMemoryError as error:
        note = str(error)
    # Not in the handler, whose traceback would keep what the cycles held.
    if fitted.device.type != "cpu" and not solution.full_builds:
        note = f"{fitted.device} ran out of memory: cycles on the CPU"
        fitted = fitted.like(own.mol, "cpu", fitted.dtype)
        solution = run_cycles(problem, own, hamiltonian, fitted, settings)
        return replace(solution, notes=(note, *solution.notes))
    return replace(solution, notes=(f"{stage} cycles left out: {note}",))


def _failure(gradients: Sequence[float], limit: float) -> str | None:
    """The verdict on cycles that should have ended below a gradient, hartree."""
    last = gradients[-1]
    if last < limit:
        return None
    return f"the orbital gradient is still {last:.1g} hartree after {len(gradients)} cycles"


def _density_fitted_cycles(
    solution: Solution, fitted: FittedFock, settings: CycleSettings, corrects: bool
) -> Solution:
    """Cycles in fitted Fock matrices with the SCF's one-electron Hamiltonian and functional.

    Raises:
        NotEnoughMemoryError: exact exchange does not fit into memory.
    """
    problem, thresholds = solution.problem, settings.thresholds
    tolerance = thresholds.near if corrects else thresholds.fitted

    def build(orbitals: Orbitals) -> np.ndarray:
        return fitted(problem.core_hamiltonian, orbitals, problem.functional)[0]

    with one_blas_thread:
        refined = refine(
            build, problem.system.overlap, problem.shells, solution.hamiltonian,
            settings.max_cycles, tolerance * problem.gradient_scale,
        )  # fmt: skip
    return replace(
        solution,
        hamiltonian=refined.hamiltonian,
        fitted_gradients=tuple(refined.gradients),
        failure=_failure(refined.gradients, _LOST * problem.gradient_scale),
    )


@dataclass(frozen=True, eq=False)
class _Origin:
    """The density D0 of a full Fock build, and fitted differences F_fit(D) - F_fit(D0) from it.

    Attributes:
        problem: the SCF's.
        density: (nao, nao), or (2, nao, nao) of either spin.
        difference: from orbitals to the difference, hartree.
    """

    problem: Problem
    density: np.ndarray
    difference: Callable[[Orbitals], np.ndarray]


def _origin(solution: Solution, problem: Problem, fitted: FittedFock) -> _Origin:
    """That of a solution's orbitals, in the SCF's basis set.

    Raises:
        NotEnoughMemoryError: exact exchange does not fit into memory.
    """
    with one_blas_thread:
        spins = occupied_orbitals(solution, problem)
        if solution.problem is not problem:
            fitted.free()
            dtype = _precision(problem.system.overlap)
            fitted = fitted.like(problem.mol, fitted.device, dtype)
        closed = problem.shells.kind == Kind.CLOSED
        orbitals: Orbitals = np.sqrt(2) * spins[0] if closed else spins
        difference = fitted.differences(orbitals, problem.functional)
        return _Origin(problem, density_matrix(orbitals), difference)


def _full_build(solution: Solution, origin: _Origin) -> tuple[Solution, Any]:
    """One of the SCF's own Fock matrices, hartree, with its class's tags: a solution by itself.

    Integration grid and integrals that the SCF object makes here serve its SCF as well.
    """
    problem, density = origin.problem, origin.density
    mf, started = problem.mf, time.perf_counter()
    # As PySCF's kernel calls it: not every object takes the density alone.
    potential = mf.get_veff(problem.mol, density)
    fock = mf.get_fock(problem.core_hamiltonian, problem.system.overlap, potential, density)
    seconds = time.perf_counter() - started
    solution = replace(
        solution, problem=problem, hamiltonian=finite(fock), full_builds=1,
        full_build_seconds=seconds,
    )  # fmt: skip
    return solution, fock


def _corrected_cycles(
    solution: Solution, origin: _Origin, fock: Any, settings: CycleSettings
) -> Solution:
    """Cycles in a full Fock matrix plus fitted differences from it."""
    problem, density = origin.problem, origin.density
    shells, scale = problem.shells, problem.gradient_scale
    if shells.kind == Kind.RESTRICTED_OPEN:
        full, density = np.array([fock.focka, fock.fockb]), density.sum(0)
    else:
        full = fock = np.asarray(fock)
    goal = settings.thresholds.corrected * problem.gradient_tolerance
    with one_blas_thread:
        refined = refine(
            lambda orbitals: full + origin.difference(orbitals), problem.system.overlap, shells,
            fock, _MAX_CORRECTED if shells.kind == Kind.CLOSED else _MAX_CORRECTED_OPEN, goal,
            density,
        )  # fmt: skip
    gradients = (*solution.fitted_gradients, *refined.gradients)
    return replace(
        solution,
        hamiltonian=refined.hamiltonian,
        corrected_gradients=tuple(refined.gradients),
        failure=_failure(gradients, min(_LOST * scale, max(goal, _STALLED * scale))),
    )


def _precision(overlap: np.ndarray) -> torch.dtype:
    """Double for diffuse basis sets, whose nearly dependent functions amplify rounding."""
    import torch

    return torch.float32 if np.linalg.eigvalsh(overlap)[0] > _DEPENDENT else torch.float64


def occupied_orbitals(solution: Solution, problem: Problem) -> list[np.ndarray]:
    """Occupied orbitals (nao, k) of either spin of a solution, orthonormal, in the basis set of
    ``problem``."""
    start, overlap = solution.problem, problem.system.overlap
    spins = problem.shells.occupied(solution.hamiltonian, start.system.overlap)
    if start is problem:
        return spins
    mixed = gto.intor_cross("int1e_ovlp", problem.mol, start.mol)
    mixed = mixed @ np.hstack(spins)
    try:
        projected = scipy.linalg.cho_solve(scipy.linalg.cho_factor(overlap), mixed)
    except np.linalg.LinAlgError:
        projected = np.linalg.lstsq(overlap, mixed, rcond=None)[0]
    orthonormal = []
    for orbitals in np.split(projected, [spins[0].shape[1]], axis=1):
        # A projection shortens orbitals and tilts them towards each other.
        metric = orbitals.T @ overlap @ orbitals
        orthonormal.append(orbitals @ orthonormal_basis(metric))
    return orthonormal
