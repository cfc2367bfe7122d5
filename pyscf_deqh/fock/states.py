"""The lowest of several SCF solutions, looked for in fitted Fock matrices.

An SCF may have many solutions of one kind, and which one it finds depends on its start. Fitted
cycles are cheap enough to try several starts, and to test each solution: where the energy has a
negative curvature along a rotation of occupied into virtual orbitals (an internal instability;
Seeger and Pople, J. Chem. Phys. 66, 3045, 1977), the way down leads to another solution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pyscf import lib

from ..engine import HOST
from ..errors import DEQHError, own_errors
from ..process import pyscf_threads
from ..pyscf_api import (
    attribute,
    cds_energy,
    dispersion_energy,
    has_nonlocal_correlation,
    has_plain_potential,
)
from .cycles import Solution
from .density import density_of
from .descent import MAX_DESCENT, Point, occupied_first, rotated
from .orbitals import (
    Orbitals,
    by_spin,
    natural_orbitals,
    orthonormal_basis,
    scaled,
    solve_roothaan,
)
from .problem import Problem
from .refine import refine
from .shells import Kind

if TYPE_CHECKING:
    from .fitted import FittedFock

_MAX_BUILDS, _CONVERGED = 60, 1e-4  # gradient in hartree per root of an electron pair
# Curvature of the energy in hartree, as differences of orbital energies: below this a solution is
# no minimum. Fitting and grid are off by less than half of it.
_UNSTABLE = -5e-4
_STEP = 5e-3  # of finite differences, norm of a rotation
_ANGLES = (-0.8, -0.4, 0.4, 0.8)  # along an instability, norm of a rotation
MAX_DESCENTS = 3
# Hartree between the frontier orbitals of a spin: below this cycles may have ended on a saddle
# point, from whose symmetry fast convergence leaves no time to fall.
_DOUBTFUL = 0.02
# First gradient of a start that says nothing on the state, hartree per root of an electron pair.
_FAR = 0.15
# Hartree: energies of one state, and of states that fitted matrices cannot tell apart.
_SAME, _CLOSE = 2e-5, 1e-3


@dataclass(frozen=True, eq=False)
class State:
    """A solution of the SCF equations in fitted Fock matrices.

    Attributes:
        origin: the start that led to it.
        hamiltonian: (nao, nao), or (2, nao, nao), hartree.
        energy: of the electrons, hartree.
    """

    origin: str
    hamiltonian: np.ndarray
    energy: float


def starting_densities(problem: Problem) -> dict[str, np.ndarray]:
    """PySCF's own start, and for singlets of UHF with either way to break their symmetry."""
    mf, mol = problem.mf, problem.mol
    up, down = problem.shells.electrons
    if problem.shells.kind != Kind.UNRESTRICTED or up != down or up >= mol.nao:
        return {"minao": np.asarray(mf.get_init_guess(mol, key="minao"))}
    found = {}
    for name, broken in {"minao": 0, "minao, broken": 1, "minao, mixed": "mix"}.items():
        with lib.temporary_env(mf, init_guess_breaksym=broken):
            found[name] = np.asarray(mf.get_init_guess(mol, key="minao"))
    return found


class StateSearch:
    """Looks for solutions of one problem.

    Args:
        problem: in its own basis set; closed shells, unrestricted or restricted open ones.
        fitted: builds its fitted Fock matrices, in double precision.
    """

    def __init__(self, problem: Problem, fitted: FittedFock):
        self._problem, self._fitted = problem, fitted
        self._overlap = problem.system.overlap
        self.builds = 0

    def _build(self, orbitals: Orbitals) -> tuple[np.ndarray, float]:
        self.builds += 1
        return self._fitted(self._problem.core_hamiltonian, orbitals, self._problem.functional)

    def hamiltonian_of(self, density: np.ndarray) -> np.ndarray:
        """Fock matrix of a density matrix (nao, nao) or (2, nao, nao), hartree."""
        shells = self._problem.shells
        basis = orthonormal_basis(self._overlap)
        root = self._overlap @ basis
        spins = [scaled(*natural_orbitals(d, basis, root)) for d in by_spin(density)]
        if shells.kind == Kind.CLOSED:
            return self._build(spins[0])[0]
        if len(spins) == 1:
            spins = [c / np.sqrt(2) for c in spins * 2]
        return shells.effective(self._build(spins)[0], spins, self._overlap)

    def solve(self, origin: str, hamiltonian: np.ndarray, descent: int = 0) -> State | None:
        """The solution that cycles from a Hamiltonian lead to; None where they do not converge.

        Args:
            origin: of the state.
            hamiltonian: where they begin, (nao, nao) or (2, nao, nao), hartree.
            descent: limit of Fock matrices of a direct minimization where DIIS does not get there.
        """
        tolerance = _CONVERGED * self._problem.gradient_scale
        energies = []

        def build(orbitals: Orbitals) -> np.ndarray:
            fock, energy = self._build(orbitals)
            energies.append(energy)
            return fock

        refined = refine(
            build, self._overlap, self._problem.shells, hamiltonian, _MAX_BUILDS, tolerance,
            descent=descent,
        )  # fmt: skip
        if refined.gradients[-1] > tolerance:
            return None
        minimized = len(refined.gradients) > _MAX_BUILDS  # its last matrix may be of a trial
        energy = self._build(refined.orbitals)[1] if minimized else energies[-1]
        return State(origin, refined.hamiltonian, energy)

    def descend(self, state: State) -> State | None:
        """A lower solution along an instability; None where there is none."""
        shells = self._problem.shells
        if shells.kind not in (Kind.CLOSED, Kind.UNRESTRICTED):
            return None
        rotations = _Rotations(
            *shells.orbitals(state.hamiltonian, self._overlap, state.hamiltonian)
        )

        def gradient(rotation: np.ndarray) -> np.ndarray:
            coefficients = rotations.rotated(rotation)
            fock, _ = self._build(shells.filled(coefficients, rotations.occupations))
            return rotations.gradient(fock, coefficients)

        curvature, direction = rotations.softest(state.hamiltonian, gradient)
        if curvature > _UNSTABLE:
            return None
        found = []
        for angle in _ANGLES:
            orbitals = shells.filled(rotations.rotated(angle * direction), rotations.occupations)
            fock, energy = self._build(orbitals)
            found.append((energy, fock))
        energy, fock = min(found, key=lambda pair: pair[0])
        lower = self.solve(f"{state.origin}, along an instability", fock, MAX_DESCENT)
        return lower if lower is not None and lower.energy < state.energy - _SAME else None

    def states(self, hamiltonians: Mapping[str, np.ndarray]) -> list[State]:
        """Different solutions, the lowest first.

        Args:
            hamiltonians: where cycles begin, by name.
        """
        found: list[State] = []
        for origin, hamiltonian in hamiltonians.items():
            state = self.solve(origin, hamiltonian, MAX_DESCENT)
            if state is not None and all(abs(state.energy - s.energy) > _SAME for s in found):
                found.append(state)
        for _ in range(MAX_DESCENTS if found else 0):
            lower = self.descend(min(found, key=lambda s: s.energy))
            if lower is None:
                break
            found.append(lower)
        return sorted(found, key=lambda s: s.energy)


def beside_saddle_point(
    problem: Problem, solution: Solution, fitted: FittedFock
) -> tuple[Solution, FittedFock]:
    """A lower solution where the cycles of open shells have ended on a saddle point.

    Looked for among nearly equal orbitals only: there a symmetric start leads to it.

    Args:
        problem: the SCF's.
        solution: where the cycles ended.
        fitted: builds the fitted Fock matrices of ``problem``.

    Returns:
        Such a solution, or ``solution``; what builds fitted Fock matrices from now on.
    """
    known = problem.shells.kind == Kind.UNRESTRICTED and problem.engine is HOST
    if not known or solution.problem is not problem or _gap(solution) > _DOUBTFUL:
        return solution, fitted

    def look(search: StateSearch) -> State | None:
        state = search.solve("the start", solution.hamiltonian)
        return None if state is None else search.descend(state)

    note = "a saddle point was left along an instability"
    return _replaced(problem, solution, fitted, look, note)


def is_far(problem: Problem, solution: Solution) -> bool:
    """Whether cycles began so far from a solution that chance has decided which one they found: a
    network does not know of external charges."""
    first = solution.fitted_gradients[:1]
    return bool(first) and first[0] > _FAR * problem.gradient_scale


def not_above_minao(
    problem: Problem, solution: Solution, fitted: FittedFock
) -> tuple[Solution, FittedFock]:
    """The solution that cycles from PySCF's own start lead to, where it is another one and not
    clearly higher.

    Args:
        problem: the SCF's.
        solution: where the cycles ended.
        fitted: builds the fitted Fock matrices of ``problem``.

    Returns:
        Such a solution, or ``solution``; what builds fitted Fock matrices from now on.
    """
    known = problem.shells.kind in (Kind.CLOSED, Kind.UNRESTRICTED, Kind.RESTRICTED_OPEN)
    if not known or solution.problem is not problem or problem.engine is not HOST:
        return solution, fitted

    def look(search: StateSearch) -> State | None:
        density = np.asarray(problem.mf.get_init_guess(problem.mol, key="minao"))
        minao = search.solve("minao", search.hamiltonian_of(density))
        own = search.solve("the start", solution.hamiltonian)
        if own is None or minao is None:
            return minao
        other = abs(minao.energy - own.energy) > _SAME
        return minao if other and minao.energy < own.energy + _CLOSE else None

    note = "the start was far from a solution: that of minao is taken"
    return _replaced(problem, solution, fitted, look, note)


def lowest_state(
    problem: Problem, solution: Solution, fitted: FittedFock
) -> tuple[Solution, FittedFock, tuple[float, ...]]:
    """The lowest of the states that several starts lead to.

    States that fitted matrices cannot tell apart are told apart by full ones.

    Args:
        problem: the SCF's.
        solution: where the cycles from the guess's start ended, in any basis set.
        fitted: builds the fitted Fock matrices of ``problem``.

    Returns:
        The lowest state, or ``solution`` where none was found; what builds fitted Fock matrices
        from now on; the energies (hartree) of all states in these, ascending.
    """
    if problem.shells.kind not in (Kind.CLOSED, Kind.UNRESTRICTED, Kind.RESTRICTED_OPEN):
        note = "the lowest state is not looked for in generalized orbitals and chosen occupations"
        return replace(solution, notes=(*solution.notes, note)), fitted, ()
    elsewhere = problem.mol is not problem.mf.mol  # energies are those of the object's own
    if problem.engine is not HOST or elsewhere:
        note = f"the lowest state is not looked for {'elsewhere' if elsewhere else 'on a GPU'}"
        return replace(solution, notes=(*solution.notes, note)), fitted, ()

    def look(search: StateSearch) -> list[State]:
        starts = {}
        if solution.problem is problem:
            starts["the start"] = solution.hamiltonian
        for name, density in starting_densities(problem).items():
            starts[name] = search.hamiltonian_of(density)
        return search.states(starts)

    solution, fitted, states = _searched(problem, solution, fitted, look)
    if not states:
        return solution, fitted, ()
    note = f"{len(states)} states found, the lowest from {states[0].origin}"
    close = _CLOSE if _fitted_energies_are_whole(problem) else np.inf
    candidates = [
        replace(solution, problem=problem, hamiltonian=state.hamiltonian, failure=None)
        for state in states
        if state.energy <= states[0].energy + close
    ]
    best = 0
    if len(candidates) > 1:
        densities = [density_of(candidate, problem) for candidate in candidates]
        with _own_solvent(problem):
            best = int(np.argmin([problem.mf.energy_tot(density) for density in densities]))
        note += f"; {len(candidates)} told apart by full Fock matrices"
    lowest = replace(candidates[best], notes=(*solution.notes, note))
    rest = problem.mf.energy_nuc() + cds_energy(problem.mf) + dispersion_energy(problem.mf)
    return lowest, fitted, tuple(float(state.energy + rest) for state in states)


def _fitted_energies_are_whole(problem: Problem) -> bool:
    """Whether they lack no part that another state may have more or less of: a solvent that is no
    cavity or does not respond, nonlocal correlation, a potential of the user's or of DFT+U."""
    mf = problem.mf
    solvent = attribute(mf, "with_solvent")
    if solvent is not None and (problem.cavity is None or getattr(solvent, "frozen", False)):
        return False
    return has_plain_potential(mf) and not has_nonlocal_correlation(mf)


def _own_solvent(problem: Problem) -> Any:
    """While energies are computed, a copy of the user's, whose options he may change until his SCF
    begins."""
    solvent = attribute(problem.mf, "with_solvent")
    if solvent is None or problem.scf_follows:
        return nullcontext()
    return lib.temporary_env(problem.mf, with_solvent=solvent.copy())


def _replaced(
    problem: Problem,
    solution: Solution,
    fitted: FittedFock,
    look: Callable[[StateSearch], State | None],
    note: str,
) -> tuple[Solution, FittedFock]:
    """The solution that a search has found, with a note, or the same; what builds fitted Fock
    matrices from now on."""
    solution, fitted, found = _searched(problem, solution, fitted, look)
    if found is None:
        return solution, fitted
    return replace(solution, hamiltonian=found.hamiltonian, notes=(*solution.notes, note)), fitted


_Found = TypeVar("_Found")


def _searched(
    problem: Problem,
    solution: Solution,
    fitted: FittedFock,
    look: Callable[[StateSearch], _Found],
) -> tuple[Solution, FittedFock, _Found | None]:
    """The solution with what a search took, what builds fitted Fock matrices from now on, and what
    was found: None, and a note, where the search failed, because there is a start without it."""
    import torch

    before = fitted
    if before.dtype != torch.float64:
        before.free()
        fitted = before.like(problem.mol, before.device, torch.float64)
    search, found = StateSearch(problem, fitted), None
    try:
        with own_errors(), pyscf_threads:
            found = look(search)
    except DEQHError as error:
        note = f"no other state was looked for: {error}"
        solution = replace(solution, notes=(*solution.notes, note))
        fitted.free()
        fitted = before.like(problem.mol, before.device, before.dtype)
    fitted.forget()  # among them are other states, and points between
    builds = solution.fitted_builds + search.builds
    return replace(solution, fitted_builds=builds), fitted, found


def _gap(solution: Solution) -> float:
    """Least difference of a virtual and an occupied orbital's energy of one spin, hartree."""
    shells, overlap = solution.problem.shells, solution.problem.system.overlap
    gaps = [np.inf]
    hamiltonians = by_spin(solution.hamiltonian)
    for i, count in enumerate(shells.electrons):
        energies = solve_roothaan(hamiltonians[min(i, len(hamiltonians) - 1)], overlap, HOST)[0]
        if 0 < count < len(energies):
            gaps.append(energies[count] - energies[count - 1])
    return float(min(gaps))


class _Rotations:
    """Rotations of occupied into virtual orbitals, as vectors of all spins.

    Args:
        coefficients: (nao, n) of either spin, or of both.
        occupations: (n,) of the same.
    """

    def __init__(self, coefficients: list[np.ndarray], occupations: list[np.ndarray]):
        self.coefficients, self.occupations, self._occupied = occupied_first(
            coefficients, occupations
        )
        self._shapes = [
            (len(o) - k, k) for o, k in zip(self.occupations, self._occupied, strict=True)
        ]

    def _split(self, rotation: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum([m * k for m, k in self._shapes])[:-1]
        parts = zip(np.split(rotation, ends), self._shapes, strict=True)
        return [part.reshape(shape) for part, shape in parts]

    def rotated(self, rotation: np.ndarray) -> list[np.ndarray]:
        """Orbitals C exp(K), the occupied ones first."""
        parts = zip(self.coefficients, self._occupied, self._split(rotation), strict=True)
        return [rotated(c, k, x) for c, k, x in parts]

    def gradient(self, fock: np.ndarray, coefficients: list[np.ndarray]) -> np.ndarray:
        """Occupied-virtual elements of a Fock matrix, hartree."""
        point = Point(coefficients, self._occupied, by_spin(fock))
        return np.concatenate([part.ravel() for part in point.gradient])

    def softest(
        self, hamiltonian: np.ndarray, gradient: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[float, np.ndarray]:
        """Least curvature of the energy, hartree, and its direction, of norm one.

        Args:
            hamiltonian: its diagonal in the orbitals is the preconditioner.
            gradient: of a rotation.
        """
        differences = []
        for f, c, o in zip(by_spin(hamiltonian), self.coefficients, self.occupations, strict=True):
            energies = np.einsum("pi,pi->i", c, f @ c)
            differences.append((energies[o == 0][:, None] - energies[o > 0]).ravel())
        diagonal = np.concatenate(differences)
        if not len(diagonal):
            return 0.0, diagonal

        def product(rotation: np.ndarray) -> np.ndarray:
            norm = np.linalg.norm(rotation)
            step = _STEP / norm * rotation
            return (gradient(step) - gradient(-step)) * (norm / (2 * _STEP))

        def precondition(residual: np.ndarray, curvature: float, *args: object) -> np.ndarray:
            shifted = diagonal - curvature
            shifted[abs(shifted) < 1e-2] = 1e-2
            return residual / shifted

        # One start alone may have the wrong symmetry for the softest rotation.
        lowest = np.argsort(diagonal)[:3]
        starts = [np.eye(1, len(diagonal), k)[0] for k in lowest]
        starts.append(np.random.default_rng(0).normal(size=len(diagonal)) / (diagonal + 0.1) ** 2)
        curvature, direction = lib.davidson(
            product, starts, precondition, tol=1e-4, max_cycle=15, max_space=30, verbose=0
        )
        return float(curvature), direction / np.linalg.norm(direction)
