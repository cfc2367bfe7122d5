"""Aspirin at B3LYP/def2-SVP from PySCF's default guess and from DEQH: same energy, fewer cycles.

DEQH is a start by a network and corrected cycles in the place of DIIS. Corrected cycles alone, for
any element: ``.apply(corrected_diis)`` in the place of ``.apply(deqh_guess)``.
"""

from pathlib import Path

from pyscf import gto, scf

from pyscf_deqh import deqh_guess

ASPIRIN = str(Path(__file__).with_name("aspirin.xyz"))

mol = gto.M(atom=ASPIRIN, basis="def2-svp", verbose=3)
minao = scf.RKS(mol, xc="b3lyp").run()
deqh = scf.RKS(mol, xc="b3lyp").apply(deqh_guess).run()
print(f"minao: {minao.cycles} cycles, deqh: {deqh.cycles} cycles")
print(f"energy difference: {abs(deqh.e_tot - minao.e_tot):.1e} hartree")
