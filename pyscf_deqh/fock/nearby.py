"""Fock matrices near densities at which they are known: fitted ones and their defect.

    F(D) = F_fit(D) + E(D),    E(D_i) = F(D_i) - F_fit(D_i)

The defect E is known exactly at some densities, and between them it is taken for linear. With one
density that is a defect correction (Brandt, Math. Comput. 31, 333, 1977); with several it is the
multisecant condition of quasi-Newton methods (Eyert, J. Comput. Phys. 124, 271, 1996; Fang and
Saad, Numer. Linear Algebra Appl. 16, 197, 2009), on what the fitted matrices leave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .orbitals import Orbitals, by_spin, density_matrix

if TYPE_CHECKING:
    from .fitted import FittedDifferences, FittedFock
    from .functional import Functional

# Densities between which the defect is linear, and the relative eigenvalue below which a
# combination of their differences is rounding.
_SECANTS, _DEPENDENT = 8, 1e-10


class FockNearby:
    """Fock matrices near densities at which they are known.

    Args:
        fitted: makes the fitted ones.
        functional: of all of them.
        root: (nao, n) S X of an orthonormal basis X, in which densities are compared.
    """

    def __init__(self, fitted: FittedFock, functional: Functional, root: np.ndarray):
        self._fitted, self._functional, self._root = fitted, functional, root
        self._host = fitted.engine.host
        self._origin: FittedDifferences | None = None
        self._fock = self._density = np.empty(0)
        # Earlier densities, and their defects less that of the origin.
        self._secants: list[tuple[np.ndarray, np.ndarray]] = []

    def know(self, orbitals: Orbitals, fock: np.ndarray) -> None:
        """A new origin.

        Args:
            orbitals: of its density.
            fock: its full Fock matrix, (nao, nao) or (2, nao, nao), hartree.
        """
        origin = self._fitted.differences(orbitals, self._functional, self._origin)
        density = np.stack(by_spin(density_matrix(orbitals)))
        if self._origin is not None:
            change = np.stack(by_spin(fock - self._fock)) - origin.since(self._origin)
            self._secants.append((self._density, np.zeros_like(change)))
            self._secants = [(d, e - change) for d, e in self._secants[-_SECANTS:]]
        self._origin, self._fock, self._density = origin, fock, density
        if self._secants:
            self._directions = np.stack([self._vector(d - density) for d, _ in self._secants])
            gram = self._host(self._directions @ self._directions.T)
            self._inverse = np.linalg.pinv(gram, rcond=_DEPENDENT, hermitian=True)

    def be_accurate(self, accuracy: float) -> None:
        """Let exchange have an error from now on, see :class:`FittedDifferences`."""
        assert self._origin is not None
        self._origin.accuracy = accuracy

    def remembered(self, origin: Orbitals) -> list[Orbitals]:
        """Orbitals of the last fitted matrices but the origin's, in its form.

        Args:
            origin: its orbitals.
        """
        assert self._origin is not None
        form = [len(c) for c in by_spin(origin)]
        known = self._fitted.remembered(self._functional, self._origin.accuracy)
        return [c for c in known if c is not origin and [len(spin) for spin in by_spin(c)] == form]

    def forget(self) -> None:
        """Begin without them."""
        self._fitted.forget()

    def defect(self, hcore: np.ndarray) -> np.ndarray | None:
        """Full less fitted Fock matrix at the origin, hartree; None without one, or of generalized
        orbitals."""
        if self._origin is None or len(self._fock[-1]) != len(hcore):
            return None
        return self._fock - np.reshape(self._origin.fitted_matrix(hcore), self._fock.shape)

    def _vector(self, change: np.ndarray) -> np.ndarray:
        return np.concatenate([(self._root.T @ d @ self._root).ravel() for d in change])

    def __call__(self, orbitals: Orbitals) -> np.ndarray:
        """Fock matrix of orbitals' density, hartree."""
        assert self._origin is not None
        fock = self._fock + self._origin(orbitals)
        if not self._secants:
            return fock
        change = np.stack(by_spin(density_matrix(orbitals))) - self._density
        weights = self._inverse @ self._host(self._directions @ self._vector(change))
        defect = sum(float(w) * e for w, (_, e) in zip(weights, self._secants, strict=True))
        return fock + np.reshape(defect, fock.shape)
