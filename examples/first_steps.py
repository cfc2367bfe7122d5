"""Aspirin at B3LYP/def2-SVP from PySCF's default guess and from DEQH: same energy, fewer cycles.

DEQH is a start by a network and corrected cycles in the place of DIIS. Corrected cycles alone, for
any element: ``.apply(corrected_diis)`` in the place of ``.apply(deqh_guess)``.
"""

from pyscf import gto, scf

from pyscf_deqh import deqh_guess

ASPIRIN = """
C   2.9664   1.3267  -0.8449
C   1.9348   0.6670   0.0176
O   1.7842   0.8346   1.1955
O   1.1801  -0.1852  -0.7159
C   0.0355  -0.7115  -0.1558
C  -0.1141  -2.0908  -0.1496
C  -1.2541  -2.6609   0.3866
C  -2.2426  -1.8593   0.9356
C  -2.0977  -0.4859   0.9324
C  -0.9662   0.1080   0.3777
C  -0.8501   1.5850   0.3233
O  -0.1803   2.2048  -0.4662
O  -1.6105   2.1956   1.2387
H   2.5052   2.2221  -1.2597
H   3.2563   0.6733  -1.6615
H   3.8252   1.6132  -0.2458
H   0.6722  -2.7003  -0.5670
H  -1.3652  -3.7347   0.3851
H  -3.1253  -2.3065   1.3661
H  -2.8627   0.1490   1.3511
H  -1.4909   3.1561   1.1743
"""

mol = gto.M(atom=ASPIRIN, basis="def2-svp", verbose=3)
minao = scf.RKS(mol, xc="b3lyp").run()
deqh = scf.RKS(mol, xc="b3lyp").apply(deqh_guess).run()
print(f"minao: {minao.cycles} cycles, deqh: {deqh.cycles} cycles")
print(f"energy difference: {abs(deqh.e_tot - minao.e_tot):.1e} hartree")
