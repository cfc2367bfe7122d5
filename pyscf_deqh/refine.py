"""Cheap SCF cycles: from a predicted Hamiltonian towards self-consistency, in any Fock matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .orbitals import solve_roothaan


@dataclass
class Refined:
    """Result of :func:`refine`.

    Attributes:
        hamiltonian: (nao, nao) hartree, extrapolated (DIIS) from all Fock matrices that were built.
        orbitals: (nao, k) occupied orbitals of ``fock``'s density, scaled by the root of their
            occupation.
        fock: (nao, nao) the last Fock matrix that was built, hartree.
        gradients: norm of the orbital gradient at each build, hartree.
    """

    hamiltonian: np.ndarray
    orbitals: np.ndarray
    fock: np.ndarray
    gradients: list[float]

    @property
    def builds(self) -> int:
        return len(self.gradients)


def occupations(n_orbitals: int, n_electrons: int, spin: int) -> np.ndarray:
    """Occupation (n_orbitals,) of the lowest orbitals; ``spin`` of them hold one electron."""
    n_double = (n_electrons - spin) // 2
    occupation = np.zeros(n_orbitals)
    occupation[:n_double] = 2.0
    occupation[n_double : n_double + spin] = 1.0
    return occupation


def _gradient(fock: np.ndarray, orbitals: np.ndarray, occupation: np.ndarray) -> float:
    """Norm of dE/dkappa over all pairs of orbitals of different occupation (PySCF's norm_gorb)."""
    matrix: NDArray = orbitals.T @ fock @ orbitals * (occupation[:, None] - occupation)
    return float(np.linalg.norm(matrix) / np.sqrt(2))


def refine(
    build: Callable[[np.ndarray], np.ndarray],
    overlap: np.ndarray,
    n_electrons: int,
    hamiltonian: np.ndarray,
    max_builds: int,
    tolerance: float,
    spin: int = 0,
    density: np.ndarray | None = None,
) -> Refined:
    """Alternate orbitals and Fock matrices, extrapolated by DIIS (Pulay, 1982).

    Args:
        build: Fock matrix (nao, nao) in hartree of occupied orbitals (nao, k) that are scaled by
            the root of their occupation.
        overlap: (nao, nao).
        n_electrons, spin: of the molecule; ``spin`` of its orbitals hold one electron.
        hamiltonian: (nao, nao) hartree, whose orbitals are the first.
        max_builds: limit of Fock matrices, at least one.
        tolerance: stop once the norm of the orbital gradient (hartree) is below this.
        density: (nao, nao), if ``hamiltonian`` is the Fock matrix of this: DIIS takes it in.
    """
    from pyscf.scf import diis

    extrapolation = diis.CDIIS()
    extrapolation.verbose = 0
    if density is not None:
        hamiltonian = extrapolation.update(overlap, density, hamiltonian)
    gradients: list[float] = []
    while True:
        coefficients = solve_roothaan(hamiltonian, overlap)[1]
        occupation = occupations(coefficients.shape[1], n_electrons, spin)
        filled = occupation > 0
        orbitals = coefficients[:, filled] * np.sqrt(occupation[filled])
        fock = build(orbitals)
        gradients.append(_gradient(fock, coefficients, occupation))
        hamiltonian = extrapolation.update(overlap, orbitals @ orbitals.T, fock)
        if gradients[-1] < tolerance or len(gradients) >= max_builds:
            return Refined(hamiltonian, orbitals, fock, gradients)
