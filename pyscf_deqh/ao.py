"""Atomic-orbital layout: shells per element, and the common template that blocks are padded to.

A block of an operator between atoms A and B is stored in a template that has room for the
largest number of shells of each angular momentum among all elements of a model (for H, C, N, O, F
in def2-SVP: 3 s, 2 p, 1 d, 14 functions). Within a shell the template's order is m = -l … l, which
is the order of e3nn's real spherical harmonics when the physical vector (x, y, z) is given to e3nn
as (y, z, x). PySCF orders p shells (x, y, z) and all others m = -l … l, with the same phases.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .errors import UnsupportedMoleculeError

if TYPE_CHECKING:
    from pyscf.gto import Mole

# Offsets m + l of a PySCF shell's functions; only p shells differ from m = -l … l.
_P_ORDER = (2, 0, 1)


@dataclass(frozen=True)
class OrbitalTemplate:
    """Shells of each element of a basis set, and the padded block layout made from them.

    Attributes:
        shells: angular momentum of each shell by atomic number, in PySCF's order.
    """

    shells: dict[int, tuple[int, ...]]

    @classmethod
    def from_basis(cls, basis: str, numbers: tuple[int, ...]) -> OrbitalTemplate:
        """The template of a named PySCF basis set for the given atomic numbers."""
        from pyscf import gto
        from pyscf.data.elements import ELEMENTS

        shells = {}
        for z in numbers:
            atom = gto.M(atom=[(z, (0, 0, 0))], basis={ELEMENTS[z]: basis}, spin=z % 2, verbose=0)
            shells[z] = tuple(shells_of_atom(atom, 0))
        return cls(shells)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers, ascending."""
        return tuple(sorted(self.shells))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of template shells of each angular momentum."""
        l_max = max(max(ls) for ls in self.shells.values())
        return tuple(max(ls.count(l) for ls in self.shells.values()) for l in range(l_max + 1))

    @property
    def template_shells(self) -> tuple[int, ...]:
        """Angular momentum of each template shell."""
        return tuple(l for l, count in enumerate(self.counts) for _ in range(count))

    @property
    def size(self) -> int:
        """Functions of one padded atom."""
        return sum(2 * l + 1 for l in self.template_shells)

    def slots(self, number: int) -> np.ndarray:
        """Template position of each AO of an element, in PySCF's order, shape (nao_atom,).

        Raises:
            UnsupportedMoleculeError: the element is not part of the template.
        """
        if number not in self.shells:
            raise UnsupportedMoleculeError(
                f"no basis functions known for atomic number {number}; known: {self.numbers}"
            )
        starts = np.cumsum([0] + [n * (2 * l + 1) for l, n in enumerate(self.counts)])
        seen = [0] * len(self.counts)
        slots: list[int] = []
        for l in self.shells[number]:
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


def shells_of_atom(mol: Mole, atom: int) -> list[int]:
    """Angular momenta of an atom's shells in AO order; a general contraction counts once each."""
    return [
        mol.bas_angular(shell)
        for shell in mol.atom_shell_ids(atom)
        for _ in range(mol.bas_nctr(shell))
    ]


def check_basis(mol: Mole, basis: str, numbers: tuple[int, ...]) -> None:
    """Make sure that every atom of ``mol`` carries exactly the functions of the named basis set.

    Raises:
        UnsupportedMoleculeError: Cartesian functions, an effective core potential, an unknown
            element, or an atom whose exponents or contractions differ.
    """
    from pyscf import gto

    if mol.cart:
        raise UnsupportedMoleculeError(
            "the model works in spherical AOs, the molecule has cart=True"
        )
    if mol.has_ecp():
        raise UnsupportedMoleculeError(
            "the model knows all-electron atoms only, the molecule has an ECP"
        )
    by_label: dict[str, int] = {mol.atom_symbol(i): i for i in range(mol.natm)}
    for label, i in by_label.items():
        number = int(mol.atom_charge(i))
        if number not in numbers:
            known = ", ".join(gto.mole._symbol(z) for z in numbers)
            raise UnsupportedMoleculeError(
                f"the model does not know the element of atom {i} ({label}); it knows {known}"
            )
        reference = gto.M(atom=[(number, (0, 0, 0))], basis=basis, spin=number % 2, verbose=0)
        mine, theirs = mol.atom_shell_ids(i), reference.atom_shell_ids(0)
        same = len(mine) == len(theirs) and all(
            mol.bas_angular(a) == reference.bas_angular(b)
            and np.array_equal(mol.bas_exp(a), reference.bas_exp(b))
            and np.allclose(mol.bas_ctr_coeff(a), reference.bas_ctr_coeff(b))
            for a, b in zip(mine, theirs, strict=True)
        )
        if not same:
            raise UnsupportedMoleculeError(
                f"the basis functions of {label} are not those of {basis}, for which the model "
                "was trained"
            )
