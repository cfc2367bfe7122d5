"""Corrected cycles inside PySCF's loop: fewer of its Fock matrices, and its own solution."""

import sys
import types
from dataclasses import replace

import numpy as np
import pyscf
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol
from packaging import version
from pyscf import dft, gto, lib, scf

from pyscf_deqh import ConfigError, corrected_diis, deqh_guess
from pyscf_deqh.engine import HOST
from pyscf_deqh.fock import corrector, diis
from pyscf_deqh.fock.auxiliary import LIGHT
from pyscf_deqh.fock.failure import Strictly, WayBack, patience_when_far
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.functional import Functional
from pyscf_deqh.fock.nearby import FockNearby
from pyscf_deqh.fock.orbitals import orthonormal_basis
from pyscf_deqh.fock.problem import Problem
from pyscf_deqh.fock.shells import Kind
from pyscf_deqh.process import pyscf_threads

pytestmark = pytest.mark.usefixtures("coarse_grids")

CATION = {"charge": 1, "spin": 1}
METHODS = {
    "RHF": (scf.RHF, {}),
    "B3LYP": (lambda mol: dft.RKS(mol, xc="b3lyp"), {}),
    "PBE": (lambda mol: dft.RKS(mol, xc="pbe"), {}),
    "M06-2X": (lambda mol: dft.RKS(mol, xc="m06-2x"), {}),
    "wB97X": (lambda mol: dft.RKS(mol, xc="wb97x"), {}),
    "density fitting": (lambda mol: dft.RKS(mol, xc="b3lyp").density_fit(), {}),
    "X2C": (lambda mol: scf.RHF(mol).sfx2c1e(), {}),
    "UHF": (scf.UHF, CATION),
    "UKS": (lambda mol: dft.UKS(mol, xc="b3lyp"), CATION),
    "UKS triplet": (lambda mol: dft.UKS(mol, xc="b3lyp"), {"spin": 2}),
    "ROHF": (scf.ROHF, CATION),
    "ROKS": (lambda mol: dft.ROKS(mol, xc="b3lyp"), CATION),
    "ROHF triplet": (scf.ROHF, {"spin": 2}),
    "UKS, density fitting": (lambda mol: dft.UKS(mol, xc="pbe").density_fit(), CATION),
    "symmetry": (scf.RHF, {"symmetry": True}),
    "symmetry, ROHF": (scf.ROHF, {"symmetry": True, **CATION}),
    "symmetry, UKS": (lambda mol: dft.UKS(mol, xc="pbe"), {"symmetry": True, **CATION}),
    "Cartesian functions": (scf.RHF, {"cart": True}),
}


def run(mf, dm=None):
    """An SCF, and how many Fock matrices PySCF built for it."""
    builds, original = [], mf.get_veff
    mf.get_veff = lambda *a, **k: builds.append(1) or original(*a, **k)
    mf.kernel(dm0=dm)
    assert mf.converged
    return mf, len(builds)


@pytest.mark.parametrize("case", METHODS)
def test_half_the_fock_matrices_and_the_same_energy(case):
    """From minao and from the network."""
    make, options = METHODS[case]
    plain, n_plain = run(make(make_mol(WATER, **options)))
    alone, n_alone = run(make(make_mol(WATER, **options)).apply(corrected_diis))
    guess, n_guess = run(make(make_mol(WATER, **options)).apply(deqh_guess))
    assert n_alone <= min(6, n_plain - 2)
    assert n_guess <= n_plain / 2 + 0.5
    for mf in (alone, guess):
        assert mf.e_tot < plain.e_tot + 5e-9
        assert any(cycle.accepted for cycle in mf.deqh_cycles)
        if case not in ("UHF", "ROHF"):  # whose cation minao leads to an excited state
            assert mf.e_tot == pytest.approx(plain.e_tot, abs=5e-9)


def test_a_larger_molecule_in_another_basis_set():
    mol = make_mol(FORMAMIDE, basis="cc-pvdz")
    plain, n_plain = run(dft.RKS(mol, xc="b3lyp"))
    guess, n_guess = run(dft.RKS(mol, xc="b3lyp").apply(deqh_guess))
    assert n_guess <= 5 <= n_plain / 2
    assert guess.e_tot == pytest.approx(plain.e_tot, abs=5e-9)


@pytest.mark.parametrize("method", [scf.RHF, scf.UHF, scf.ROHF])
def test_where_the_fitted_matrices_are_exact_one_cycle_is_enough(method, monkeypatch):
    """An SCF in the same auxiliary basis set: its Fock matrix of any density is the fitted one."""
    mol = make_mol(WATER, **({} if method is scf.RHF else {"spin": 2}))
    mf = method(mol).density_fit(auxbasis=LIGHT).apply(corrected_diis)
    mf.conv_tol_grad = 1e-6  # asks for double precision
    monkeypatch.setattr(diis, "_LEAVES", 1e-9)
    run(mf)
    first, second = mf.deqh_cycles[:2]
    assert first.gradient > 0.5
    assert second.gradient < 1e-6


def test_what_the_guess_has_made_serves_the_first_solution(monkeypatch):
    """Its Fock matrices, less the full one's defect, save a fitted cycle or two."""
    mol = make_mol(FORMAMIDE)
    with_it, _ = run(dft.RKS(mol, xc="pbe").apply(deqh_guess))
    monkeypatch.setattr(FittedFock, "remembered", lambda *_: [])
    without, _ = run(dft.RKS(mol, xc="pbe").apply(deqh_guess))
    cycles = [len(mf.deqh_cycles[0].fitted_gradients) for mf in (with_it, without)]
    assert cycles[0] < cycles[1]
    assert with_it.e_tot == pytest.approx(without.e_tot, abs=1e-8)


@pytest.mark.parametrize(("charge", "part"), [(0, 0.5), (1, 0.1)])
def test_nothing_is_solved_far_below_pyscfs_threshold(charge, part):
    """In closed shells with a wide gap, and in others."""
    mol = make_mol(WATER, charge=charge, spin=charge)
    mf, _ = run((scf.UHF if charge else scf.RHF)(mol).apply(corrected_diis))
    found = mf.deqh_cycles
    tolerance = np.sqrt(mf.conv_tol)
    assert found[-1].gradient < tolerance
    for cycle in found:
        assert bool(cycle.fitted_gradients) == (cycle.gradient > part * tolerance)


def some_densities(n_alpha, n_beta, count):
    """Orbitals of either spin of the formamide cation, turned at random."""
    mol = make_mol(WATER)
    overlap, rng = mol.intor("int1e_ovlp"), np.random.default_rng(0)
    x = orthonormal_basis(overlap)
    c = scf.RHF(mol).run().mo_coeff
    spins = []
    for _ in range(count):
        turned = x @ np.linalg.qr(x.T @ overlap @ c + 0.05 * rng.normal(size=x.shape))[0]
        spins.append([turned[:, :n_alpha], turned[:, :n_beta]])
    return mol, overlap, x, spins


def test_fock_matrices_at_known_densities_are_known():
    """The multisecant condition, whatever the Fock matrices are."""
    mol, overlap, x, spins = some_densities(5, 4, 4)
    fitted = FittedFock(mol, dtype=torch.float64)
    nearby = FockNearby(fitted, Functional.of("pbe"), overlap @ x)
    rng = np.random.default_rng(1)
    focks = []
    for orbitals in spins:
        noise = rng.normal(size=(2, mol.nao, mol.nao))
        focks.append(noise + noise.transpose(0, 2, 1))
        nearby.know(orbitals, focks[-1])
    for orbitals, fock in zip(spins, focks, strict=True):
        np.testing.assert_allclose(nearby(orbitals), fock, atol=1e-7)


def test_the_defect_of_a_linear_potential_is_found_within_its_directions():
    """A potential L(D) that the fitted matrices lack, as a solvent's."""
    mol, overlap, x, spins = some_densities(5, 5, 3)
    fitted = FittedFock(mol, dtype=torch.float64)
    exact, fock = Functional.of("hf"), scf.hf.get_hcore(mol)
    nearby = FockNearby(fitted, exact, overlap @ x)
    strength = 0.1 * np.arange(mol.nao)

    def full(orbitals):
        lacking = strength[:, None] * (orbitals @ orbitals.T) * strength
        return fitted(fock, orbitals, exact)[0] + lacking

    first, second = (np.sqrt(2) * s[0] for s in spins[:2])
    nearby.know(first, full(first))
    alone = np.linalg.norm(nearby(second) - full(second))
    nearby.know(second, full(second))
    # Between two densities, for orbitals that hold the mean of both.
    mean = np.hstack([first, second]) / np.sqrt(2)
    assert np.linalg.norm(nearby(mean) - full(mean)) < 1e-6 * alone


@pytest.mark.parametrize("spin", [1, 2])
def test_spins_of_restricted_open_shells_are_told_apart(spin):
    mf = scf.ROHF(make_mol(WATER, charge=spin % 2, spin=spin)).run(max_cycle=2)
    density, overlap = mf.make_rdm1(), mf.get_ovlp()
    x = orthonormal_basis(overlap)
    fock = mf.get_fock(dm=density)
    found = corrector._orbitals_of(Kind.RESTRICTED_OPEN, density.sum(0), fock, x, overlap @ x)
    for c, expected in zip(found, density, strict=True):
        np.testing.assert_allclose(c @ c.T, expected, atol=1e-9)
    density = mf.get_init_guess(key="minao")
    fock = mf.get_fock(dm=density)
    found = corrector._orbitals_of(Kind.RESTRICTED_OPEN, density.sum(0), fock, x, overlap @ x)
    np.testing.assert_allclose(found[0] @ found[0].T, density[0], atol=1e-9)


BROKEN = {
    "H2": ("H 0 0 0; H 0 0 3", lambda mol: scf.UHF(mol), "mix", 0.99),
    "O2": ("O 0 0 0; O 0 0 1.21", lambda mol: dft.UKS(mol, xc="b3lyp"), 1, 1.0),
    "He2 stretched": ("He 0 0 0; He 0 0 3", lambda mol: scf.UHF(mol), "mix", 0.0),
}


@pytest.mark.parametrize("case", BROKEN)
def test_singlets_of_broken_symmetry_stay_what_they_are(case):
    atoms, make, break_by, spin_square = BROKEN[case]
    ends = []
    for key in ("minao", "deqh"):
        mf = make(make_mol(atoms))
        mf.init_guess, mf.init_guess_breaksym = key, break_by
        # In threads sums have no fixed order, and PySCF's own O2 falls back to a closed shell at
        # times.
        with pyscf_threads, lib.with_omp_threads(1):
            ends.append(run(mf))
    (plain, n_plain), (guess, n_guess) = ends
    if version.parse(pyscf.__version__) >= version.parse("2.14"):  # others break it otherwise
        assert plain.spin_square()[0] == pytest.approx(spin_square, abs=0.02)
    assert guess.spin_square()[0] == pytest.approx(plain.spin_square()[0], abs=1e-3)
    assert guess.e_tot == pytest.approx(plain.e_tot, abs=1e-7)
    assert n_guess <= min(n_plain, 5)


def test_chosen_irreducible_representations_are_filled():
    """Two electrons in another one: an excited state, which no aufbau would keep."""
    ends = []
    for prepare in (lambda mf: mf, corrected_diis, deqh_guess):
        mf = scf.RHF(make_mol(WATER, symmetry=True))
        mf.irrep_nelec = {"A1": 4, "B1": 4}
        ends.append(run(prepare(mf)))
    for mf, builds in ends[1:]:
        assert mf.e_tot == pytest.approx(ends[0][0].e_tot, abs=1e-7)
        assert builds < ends[0][1]


def energies_of(mf, dm=None):
    path = []
    mf.callback = lambda envs: path.append(envs["e_tot"])
    mf.kernel(dm0=dm)
    return np.array(path)


def test_from_afar_without_a_clear_state_the_way_is_pyscfs():
    """Its cycles in another order of rounding end 170 millihartree higher."""
    far = [(s, tuple(4 * x for x in r)) for s, r in WATER]
    mol = make_mol(far, basis="cc-pvdz")
    plain, found = scf.RHF(mol), scf.RHF(mol).apply(corrected_diis)
    expected, energies = energies_of(plain), energies_of(found)
    assert not found.deqh_cycles[0].accepted
    alone = sum(not cycle.accepted for cycle in found.deqh_cycles[:-1])
    assert alone >= 3
    np.testing.assert_allclose(energies[:alone], expected[:alone], atol=1e-10)
    assert energies[-1] < expected[-1] + 1e-6
    assert len(energies) <= len(expected) + 1


def test_from_afar_cycles_that_do_not_converge_lead_nowhere(monkeypatch):
    """However much of the gradient they take: square cyclobutadiene ended on a saddle point."""
    monkeypatch.setattr(corrector.Corrector, "max_fitted", 4)
    mol = make_mol(FORMAMIDE)
    plain, found = scf.RHF(mol), scf.RHF(mol).apply(corrected_diis)
    for mf in (plain, found):
        mf.init_guess = "1e"
    expected, energies = energies_of(plain), energies_of(found)
    first = found.deqh_cycles[0]
    assert len(first.fitted_gradients) == 4
    assert first.fitted_gradients[-1] < 0.3 * first.gradient
    assert not first.accepted
    np.testing.assert_allclose(energies[:2], expected[:2], atol=1e-10)
    assert energies[-1] == pytest.approx(expected[-1], abs=1e-8)


@pytest.mark.parametrize("case", ["B3LYP", "UHF", "UKS triplet", "symmetry, UKS"])
def test_where_cycles_do_not_converge_minimization_does(case, monkeypatch):
    monkeypatch.setattr(corrector.Corrector, "max_fitted", 1)
    monkeypatch.setattr(diis, "_FITTED_FAILED", 1e-3)
    make, options = METHODS[case]
    plain, _ = run(make(make_mol(WATER, **options)))
    mf, builds = run(make(make_mol(WATER, **options)).apply(deqh_guess))
    assert len(mf.deqh_cycles[0].fitted_gradients) > 1
    assert mf.deqh_cycles[0].accepted
    assert builds <= 5
    assert mf.e_tot < plain.e_tot + 5e-9


def test_so_it_does_in_generalized_orbitals(monkeypatch):
    monkeypatch.setattr(corrector.Corrector, "max_fitted", 1)
    monkeypatch.setattr(diis, "_FITTED_FAILED", 1e-3)
    mol = make_mol(WATER, **CATION)
    near = scf.GHF(mol).set(conv_tol=1e-3).run()
    plain = scf.GHF(mol).run()
    mf, builds = run(scf.GHF(mol).apply(corrected_diis), near.make_rdm1())
    assert len(mf.deqh_cycles[0].fitted_gradients) > 1
    assert mf.deqh_cycles[0].accepted
    assert builds <= 5
    assert mf.e_tot < plain.e_tot + 5e-9


@pytest.mark.parametrize("sign", [-1.0, 3.0])
def test_a_wrong_response_costs_two_fock_matrices(sign, monkeypatch):
    mol = make_mol(WATER)
    plain, n_plain = run(dft.RKS(mol, xc="pbe"))
    original = FockNearby.__call__

    def wrong(self, orbitals):
        return self._fock + sign * (original(self, orbitals) - self._fock)

    monkeypatch.setattr(FockNearby, "__call__", wrong)
    mf, builds = run(dft.RKS(mol, xc="pbe").apply(corrected_diis))
    assert mf.e_tot == pytest.approx(plain.e_tot, abs=5e-9)
    assert builds <= n_plain + 2


def test_where_cycles_fail_pyscfs_check_after_convergence_gets_room():
    """A step without DIIS leaves ten times the gradient there: it has to be lower before."""
    mf = scf.RHF(make_mol(WATER))
    mf.check_convergence = Strictly()
    envs = {"mf": mf, "e_tot": -1.0, "last_hf_e": -1.0, "conv_tol": 1e-9, "conv_tol_grad": 3e-5,
            "cycle": 0}  # fmt: skip
    assert not mf.check_convergence(envs | {"norm_gorb": 4e-5})
    # But not for ever: PySCF's criterion suffices the second time.
    assert not mf.check_convergence(envs | {"norm_gorb": 2e-5})
    assert mf.check_convergence(envs | {"norm_gorb": 2e-5})
    assert mf.check_convergence is None
    mf.check_convergence = Strictly()
    assert not mf.check_convergence(envs | {"norm_gorb": 5e-6, "last_hf_e": -1.1})
    assert mf.check_convergence(envs | {"norm_gorb": 5e-6})
    assert mf.check_convergence is None


class Stubborn(scf.diis.CDIIS):
    """Of the first SCF: it stays where it is."""

    made = 0

    def __init__(self, *args):
        super().__init__(*args)
        Stubborn.made += 1
        self._stays = Stubborn.made == 1

    def update(self, s, d, f, *args, **kwargs):
        if not self._stays:
            return super().update(s, d, f, *args, **kwargs)
        # Orbitals of the same density, of either spin.
        projectors = [s @ x @ s for x in (d if np.ndim(d) == 3 else [d])]
        return -np.reshape(projectors, np.shape(f))


def fail(monkeypatch, lost):
    """Let all fitted cycles fail; above ``lost`` a start is far."""
    original = corrector.refine

    def wrong(build, overlap, shells, f, *args):
        return replace(original(build, overlap, shells, f, *args), gradients=[1e9])

    monkeypatch.setattr(corrector, "refine", wrong)
    monkeypatch.setattr(corrector, "LOST", lost)


@pytest.mark.parametrize(
    ("make", "start"),
    [(scf.RHF, "deqh"), (scf.UHF, "minao"), (scf.UHF, "density"), (scf.ROHF, "deqh"),
     (scf.ROHF, "minao")],
)  # fmt: skip
def test_where_pyscfs_diis_goes_nowhere_after_them_its_own_start_is_next(
    make, start, monkeypatch, tmp_path
):
    """And from there its own way, to the last digit."""
    mol = make_mol(WATER, charge=0 if make is scf.RHF else 1, spin=0 if make is scf.RHF else 1)
    plain = make(mol)
    dm = scf.UHF(mol).get_init_guess(key="huckel") if start == "density" else None
    dm = dm.sum(0) if dm is not None and make is scf.RHF else dm
    expected = energies_of(plain, dm)
    fail(monkeypatch, lost=1e9)
    mf = make(mol).apply(deqh_guess if start == "deqh" else corrected_diis)
    monkeypatch.setattr(type(HOST), "diis_class", Stubborn)
    monkeypatch.setattr(Stubborn, "made", 0)
    with open(tmp_path / "log", "w") as mf.stdout:
        mf.verbose = 4
        energies = energies_of(mf, dm)
    assert "back to the start of the SCF" in (tmp_path / "log").read_text()
    assert mf.converged
    assert Stubborn.made == 2
    np.testing.assert_allclose(energies[-len(expected) + 2 : -2], expected[2:-2], atol=1e-9)
    assert energies[-1] == pytest.approx(expected[-1], abs=1e-9)


@pytest.mark.parametrize("start", ["deqh", "minao", "PySCF's in a guess", "few cycles"])
def test_a_far_guess_that_leads_nowhere_is_given_up(start, monkeypatch, tmp_path):
    """A start of PySCF's own is what the SCF would have had: it stays."""
    mol = make_mol(WATER)
    expected = energies_of(scf.RHF(mol))
    fail(monkeypatch, lost=0.0)
    mf = (scf.UHF if start == "PySCF's in a guess" else scf.RHF)(mol)
    mf = mf.apply(corrected_diis if start == "minao" else deqh_guess)
    mf.max_cycle = 15 if start == "few cycles" else 50
    monkeypatch.setattr(type(HOST), "diis_class", Stubborn)
    monkeypatch.setattr(Stubborn, "made", 0)
    with open(tmp_path / "log", "w") as mf.stdout:
        mf.verbose = 4
        energies = energies_of(mf)
    log = (tmp_path / "log").read_text()
    if start != "deqh":
        assert not mf.converged
        assert "back to the start" not in log
        return
    assert "back to the start of the SCF, minao's" in log
    assert mf.converged
    # The first cycle is no DIIS and moves the density, the second one sees that.
    assert [cycle.restarted for cycle in mf.deqh_cycles].index(True) == 1 + 16
    np.testing.assert_allclose(energies[-len(expected) + 2 : -2], expected[2:-2], atol=1e-9)
    assert energies[-1] == pytest.approx(expected[-1], abs=1e-9)


def test_a_slow_diis_is_left_alone():
    gradients = iter([1e-3 * 0.9**k for k in range(100)])
    way_back = WayBack(lambda d, f: next(gradients), 1e-3)
    assert not any(way_back.is_due(None, None) for _ in range(100))
    way_back = WayBack(lambda d, f: 8e-4, 1e-3)
    assert [way_back.is_due(None, None) for _ in range(8)] == [False] * 7 + [True]


def test_the_patience_with_a_far_start_leaves_cycles_for_the_way_back():
    assert [patience_when_far(n) for n in (5, 20, 36, 50, 500)] == [8, 8, 12, 16, 16]


@pytest.mark.parametrize("own", [None, lambda envs: envs["norm_gorb"] < 1e-6])
def test_the_users_criterion_of_convergence_stays(own, monkeypatch):
    original = corrector.refine
    failed = []

    def wrong(build, overlap, shells, f, *args):
        refined = original(build, overlap, shells, f, *args)
        failed.append(True)
        return replace(refined, gradients=[1.0])

    monkeypatch.setattr(corrector, "refine", wrong)
    mf = scf.RHF(make_mol(WATER)).apply(corrected_diis)
    mf.check_convergence = own
    mf.kernel()
    assert failed
    assert mf.converged
    assert mf.check_convergence is own


def test_densities_of_any_kind_may_come():
    mol = make_mol(WATER)
    expected = scf.RHF(mol).kernel()
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.normal(size=(mol.nao, mol.nao))
    minao = np.asarray(scf.RHF(mol).get_init_guess())
    for dm in (np.zeros_like(minao), minao + noise + noise.T, 1.5 * minao):
        mf = scf.RHF(mol).apply(corrected_diis)
        assert mf.kernel(dm0=dm) == pytest.approx(expected, abs=1e-7)
        assert mf.converged


@pytest.mark.parametrize(
    "change",
    [{"diis": False}, {"DIIS": scf.ADIIS}, {"level_shift": 0.2}, {"diis_damp": 0.1},
     {"diis_start_cycle": 3}, {"diis_file": "file"}],
)  # fmt: skip
def test_what_the_user_chose_is_kept(change):
    mf = scf.RHF(make_mol(WATER)).set(**change)
    with pytest.raises(ConfigError, match=f"mf.{next(iter(change))} is"):
        corrected_diis(mf)
    mf.apply(deqh_guess)
    assert {name: getattr(mf, name) for name in change} == change
    if "diis_file" not in change:
        mf.kernel()
        (note,) = mf.deqh_report.notes
        assert note.startswith(f"no corrected cycles: mf.{next(iter(change))} is")


def test_what_the_user_chose_later_is_kept_too():
    expected = energies_of(scf.RHF(make_mol(WATER)).set(level_shift=0.2))
    mf = scf.RHF(make_mol(WATER)).apply(corrected_diis)
    mf.level_shift = 0.2
    np.testing.assert_allclose(energies_of(mf), expected, atol=1e-10)
    assert not any(cycle.accepted for cycle in mf.deqh_cycles)


def test_where_nothing_can_be_prepared_the_way_is_pyscfs(monkeypatch):
    """Without memory, say, or with a functional of another package: DIIS has to go on."""
    expected = energies_of(scf.RHF(make_mol(WATER)))
    mf = scf.RHF(make_mol(WATER)).apply(corrected_diis)

    def fail(*args):
        raise MemoryError("unable to allocate 1 TiB")

    monkeypatch.setattr(diis.Corrector, "__init__", fail)
    np.testing.assert_allclose(energies_of(mf), expected, atol=1e-10)
    assert not any(cycle.accepted for cycle in mf.deqh_cycles)


def test_objects_stay_pyscfs():
    mf = scf.RHF(make_mol(WATER)).apply(corrected_diis)
    expected = scf.RHF(make_mol(WATER)).kernel()
    for other in (mf.copy(), mf.density_fit(), mf.newton(), mf.to_uhf(), mf.to_rks("hf")):
        other.kernel()
        assert other.e_tot == pytest.approx(expected, abs=1e-4)
    mf.kernel()
    assert mf.e_tot == pytest.approx(expected, abs=1e-9)
    first = mf.deqh_cycles
    mf.kernel(dm0=mf.make_rdm1())
    assert len(mf.deqh_cycles) < len(first)
    assert issubclass(mf.DIIS, lib.diis.DIIS)


def test_gpu4pyscf_gets_its_own_diis(monkeypatch):
    """PySCF's to_gpu hands on attributes, and each that knows how is asked for its like."""
    module = types.ModuleType("gpu4pyscf.scf.diis")
    module.SCF_DIIS = object()
    for name in ("gpu4pyscf", "gpu4pyscf.scf", "gpu4pyscf.scf.hf"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "gpu4pyscf.scf.diis", module)
    mf = scf.RHF(make_mol(WATER)).apply(corrected_diis)
    assert mf.DIIS.to_gpu() is module.SCF_DIIS


def test_scanners_go_on_from_the_last_density():
    mf = scf.RHF(make_mol(WATER)).apply(corrected_diis)
    scan = mf.as_scanner()
    for length in (1.0, 1.02, 1.05):
        mol = make_mol([(s, tuple(length * x for x in r)) for s, r in WATER])
        assert scan(mol) == pytest.approx(scf.RHF(mol).kernel(), abs=1e-8)
        assert scan.deqh_cycles[0].accepted


def test_the_log_says_what_was_done(tmp_path):
    log = tmp_path / "log"
    mol = make_mol(WATER, verbose=4, output=str(log))
    mf = scf.RHF(mol).apply(corrected_diis).run()
    mol.stdout.close()
    lines = [line for line in log.read_text().splitlines() if line.startswith("corrected by")]
    accepted = sum(cycle.accepted for cycle in mf.deqh_cycles)
    assert sum("not used" not in line for line in lines) == accepted >= 2
    fitted = len(mf.deqh_cycles[0].fitted_gradients)
    assert lines[0].startswith(f"corrected by {fitted} fitted cycles: gradient ")


GENERALIZED = {"GHF": (scf.GHF, scf.UHF, np.pi / 5), "GKS": (dft.GKS, dft.UKS, 0.0)}


@pytest.mark.parametrize("case", GENERALIZED)
def test_generalized_orbitals(case):
    """Of a triplet whose spin is turned out of the axis, so that the spins are mixed.

    A collinear functional knows no other axis; the density is negative in places.
    """
    make, unrestricted, angle = GENERALIZED[case]
    mol = make_mol(WATER, spin=2)
    up, down = unrestricted(mol).run().make_rdm1()
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.kron([[cos, -sin], [sin, cos]], np.eye(mol.nao))
    start = turn @ np.block([[up, 0 * up], [0 * up, down]]) @ turn.T
    start = 0.9 * start + 0.1 * np.asarray(make(mol).get_init_guess(key="minao"))
    plain, n_plain = run(make(mol), start)
    found, n_found = run(make(mol).apply(corrected_diis), start)
    assert found.e_tot == pytest.approx(plain.e_tot, abs=1e-7)
    assert n_found <= 5 < n_plain


TWISTED_ETHYLENE = "C 0 0 0; C 0 0 1.4; H .92 0 -.55; H -.92 0 -.55; H 0 .92 1.95; H 0 -.92 1.95"


@pytest.mark.parametrize("atoms", [WATER, TWISTED_ETHYLENE])
def test_generalized_orbitals_start_where_pyscfs_mix_the_spins(atoms):
    """From a start with the spin symmetry twisted ethylene ends 135 millihartree higher."""
    plain = scf.GHF(make_mol(atoms)).run()
    mf, builds = run(scf.GHF(make_mol(atoms)).apply(deqh_guess))
    assert mf.e_tot == pytest.approx(plain.e_tot, abs=1e-7)
    assert "breaks the spin symmetry" in mf.deqh_report.fallback
    assert builds <= 6 < plain.cycles


def test_functionals_of_turned_spins_keep_pyscfs_diis():
    mf = dft.GKS(make_mol(WATER), xc="lda,vwn")
    mf.collinear = "ncol"
    mf.apply(deqh_guess)
    assert mf.DIIS is not diis.CorrectedDIIS


@pytest.mark.parametrize("method", [scf.UHF, scf.ROHF])
def test_a_symmetry_that_is_asked_for_is_kept(method):
    """The density of an oxygen atom's open shell is not spherical: s and d orbitals would mix,
    which PySCF forbids in SO3."""
    mol = gto.M(atom="O 0 0 0", spin=2, basis="cc-pvtz", symmetry=True, verbose=0)
    plain = method(mol).run()
    mf = method(mol).apply(corrected_diis).run()
    assert mf.e_tot == pytest.approx(plain.e_tot, abs=1e-8)
    assert mf.cycles < plain.cycles
    assert mf.deqh_cycles[-1].gradient < 1e-4
    assert all(cycle.accepted for cycle in mf.deqh_cycles[:2])


def test_newton_has_a_guess_to_its_end():
    """Without corrected cycles after it."""
    mf = scf.RHF(make_mol(WATER)).newton().apply(deqh_guess, start="atoms").run()
    assert mf.deqh_report.fitted_gradients[-1] < 1e-3
    assert any("newton() uses no DIIS" in note for note in mf.deqh_report.notes)


def test_newton_goes_on_where_an_scf_did_not_converge():
    mf = scf.RHF(make_mol(WATER)).set(check_convergence=Strictly(), max_cycle=3).apply(deqh_guess)
    second = mf.newton().set(max_cycle=50).run()
    assert second.converged
    assert second.e_tot == pytest.approx(scf.RHF(mf.mol).kernel(), abs=1e-8)


def test_a_density_that_is_only_asked_for_is_not_where_an_scf_begins():
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess)
    mf.get_init_guess(key="deqh")
    assert not mf._deqh_guessed
    starts = []
    mf.callback = lambda envs: starts.append(envs["mf_diis"]._first)
    own = scf.RHF(mf.mol).run()
    mf.kernel(dm0=own.make_rdm1())
    np.testing.assert_allclose(starts[0][0], own.get_fock(), atol=1e-4)


@pytest.mark.parametrize("relativity", ["x2c", "sfx2c1e"])
def test_relativity_of_spin_orbitals_is_in_the_guess(relativity):
    """What is the same for both spins."""
    mol = make_mol(WATER)
    hcore = Problem.of(getattr(scf.GHF(mol), relativity)(), mol).core_hamiltonian
    scalar, plain = scf.RHF(mol).sfx2c1e().get_hcore(), scf.RHF(mol).get_hcore()
    assert np.abs(hcore - scalar).max() < 0.02 * np.abs(scalar - plain).max()


def test_a_density_that_is_only_asked_for_leaves_no_integrals():
    """The molecule may be moved in place before the SCF."""
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, start="network")
    mf.get_init_guess(key="deqh")
    assert mf._eri is None
    mf.mol.set_geom_([(s, (x, y, 1.1 * z)) for s, (x, y, z) in WATER])
    assert mf.kernel() == pytest.approx(scf.RHF(mf.mol).kernel(), abs=1e-8)


def test_a_diis_of_the_users_own_begins_where_pyscfs_does():
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, start="network")
    mf.diis = scf.EDIIS()
    mf.kernel()
    assert mf.diis_start_cycle == scf.hf.SCF.diis_start_cycle
    assert any("no corrected cycles: mf.diis is" in note for note in mf.deqh_report.notes)


def test_a_fock_matrix_of_the_users_own_class_keeps_pyscfs_diis():
    class Shifted(scf.hf.RHF):
        def get_fock(self, *args, **kwargs):
            return super().get_fock(*args, **kwargs)

    mf = Shifted(make_mol(WATER)).apply(deqh_guess, start="network").run()
    assert any("mf.get_fock is another one" in note for note in mf.deqh_report.notes)
    assert not any(cycle.accepted for cycle in mf.deqh_cycles)


def test_the_last_cycle_may_hold_by_pyscfs_own_criterion():
    mf = scf.RHF(make_mol(WATER)).set(max_cycle=7)
    envs = {"mf": mf, "e_tot": -1.0, "last_hf_e": -1.0, "conv_tol": 1e-9, "norm_gorb": 5e-6,
            "conv_tol_grad": 1e-5, "cycle": 3}  # fmt: skip
    assert not Strictly()(envs)
    assert Strictly()(envs | {"cycle": 6})
