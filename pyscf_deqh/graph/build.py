"""From a PySCF molecule to the graph that networks take; training and the guess share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError, UnsupportedMoleculeError
from ..fock.fitted import FittedFock
from ..fock.orbitals import orthonormal_basis, solve_roothaan
from ..fock.reference import sad_reference
from ..fock.system import System
from .batch import REFERENCES, MolecularGraph

if TYPE_CHECKING:
    from pyscf.gto import Mole


def build_graph(
    molecule: Mole | System,
    reference: str,
    hamiltonian: np.ndarray | None = None,
    fitted: FittedFock | None = None,
    fock: np.ndarray | None = None,
) -> MolecularGraph:
    """Graph of a molecule: overlap, reference Hamiltonian, orthonormal vectors, optional label.

    Args:
        molecule: a built molecule, or what has been made of it.
        reference: ``'sad'`` or ``'none'``.
        hamiltonian: converged Fock matrix (nao, nao) in hartree, for training and metrics.
        fitted: builds the reference; one made for it and kept can serve further Fock matrices.
        fock: the reference (nao, nao) in hartree, where it is known already.
    """
    if reference not in REFERENCES:
        raise ConfigError(f"unknown reference {reference!r}; known: {', '.join(REFERENCES)}")
    system = System.of(molecule)
    mol, overlap = system.mol, system.overlap
    for matrix in (hamiltonian, fock):
        if matrix is not None and matrix.shape != overlap.shape:
            raise UnsupportedMoleculeError(
                f"a Hamiltonian of shape {matrix.shape} does not fit {mol.nao} orbitals"
            )
    if reference == "none":
        atomic_density = fock = np.zeros_like(overlap)
        basis_vectors = orthonormal_basis(overlap)
    else:
        atomic_density = system.atomic_density
        if fock is None:
            fock = sad_reference(system, fitted or FittedFock(mol, engine=system.engine))
        basis_vectors = solve_roothaan(fock, overlap, system.engine)[1]
    host = system.engine.host
    graph = MolecularGraph(
        numbers=np.array([mol.atom_charge(i) for i in range(mol.natm)], dtype=np.int32),
        positions=mol.atom_coords(),
        n_occupied=(mol.nelectron + 1) // 2,
        overlap=host(overlap),
        reference=host(fock),
        atomic_density=host(atomic_density),
        basis_vectors=host(basis_vectors),
    )
    if hamiltonian is not None:
        graph.hamiltonian = hamiltonian
        graph.target_energies, graph.target_orbitals = solve_roothaan(hamiltonian, overlap)
    return graph
