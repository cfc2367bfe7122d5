"""Cheap SCF cycles: from a predicted Hamiltonian towards self-consistency, in any Fock matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .descent import Point, descend, occupied_first
from .orbitals import Orbitals, by_spin, density_matrix, finite
from .shells import Kind, Shells

# Whose orbitals of a spin are all occupied alike.
_ALIKE = 0.1  # electrons, at least, that differ in another solution
_MINIMIZED = (Kind.CLOSED, Kind.UNRESTRICTED, Kind.GENERALIZED)


@dataclass
class Refined:
    """Result of :func:`refine`; matrices are (nao, nao), or (2, nao, nao) if unrestricted.

    Attributes:
        hamiltonian: hartree, extrapolated (DIIS) from all Fock matrices that were built.
        orbitals: occupied, of ``fock``'s density.
        fock: the last Fock matrix that was built, hartree.
        gradients: norm of the orbital gradient at each build, hartree.
    """

    hamiltonian: np.ndarray
    orbitals: Orbitals
    fock: np.ndarray
    gradients: list[float]


def _gradient(fock: np.ndarray, orbitals: np.ndarray, occupation: np.ndarray) -> float:
    """Norm of dE/dkappa over all pairs of orbitals of different occupation (PySCF's norm_gorb)."""
    matrix: NDArray = orbitals.T @ fock @ orbitals * (occupation[:, None] - occupation)
    return float(np.linalg.norm(matrix) / np.sqrt(2))


def refine(
    build: Callable[[Orbitals], np.ndarray],
    overlap: np.ndarray,
    shells: Shells,
    hamiltonian: np.ndarray,
    max_builds: int,
    tolerance: float,
    density: np.ndarray | None = None,
    earlier: Sequence[Orbitals] = (),
    descent: int = 0,
    enough: float = 0.0,
    seen: Callable[[np.ndarray, np.ndarray], object] | None = None,
) -> Refined:
    """Alternate orbitals and Fock matrices, extrapolated by DIIS (Pulay, 1982).

    Args:
        build: Fock matrix (nao, nao) of occupied orbitals, hartree; for open shells that are not
            averaged, of those of either spin, (2, nao, nao).
        overlap: (nao, nao).
        shells: say which orbitals are occupied.
        hamiltonian: hartree, whose orbitals are the first: (nao, nao), or (2, nao, nao).
        max_builds: limit of Fock matrices, at least one.
        tolerance: stop once the norm of the orbital gradient (hartree) is below this.
        density: if ``hamiltonian`` is the Fock matrix of this, of the same shape: DIIS takes it in.
        earlier: orbitals whose Fock matrices cost next to nothing: DIIS takes them in as well, if
            a density is given.
        descent: limit of further Fock matrices where DIIS does not get there: direct minimization
            goes on from its best orbitals (:mod:`~pyscf_deqh.fock.descent`), where the occupied
            ones of a spin are all occupied alike.
        enough: a norm of the gradient that DIIS may end with all the same.
        seen: called with each Hamiltonian and the Fock matrix of its orbitals, both hartree.

    Raises:
        NumericalError: a Fock matrix holds NaN or infinity.
    """
    extrapolation = shells.engine.extrapolation(overlap)
    fock = hamiltonian

    def extrapolate(orbitals: Orbitals) -> tuple[np.ndarray, np.ndarray]:
        built = finite(shells.effective(build(orbitals), orbitals, overlap))
        filled = density_matrix(orbitals)
        if filled.ndim > built.ndim:  # Roothaan's matrix is one for both spins
            filled = filled.sum(0)
        return built, extrapolation.update(overlap, filled, built)

    if density is not None:
        for orbitals in earlier:
            extrapolate(orbitals)
        hamiltonian = extrapolation.update(overlap, density, fock)
    gradients: list[float] = []
    best, least = None, np.inf
    while True:
        coefficients, occupations = shells.orbitals(hamiltonian, overlap, fock)
        orbitals = shells.filled(coefficients, occupations)
        before = hamiltonian
        fock, hamiltonian = extrapolate(orbitals)
        if seen is not None:
            seen(before, fock)
        pairs = zip(by_spin(fock), coefficients, occupations, strict=True)
        gradients.append(float(np.linalg.norm([_gradient(*pair) for pair in pairs])))
        if gradients[-1] < least:
            best, least = (coefficients, occupations, fock), gradients[-1]
        if gradients[-1] < tolerance or len(gradients) >= max_builds:
            break
    failed = gradients[-1] >= max(tolerance, enough)
    if failed and descent and best and shells.kind in _MINIMIZED:
        return _descended(build, overlap, shells, *best, gradients, descent, tolerance)
    return Refined(shells.tagged(hamiltonian, fock), orbitals, fock, gradients)


def _descended(
    build: Callable[[Orbitals], np.ndarray],
    overlap: np.ndarray,
    shells: Shells,
    coefficients: Sequence[np.ndarray],
    occupations: Sequence[np.ndarray],
    fock: np.ndarray,
    gradients: list[float],
    max_builds: int,
    tolerance: float,
) -> Refined:
    """Where direct minimization from orbitals ends, which are those of ``fock``."""
    engine = shells.engine
    columns, filled, counts = occupied_first(
        [engine.host(c) for c in coefficients], [engine.host(o) for o in occupations]
    )
    weights = [float(o[0]) for o in filled]

    def orbitals_of(c: Sequence[np.ndarray]) -> Orbitals:
        return shells.filled([engine.array(x) for x in c], [engine.array(o) for o in filled])

    def build_by_spin(c: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [engine.host(f) for f in by_spin(finite(build(orbitals_of(c))))]

    def norm(gradient: Sequence[np.ndarray]) -> float:
        pairs = zip(weights, gradient, strict=True)
        return float(np.linalg.norm([w * np.linalg.norm(g) for w, g in pairs]))

    start = Point(columns, counts, [engine.host(f) for f in by_spin(fock)])
    end, further = descend(build_by_spin, start, norm, max_builds, tolerance)
    hamiltonian, built = (
        engine.array(np.reshape(np.stack(matrices), fock.shape))
        for matrices in (end.hamiltonians(engine.host(overlap)), end.focks)
    )
    orbitals, gradients = orbitals_of(end.coefficients), [*gradients, *further]
    coefficients, occupations = shells.orbitals(hamiltonian, overlap, built)
    lower, left = shells.filled(coefficients, occupations), max_builds - len(further)
    if not _are_alike(lower, orbitals, overlap) and left > 0:
        # It has come to a solution whose lowest orbitals are not the occupied ones.
        built = finite(build(lower))
        return _descended(
            build, overlap, shells, coefficients, occupations, built, gradients, left - 1, tolerance
        )
    if gradients[-1] > (least := norm(end.gradient)):
        gradients.append(least)
    return Refined(hamiltonian, orbitals, built, gradients)


def _are_alike(a: Orbitals, b: Orbitals, overlap: np.ndarray) -> bool:
    """Whether orbitals, scaled by the roots of their occupations, are those of one density."""
    pairs = zip(by_spin(a), by_spin(b), strict=True)
    common = [float(np.linalg.norm(x.T @ overlap @ y) ** 2) for x, y in pairs]
    all_of_it = [float(np.linalg.norm(x.T @ overlap @ x) ** 2) for x in by_spin(b)]
    return sum(common) > sum(all_of_it) - _ALIKE
