"""From a PySCF molecule to the graph that networks take; training and the guess share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError, UnsupportedMoleculeError
from ..fock.fitted import FittedFock
from ..fock.orbitals import orthonormal_basis, solve_roothaan
from ..fock.reference import sad_reference, superposed_atomic_density
from .batch import REFERENCES, MolecularGraph

if TYPE_CHECKING:
    from pyscf.gto import Mole

_COINCIDENT = 0.1  # bohr; no nuclei of a molecule come that close


def check_molecule(mol: Mole) -> None:
    """Refuse what no molecular Hamiltonian network can describe, whatever its elements.

    Raises:
        UnsupportedMoleculeError: no atoms, no electrons, a periodic cell, ghost atoms, NaN or
            coincident coordinates.
    """
    if getattr(mol, "pbc_intor", None) is not None:
        raise UnsupportedMoleculeError("periodic cells are not supported")
    if mol.natm == 0:
        raise UnsupportedMoleculeError("the molecule has no atoms")
    if mol.nelectron <= 0:
        raise UnsupportedMoleculeError("the molecule has no electrons")
    for i in range(mol.natm):
        if mol.atom_charge(i) == 0:
            raise UnsupportedMoleculeError(
                f"atom {i} ({mol.atom_symbol(i)}) is a ghost or dummy atom"
            )
    positions = mol.atom_coords()
    if not np.isfinite(positions).all():
        raise UnsupportedMoleculeError("the coordinates contain NaN or infinity")
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    distances[np.diag_indices(mol.natm)] = np.inf
    if distances.min() < _COINCIDENT:
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        raise UnsupportedMoleculeError(f"atoms {i} and {j} are at the same place")


def build_graph(
    mol: Mole,
    reference: str,
    hamiltonian: np.ndarray | None = None,
    fitted: FittedFock | None = None,
) -> MolecularGraph:
    """Graph of a molecule: overlap, reference Hamiltonian, orthonormal vectors, optional label.

    Args:
        mol: a built molecule.
        reference: ``'sad'`` or ``'none'``.
        hamiltonian: converged Fock matrix (nao, nao) in hartree, for training and metrics.
        fitted: builds the reference; one made for it and kept can serve further Fock matrices.
    """
    if reference not in REFERENCES:
        raise ConfigError(f"unknown reference {reference!r}; known: {', '.join(REFERENCES)}")
    overlap = mol.intor_symmetric("int1e_ovlp")
    if reference == "none":
        atomic_density = fock = np.zeros_like(overlap)
        basis_vectors = orthonormal_basis(overlap)
    else:
        atomic_density = superposed_atomic_density(mol)
        fock = sad_reference(mol, atomic_density, fitted or FittedFock(mol))
        basis_vectors = solve_roothaan(fock, overlap)[1]
    graph = MolecularGraph(
        numbers=np.array([mol.atom_charge(i) for i in range(mol.natm)], dtype=np.int32),
        positions=mol.atom_coords(),
        n_occupied=(mol.nelectron + 1) // 2,
        overlap=overlap,
        reference=fock,
        atomic_density=np.asarray(atomic_density),
        basis_vectors=basis_vectors,
    )
    if hamiltonian is not None:
        if hamiltonian.shape != overlap.shape:
            raise UnsupportedMoleculeError(
                f"a Hamiltonian of shape {hamiltonian.shape} does not fit {mol.nao} orbitals"
            )
        graph.hamiltonian = hamiltonian
        graph.target_energies, graph.target_orbitals = solve_roothaan(hamiltonian, overlap)
    return graph
