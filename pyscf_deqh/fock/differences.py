"""Differences of fitted Fock matrices from that of one density."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .functional import Functional
from .orbitals import Orbitals, by_spin, in_form_of, total_density
from .potentials import Made, Near

if TYPE_CHECKING:
    from .fitted import FittedFock


class FittedDifferences:
    """Differences F(D) - F(D0) of fitted Fock matrices, for all densities D near one D0.

    Added to a better Fock matrix of D0 they give a good approximation of that of D: the error of
    fitting and grid hardly changes between similar densities (the defect correction of multigrid
    methods; Brandt, Math. Comput. 31, 333, 1977). Single precision serves down to gradients of
    1e-5 hartree, because the Coulomb matrix, by far the largest part, is made of the difference of
    the densities, and where there is much exact exchange, this of the change of the orbitals.

    Args:
        fitted: makes the matrices.
        orbitals: those of D0, (nao, k) each scaled by the root of its occupation; two such arrays,
            of either spin; or generalized ones, (2 nao, k).
        functional: of the matrices.
        earlier: differences from another density, whose exchange is that of the origin here and of
            the change, so that what rounding leaves is the same in both.

    Attributes:
        accuracy: error of exchange, norm of a matrix in hartree, that saves making it where a
            density is nearly a combination of the last ones; 0 for none.

    Raises:
        NotEnoughMemoryError: exact exchange is asked for and does not fit into memory.
    """

    accuracy = 0.0

    def __init__(
        self,
        fitted: FittedFock,
        orbitals: Orbitals,
        functional: Functional,
        earlier: FittedDifferences | None = None,
    ):
        self._fitted, self._functional = fitted, functional
        near = None if earlier is None else earlier._near
        self._density, self._known, self._origin = self._parts(orbitals, 0.0, near)

    @property
    def _near(self) -> Near | None:
        """The origin, for what will be compared with it; None for generalized orbitals."""
        return None if self._origin is None else Near(self._origin, self.accuracy)

    def _parts(
        self, orbitals: Orbitals, accuracy: float, near: Near | None
    ) -> tuple[np.ndarray, list[Tensor], Made | None]:
        """Density of all electrons, what is not Coulomb's in the matrices, by spin, and all that
        was made."""
        fitted, nao = self._fitted, self._fitted.mol.nao
        halves = by_spin(orbitals)
        generalized = len(halves[0]) == 2 * nao
        if generalized:
            halves = [halves[0][:nao], halves[0][nao:]]
            spins = fitted.tensors(halves)
            made = fitted.potentials.anew(halves, spins, self._functional)
        else:
            made = fitted.potentials.of(orbitals, self._functional, accuracy, near)
        parts = zip(made.exchange, made.semilocal, strict=True)
        known = [k.double() + v.double() for k, v in parts]
        if generalized:
            mixed = fitted.exchange(self._functional, *spins).double()
            above, below = (known[0], mixed), (mixed.T, known[1])
            known = [torch.cat([torch.cat(above, 1), torch.cat(below, 1)])]
        return total_density(halves), known, None if generalized else made

    def _minus(
        self, density: np.ndarray, known: list[Tensor], origin: FittedDifferences
    ) -> list[np.ndarray]:
        coulomb = self._fitted.coulomb(density - origin._density).double()
        if len(known[0]) == 2 * len(coulomb):
            coulomb = torch.block_diag(coulomb, coulomb)
        return [
            self._fitted.array(coulomb + after - before)
            for after, before in zip(known, origin._known, strict=True)
        ]

    def __call__(self, orbitals: Orbitals) -> np.ndarray:
        """F(D) - F(D0), float64, hartree: (nao, nao), (2, nao, nao), or (2 nao, 2 nao).

        Args:
            orbitals: those of D, in the form of those of D0.
        """
        density, known, _ = self._parts(orbitals, self.accuracy, self._near)
        return in_form_of(orbitals, self._minus(density, known, self))

    def fitted_matrix(self, hcore: np.ndarray) -> np.ndarray:
        """F(D0) itself in fitted matrices, (1 or 2, nao, nao), hartree.

        Args:
            hcore: (nao, nao) one-electron Hamiltonian, hartree.
        """
        coulomb = self._fitted.coulomb(self._density).double()
        array, hcore = self._fitted.array, self._fitted.in_solvent(hcore)
        return np.stack([hcore + array(coulomb + known) for known in self._known])

    def since(self, earlier: FittedDifferences) -> np.ndarray:
        """F(D0) - F(D) of an earlier origin D of the same form, (1 or 2, nao, nao), hartree."""
        return np.stack(self._minus(self._density, self._known, earlier))
