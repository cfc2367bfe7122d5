"""What the guess saves and where it gives up: cycles counted in PySCF's own Fock matrices."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyscf import dft, scf

from pyscf_deqh import (
    deqh_guess,
    init_guess_by_deqh,
)
from pyscf_deqh.fock import cycles as cycles_module
from pyscf_deqh.guess import Options, make_guess
from pyscf_deqh.starts.network import NetworkStart


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


@pytest.mark.parametrize("method", [scf.UHF, scf.ROHF, scf.GHF])
def test_projected_guesses_fit_every_class(method):
    mol = make_mol("O 0 0 0; H 0 0 .97", basis="cc-pvdz", spin=1)
    mf = method(mol)
    dm = mf.apply(deqh_guess).get_init_guess(key="deqh")
    assert dm.shape == mf.get_init_guess(key="minao").shape
    total = np.trace(dm @ mf.get_ovlp(), axis1=-2, axis2=-1).sum()
    assert total == pytest.approx(9, abs=1e-8)


@pytest.mark.parametrize("method", [scf.UHF, scf.ROHF])
def test_projected_open_shells_get_an_exact_fock_matrix(method, monkeypatch):
    mf = method(make_mol(WATER, basis="cc-pvdz", charge=1, spin=1))
    expected, cycles = mf.kernel(), mf.cycles
    assert full_builds_of(mf, monkeypatch) == 1
    assert mf.kernel() == pytest.approx(expected, abs=1e-8)
    assert mf.cycles <= cycles / 2


def test_diffuse_basis_sets_do_not_leave_rounding_in_the_corrected_cycles():
    """The overlap of this one has an eigenvalue of 8e-6."""
    mf = scf.RHF(make_mol("C 0 0 .6; C 0 0 -.6; H 0 0 1.66; H 0 0 -1.66", basis="aug-cc-pvtz"))
    guess = make_guess(mf, mf.mol, Options())
    assert guess.report.corrected_gradients[-1] < np.sqrt(mf.conv_tol)


def test_cartesian_functions_are_another_basis_set():
    mol = make_mol(WATER, cart=True)
    dm = init_guess_by_deqh(mol)
    assert np.trace(dm @ mol.intor("int1e_ovlp")) == pytest.approx(10, abs=1e-8)


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


def count_builds(mf, monkeypatch):
    """A list that grows with every Fock matrix that PySCF builds for ``mf``."""
    builds, original = [], mf.get_veff
    monkeypatch.setattr(mf, "get_veff", lambda *a, **k: builds.append(1) or original(*a, **k))
    return builds


CATION = {"charge": 1, "spin": 1}
EXACT = {
    "RHF": (lambda mol: scf.RHF(mol), {}),
    "B3LYP": (lambda mol: dft.RKS(mol, xc="b3lyp"), {}),
    "PBE": (lambda mol: dft.RKS(mol, xc="pbe"), {}),
    "density fitting": (lambda mol: dft.RKS(mol, xc="b3lyp").density_fit(), {}),
    "X2C": (lambda mol: dft.RKS(mol, xc="b3lyp").sfx2c1e(), {}),
    "UHF": (lambda mol: scf.UHF(mol), CATION),
    "UKS": (lambda mol: dft.UKS(mol, xc="b3lyp"), CATION),
    "UKS triplet": (lambda mol: dft.UKS(mol, xc="b3lyp"), {"spin": 2}),
    "ROHF": (lambda mol: scf.ROHF(mol), CATION),
    "ROKS": (lambda mol: dft.ROKS(mol, xc="b3lyp"), CATION),
    "ROHF triplet": (lambda mol: scf.ROHF(mol), {"spin": 2}),
    "UKS, density fitting": (lambda mol: dft.UKS(mol, xc="pbe").density_fit(), CATION),
}


@pytest.mark.parametrize("case", EXACT)
def test_one_exact_fock_matrix_leaves_almost_nothing_to_the_scf(case, monkeypatch):
    """In Fock matrices of PySCF's own, the guess's included, at most half of minao's."""
    make, options = EXACT[case]
    counts, energies = {}, {}
    for key in ("minao", "deqh"):
        mf = make(make_mol(**options))
        builds = count_builds(mf, monkeypatch)
        mf.init_guess = key
        energies[key] = mf.kernel()
        assert mf.converged
        counts[key] = len(builds)
    assert counts["deqh"] <= 0.5 * counts["minao"]
    # In Hartree-Fock, minao leads the cation to an excited state.
    if case not in ("UHF", "ROHF"):
        assert energies["deqh"] == pytest.approx(energies["minao"], abs=5e-9)
    assert energies["deqh"] < energies["minao"] + 5e-9


def test_a_solvent_is_in_the_exact_fock_matrix(monkeypatch):
    """Its response is not in the cycles after it: less is gained, nothing lost."""
    counts, energies = {}, {}
    for key in ("minao", "deqh"):
        mf = scf.RHF(make_mol()).PCM()
        builds = count_builds(mf, monkeypatch)
        mf.init_guess = key
        energies[key] = mf.kernel()
        counts[key] = len(builds)
    assert counts["deqh"] < counts["minao"]
    assert energies["deqh"] == pytest.approx(energies["minao"], abs=5e-9)


def full_builds_of(mf, monkeypatch, **options):
    builds = count_builds(mf, monkeypatch)
    deqh_guess(mf, **options).get_init_guess(key="deqh")
    return len(builds)


def test_where_an_exact_fock_matrix_is_built(monkeypatch):
    closed, radical = make_mol(WATER), make_mol("O 0 0 0; H 0 0 .97", spin=1)
    for mf in (dft.RKS(closed, xc="pbe"), dft.UKS(radical, xc="pbe"), scf.ROHF(radical)):
        assert full_builds_of(mf, monkeypatch) == 1
        assert full_builds_of(mf, monkeypatch, full_build=False) == 0
        assert full_builds_of(mf, monkeypatch, max_cycles=0) == 0
    for mf in (scf.UHF(closed), scf.GHF(closed), scf.GHF(radical)):
        assert full_builds_of(mf, monkeypatch) == 0


def test_numbers_of_electrons_that_the_user_chose():
    mf = scf.UHF(make_mol(WATER))
    mf.nelec = (6, 4)
    dm = mf.apply(deqh_guess).get_init_guess(key="deqh")
    np.testing.assert_allclose(np.einsum("sij,ji->s", dm, mf.get_ovlp()), [6, 4], atol=1e-8)
    triplet = scf.UHF(make_mol(WATER, spin=2)).run()
    assert mf.kernel(dm0=dm) == pytest.approx(triplet.e_tot, abs=1e-7)


def test_electrons_are_those_that_the_scfs_own_rule_fills_in():
    """A chemical potential, or a core hole by a rule of the user's: 0.1.0 served them too."""
    smeared = scf.addons.smearing(scf.RHF(make_mol(WATER)), sigma=0.05, mu0=-0.1)
    expected = smeared.run().e_tot
    again = scf.addons.smearing(scf.RHF(make_mol(WATER)), sigma=0.05, mu0=-0.1)
    assert again.apply(deqh_guess).kernel() == pytest.approx(expected, abs=1e-7)
    hole = scf.UHF(make_mol(WATER, charge=1, spin=1))
    rule = hole.get_occ

    def of_the_user(*args):
        occupation = rule(*args)
        occupation[0][0] = 0
        return occupation

    hole.get_occ = of_the_user
    density = hole.apply(deqh_guess).get_init_guess(key="deqh")
    assert np.einsum("sij,ji->", density, hole.get_ovlp()) == pytest.approx(8, abs=1e-8)


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


def test_a_guess_that_cycles_do_not_mend_is_not_used(monkeypatch):
    """A network that returns nonsense, and cycles too few to repair it."""
    original = NetworkStart.__call__

    def nonsense(self, problem):
        point = original(self, problem)
        return replace(point, hamiltonian=-point.hamiltonian)

    monkeypatch.setattr(NetworkStart, "__call__", nonsense)
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, max_cycles=1)
    minao = mf.get_init_guess(key="minao")
    np.testing.assert_allclose(mf.get_init_guess(key="deqh"), minao, atol=1e-12)


def test_without_memory_for_exchange_the_network_stands_alone():
    mol = make_mol(WATER)
    alone = dft.RKS(mol, xc="b3lyp").apply(deqh_guess, max_cycles=0).get_init_guess(key="deqh")
    mol.max_memory = 0.1
    small = dft.RKS(mol, xc="b3lyp").apply(deqh_guess).get_init_guess(key="deqh")
    np.testing.assert_allclose(small, alone, atol=1e-3)


def test_corrected_cycles_that_do_not_come_near_their_goal_are_not_used(monkeypatch):
    monkeypatch.setattr(cycles_module, "_MAX_CORRECTED", 1)
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess)
    minao = mf.get_init_guess(key="minao")
    np.testing.assert_allclose(mf.get_init_guess(key="deqh"), minao, atol=1e-12)
    mf.conv_tol_grad = 0.1  # which one cycle does reach
    assert np.abs(mf.get_init_guess(key="deqh") - minao).max() > 0.01
