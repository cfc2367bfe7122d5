"""From H and S to orbitals, in float64 (NumPy and SciPy)."""

from __future__ import annotations

import numpy as np
import scipy.linalg

# PySCF's own threshold for linear dependency (scf.addons.remove_linear_dep_).
LINEAR_DEPENDENCY = 1e-8


def orthonormal_basis(overlap: np.ndarray) -> np.ndarray:
    """Symmetric (Löwdin) orthonormalization X with X^T S X = 1, shape (nao, nao).

    Where S has eigenvalues below 1e-8 the canonical form is used, shape (nao, n_independent).
    """
    s, u = np.linalg.eigh(overlap)
    keep = s > LINEAR_DEPENDENCY
    x = u[:, keep] / np.sqrt(s[keep])
    return x @ u.T if keep.all() else x


def solve_roothaan(hamiltonian: np.ndarray, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orbital energies (n,) in hartree, ascending, and orbitals (nao, n) of H C = S C e (Eq. 4)."""
    try:
        return scipy.linalg.eigh(hamiltonian, overlap, driver="gvd")
    except np.linalg.LinAlgError:
        x = orthonormal_basis(overlap)
        energies, u = np.linalg.eigh(x.T @ hamiltonian @ x)
        return energies, x @ u
