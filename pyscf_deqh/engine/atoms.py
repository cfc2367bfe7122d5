"""The atoms of PySCF's guess ``minao``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from pyscf import gto
from pyscf.scf import atom_hf

from ..pyscf_api import elements_of

if TYPE_CHECKING:
    from pyscf.gto import Mole

# Beyond this element ``minao`` is no minimal basis set.
_LAST = 96


def minimal_atoms(mol: Mole) -> tuple[Mole, np.ndarray] | None:
    """A molecule in the occupied orbitals of its atoms, those of the ANO basis set, and their
    occupations (n,).

    None where PySCF takes others: with effective core potentials, ghosts or very heavy atoms.
    """
    charges = mol.atom_charges()
    if mol.has_ecp() or charges.min() < 1 or charges.max() > _LAST:
        return None
    known = elements_of(mol)
    elements = [known[mol.atom_symbol(i)] for i in range(mol.natm)]
    atoms = gto.Mole()
    places = list(zip(elements, mol.atom_coords(), strict=True))
    basis = {element: _minimal(element)[0] for element in set(elements)}
    atoms._atm, atoms._bas, atoms._env = atoms.make_env(places, basis, [])
    atoms._built = True
    return atoms, np.concatenate([_minimal(element)[1] for element in elements])


@functools.lru_cache(maxsize=128)
def _minimal(element: str) -> tuple[list[Any], np.ndarray]:
    """Contracted shells of an atom, as PySCF writes them, and the occupations of their orbitals."""
    shells, occupations = [], []
    ano = gto.basis.load("ano", element)
    for degree in range(4):
        full, rest = atom_hf.frac_occ(element, degree)
        shells.append([degree] + [line[: full + 2] for line in ano[degree][1:]])
        occupations.append(np.repeat([2.0] * full + [rest], 2 * degree + 1))
    return shells, np.concatenate(occupations)
