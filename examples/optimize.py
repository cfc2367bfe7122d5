"""Ethanol at PBE/def2-SVP: a geometry optimization in which every point has a guess.

Each point starts from the orbitals of the one before. ``pip install 'pyscf_deqh[geomopt]'`` brings
geomeTRIC. ``python optimize.py 3`` makes three points only.
"""

import sys

from pyscf import gto, scf
from pyscf.geomopt import geometric_solver

from pyscf_deqh import deqh_guess

ETHANOL = """
C  -0.8885  0.1670 -0.0273
C   0.4658 -0.5116 -0.0368
O   1.4311  0.3229  0.5867
H  -0.8487  1.1175 -0.5695
H  -1.6471 -0.4704 -0.4896
H  -1.1964  0.3978  0.9977
H   0.7920 -0.7224 -1.0597
H   0.4246 -1.4559  0.5138
H   1.4671  1.1550  0.0848
"""

max_points = int(sys.argv[1]) if len(sys.argv) > 1 else 100
mol = gto.M(atom=ETHANOL, basis="def2-svp", verbose=3)
mf = scf.RKS(mol, xc="pbe").apply(deqh_guess, start="network")
builds = []


def count(envs):
    base = envs["g_scanner"].base
    builds.append(base.cycles + 2)  # the first Fock matrix and the check, too
    print(f"point {len(builds)}: start {base.deqh_report.start}, {builds[-1]} Fock matrices")


_, optimized = geometric_solver.kernel(
    mf, assert_convergence=False, maxsteps=max_points, callback=count
)
print(mf.deqh_scan)
