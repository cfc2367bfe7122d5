"""From H and S to orbitals, in float64; arrays are those of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..engine import HOST, Engine
from ..engine.host import LINEAR_DEPENDENCY
from ..errors import NumericalError

# Relative singular value below which densities depend on each other.
_DEPENDENT = 1e-10
# Occupied orbitals (nao, k), each scaled by the root of its occupation: doubly occupied ones as one
# array, those of either spin as two.
Orbitals: TypeAlias = np.ndarray | Sequence[np.ndarray]


def finite(hamiltonian: np.ndarray) -> np.ndarray:
    """The same matrix, of one spin or both.

    Raises:
        NumericalError: it holds NaN or infinity.
    """
    if not np.isfinite(hamiltonian).all():
        raise NumericalError("a Fock matrix holds NaN or infinity")
    return hamiltonian


def by_spin(x: Orbitals) -> list[np.ndarray]:
    """One matrix for closed shells, two for unrestricted ones; also of densities and Fock matrices
    (nao, nao) or (2, nao, nao)."""
    matrix: Any = x
    return [matrix] if getattr(x, "ndim", 0) == 2 else list(x)


@dataclass(frozen=True, eq=False)
class OrbitalGradient:
    """Norm of the orbital gradient, hartree: of half the commutator of F and D.

    Attributes:
        basis, root: orthonormal X and S X, (nao, n).
        allowed: (n, n), between which of these orbitals there may be a gradient; None for all.
    """

    basis: np.ndarray
    root: np.ndarray
    allowed: np.ndarray | None = None

    def __call__(self, density: Any, fock: Any) -> float:
        """That of a density matrix and its Fock matrix, of both spins or each of either."""
        norms = []
        for d, f in zip(by_spin(density), by_spin(fock), strict=True):
            product = self.basis.T @ f @ d @ self.root
            if self.allowed is not None:
                product = np.where(self.allowed, product, 0.0)
            norms.append(float(np.linalg.norm(product - product.T)))
        return float(np.linalg.norm(norms) / np.sqrt(2))


def density_matrix(orbitals: Orbitals) -> np.ndarray:
    """(nao, nao), or (2, nao, nao) of either spin."""
    return in_form_of(orbitals, [c @ c.T for c in by_spin(orbitals)])


def total_density(spins: Sequence[np.ndarray]) -> np.ndarray:
    """Density matrix (nao, nao) of the electrons of all spins."""
    total = spins[0] @ spins[0].T
    for c in spins[1:]:
        total = total + c @ c.T
    return total


def in_form_of(orbitals: Orbitals, matrices: list[np.ndarray]) -> np.ndarray:
    """One matrix where the orbitals are one array, else a stack of them."""
    return matrices[0] if hasattr(orbitals, "ndim") else np.stack(matrices)


def spin_contamination(spins: Orbitals, overlap: np.ndarray) -> float:
    """<S^2> of orthonormal orbitals of either spin, less what it is in a pure state (Szabo and
    Ostlund, Modern Quantum Chemistry, Eq. 2.271)."""
    up, down = sorted(spins, key=lambda c: -c.shape[1])
    return down.shape[1] - float(np.linalg.norm(up.T @ overlap @ down) ** 2)


def nearest_combination(
    orbitals: np.ndarray, known: Sequence[np.ndarray], overlap: np.ndarray, engine: Engine = HOST
) -> tuple[np.ndarray, float]:
    """Weights with which the densities C C^T of known orbitals add up to nearly that of others, and
    the norm of what is left of it, in an orthonormal basis.

    Args:
        orbitals: (nao, k), each scaled by the root of its occupation.
        known: several such arrays.
        overlap: (nao, nao).
        engine: of these arrays.
    """
    transformed = [overlap @ c for c in (*known, orbitals)]
    products = [
        np.square(left.T @ right).sum()  # the trace of D S D' S
        for i, left in enumerate((*known, orbitals))
        for right in transformed[: i + 1]
    ]
    gram = np.zeros((len(transformed), len(transformed)))
    gram[np.tril_indices(len(gram))] = engine.host(np.stack(products))
    gram = gram + np.tril(gram, -1).T
    weights = np.linalg.lstsq(gram[:-1, :-1], gram[:-1, -1], rcond=_DEPENDENT)[0]
    both = np.append(weights, -1.0)
    rounding = np.finfo(float).eps * (abs(both) @ abs(gram) @ abs(both))
    return weights, float(np.sqrt(max(both @ gram @ both, rounding)))


def orthonormal_basis(overlap: np.ndarray) -> np.ndarray:
    """Symmetric (Löwdin) orthonormalization X with X^T S X = 1, shape (nao, nao).

    Where S has eigenvalues below 1e-8 the canonical form is used, shape (nao, n_independent).
    """
    s, u = np.linalg.eigh(overlap)
    keep = s > LINEAR_DEPENDENCY
    x = u[:, keep] / np.sqrt(s[keep])
    return x @ u.T if keep.all() else x


def solve_roothaan(
    hamiltonian: np.ndarray, overlap: np.ndarray, engine: Engine = HOST
) -> tuple[np.ndarray, np.ndarray]:
    """Orbital energies (n,) in hartree, ascending, and orbitals (nao, n) of H C = S C e (Eq. 4).

    Args:
        hamiltonian, overlap: (nao, nao).
        engine: of these arrays.

    Raises:
        NumericalError: the Hamiltonian holds NaN or infinity.
    """
    finite(hamiltonian)
    try:
        return engine.eigh(hamiltonian, overlap)
    except np.linalg.LinAlgError:
        x = orthonormal_basis(overlap)
        energies, u = np.linalg.eigh(x.T @ hamiltonian @ x)
        return energies, x @ u


def natural_orbitals(
    density: np.ndarray, basis: np.ndarray, root: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Occupations (n,) and natural orbitals (nao, n) of a density matrix (nao, nao).

    Args:
        density: of one spin or of both.
        basis, root: orthonormal X and S X, (nao, n).
    """
    occupation, natural = np.linalg.eigh(root.T @ density @ root)
    return occupation, basis @ natural


def scaled(occupation: np.ndarray, natural: np.ndarray) -> np.ndarray:
    """Occupied orbitals, scaled by the root of their occupation, that a Fock matrix is built of."""
    # A start of the user's may be negative in places.
    filled = occupation > 1e-12
    return natural[:, filled] * np.sqrt(occupation[filled])
