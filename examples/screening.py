"""A screening run over an xyz file: the guess is only named, so that no molecule stops the run.

Usage: python examples/screening.py molecules.xyz
"""

import sys

from pyscf import dft, gto

import pyscf_deqh  # noqa: F401 - makes the guess known to PySCF
from pyscf_deqh.data.geometry import read_geometries

for geometry in read_geometries(sys.argv[1]):
    mol = gto.M(atom=geometry.atom(), basis="def2-svp", verbose=2)
    mf = dft.RKS(mol, xc="b3lyp").density_fit()
    mf.init_guess = "deqh"
    mf.kernel()
    print(f"{geometry.info.get('smiles', mol.natm)}: {mf.e_tot:.8f} hartree, {mf.cycles} cycles")
