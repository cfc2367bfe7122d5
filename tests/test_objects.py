"""SCF objects that are changed, converted and used again, and those of other kinds."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import dft, gto, scf

from pyscf_deqh import corrected_diis, deqh_guess
from pyscf_deqh.errors import NotEnoughMemoryError
from pyscf_deqh.fock import diis, states

pytestmark = pytest.mark.usefixtures("coarse_grids")


def test_a_conversion_keeps_the_options():
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, accelerate=False, start="atoms")
    for other in (mf.to_rks("pbe"), mf.to_rks("pbe").to_hf()):
        assert other._deqh == mf._deqh
        other.kernel()
        assert other.deqh_report.start == "atoms"
        assert other.deqh_cycles == ()


def test_a_diis_that_is_chosen_later_is_noted():
    mf = dft.RKS(make_mol(WATER), xc="pbe").apply(deqh_guess)
    mf.diis = False
    mf.kernel()
    assert mf.deqh_report.notes == ("no corrected cycles: mf.diis is False",)
    # As far as cycles go without corrected ones after them.
    assert mf.deqh_report.fitted_gradients[-1] < 4e-4 * np.sqrt(5)
    assert mf.deqh_cycles == ()


def test_integrals_do_not_outlive_their_molecule():
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess)
    mf.max_cycle = 0
    mf.kernel()
    assert mf not in diis._FITTED  # no cycle was to come
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess)
    mf.get_init_guess(key="deqh", s1e=mf.get_ovlp())
    assert mf in diis._FITTED
    mf.mol.set_geom_([(s, (x, y, 1.1 * z)) for s, (x, y, z) in WATER])
    assert diis._handed_over(mf) is None
    assert mf not in diis._FITTED
    mf.reset().kernel()
    assert mf.e_tot == pytest.approx(scf.RHF(mf.mol).kernel(), abs=1e-8)
    assert mf not in diis._FITTED


def test_rejected_cycles_leave_no_trace_in_restricted_open_shells(monkeypatch):
    mol = make_mol(WATER, charge=1, spin=1)
    plain, other = scf.ROHF(mol), scf.ROHF(mol).apply(corrected_diis)
    solve = diis.Corrector.solve

    def without_success(*args):
        refined = solve(*args)
        refined.gradients.append(np.inf)
        return refined

    monkeypatch.setattr(diis.Corrector, "solve", without_success)
    energies = []
    for mf in (plain, other):
        path = []
        mf.callback = lambda envs, path=path: path.append(envs["e_tot"])
        mf.kernel()
        energies.append(path)
    assert not any(cycle.accepted for cycle in other.deqh_cycles)
    np.testing.assert_allclose(energies[1], energies[0], atol=1e-9)


def test_complex_matrices_keep_pyscfs_diis():
    mol = make_mol(WATER, basis="sto-3g")
    plain, mf = scf.GHF(mol).x2c(), scf.GHF(mol).x2c().apply(corrected_diis)
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.normal(size=(2 * mol.nao, 2 * mol.nao))
    start = plain.get_init_guess() + 1j * (noise - noise.T)
    assert mf.kernel(start) == pytest.approx(plain.kernel(start), abs=1e-7)
    assert not any(cycle.fitted_gradients for cycle in mf.deqh_cycles)


@pytest.mark.parametrize("start", [0, 1])
def test_what_a_guess_switches_off_it_has_switched_on(start, monkeypatch):
    for module in ("pyscf_deqh.guess", "pyscf_deqh.fock.diis"):
        monkeypatch.setattr(f"{module}.too_cheap", lambda mf, again=False: "it is small")
    mf = scf.RHF(make_mol(WATER))
    mf.diis_start_cycle = start
    deqh_guess(mf).kernel()
    assert mf.deqh_report.fallback == "it is small"
    assert (mf.DIIS, mf.diis_start_cycle) == (scf.RHF(mf.mol).DIIS, start)
    mf = scf.RHF(make_mol(WATER)).apply(corrected_diis)
    mf.init_guess = "deqh"
    mf.kernel()
    assert mf.deqh_report.fallback == "it is small"
    assert mf.deqh_cycles[0].accepted


def test_cycles_of_an_earlier_scf_are_forgotten():
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess).run()
    assert mf.deqh_cycles
    mf.diis = False
    mf.reset().run()
    mf.kernel(mf.get_init_guess(key="deqh"))
    assert mf.deqh_cycles == ()


def test_a_scan_whose_functional_changes_starts_anew():
    scan = dft.RKS(make_mol(WATER), xc="pbe").apply(deqh_guess).as_scanner()
    moved = make_mol([(s, (x, 1.01 * y, z)) for s, (x, y, z) in WATER])
    scan(make_mol(WATER))
    scan.xc = "pbe0"
    assert scan(moved) == pytest.approx(dft.RKS(moved, xc="pbe0").kernel(), abs=1e-8)
    assert scan.deqh_report.start == "network"
    assert any("another molecule or method" in note for note in scan.deqh_report.notes)
    scan(make_mol(WATER))
    assert scan.deqh_report.start == "previous"


def test_the_guess_for_another_molecule_has_its_electrons():
    mf, other = scf.RHF(make_mol(WATER)).apply(deqh_guess), make_mol(FORMAMIDE)
    density = mf.get_init_guess(other, key="deqh")
    assert np.vdot(density, other.intor("int1e_ovlp")) == pytest.approx(24, abs=1e-6)
    energy = scf.RHF(other).energy_tot(density)
    assert energy == pytest.approx(scf.RHF(other).kernel(), abs=0.05)


def test_scans_of_cells_are_pyscfs():
    from pyscf.pbc import dft as pbcdft
    from pyscf.pbc import gto as pbcgto

    cell = pbcgto.M(atom="He 1 1 1", a=2 * np.eye(3), basis="gth-szv", pseudo="gth-pade",
                    mesh=[11] * 3, verbose=0)  # fmt: skip
    expected = pbcdft.RKS(cell, xc="lda,vwn").kernel()
    mf = pbcdft.RKS(cell, xc="lda,vwn")
    mf.init_guess = "deqh"
    scan = mf.as_scanner()
    assert [scan(cell) for _ in range(3)] == pytest.approx([expected] * 3, abs=1e-6)


def test_a_search_without_memory_leaves_the_guess(monkeypatch):
    def fail(self, *args):
        raise NotEnoughMemoryError("no room")

    monkeypatch.setattr(states.StateSearch, "hamiltonian_of", fail)
    mf = scf.UHF(make_mol(WATER, charge=1, spin=1)).apply(deqh_guess, lowest=True).run()
    assert mf.converged
    assert mf.deqh_report.fallback is None
    assert "no other state was looked for: no room" in mf.deqh_report.notes
    assert mf.deqh_cycles[0].accepted


def test_nearly_dependent_functions():
    """PySCF leaves out combinations of functions whose overlap is below 1e-6."""
    mol = gto.M(atom="H 0 0 0; H 0 0 .4; H 0 0 .8; H 0 0 1.2", basis="aug-cc-pvtz", verbose=0)
    mf = scf.RHF(mol).apply(deqh_guess).run()
    assert mf.converged
    assert mf.deqh_report.fallback is None
    assert mf.e_tot == pytest.approx(scf.RHF(mol).kernel(), abs=1e-7)


def test_asking_an_object_does_not_import_all_of_pyscf():
    code = """
import sys
from pyscf import gto, scf
import pyscf_deqh
mol = gto.M(atom="O 0 0 .119; H 0 .763 -.477; H 0 -.763 -.477", basis="def2-svp", verbose=0)
mf = scf.RHF(mol).apply(pyscf_deqh.deqh_guess, start="network")
mf.kernel()
mf.as_scanner()(mol)
plain = scf.RHF(mol).as_scanner()
plain(mol), plain(mol)
assert mf.deqh_report.start == "network" and mf.deqh_cycles
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"pyscf.cc", "pyscf.mcscf", "pyscf.pbc.dft"} & set(done.stdout.split())
