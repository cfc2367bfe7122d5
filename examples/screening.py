"""A screening run over an xyz file: named like this, the guess stops at no molecule.

What the model does not know starts from superposed atomic densities. Corrected cycles follow.

Usage: python examples/screening.py molecules.xyz
"""

import sys

from pyscf import dft

from pyscf_deqh.benchmark.scf_runs import Method
from pyscf_deqh.data.geometry import read_geometries

method = Method(basis="def2-svp")  # with charge= and spin= of the comment lines
for geometry in read_geometries(sys.argv[1]):
    mf = dft.KS(method.molecule(geometry), xc="b3lyp")
    mf.init_guess = "deqh"
    mf.kernel()
    print(f"{geometry.name}: {mf.e_tot:.8f} hartree, {mf.cycles} cycles")
