"""What Fock matrices hold beside Coulomb's part: exact exchange and the functional's potential."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .functional import Functional
from .orbitals import Orbitals, by_spin, nearest_combination

if TYPE_CHECKING:
    from .fitted import FittedFock

# Densities whose Fock matrices are remembered.
_REMEMBERED = 6
# What single precision leaves of exact exchange, norm of the gradient in hartree for the root of an
# orbital; up to which change of the orbitals, in an orthonormal basis, a difference is better.
_ROUNDING, _NEAR = 2e-6, 0.3


@dataclass(frozen=True, eq=False)
class Made:
    """What was made of orbitals: all of their Fock matrix but Coulomb's part.

    Attributes:
        orbitals: as they were handed over.
        functional: of the matrices.
        exchange, semilocal: matrices (nao, nao) by spin, hartree.
        energy: of the semilocal part, hartree.
        error: of the exchange, norm of the matrices, hartree, by estimate.
    """

    orbitals: Orbitals
    functional: Functional
    exchange: list[Tensor]
    semilocal: list[Tensor]
    energy: float
    error: float = 0.0


class Near(NamedTuple):
    """A density near those to come.

    Attributes:
        made: of it.
        accuracy: norm of a matrix, hartree: where rounding in single precision is no smaller,
            exchange is that of this density and of the change.
    """

    made: Made
    accuracy: float


class Potentials:
    """Exchange and semilocal potentials of densities, of which the last are remembered.

    Args:
        fitted: makes them.
    """

    def __init__(self, fitted: FittedFock):
        self._fitted = weakref.proxy(fitted)  # whose memory is free when nobody else holds it
        self._made: deque[Made] = deque(maxlen=_REMEMBERED)

    def __iter__(self) -> Iterator[Made]:
        """Those that are remembered, in their order."""
        return iter(self._made)

    def forget(self) -> None:
        """Let go of them."""
        self._made.clear()

    def of(
        self,
        orbitals: Orbitals,
        functional: Functional,
        accuracy: float = 0.0,
        near: Near | None = None,
    ) -> Made:
        """Those of orbitals, which are remembered.

        Args:
            orbitals: (nao, k), each scaled by the root of its occupation, or of either spin.
            functional: says what they are.
            accuracy: error of exchange, norm of a matrix in hartree, with which it is combined from
                that of others; 0 for none.
            near: a density that this one will be compared with.
        """
        for made in self._made:
            if made.orbitals is orbitals and made.functional.same_as(functional):
                if made.error <= accuracy:
                    return made
                self._made.remove(made)
                break
        spins = self._fitted.tensors(orbitals)
        made = self.anew(orbitals, spins, functional, accuracy, near)
        self._made.append(made)
        return made

    def anew(
        self,
        orbitals: Orbitals,
        spins: list[Tensor],
        functional: Functional,
        accuracy: float = 0.0,
        near: Near | None = None,
    ) -> Made:
        """The same, made in any case and not remembered; the orbitals as tensors, too."""
        semilocal, energy = self._fitted.semilocal(spins, functional)
        # Electrons exchange with those of their own spin: half of a closed shell's density.
        share = 0.5 if len(spins) == 1 else 1.0
        combined = self._combined(orbitals, functional, share, accuracy) if accuracy else None
        if combined is not None:
            return Made(orbitals, functional, combined[0], semilocal, energy, combined[1])
        exchange = None
        if near is not None and self._is_rounding(functional, spins, near.accuracy):
            exchange = self._exchange_near(orbitals, near.made, share)
        if exchange is None:
            exchange = [share * self._fitted.exchange(functional, c) for c in spins]
        return Made(orbitals, functional, exchange, semilocal, energy)

    def _is_rounding(self, functional: Functional, spins: list[Tensor], accuracy: float) -> bool:
        """Whether what single precision leaves of exchange is no less than half of an accuracy."""
        if not functional.exchange or not self._fitted.integrals.is_single:
            return False
        share = sum(map(abs, functional.exchange.values()))
        n_orbitals = sum(c.shape[1] for c in spins) / len(spins)
        return _ROUNDING * share * n_orbitals**0.5 > 0.5 * accuracy

    def _exchange_near(self, orbitals: Orbitals, origin: Made, share: float) -> list[Tensor] | None:
        """Exchange, float64, of an origin plus that of the difference; None where both are far
        from each other.

        With orbitals A of the origin, turned among each other to be as near as possible to C
        (Procrustes), 2 (C C^T - A A^T) is (C - A)(C + A)^T and its transpose.
        """
        matrices = []
        overlap = self._fitted.tensor(self._fitted.overlap, torch.float64)
        spins = zip(by_spin(origin.orbitals), by_spin(orbitals), origin.exchange, strict=True)
        for before, after, known in spins:
            if before.shape != after.shape:
                return None
            a, c = (self._fitted.tensor(x, torch.float64) for x in (before, after))
            left, values, right = torch.linalg.svd(a.T @ overlap @ c)
            squared = (a * (overlap @ a)).sum() + (c * (overlap @ c)).sum() - 2 * values.sum()
            if float(squared) > _NEAR**2:
                return None
            a = a @ (left @ right)
            half = self._fitted.exchange(
                origin.functional, (c - a).to(self._fitted.dtype), (c + a).to(self._fitted.dtype)
            ).double()
            matrices.append(known.double() + 0.5 * share * (half + half.T))
        return matrices

    def _combined(
        self, orbitals: Orbitals, functional: Functional, share: float, accuracy: float
    ) -> tuple[list[Tensor], float] | None:
        """Exchange, which is linear in the density, of one that is nearly a combination of those
        whose exchange is known, and its error; None where that is too large."""
        exact = [m for m in self._made if not m.error and m.functional.same_as(functional)]
        if not exact or not functional.exchange:
            return None
        share *= sum(map(abs, functional.exchange.values()))
        matrices, left = [], 0.0
        for spin, c in enumerate(by_spin(orbitals)):
            known = [by_spin(made.orbitals)[spin] for made in exact]
            weights, rest = nearest_combination(c, known, self._fitted.overlap, self._fitted.engine)
            left = float(np.hypot(left, rest))
            # Exchange matrices of a density are at most as large as this itself, more or less.
            if share * left > accuracy:
                return None
            total = torch.zeros_like(exact[0].exchange[spin], dtype=torch.float64)
            for weight, made in zip(weights, exact, strict=True):
                total += float(weight) * made.exchange[spin].double()
            matrices.append(total)
        return matrices, share * left
