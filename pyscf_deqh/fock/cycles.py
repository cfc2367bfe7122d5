"""Density-fitted cycles between a start and the SCF, in the SCF's own functional.

They bring a start into the neighbourhood of the solution, at a fraction of the price of PySCF's
cycles; the corrected cycles of :mod:`~pyscf_deqh.fock.diis` take it from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NotEnoughMemoryError, own_errors
from ..process import pyscf_threads
from .descent import MAX_DESCENT
from .orbitals import Orbitals, orthonormal_basis
from .problem import Problem
from .refine import refine

if TYPE_CHECKING:
    from .fitted import FittedFock

# Cycles that are still above this gradient, in hartree per root of an electron pair, go nowhere;
# minao's own is 0.1 to 0.2, the network's 0.004 to 0.02.
LOST = 0.05
# Where cycles stop, in the same unit: where corrected cycles follow, which hold in a neighbourhood
# of this size, alone, where the error of the fitted Fock matrices is of this size, and where that
# error is known from a neighbouring geometry.
NEAR, CONVERGED, CORRECTED = 4e-3, 4e-4, 1e-5


@dataclass(frozen=True)
class CycleSettings:
    """Which cycles are made.

    Attributes:
        max_cycles: limit of density-fitted cycles.
        tolerance: norm of the orbital gradient at which they stop, hartree per root of an electron
            pair.
    """

    max_cycles: int = 24
    tolerance: float = NEAR


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the cycles ended.

    Attributes:
        problem: in whose basis set ``hamiltonian`` is.
        hamiltonian: (nao, nao) hartree, or (2, nao, nao) of either spin for unrestricted open
            shells.
        fitted_gradients: norm of the orbital gradient (hartree) in each density-fitted cycle.
        fitted_builds: fitted Fock matrices.
        minimized: whether DIIS was lost and direct minimization has led there.
        failure: why the Hamiltonian is no good start; None where it is one.
        notes: what was left out, one sentence each.
    """

    problem: Problem
    hamiltonian: np.ndarray
    fitted_gradients: tuple[float, ...] = ()
    fitted_builds: int = 0
    minimized: bool = False
    failure: str | None = None
    notes: tuple[str, ...] = ()


def run_cycles(
    solution: Solution,
    problem: Problem,
    fitted: FittedFock,
    settings: CycleSettings,
    defect: np.ndarray | None = None,
) -> Solution:
    """Cycles in fitted Fock matrices with the SCF's one-electron Hamiltonian and functional.

    What memory does not suffice for is left out; a GPU's cycles go on on the CPU.

    Args:
        solution: where they begin: at its Hamiltonian, or, in another basis set, at the Fock matrix
            of its projected orbitals.
        problem: in the basis set of the cycles.
        fitted: builds the fitted Fock matrices of ``problem``.
        settings: which cycles are made.
        defect: added to each fitted Fock matrix, hartree.
    """
    try:
        with own_errors():
            return _density_fitted_cycles(solution, problem, fitted, settings, defect)
    except NotEnoughMemoryError as error:
        note = str(error)
    # Not in the handler, whose traceback would keep what the cycles held.
    if fitted.device.type != "cpu" and not fitted.engine.fixed:
        note = f"{fitted.device} ran out of memory: cycles on the CPU"
        fitted = fitted.like(problem.mol, "cpu", fitted.dtype)
        solution = run_cycles(solution, problem, fitted, settings, defect)
        return replace(solution, notes=(note, *solution.notes))
    note = f"density-fitted cycles left out: {note}"
    return replace(solution, notes=(*solution.notes, note))


def _density_fitted_cycles(
    solution: Solution,
    problem: Problem,
    fitted: FittedFock,
    settings: CycleSettings,
    defect: np.ndarray | None,
) -> Solution:
    """The same, on one device.

    Raises:
        NotEnoughMemoryError: exact exchange does not fit into memory.
    """
    scale, overlap, builds = problem.gradient_scale, problem.system.overlap, 0

    def build(orbitals: Orbitals) -> np.ndarray:
        fock = fitted(problem.core_hamiltonian, orbitals, problem.functional)[0]
        return fock if defect is None else fock + defect

    with pyscf_threads:
        hamiltonian = solution.hamiltonian
        if solution.problem is not problem:
            orbitals = problem.shells.of_spins(occupied_orbitals(solution, problem))
            hamiltonian = problem.shells.effective(build(orbitals), orbitals, overlap)
            builds += 1
        refined = refine(
            build, overlap, problem.shells, hamiltonian,
            settings.max_cycles, settings.tolerance * scale, descent=MAX_DESCENT,
            enough=LOST * scale,
        )  # fmt: skip
    return replace(
        solution,
        problem=problem,
        hamiltonian=refined.hamiltonian,
        fitted_gradients=(*solution.fitted_gradients, *refined.gradients),
        fitted_builds=solution.fitted_builds + builds + len(refined.gradients),
        minimized=solution.minimized or len(refined.gradients) > settings.max_cycles,
        failure=_failure(refined.gradients, LOST * scale),
    )


def _failure(gradients: Sequence[float], limit: float) -> str | None:
    """The verdict on cycles that should have ended below a gradient, hartree."""
    last = gradients[-1]
    if last < limit:
        return None
    return f"the orbital gradient is still {last:.1g} hartree after {len(gradients)} cycles"


def occupied_orbitals(solution: Solution, problem: Problem) -> list[np.ndarray]:
    """Occupied orbitals (nao, k) of either spin of a solution, orthonormal, in the basis set of
    ``problem``."""
    start, overlap = solution.problem, problem.system.overlap
    spins = problem.shells.occupied(solution.hamiltonian, start.system.overlap)
    if start is problem:
        return spins
    engine = problem.engine
    mixed = engine.cross_overlap(problem.mol, start.mol) @ np.hstack(spins)
    projected = engine.solve_positive(overlap, mixed)
    orthonormal = []
    for orbitals in np.split(projected, [spins[0].shape[1]], axis=1):
        # A projection shortens orbitals and tilts them towards each other.
        metric = orbitals.T @ overlap @ orbitals
        orthonormal.append(orbitals @ orthonormal_basis(metric))
    return orthonormal
