"""Atomic-orbital layout: shells per element, and the common template that blocks are padded to.

A block of an operator between atoms A and B is stored in a template that has room for the
largest number of shells of each angular momentum among all elements of a model (for H, C, N, O, F
in def2-SVP: 3 s, 2 p, 1 d, 14 functions). Within a shell the template's order is m = -l … l, which
is the order of e3nn's real spherical harmonics when the physical vector (x, y, z) is given to e3nn
as (y, z, x). PySCF orders p shells (x, y, z) and all others m = -l … l, with the same phases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import UnsupportedMoleculeError

# Auxiliary functions of each degree of the diagonal reduction, see :mod:`.onsite`.
AUXILIARY_COUNTS = (16, 8, 4)
# Offsets m + l of a PySCF shell's functions; only p shells differ from m = -l … l.
_P_ORDER = (2, 0, 1)


@dataclass(frozen=True)
class OrbitalTemplate:
    """Shells of each element of a basis set, and the padded block layout made from them.

    Attributes:
        shells: angular momentum of each shell by atomic number, in PySCF's order.
    """

    shells: dict[int, tuple[int, ...]]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers, ascending."""
        return tuple(sorted(self.shells))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of template shells of each angular momentum."""
        l_max = max(max(ls) for ls in self.shells.values())
        return tuple(max(ls.count(l) for ls in self.shells.values()) for l in range(l_max + 1))

    def counts_in(self, slots: np.ndarray) -> tuple[int, ...]:
        """Number of shells of each angular momentum that hold these template positions."""
        shells = np.repeat(np.arange(len(self.template_shells)),
                           [2 * l + 1 for l in self.template_shells])  # fmt: skip
        degrees = np.array(self.template_shells)[np.unique(shells[slots])]
        return tuple(np.bincount(degrees, minlength=len(self.counts)).tolist())

    @property
    def template_shells(self) -> tuple[int, ...]:
        """Angular momentum of each template shell."""
        return tuple(l for l, count in enumerate(self.counts) for _ in range(count))

    @property
    def size(self) -> int:
        """Functions of one padded atom."""
        return sum(2 * l + 1 for l in self.template_shells)

    def slots(self, number: int, shells: Iterable[int] | None = None) -> np.ndarray:
        """Template position of each AO of an element, in PySCF's order, shape (nao_atom,).

        Args:
            number: of the element.
            shells: angular momenta in another basis set than the template's.

        Raises:
            UnsupportedMoleculeError: the element is not part of the template, or the template has
                no room for these shells.
        """
        if number not in self.shells:
            raise UnsupportedMoleculeError(
                f"no basis functions known for atomic number {number}; known: {self.numbers}"
            )
        starts = np.cumsum([0] + [n * (2 * l + 1) for l, n in enumerate(self.counts)])
        seen = [0] * len(self.counts)
        slots: list[int] = []
        for l in self.shells[number] if shells is None else shells:
            if l >= len(seen) or seen[l] == self.counts[l]:
                raise UnsupportedMoleculeError(
                    f"atomic number {number} has more shells of angular momentum {l} than the "
                    "template"
                )
            start = starts[l] + seen[l] * (2 * l + 1)
            seen[l] += 1
            order = _P_ORDER if l == 1 else range(2 * l + 1)
            slots.extend(int(start + m) for m in order)
        return np.array(slots, dtype=np.int64)

    def to_config(self) -> dict[str, list[int]]:
        return {str(z): list(ls) for z, ls in sorted(self.shells.items())}

    @classmethod
    def from_config(cls, config: dict[str, list[int]]) -> OrbitalTemplate:
        return cls({int(z): tuple(ls) for z, ls in config.items()})
