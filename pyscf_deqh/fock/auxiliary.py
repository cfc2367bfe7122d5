"""Which functions orbital products are fitted to: an auxiliary basis set for each element.

Exchange in def2-universal-jfit, made for Coulomb matrices alone, is good enough up to neon. Beyond,
its Fock matrices of a given density have orbital gradients of 0.08 to 0.5 hartree too much, and
differences of them are up to 1.4 % off; in def2-universal-jkfit it is 0.0002 to 0.004 hartree and
0.04 % (docs/results/fitting_sets.py). A finer grid does not help. It has up to five times the
functions, but few atoms are heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyscf import df, gto

from ..pyscf_api import elements_of

if TYPE_CHECKING:
    from pyscf.gto import Mole

# Of the first two rows, and beyond.
LIGHT, HEAVY = "def2-universal-jfit", "def2-universal-jkfit"
_NEON, _KRYPTON = 10, 36


def auxiliary_molecule(mol: Mole, name: str | None = None) -> Mole:
    """The molecule in auxiliary functions; in even-tempered ones, which PySCF makes of the
    orbitals', where the basis set lacks an element (beyond radon) or was made for its valence
    electrons alone and all are there (beyond krypton without an effective core potential).

    Args:
        mol: the molecule.
        name: a basis set for all elements; None for :data:`LIGHT` and :data:`HEAVY`.
    """
    elements = elements_of(mol)
    whole = set() if name else _all_electron(mol)
    known = {
        symbol: named
        for symbol, element in elements.items()
        if element and symbol not in whole and _has(named := name or _set_of(element), element)
    }
    basis: dict[str, Any] = known if known.keys() == elements.keys() else df.aug_etb(mol) | known
    return df.addons.make_auxmol(mol, basis)


def _all_electron(mol: Mole) -> set[str]:
    """Symbols of atoms of which :data:`HEAVY` knows the valence electrons alone."""
    return {
        mol.atom_symbol(i)
        for i in range(mol.natm)
        if mol.atom_charge(i) > _KRYPTON and not mol.atom_nelec_core(i)
    }


def _set_of(element: str) -> str:
    return LIGHT if gto.charge(element) <= _NEON else HEAVY


def _has(basis: str, element: str) -> bool:
    try:
        return bool(gto.basis.load(basis, element))
    except RuntimeError:  # PySCF's own kind of it
        return False
