"""Errors of predicted Hamiltonians (Wang et al., A.8, after the QH9 benchmark)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fock.orbitals import solve_roothaan

# Orbitals closer in energy than this (hartree) are one degenerate set.
DEGENERACY = 1e-5

# How each error is printed: factor and unit, as in Tables 1-3.
_MICRO_HARTREE = (1e6, "micro-Eh")
UNITS: dict[str, tuple[float, str]] = {
    "mae": _MICRO_HARTREE,
    "mae_diagonal": _MICRO_HARTREE,
    "mae_nondiagonal": _MICRO_HARTREE,
    "mae_occupied_energies": _MICRO_HARTREE,
    "mae_homo": _MICRO_HARTREE,
    "mae_lumo": _MICRO_HARTREE,
    "mae_gap": _MICRO_HARTREE,
    "cosine_similarity": (1e2, "10^-2"),
    "orbital_rotation": (1.0, ""),
}


@dataclass(frozen=True)
class HamiltonianErrors:
    """Errors of one molecule; hartree, except for the last two.

    Attributes:
        mae, mae_diagonal, mae_nondiagonal: mean absolute error of all matrix elements, of those
            between functions of the same atom (diagonal blocks), and of the rest.
        mae_occupied_energies: of the occupied orbital energies.
        mae_homo, mae_lumo, mae_gap: of the highest occupied and the lowest virtual level, and of
            their difference. The latter two are NaN where there is no virtual orbital.
        cosine_similarity: mean over occupied orbitals, 1 is perfect.
        orbital_rotation: Frobenius norm of the occupied-virtual block of the error in the true
            orbitals, each element divided by the difference of orbital energies: the first-order
            rotation from the predicted to the true occupied space. It, not the MAE, decides how
            many SCF cycles are left.
    """

    mae: float
    mae_diagonal: float
    mae_nondiagonal: float
    mae_occupied_energies: float
    mae_homo: float
    mae_lumo: float
    mae_gap: float
    cosine_similarity: float
    orbital_rotation: float


def sample_deviation(values: np.ndarray) -> float:
    """Sample standard deviation of values (n,); 0 of a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def same_atom_mask(ao_per_atom: np.ndarray) -> np.ndarray:
    """(nao, nao), True between functions of the same atom; from the number of AOs of each atom."""
    atom = np.repeat(np.arange(len(ao_per_atom)), ao_per_atom)
    same: np.ndarray = atom[:, None] == atom[None]
    return same


def cosine_similarity(
    predicted: np.ndarray, target: np.ndarray, target_energies: np.ndarray
) -> float:
    """Mean |cosine| between predicted and target orbitals' coefficient vectors (columns).

    Orbitals are compared in the order of their energies, by the plain product of their vectors
    (without S), each vector normalized. The sign of an orbital is arbitrary, so absolute values
    count. Within a degenerate set of target orbitals any rotation is as good: there, the singular
    values of the sets' mutual cosines take the place of the cosines. Without degeneracy, this is
    the plain mean of absolute cosines. Two predicted levels in the wrong order count as two errors.

    Args:
        predicted, target: (nao, n) coefficients, ascending in energy.
        target_energies: (n,) in hartree; levels within :data:`DEGENERACY` are degenerate.
    """
    a = predicted / np.linalg.norm(predicted, axis=0)
    b = target / np.linalg.norm(target, axis=0)
    edges = np.flatnonzero(np.diff(target_energies) > DEGENERACY) + 1
    total = 0.0
    for orbitals in np.split(np.arange(len(target_energies)), edges):
        total += np.linalg.svd(a[:, orbitals].T @ b[:, orbitals], compute_uv=False).sum()
    return float(min(total / len(target_energies), 1.0))


def hamiltonian_errors(
    hamiltonian: np.ndarray,
    target: np.ndarray,
    overlap: np.ndarray,
    n_occupied: int,
    ao_per_atom: np.ndarray,
) -> HamiltonianErrors:
    """Errors of a predicted Hamiltonian against the converged one.

    Args:
        hamiltonian, target, overlap: (nao, nao); the first two in hartree.
        n_occupied: doubly occupied orbitals.
        ao_per_atom: (N,) number of AOs of each atom.
    """
    n = n_occupied
    overlap, target = overlap.astype(np.float64), target.astype(np.float64)
    energies, orbitals = solve_roothaan(hamiltonian, overlap)
    true_energies, true_orbitals = solve_roothaan(target, overlap)
    error = hamiltonian - target
    same = same_atom_mask(ao_per_atom)
    coupling = true_orbitals[:, :n].T @ error @ true_orbitals[:, n:]
    gaps = true_energies[None, n:] - true_energies[:n, None]
    shift = energies - true_energies
    homo = shift[n - 1]
    lumo = shift[n] if n < len(shift) else np.nan
    return HamiltonianErrors(
        mae=float(np.abs(error).mean()),
        mae_diagonal=float(np.abs(error[same]).mean()),
        mae_nondiagonal=float(np.abs(error[~same]).mean()) if not same.all() else 0.0,
        mae_occupied_energies=float(np.abs(shift[:n]).mean()),
        mae_homo=float(abs(homo)),
        mae_lumo=float(abs(lumo)),
        mae_gap=float(abs(lumo - homo)),
        cosine_similarity=cosine_similarity(
            orbitals[:, :n], true_orbitals[:, :n], true_energies[:n]
        ),
        orbital_rotation=float(np.linalg.norm(coupling / gaps)),
    )
