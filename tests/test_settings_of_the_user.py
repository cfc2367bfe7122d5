"""What a user has set on an SCF object is as it was, and decides as it did."""

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyscf import dft, lib, scf

from pyscf_deqh import deqh_guess, plugin

pytestmark = pytest.mark.usefixtures("coarse_grids")


def hartree_fock(key="deqh"):
    mf = scf.RHF(make_mol(WATER))
    mf.init_guess = key
    return mf


def test_a_density_of_the_users_own(monkeypatch):
    mf = hartree_fock("minao").run()
    monkeypatch.setattr(plugin, "make_guess", lambda *args: pytest.fail("a guess was made"))
    again = hartree_fock()
    assert again.kernel(dm0=mf.make_rdm1()) == pytest.approx(mf.e_tot, abs=1e-9)
    assert again.cycles == 1
    assert again.deqh_report is None


def test_restart_from_a_checkpoint_file(monkeypatch, tmp_path):
    first = hartree_fock()
    first.chkfile = str(tmp_path / "scf.chk")
    energy = first.kernel()
    monkeypatch.setattr(plugin, "make_guess", lambda *args: pytest.fail("a guess was made"))
    for restart in ("init_guess", "dm0"):
        mf = hartree_fock("chkfile" if restart == "init_guess" else "deqh")
        mf.chkfile = first.chkfile
        dm = mf.from_chk() if restart == "dm0" else None
        assert mf.kernel(dm0=dm) == pytest.approx(energy, abs=1e-9)
        assert mf.cycles == 1


def test_callback_sees_pyscfs_cycles_alone():
    mf, seen = hartree_fock(), []
    mf.callback = lambda env: seen.append((env["cycle"], env["e_tot"]))
    mf.kernel()
    assert [cycle for cycle, _ in seen] == list(range(mf.cycles))
    assert seen[-1][1] == pytest.approx(mf.e_tot, abs=1e-8)


def test_check_convergence_decides():
    mf, asked = hartree_fock(), []

    def enough(env):
        asked.append(env["cycle"])
        return len(asked) >= 4

    mf.check_convergence = enough
    mf.kernel()
    # Once in each cycle, once after the last.
    assert asked == [0, 1, 2, 3, 3]
    assert mf.cycles == 4


@pytest.mark.parametrize(
    ("settings", "goal"),
    [
        ({"conv_tol": 1e-6}, 1e-3),
        ({"conv_tol": 1e-11}, 10**-5.5),
        ({"conv_tol_grad": 1e-6}, 1e-6),
    ],
)
def test_corrected_cycles_go_as_far_as_the_scf(settings, goal):
    mf = hartree_fock().set(**settings)
    reference = hartree_fock("minao").set(conv_tol=1e-12).run()
    mf.kernel()
    assert mf.converged
    corrected = [cycle for cycle in mf.deqh_cycles if cycle.accepted]
    assert all(cycle.gradient > 0.1 * goal for cycle in corrected)
    # Each ends where the SCF would, or a tenth below what is expected of the next full build.
    assert corrected[-1].fitted_gradients[-1] < 0.5 * goal
    assert all(cycle.fitted_gradients[-2:][0] > 0.1 * goal for cycle in corrected if
               len(cycle.fitted_gradients) > 1)  # fmt: skip
    assert {key: getattr(mf, key) for key in settings} == settings
    assert mf.e_tot == pytest.approx(reference.e_tot, abs=mf.conv_tol)


DIIS = {
    "none": {"diis": False},
    "a class": {"DIIS": scf.ADIIS, "diis_space": 5, "diis_start_cycle": 2},
    "an object": {"diis": scf.EDIIS()},
    "damping": {"diis_damp": 0.2},
    "level shift": {"level_shift": 0.3},
}


@pytest.mark.parametrize("case", DIIS)
def test_diis_and_its_kin_stay(case):
    expected = hartree_fock("minao").run().e_tot
    mf = hartree_fock().set(**DIIS[case])
    names = ("diis", "DIIS", "diis_space", "diis_start_cycle", "diis_damp", "level_shift",
             "diis_file", "max_cycle", "direct_scf", "verbose", "chkfile", "callback")  # fmt: skip
    before = {name: getattr(mf, name) for name in names}
    mf.kernel()
    assert mf.converged
    assert mf.e_tot == pytest.approx(expected, abs=1e-8)
    assert {name: getattr(mf, name) for name in names} == before


def test_objects_stay_pyscfs(tmp_path):
    """No attributes that PySCF would complain of; copies and conversions start from deqh too."""
    log = tmp_path / "log"
    mol = make_mol(WATER, verbose=4, output=str(log))
    mf = dft.RKS(mol, xc="pbe").apply(deqh_guess).run()
    mf.check_sanity()
    for other in (mf.copy(), mf.to_uks(), mf.density_fit(), mf.newton(), mf.to_hf()):
        assert other.init_guess == "deqh"
        other.deqh_report = None
        other.kernel()
        assert other.converged
    mol.stdout.flush()
    assert "does not have attributes" not in log.read_text()
    scanner = mf.as_scanner()
    assert scanner(make_mol(WATER)) == pytest.approx(mf.e_tot, abs=1e-7)
    shared = lib.chkfile.load_mol(mf.chkfile)
    assert np.allclose(shared.atom_coords(), mol.atom_coords())


def test_a_fock_matrix_of_the_users_own_is_left_alone():
    """PySCF shifts its levels by how much the energy has changed."""
    mf = scf.addons.dynamic_level_shift_(scf.RHF(make_mol(WATER)), factor=0.5)
    mf.apply(deqh_guess, start="atoms").run()
    assert mf.converged
    assert any("get_fock" in note for note in mf.deqh_report.notes)


@pytest.mark.parametrize("cycle", [None, 4])
def test_a_diis_that_the_user_puts_in_begins_as_ever_or_as_he_says(cycle):
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, start="atoms")
    mf.DIIS = scf.ADIIS
    if cycle is not None:
        mf.diis_start_cycle = cycle
    mf.kernel()
    assert mf.converged
    assert mf.diis_start_cycle == (cycle or scf.hf.SCF.diis_start_cycle)
