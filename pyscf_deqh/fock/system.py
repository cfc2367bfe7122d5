"""A molecule and its one-electron matrices, which all parts of a guess share."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..engine import HOST, Engine
from ..errors import UnsupportedMoleculeError
from ..pyscf_api import is_periodic

if TYPE_CHECKING:
    from pyscf.gto import Mole

_COINCIDENT = 0.1  # bohr; no nuclei of a molecule come that close


class System:
    """A molecule with matrices (nao, nao) that are made once, when they are first needed.

    Args:
        mol: a built molecule.
        overlap: if it is known already.
        engine: makes the matrices.
    """

    def __init__(self, mol: Mole, overlap: np.ndarray | None = None, engine: Engine = HOST):
        self.mol, self.engine = mol, engine
        if overlap is not None:
            self.overlap = overlap

    @classmethod
    def of(cls, molecule: Mole | System) -> System:
        """A molecule's, or the same again."""
        return molecule if isinstance(molecule, System) else cls(molecule)

    @cached_property
    def overlap(self) -> np.ndarray:
        """Overlap of the orbitals."""
        return self.engine.overlap(self.mol)

    @cached_property
    def core_hamiltonian(self) -> np.ndarray:
        """Kinetic energy, nuclear attraction and effective core potentials, hartree."""
        return self.engine.core_hamiltonian(self.mol)

    @cached_property
    def atomic_density(self) -> np.ndarray:
        """Superposed atomic densities: PySCF's minao guess, tagged with its orbitals."""
        return self.engine.atomic_density(self.mol, self.overlap)


def check_molecule(mol: Mole) -> None:
    """Refuse what is no molecule that an SCF could be made of.

    Raises:
        UnsupportedMoleculeError: no atoms, no electrons, a periodic cell, NaN or coincident
            coordinates, another operator than Coulomb's.
    """
    if is_periodic(mol):
        raise UnsupportedMoleculeError("periodic cells are not supported")
    if mol.natm == 0:
        raise UnsupportedMoleculeError("the molecule has no atoms")
    if mol.nelectron <= 0:
        raise UnsupportedMoleculeError("the molecule has no electrons")
    if mol.omega:
        raise UnsupportedMoleculeError("mol.omega is set: the guess has Coulomb's operator alone")
    positions = mol.atom_coords()
    if not np.isfinite(positions).all():
        raise UnsupportedMoleculeError("the coordinates contain NaN or infinity")
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    distances[np.diag_indices(mol.natm)] = np.inf
    if distances.min() < _COINCIDENT:
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        raise UnsupportedMoleculeError(f"atoms {i} and {j} are at the same place")
