"""How many full Fock matrices four SCFs take, exactly: none may be lost unseen."""

import pytest
from conftest import FORMAMIDE, make_mol
from pyscf import dft

from pyscf_deqh import deqh_guess

CHLOROMETHANE = [
    ("C", (0.0, 0.0, 0.0)), ("Cl", (0.0, 0.0, 1.78)), ("H", (1.03, 0.0, -0.35)),
    ("H", (-0.515, 0.892, -0.35)), ("H", (-0.515, -0.892, -0.35)),
]  # fmt: skip
CASES = {
    "network": (lambda: dft.RKS(make_mol(FORMAMIDE), xc="b3lyp"), 4, "network"),
    "another basis set": (
        lambda: dft.RKS(make_mol(FORMAMIDE, basis="6-31+g*"), xc="pbe0"), 4, "network",
    ),
    "open shell": (
        lambda: dft.UKS(make_mol(FORMAMIDE, charge=1, spin=1), xc="b3lyp"), 4, "network",
    ),
    "another element": (lambda: dft.RKS(make_mol(CHLOROMETHANE), xc="b3lyp"), 4, "atoms"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_full_fock_matrices(case):
    make, builds, start = CASES[case]
    mf = make().apply(deqh_guess).run()
    assert mf.converged
    assert mf.deqh_report.start == start
    assert mf.cycles + 2 == builds
