"""A screening run over an xyz file: named like this, the guess stops at no molecule.

What the model does not know starts from superposed atomic densities. Corrected cycles follow.

Usage: python examples/screening.py molecules.xyz
"""

import sys

from pyscf import dft, gto

import pyscf_deqh  # noqa: F401 - makes the guess known to PySCF
from pyscf_deqh.data.geometry import read_geometries

for geometry in read_geometries(sys.argv[1]):
    unpaired = int(geometry.numbers.sum()) % 2
    mol = gto.M(atom=geometry.atom(), basis="def2-svp", spin=unpaired, verbose=2)
    mf = dft.KS(mol, xc="b3lyp")
    mf.init_guess = "deqh"
    mf.kernel()
    print(f"{geometry.name}: {mf.e_tot:.8f} hartree, {mf.cycles} cycles")
