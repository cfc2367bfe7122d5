"""What is held at once is summed, and PySCF's own integrals come first."""

import gc
import weakref

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import dft, scf
from test_fitted import some_orbitals

from pyscf_deqh import NotEnoughMemoryError, corrected_diis, deqh_guess
from pyscf_deqh import guess as guess_module
from pyscf_deqh.engine.host import _inverse_root
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.functional import Functional
from pyscf_deqh.fock.problem import Problem
from pyscf_deqh.guess import Options, make_guess
from pyscf_deqh.pyscf_api import bytes_of_integrals, make_integrals
from pyscf_deqh.starts.network import NetworkStart

pytestmark = pytest.mark.usefixtures("coarse_grids")


def held(fitted):
    """Bytes of all large tensors that an object keeps."""
    made = [fitted.__dict__.get(name) for name in ("orbital_values", "integrals")]
    return sum(kept.nbytes for kept in (*made, *fitted._long_range.values()) if kept is not None)


@pytest.mark.parametrize("xc", ["hf", "pbe", "b3lyp", "wb97x"])
def test_nothing_held_exceeds_the_memory(xc):
    """From all of it to nothing but Coulomb matrices; every Fock matrix is the same."""
    mol = make_mol(FORMAMIDE)
    c, hcore = some_orbitals(mol), scf.hf.get_hcore(mol)
    expected = FittedFock(mol, dtype=torch.float64)(hcore, c, xc)[0]
    full = FittedFock(mol, dtype=torch.float64)
    full(hcore, c, xc)
    everything = held(full) / 1e6
    kept, needed = [], {"pbe": 0, "hf": 1, "b3lyp": 1, "wb97x": 2}
    for share in (2.0, 1.0, 0.8, 0.5, 0.3, 0.1, 0.01):
        memory = share * everything / 0.75
        fitted = FittedFock(mol, dtype=torch.float64, memory=memory)
        if 0.75e6 * memory < needed[xc] * full._integral_bytes:
            with pytest.raises(NotEnoughMemoryError, match="orbitals do not fit into"):
                fitted(hcore, c, xc)
        else:
            np.testing.assert_allclose(fitted(hcore, c, xc)[0], expected, atol=2e-6)
        kept.append(held(fitted))
        assert kept[-1] <= 0.75e6 * memory
    assert kept[0] == held(full)
    assert sorted(kept, reverse=True) == kept
    assert len(set(kept)) >= 3
    full.free()
    assert held(full) == 0


def make(method, **options):
    mol = make_mol(WATER, **options)
    return {
        "RHF": lambda: scf.RHF(mol),
        "UKS": lambda: dft.UKS(mol, xc="b3lyp"),
        "ROHF": lambda: scf.ROHF(mol),
        "symmetry": lambda: scf.RHF(make_mol(WATER, symmetry=True)),
        "PCM": lambda: scf.RHF(mol).PCM(),
        "GHF": lambda: scf.GHF(mol),
        "density_fit": lambda: dft.RKS(mol, xc="b3lyp").density_fit(),
    }[method]()


def test_values_give_way_to_the_integrals_of_long_range():
    """Without them there would be no exchange; the values can be made anew."""
    mol = make_mol(FORMAMIDE)
    c, hcore = some_orbitals(mol), scf.hf.get_hcore(mol)
    full = FittedFock(mol)
    expected = full(hcore, c, "wb97x")[0]
    of_one_range, values = full._integral_bytes, full.orbital_values.nbytes
    small = FittedFock(mol, memory=(of_one_range + max(of_one_range, values) + 9) / 0.75e6)
    small(hcore, c, "pbe")
    assert small.orbital_values.nbytes == values
    np.testing.assert_allclose(small(hcore, c, "wb97x")[0], expected, atol=1e-4)
    assert not small.orbital_values.nbytes
    assert 1.5 * of_one_range < held(small) <= 0.75e6 * small._memory


@pytest.mark.parametrize("method", ["RHF", "UKS", "ROHF", "GHF", "symmetry", "PCM", "density_fit"])
def test_integrals_that_pyscf_will_keep_are_made_first(method):
    mf = make(method)
    make_integrals(mf)
    integrals = mf.with_df._cderi if method == "density_fit" else mf._eri
    assert bytes_of_integrals(mf) == integrals.nbytes > 0
    spins = {"UKS": 2, "ROHF": 2, "GHF": 4}.get(method, 1)
    kept = 24 * spins * mf.mol.nao**2 * 8  # densities and defects of corrected cycles
    left = mf.max_memory - (integrals.nbytes + kept) / 1e6
    assert Problem.of(mf, mf.mol).memory == pytest.approx(left)
    mf.kernel()
    assert (mf.with_df._cderi if method == "density_fit" else mf._eri) is integrals


def test_integrals_that_pyscf_will_not_keep_are_not_made():
    mf = make("RHF")
    mf.max_memory = 1
    make_integrals(mf)
    assert mf._eri is None
    pure = dft.RKS(make_mol(WATER), xc="pbe").density_fit()
    coulomb_only = dft.RKS(make_mol(WATER), xc="b3lyp").density_fit(only_dfj=True)
    for mf in (pure, coulomb_only):
        make_integrals(mf)
        assert bytes_of_integrals(mf) == 0
        mf.init_guess = "deqh"
        mf.kernel()
    assert pure.with_df._cderi is coulomb_only.with_df._cderi is None


def test_the_order_in_a_guess(monkeypatch):
    original, seen = NetworkStart.__call__, []

    def start(self, problem):
        seen.append(problem.mf._eri is not None)
        return original(self, problem)

    monkeypatch.setattr(NetworkStart, "__call__", start)
    for options in ({}, {"accelerate": False}, {"max_cycles": 0}):
        mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, **options)
        for overlap in ({"s1e": mf.get_ovlp()}, {}):  # as an SCF does, and without one to follow
            mf._eri = None
            mf.get_init_guess(key="deqh", **overlap)
    # A guess whose integrals are gone when the SCF begins has nothing to make room for.
    assert seen == [True, False, False, False, True, False]


def test_the_scfs_own_limit_counts():
    mol = make_mol(WATER)
    mf = dft.RKS(mol, xc="b3lyp")
    mf.max_memory = 0.1
    guess = make_guess(mf, mol, Options())
    assert any("density-fitted cycles left out" in note for note in guess.report.notes)
    assert mol.max_memory == 4000
    mf.max_memory = 4000
    assert not make_guess(mf, mol, Options()).report.notes


def test_another_basis_set_takes_the_place_of_the_first(monkeypatch):
    """Their integrals are never held side by side."""
    made, held_later = [], []
    original = guess_module.run_cycles

    def watched(solution, problem, fitted, *settings):
        made.append(fitted)
        return original(solution, problem, fitted, *settings)

    monkeypatch.setattr(guess_module, "run_cycles", watched)
    mf = dft.RKS(make_mol(WATER, basis="cc-pvdz"), xc="b3lyp").apply(deqh_guess)
    mf.callback = lambda envs: held_later.append(held(made[0]))
    mf.kernel()
    assert set(held_later) == {0}


def test_fitted_integrals_serve_the_scf_and_go_with_it(monkeypatch):
    made, original = [], FittedFock.__init__

    def watched(self, *args, **kwargs):
        made.append(weakref.ref(self))
        original(self, *args, **kwargs)

    monkeypatch.setattr(FittedFock, "__init__", watched)
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess)
    mf.get_init_guess(key="deqh")
    gc.collect()
    assert [fitted() for fitted in made] == [None]  # no SCF followed
    made.clear()
    gc.disable()  # they have to go by themselves
    try:
        mf.kernel()
        assert len(made) == 1
        assert mf.deqh_cycles[0].accepted
        assert made[0]() is None
    finally:
        gc.enable()


def test_a_singular_metric_has_a_pseudoinverse():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(8, 5))
    for metric in (vectors @ vectors.T, vectors.T @ vectors):
        root = _inverse_root(metric)
        other = _inverse_root(metric, cholesky=False)
        np.testing.assert_allclose(root.T @ root, other.T @ other, atol=1e-9)
        np.testing.assert_allclose(root.T @ root, np.linalg.pinv(metric, rtol=1e-9), atol=1e-9)


def test_atoms_that_nearly_coincide_have_fitted_integrals():
    """Their auxiliary functions depend on each other; the Fock matrix is PySCF's nevertheless."""
    near = [(s, (x + 0.054, y, z)) for s, (x, y, z) in WATER]
    mol = make_mol(WATER + near)
    c = some_orbitals(mol)
    fock = FittedFock(mol, dtype=torch.float64)(scf.hf.get_hcore(mol), c, "camb3lyp")[0]
    expected = dft.RKS(mol, xc="camb3lyp").get_fock(dm=c @ c.T)
    assert np.abs(fock - expected).mean() < 1e-2 * np.abs(expected).mean()


@pytest.mark.parametrize("xc", ["b3lyp", "wb97x", "hf"])
def test_without_memory_for_exchange_another_functionals_response_serves(xc, tmp_path, monkeypatch):
    """The same energy with fewer full Fock matrices than from the same start without."""
    mol = make_mol(WATER, verbose=3, output=str(tmp_path / "log"))
    alone, with_it = (scf.HF(mol) if xc == "hf" else dft.KS(mol, xc=xc) for _ in range(2))
    monkeypatch.setattr(FittedFock, "serves", lambda self, functional: functional.name == "pbe")
    energy = alone.kernel()
    with_it.apply(corrected_diis).kernel()
    assert with_it.e_tot == pytest.approx(energy, abs=1e-8)
    assert with_it.cycles < alone.cycles
    assert any(cycle.accepted for cycle in with_it.deqh_cycles)
    mol.stdout.flush()
    assert "Corrected cycles with the response of pbe" in (tmp_path / "log").read_text()


def test_memory_for_one_range_of_exchange_is_not_enough():
    mol = make_mol(WATER)
    integrals = FittedFock(mol)._integral_bytes
    fitted = FittedFock(mol, memory=1.5 * integrals / 0.75e6)
    kinds = {"pbe": True, "b3lyp": True, "hf": True, "wb97x": False, "hse06": False}
    assert {xc: fitted.serves(Functional.of(xc)) for xc in kinds} == kinds


@pytest.mark.parametrize("xc", ["b3lyp", "camb3lyp", "hse06", "lc_wpbe"])
def test_fitted_integrals_of_all_ranges_are_made_before_the_guess(xc):
    """As many as PySCF makes in its SCF, and none besides."""
    mol = make_mol(WATER)
    made, plain = (dft.RKS(mol, xc=xc).density_fit() for _ in range(2))
    make_integrals(made)
    plain.set(max_cycle=1).run()
    for mf in (made, plain):
        mf.with_df._rsh_df = {k: d for k, d in mf.with_df._rsh_df.items() if d._cderi is not None}
    assert made.with_df._rsh_df.keys() == plain.with_df._rsh_df.keys()
    assert (made.with_df._cderi is None) == (plain.with_df._cderi is None)
    assert bytes_of_integrals(made) == bytes_of_integrals(plain) > 0
