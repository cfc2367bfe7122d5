"""The lowest of several SCF solutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import WATER, make_mol
from pyscf import dft, gto, scf
from pyscf.qmmm.itrf import mm_charge
from pyscf.soscf import newton_ah

from pyscf_deqh import NotEnoughMemoryError, deqh_guess
from pyscf_deqh.fock.cycles import Solution
from pyscf_deqh.fock.density import density_of
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.problem import Problem
from pyscf_deqh.fock.shells import breaks_spin_symmetry
from pyscf_deqh.fock.states import (
    StateSearch,
    _fitted_energies_are_whole,
    _Rotations,
    beside_saddle_point,
)

pytestmark = pytest.mark.usefixtures("coarse_grids")


def stretched(distance=3.0):
    return gto.M(atom=f"H 0 0 0; H 0 0 {distance}", basis="cc-pvdz", verbose=0)


def search_of(mf):
    problem = Problem.of(mf, mf.mol)
    return StateSearch(problem, FittedFock(mf.mol, dtype=torch.float64))


def softest(mf):
    """Least curvature of a converged SCF in fitted matrices."""
    search = search_of(mf)
    restricted = np.ndim(mf.mo_coeff[0]) == 1
    pairs = ([mf.mo_coeff], [mf.mo_occ]) if restricted else (list(mf.mo_coeff), list(mf.mo_occ))
    rotations, shells = _Rotations(*pairs), search._problem.shells

    def gradient(rotation):
        coefficients = rotations.rotated(rotation)
        fock, _ = search._build(shells.filled(coefficients, rotations.occupations))
        return rotations.gradient(fock, coefficients)

    return rotations.softest(np.asarray(mf.get_fock()), gradient)[0]


def least_eigenvalue(mf):
    """The same by PySCF's analytic Hessian, all of it."""
    restricted = isinstance(mf, scf.hf.RHF)
    generate = newton_ah.gen_g_hop_rhf if restricted else newton_ah.gen_g_hop_uhf
    _, product, diagonal = generate(mf, mf.mo_coeff, mf.mo_occ)
    hessian = np.array([product(column) for column in np.eye(len(diagonal))])
    return np.linalg.eigvalsh(hessian)[0] / (2 if restricted else 1)


CASES = {
    "closed shell": lambda: scf.RHF(make_mol(WATER)),
    "Kohn-Sham": lambda: dft.RKS(make_mol(WATER, basis="6-31g"), xc="b3lyp"),
    "open shell": lambda: dft.UKS(make_mol(WATER, basis="sto-3g", charge=1, spin=1), xc="pbe"),
    "unstable": lambda: scf.UHF(stretched(2.0)).set(init_guess_breaksym=0),
}


@pytest.mark.parametrize("case", CASES)
def test_curvatures_are_those_of_the_analytic_hessian(case):
    mf = CASES[case]().run(conv_tol=1e-11)
    expected = least_eigenvalue(mf)
    assert (expected < 0) == (case == "unstable")
    assert softest(mf) == pytest.approx(expected, rel=0.02, abs=5e-4)


def test_the_way_down_from_a_saddle_point():
    mf = scf.UHF(stretched()).set(init_guess_breaksym=0).run(conv_tol=1e-11)
    search = search_of(mf)
    saddle = search.solve("closed shell", np.asarray(mf.get_fock()))
    lower = search.descend(saddle)
    assert saddle.energy + mf.energy_nuc() == pytest.approx(mf.e_tot, abs=2e-4)
    # PySCF's from its start of broken symmetry, init_guess_breaksym = "mix".
    assert lower.energy + mf.energy_nuc() == pytest.approx(-0.99872, abs=2e-4)
    assert lower.origin == "closed shell, along an instability"
    assert search.descend(lower) is None


LOWEST = {
    "stretched hydrogen": (lambda: scf.UHF(stretched()), -0.99872),
    "oxygen": (
        lambda: dft.UKS(make_mol("O 0 0 0; O 0 0 1.21"), xc="b3lyp"), -150.18809
    ),
    # From 1e PySCF itself ends there, and from minao too; corrected cycles from 1e 14 mEh higher.
    "formic acid cation": (
        lambda: scf.UHF(make_mol(
            "O -1.20226 .2907 0; C -.15462 .46016 0; O 1.29347 -.53046 0; H -.1089 1.71834 0;"
            "H 1.01 -1.56 0", charge=1, spin=1,
        )),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "breaksym"),
    [(case, breaksym) for case in ("stretched hydrogen", "oxygen") for breaksym in (0, 1)]
    + [("formic acid cation", 1)],
)
def test_the_lowest_state_is_found(case, breaksym):
    make, energy = LOWEST[case]
    mf = make().set(init_guess_breaksym=breaksym).apply(deqh_guess, lowest=True)
    mf.kernel()
    assert mf.converged
    if energy is None:
        energy = min(make().set(init_guess=key).run().e_tot for key in ("minao", "1e"))
    assert mf.e_tot < energy + 1e-5
    report = mf.deqh_report
    assert report.fallback is None
    assert list(report.states) == sorted(report.states)
    assert report.states[0] == pytest.approx(mf.e_tot, abs=1e-2)  # fitted exchange
    assert any("states found, the lowest from" in note for note in report.notes)
    assert mf.stability(return_status=True)[2]


@pytest.mark.parametrize("distance", [3.5, 0.74])
def test_a_saddle_point_is_left_without_being_asked(distance):
    """Where orbitals are nearly equal: those of two hydrogen atoms, but not those of a molecule."""
    mf = dft.UKS(stretched(distance), xc="pbe").set(init_guess_breaksym=0).run(conv_tol=1e-11)
    problem, fitted = Problem.of(mf, mf.mol), FittedFock(mf.mol)
    saddle = Solution(problem, np.asarray(mf.get_fock()))
    found, fitted = beside_saddle_point(problem, saddle, fitted)
    lower = dft.UKS(mf.mol, xc="pbe").run(density_of(found, problem))
    if distance < 1:
        assert (found, fitted.dtype) == (saddle, torch.float32)
    else:
        assert found.notes == ("a saddle point was left along an instability",)
        assert lower.stability(return_status=True)[2]
        assert lower.e_tot < mf.e_tot - 1e-3


@pytest.mark.slow
def test_a_jahn_teller_cation_ends_no_higher():
    """Fast cycles keep the symmetry of their start."""
    mol = make_mol(
        "C 0 0 0; C 0 0 1.5079; C 0 0 -1.5079; H 0 1.0658 2.1581; H 0 -1.0658 2.1581;"
        "H 1.0658 0 -2.1581; H -1.0658 0 -2.1581", charge=1, spin=1, basis="def2-svp",
    )  # fmt: skip
    mf = dft.UKS(mol, xc="pbe").apply(deqh_guess).run()
    assert mf.stability(return_status=True)[2]
    assert mf.e_tot < dft.UKS(mol, xc="pbe").run().e_tot + 1e-6


def test_one_state_stays_one():
    plain = dft.RKS(make_mol(WATER), xc="pbe").run()
    mf = dft.RKS(make_mol(WATER), xc="pbe").apply(deqh_guess, lowest=True).run()
    assert len(mf.deqh_report.states) == 1
    assert mf.e_tot == pytest.approx(plain.e_tot, abs=1e-8)


def test_not_without_an_aufbau_filling():
    mf = scf.addons.frac_occ(scf.RHF(make_mol(WATER))).apply(deqh_guess, lowest=True)
    mf.get_init_guess(key="deqh")
    assert mf.deqh_report.fallback == "the orbitals are not filled by energy"
    mf = scf.GHF(make_mol(WATER)).apply(deqh_guess, lowest=True).run()
    assert any("not looked for" in note for note in mf.deqh_report.notes)
    assert mf.converged


def test_where_no_state_is_found_broken_symmetry_stays_pyscfs(monkeypatch):
    """The start of ``lowest`` has the spin symmetry, and leads to a higher state."""

    def no_memory(self, starts):
        raise NotEnoughMemoryError("no room for double precision")

    monkeypatch.setattr(StateSearch, "states", no_memory)
    make, _ = LOWEST["oxygen"]
    mf, plain = make().apply(deqh_guess, lowest=True).run(), make().run()
    assert mf.e_tot < plain.e_tot + 1e-6
    assert "no other state was looked for" in " ".join(mf.deqh_report.notes)
    if breaks_spin_symmetry(plain, plain.mol):  # not in all versions
        assert mf.deqh_report.fallback == "PySCF breaks the spin symmetry of its own density"


def test_energies_without_a_part_do_not_rank_states():
    """Of the SCF's energy, in fitted matrices."""
    mol = make_mol(WATER)
    frozen = scf.RHF(mol).PCM().run()
    frozen.with_solvent.frozen = True
    own = scf.RHF(mol)
    own.get_veff = own.get_veff

    class Constrained(scf.hf.RHF):
        def get_veff(self, *args, **kwargs):
            return super().get_veff(*args, **kwargs)

    cases = [
        (Constrained(mol), False), (Constrained(mol).PCM(), False), (scf.RHF(mol), True),
        (scf.UHF(make_mol(WATER, symmetry=True)), True), (scf.RHF(mol).density_fit(), True),
        (dft.RKS(mol, xc="pbe"), True), (scf.RHF(mol).PCM(), True), (scf.RHF(mol).ddCOSMO(), False),
        (frozen, False), (own, False), (dft.RKS(mol, xc="wb97x-v"), False),
    ]  # fmt: skip
    for mf, whole in cases:
        assert _fitted_energies_are_whole(Problem.of(mf, mol)) == whole
    rkspu = pytest.importorskip("pyscf.dft.rkspu")
    mf = rkspu.RKSpU(mol, xc="pbe", U_idx=["O 2p"], U_val=[4.0])
    assert not _fitted_energies_are_whole(Problem.of(mf, mol))


def test_for_another_molecule_no_lower_state_is_looked_for():
    """The energies would be those of the object's own."""
    mf = scf.UHF(make_mol(WATER)).apply(deqh_guess, lowest=True)
    mf.init_guess_breaksym = 0
    assert mf.get_init_guess(make_mol("O 0 0 0; O 0 0 1.2", spin=2), key="deqh").shape[-1] == 28
    assert any("not looked for elsewhere" in note for note in mf.deqh_report.notes)
    assert mf.deqh_report.states == ()


def test_without_virtual_orbitals_there_is_one_state():
    mf = scf.UHF(make_mol([("He", (0, 0, 0))], basis="sto-3g"))
    mf.apply(deqh_guess, start="atoms", lowest=True).run()
    assert mf.converged
    assert len(mf.deqh_report.states) == 1


@pytest.mark.parametrize("case", ["hydrogen", "smeared", "water"])
def test_a_charge_beside_a_nucleus_does_not_lead_to_a_higher_state(case):
    """No network knows of it; minao leads to the lower of two solutions."""
    hydrogen = [("H", (0, 0, 0)), ("H", (0, 0, 1)), ("H", (0, -0.82, 0)), ("H", (-0.91, -0.02, 0))]
    mol, place = make_mol(hydrogen, basis="cc-pvdz"), (0.0, 0.1, 0.0)
    if case == "water":
        mol, place = make_mol(WATER), np.add(WATER[0][1], place)
    radii = [1.0] if case == "smeared" else None
    plain = mm_charge(scf.RHF(mol), [place], [1.0], radii=radii).run()
    mf = mm_charge(scf.RHF(mol), [place], [1.0], radii=radii).apply(deqh_guess).run()
    assert mf.converged
    assert mf.e_tot < plain.e_tot + 1e-6
    if case != "water":
        assert any("that of minao is taken" in note for note in mf.deqh_report.notes)
