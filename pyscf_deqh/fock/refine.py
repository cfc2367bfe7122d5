"""Cheap SCF cycles: from a predicted Hamiltonian towards self-consistency, in any Fock matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .orbitals import Orbitals, by_spin, density_matrix, finite
from .shells import Shells


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

    Raises:
        NumericalError: a Fock matrix holds NaN or infinity.
    """
    extrapolation = shells.engine.extrapolation()
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
    while True:
        coefficients, occupations = shells.orbitals(hamiltonian, overlap, fock)
        orbitals = shells.filled(coefficients, occupations)
        fock, hamiltonian = extrapolate(orbitals)
        pairs = zip(by_spin(fock), coefficients, occupations, strict=True)
        gradients.append(float(np.linalg.norm([_gradient(*pair) for pair in pairs])))
        if gradients[-1] < tolerance or len(gradients) >= max_builds:
            return Refined(shells.tagged(hamiltonian, fock), orbitals, fock, gradients)
