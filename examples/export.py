"""Orbitals and densities of a network's Hamiltonian for viewers: Molden and cube files, no SCF.

Usage: python export.py molecule.xyz

``network.molden`` holds the orbitals of the predicted Hamiltonian, ``network.cube`` its density and
``change.cube`` that density less the superposed ones of free atoms: what the network knows about
the bonds. B3LYP/def2-SVP; molecules of H, C, N, O and F.
"""

import sys

import numpy as np
import scipy.linalg
from pyscf import gto, scf
from pyscf.tools import cubegen, molden

from pyscf_deqh import predict_hamiltonian

mol = gto.M(atom=sys.argv[1], basis="def2-svp")
hamiltonian = predict_hamiltonian(mol).hamiltonian
energies, coefficients = scipy.linalg.eigh(hamiltonian, mol.intor("int1e_ovlp"))
occupations = np.where(np.arange(len(energies)) < mol.nelectron // 2, 2.0, 0.0)
molden.from_mo(mol, "network.molden", coefficients, ene=energies, occ=occupations)

occupied = coefficients[:, occupations > 0]
density = 2 * occupied @ occupied.T
cubegen.density(mol, "network.cube", density)
cubegen.density(mol, "change.cube", density - scf.hf.init_guess_by_atom(mol))

highest = mol.nelectron // 2 - 1
gap = 27.211386 * (energies[highest + 1] - energies[highest])
print(f"{mol.natm} atoms, {mol.nao} orbitals, gap of {gap:.2f} eV: network.molden, network.cube,")
print("change.cube, which Avogadro, VMD, Jmol and PyMOL read")
