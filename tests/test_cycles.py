"""What the guess saves and where it gives up: cycles counted in PySCF's own Fock matrices."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyscf import dft, qmmm, scf

from pyscf_deqh import (
    deqh_guess,
    init_guess_by_deqh,
)
from pyscf_deqh.fock import cycles
from pyscf_deqh.starts.network import NetworkStart

pytestmark = pytest.mark.usefixtures("coarse_grids")


@pytest.mark.parametrize("basis", ["def2-tzvp", "cc-pvdz", "sto-3g"])
def test_other_basis_sets_get_a_projected_guess(basis):
    """The density has the right electrons in orthonormal orbitals and a lower energy than minao's.

    A minimal basis is smaller than the model's: there too the projection is a density.
    """
    mol = make_mol(WATER, basis=basis)
    mf = dft.RKS(mol, xc="b3lyp").apply(deqh_guess)
    dm, s = mf.get_init_guess(key="deqh"), mol.intor("int1e_ovlp")
    np.testing.assert_allclose(dm @ s @ dm, 2 * dm, atol=1e-8)
    assert np.trace(dm @ s) == pytest.approx(10, abs=1e-8)
    if basis != "sto-3g":
        assert mf.energy_tot(dm) < mf.energy_tot(mf.get_init_guess(key="minao"))
    expected = dft.RKS(make_mol(WATER, basis=basis), xc="b3lyp").kernel()
    assert mf.kernel() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("method", [scf.UHF, scf.ROHF])
def test_projected_guesses_fit_every_class(method):
    mol = make_mol("O 0 0 0; H 0 0 .97", basis="cc-pvdz", spin=1)
    mf = method(mol)
    dm = mf.apply(deqh_guess).get_init_guess(key="deqh")
    assert dm.shape == mf.get_init_guess(key="minao").shape
    total = np.trace(dm @ mf.get_ovlp(), axis1=-2, axis2=-1).sum()
    assert total == pytest.approx(9, abs=1e-8)


def test_cartesian_functions_are_another_basis_set():
    mol = make_mol(WATER, cart=True)
    dm = init_guess_by_deqh(mol)
    assert np.trace(dm @ mol.intor("int1e_ovlp")) == pytest.approx(10, abs=1e-8)


@pytest.mark.parametrize("charge", [-2.0, -1.0, 0.4, 2.0])
@pytest.mark.parametrize("atom", [0, 1])
def test_point_charges_at_a_tenth_of_an_angstrom(charge, atom):
    """The network knows nothing of them; the cycles find PySCF's state all the same."""
    shift = np.random.default_rng(int(10 * charge) + 30).normal(size=3)
    position = np.array(WATER[atom][1]) + 0.1 * shift / np.linalg.norm(shift)
    plain, guess = (qmmm.mm_charge(scf.RHF(make_mol(WATER)), [position], [charge]) for _ in "ab")
    guess = guess.apply(deqh_guess)
    assert guess.kernel() == pytest.approx(plain.kernel(), abs=1e-8)
    assert guess.deqh_report.fallback is None
    assert guess.cycles <= 4 < plain.cycles


@pytest.mark.parametrize("xc", ["hf", "pbe", "wb97x", "m06-2x"])
def test_cheap_cycles_are_in_the_scfs_own_functional(xc):
    """Their fixed point is closer to PySCF's solution than what the network makes of B3LYP."""
    mol = make_mol()
    mf = (scf.RHF(mol) if xc == "hf" else dft.RKS(mol, xc=xc)).run()
    s, exact = mf.get_ovlp(), mf.make_rdm1()

    def error(max_cycles):
        dm = deqh_guess(mf, max_cycles=max_cycles).get_init_guess(key="deqh")
        return np.trace((dm - exact) @ s @ (dm - exact) @ s)

    assert error(6) < 0.2 * error(0)


def test_numbers_of_electrons_that_the_user_chose():
    mf = scf.UHF(make_mol(WATER))
    mf.nelec = (6, 4)
    dm = mf.apply(deqh_guess).get_init_guess(key="deqh")
    np.testing.assert_allclose(np.einsum("sij,ji->s", dm, mf.get_ovlp()), [6, 4], atol=1e-8)
    triplet = scf.UHF(make_mol(WATER, spin=2)).run()
    assert mf.kernel(dm0=dm) == pytest.approx(triplet.e_tot, abs=1e-7)


def fractional(mf):
    return scf.addons.frac_occ(mf)


def dynamic(mf):
    return scf.addons.dynamic_occ(mf)


def smeared(mf):
    return scf.addons.smearing(mf, sigma=0.05, mu0=-0.1)


def core_hole(mf):
    rule = mf.get_occ

    def of_the_user(*args):
        occupation = rule(*args)
        occupation[0] = 0
        return occupation

    mf.get_occ = of_the_user
    return mf


def of_maximum_overlap(mf):
    """An excited state, from the orbitals of the lowest."""
    ground = scf.UHF(mf.mol).run()
    occupation = np.array(ground.mo_occ)
    highest = int(occupation[0].sum()) - 1
    occupation[0, highest], occupation[0, highest + 1] = 0, 1
    return scf.addons.mom_occ(scf.UHF(mf.mol), ground.mo_coeff, occupation)


@pytest.mark.parametrize("rule", [fractional, dynamic, smeared, core_hole, of_maximum_overlap])
def test_occupations_by_a_rule_of_the_users_keep_pyscfs_path(rule):
    """From another start they would lead to other states: C2(2+) ended 39 millihartree higher."""
    mol = make_mol("C 0 0 -.7; C 0 0 .7", basis="sto-3g", charge=2)
    energies = {}
    for key in ("minao", "deqh"):
        mf, path = rule(scf.RHF(mol)), energies.setdefault(key, [])
        mf.callback = lambda envs, path=path: path.append(envs["e_tot"])
        mf.init_guess, mf.max_cycle = key, 10
        mf.kernel()
    # Rounding grows from cycle to cycle.
    assert energies["deqh"][:4] == pytest.approx(energies["minao"][:4], abs=1e-9)
    assert energies["deqh"] == pytest.approx(energies["minao"], abs=1e-5)
    assert mf.deqh_report.fallback == "the orbitals are not filled by energy"
    assert mf.deqh_cycles == ()


def test_a_triplet_from_the_network_alone_in_another_basis_set():
    mf = scf.UHF(make_mol("O 0 0 0; O 0 0 1.2", basis="def2-tzvp", spin=2))
    density = mf.apply(deqh_guess, max_cycles=0).get_init_guess(key="deqh")
    electrons = np.einsum("sij,ji->s", density, mf.get_ovlp())
    np.testing.assert_allclose(electrons, mf.nelec, atol=1e-8)


def test_an_atom_with_one_electron():
    mf = dft.UKS(make_mol("H 0 0 0", spin=1), xc="b3lyp")
    expected = mf.kernel()
    mf.init_guess = "deqh"
    assert mf.kernel() == pytest.approx(expected, abs=1e-8)


@pytest.fixture
def nonsense(monkeypatch):
    """A network that returns it."""
    original = NetworkStart.__call__

    def returned(self, problem):
        point = original(self, problem)
        return replace(point, hamiltonian=-point.hamiltonian)

    monkeypatch.setattr(NetworkStart, "__call__", returned)


def test_a_guess_that_cycles_do_not_mend_is_not_used(nonsense, monkeypatch):
    monkeypatch.setattr(cycles, "MAX_DESCENT", 0)
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, max_cycles=1)
    minao = mf.get_init_guess(key="minao")
    np.testing.assert_allclose(mf.get_init_guess(key="deqh"), minao, atol=1e-12)


@pytest.mark.parametrize("method", [scf.RHF, scf.UHF])
def test_where_diis_is_lost_direct_minimization_leads_on(method, nonsense):
    charge = 0 if method is scf.RHF else 1
    mol = make_mol(WATER, charge=charge, spin=charge)
    mf = method(mol).apply(deqh_guess, max_cycles=1)
    density = mf.get_init_guess(key="deqh")
    assert any("direct minimization" in note for note in mf.deqh_report.notes)
    assert len(mf.deqh_report.fitted_gradients) > 2
    plain = method(mol)
    assert plain.energy_tot(density) < plain.kernel() + 2e-3
    assert mf.kernel() < plain.e_tot + 1e-8


def test_without_memory_for_exchange_the_network_stands_alone():
    mol = make_mol(WATER)
    alone = dft.RKS(mol, xc="b3lyp").apply(deqh_guess, max_cycles=0).get_init_guess(key="deqh")
    mol.max_memory = 0.1
    small = dft.RKS(mol, xc="b3lyp").apply(deqh_guess).get_init_guess(key="deqh")
    np.testing.assert_allclose(small, alone, atol=1e-3)


def test_without_corrected_cycles_the_fitted_ones_go_on():
    """By choice, or because the user's own DIIS leaves them no place."""
    ends = []
    for settings, options in (({}, {}), ({}, {"accelerate": False}), ({"level_shift": 0.1}, {})):
        mf = scf.RHF(make_mol()).set(**settings).apply(deqh_guess, **options)
        mf.get_init_guess(key="deqh")
        ends.append(mf.deqh_report.fitted_gradients[-1])
    assert 2 * ends[1] < ends[0]
    assert ends[2] == pytest.approx(ends[1], rel=1e-3)
