"""Ethanol at B3LYP/def2-SVP from PySCF's default guess and from DEQH: same energy, fewer cycles.

DEQH is a start by a network and corrected cycles in the place of DIIS. Corrected cycles alone, for
any element: ``.apply(corrected_diis)`` in the place of ``.apply(deqh_guess)``.
"""

from pyscf import gto, scf

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

mol = gto.M(atom=ETHANOL, basis="def2-svp", verbose=3)
minao = scf.RKS(mol, xc="b3lyp").run()
deqh = scf.RKS(mol, xc="b3lyp").apply(deqh_guess).run()
print(f"minao: {minao.cycles} cycles, deqh: {deqh.cycles} cycles")
print(f"energy difference: {abs(deqh.e_tot - minao.e_tot):.1e} hartree")
