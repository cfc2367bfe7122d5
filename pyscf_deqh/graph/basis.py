"""Basis sets of PySCF's molecules: the layout that a model has, and whether a molecule fits it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from pyscf import gto
from pyscf.data.elements import ELEMENTS

from ..errors import ConfigError, UnsupportedMoleculeError
from .layout import OrbitalTemplate

if TYPE_CHECKING:
    from pyscf.gto import Mole


def template_of(basis: str, numbers: tuple[int, ...]) -> OrbitalTemplate:
    """The template of a named PySCF basis set for the given atomic numbers."""
    return OrbitalTemplate({z: tuple(shells_of_atom(free_atom(z, basis), 0)) for z in numbers})


def check_room(template: OrbitalTemplate, basis: str) -> None:
    """Make sure that a template has room for its elements in another basis set.

    Raises:
        ConfigError: it has not.
    """
    try:
        for number, shells in template_of(basis, template.numbers).shells.items():
            template.slots(number, shells)
    except UnsupportedMoleculeError as error:
        raise ConfigError(f"{basis} does not fit the model's basis set: {error}") from error


def free_atom(number: int, basis: str) -> Mole:
    """An element's atom with a named basis set.

    Raises:
        ConfigError: PySCF knows no such basis set, or not of this element.
    """
    atom, element = [(number, (0, 0, 0))], ELEMENTS[number]
    try:
        return gto.M(atom=atom, basis={element: basis}, spin=number % 2, verbose=0)
    except (RuntimeError, KeyError) as error:  # PySCF's own kinds of it
        raise ConfigError(f"PySCF has no basis set {basis!r} of {element}: {error}") from error


@functools.lru_cache(maxsize=1024)
def _orbitals_of(number: int, basis: str) -> int:
    return int(free_atom(number, basis).nao)


def n_orbitals(numbers: Iterable[int], basis: str) -> int:
    """Number of spherical orbitals of elements with a named basis set.

    Raises:
        ConfigError: the basis set lacks one of them.
    """
    return sum(_orbitals_of(int(number), basis) for number in numbers)


def needs_ecp(number: int, basis: str) -> bool:
    """Whether a named basis set describes the valence electrons of an element alone."""
    try:
        return bool(gto.basis.load_ecp(basis, ELEMENTS[number]))
    except (KeyError, RuntimeError):
        return False


def check_all_electron(numbers: Iterable[int], basis: str) -> None:
    """Refuse elements that a basis set serves with an effective core potential only.

    Raises:
        UnsupportedMoleculeError: there is one among the atomic numbers.
    """
    for number in sorted(set(map(int, numbers))):
        if needs_ecp(number, basis):
            raise UnsupportedMoleculeError(
                f"{basis} has an effective core potential for {ELEMENTS[number]}: labels and "
                "graphs are of all electrons"
            )


def shells_of_atom(mol: Mole, atom: int) -> list[int]:
    """Angular momenta of an atom's shells in AO order; a general contraction counts once each."""
    return [
        mol.bas_angular(shell)
        for shell in mol.atom_shell_ids(atom)
        for _ in range(mol.bas_nctr(shell))
    ]


def shells_of(mol: Mole) -> np.ndarray:
    """Atom and angular momentum (K, 2) of each shell in AO order, as graphs have them."""
    pairs = [(atom, l) for atom in range(mol.natm) for l in shells_of_atom(mol, atom)]
    return np.array(pairs, np.int32)


def check_basis(mol: Mole, basis: str, numbers: tuple[int, ...]) -> None:
    """Make sure that every atom of ``mol`` carries exactly the functions of the named basis set.

    Raises:
        UnsupportedMoleculeError: Cartesian functions, an effective core potential, a ghost atom, an
            unknown element, or an atom whose exponents or contractions differ.
    """
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
        if number == 0:
            raise UnsupportedMoleculeError(f"atom {i} ({label}) is a ghost or dummy atom")
        if number not in numbers:
            known = ", ".join(ELEMENTS[z] for z in numbers)
            raise UnsupportedMoleculeError(
                f"the model does not know the element of atom {i} ({label}); it knows {known}"
            )
        reference = free_atom(number, basis)
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
