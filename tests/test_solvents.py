"""Corrected and density-fitted cycles in solvents: the response is PySCF's."""

import numpy as np
import pytest
import torch
from conftest import WATER, make_mol
from pyscf import scf, solvent
from test_diis import run, some_densities

from pyscf_deqh import deqh_guess
from pyscf_deqh.fock.auxiliary import LIGHT
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.pyscf_api import cavity_of

pytestmark = pytest.mark.usefixtures("coarse_grids")


def in_solvent(name, mol):
    mf = scf.RHF(mol)
    if name.startswith("dd"):
        return getattr(solvent, name)(mf)
    mf = mf.SMD() if name.startswith("SMD") else mf.PCM()
    if name == "SMD in water":
        mf.with_solvent.solvent = "water"
    elif name == "IEF-PCM":
        mf.with_solvent.method = name
    return mf


# Fock matrices from the network. PySCF's SMD without a named solvent has no dielectric constant.
SOLVENTS = {"C-PCM": 4, "IEF-PCM": 4, "SMD in water": 4, "ddCOSMO": 6, "ddPCM": 6, "SMD": None}


@pytest.mark.parametrize("name", SOLVENTS)
def test_solvents(name):
    """Their response is in the fitted matrices, or learnt from the full ones."""
    plain, n_plain = run(in_solvent(name, make_mol(WATER)))
    guess, n_guess = run(in_solvent(name, make_mol(WATER)).apply(deqh_guess))
    assert n_guess <= (SOLVENTS[name] or n_plain)
    assert guess.e_tot == pytest.approx(plain.e_tot, abs=5e-9)


@pytest.mark.parametrize("name", ["C-PCM", "IEF-PCM", "SMD in water"])
def test_the_response_of_a_solvent_is_pyscfs(name, monkeypatch):
    mol, _, _, spins = some_densities(5, 5, 2)
    mf = in_solvent(name, mol)
    first, second = (np.sqrt(2) * s[0] for s in spins)
    potentials = [mf.with_solvent.kernel(c @ c.T)[1] for c in (first, second)]
    expected = potentials[1] - potentials[0]
    assert np.linalg.norm(expected) > 0.01
    fitted = FittedFock(mol, dtype=torch.float64)
    without = fitted.differences(first, "hf")(second)
    kept = fitted.nbytes
    fitted.put_into(cavity_of(mf))
    found = fitted.differences(first, "hf")(second) - without
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    assert fitted.nbytes > kept
    # Without room for it: the tails of the density, where the surface is, need large auxiliary
    # basis sets.
    monkeypatch.setattr("pyscf_deqh.fock.fitted.response_bytes", lambda *args: 1e12)
    for auxbasis, error in ((LIGHT, 0.12), ("def2-universal-jkfit", 0.04), ("cc-pvqz-ri", 0.01)):
        fitted = FittedFock(mol, dtype=torch.float64, auxbasis=auxbasis)
        without = fitted.differences(first, "hf")(second)
        fitted.put_into(cavity_of(mf))
        found = fitted.differences(first, "hf")(second) - without
        assert np.linalg.norm(found - expected) < error * np.linalg.norm(expected)


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("name", ["C-PCM", "SMD in water"])
def test_fitted_matrices_in_a_solvent_are_pyscfs(name, room, monkeypatch):
    """Nuclei and all: Fock matrix, and differences of the energy."""
    if not room:
        monkeypatch.setattr("pyscf_deqh.fock.fitted.response_bytes", lambda *args: 1e12)
    mol, _, _, spins = some_densities(5, 5, 2)
    mf, vacuum = in_solvent(name, mol), scf.RHF(mol)
    first, second = (np.sqrt(2) * s[0] for s in spins)
    fitted = FittedFock(mol, dtype=torch.float64)
    hcore = mf.get_hcore()
    energies, expected_energies = [], []
    for orbitals in (first, second):
        fitted.put_into(None)
        without = fitted(hcore, orbitals, "hf")
        fitted.put_into(cavity_of(mf, build=True))
        found = fitted(hcore, orbitals, "hf")
        density = orbitals @ orbitals.T
        expected = mf.get_fock(dm=density) - vacuum.get_fock(dm=density)
        error = 1e-4 if room else 0.1
        assert np.linalg.norm(found[0] - without[0] - expected) < error * np.linalg.norm(expected)
        energies.append(found[1] - without[1])
        expected_energies.append(mf.energy_tot(density) - vacuum.energy_tot(density))
    difference = np.subtract(*expected_energies)
    assert np.subtract(*energies) == pytest.approx(difference, rel=1e-3 if room else 0.3)


def test_the_cycles_of_a_guess_are_in_the_solvent():
    """Where they end is a solution in it; a smaller gradient is left than by those in vacuum."""
    for basis in ("def2-svp", "cc-pvdz"):
        mf = in_solvent("C-PCM", make_mol(WATER, basis=basis)).apply(deqh_guess)
        density = mf.get_init_guess(mf.mol, "deqh")
        orbitals = scf.RHF(mf.mol).apply(deqh_guess)
        vacuum = orbitals.get_init_guess(mf.mol, "deqh")
        gradients = []
        for dm in (density, vacuum):
            fock, s = mf.get_fock(dm=dm), mf.get_ovlp()
            gradients.append(np.linalg.norm(fock @ dm @ s - s @ dm @ fock))
        assert gradients[0] < 0.5 * gradients[1]


@pytest.mark.parametrize("name", ["C-PCM", "SMD in water"])
def test_a_guess_alone_leaves_the_solvent_as_it_is(name):
    """Options of the solvent that come after it are not too late."""
    energies = []
    for guess in (False, True):
        mf = in_solvent(name, make_mol(WATER))
        dm = mf.apply(deqh_guess, lowest=True).get_init_guess() if guess else None
        if name == "C-PCM":
            mf.with_solvent.eps = 2.0
        else:
            mf.with_solvent.solvent = "toluene"
        energies.append(plain_energy(mf, dm))
    assert energies[0] == pytest.approx(energies[1], abs=1e-8)


def plain_energy(mf, dm):
    mf.DIIS = scf.diis.CDIIS
    return mf.run(dm0=dm).e_tot if dm is not None else mf.run().e_tot


@pytest.mark.parametrize("name", ["C-PCM", "SMD in water"])
def test_energies_of_states_are_those_in_the_solvent(name):
    found = []
    for make in (lambda: in_solvent(name, make_mol(WATER)), lambda: scf.RHF(make_mol(WATER))):
        mf = make().apply(deqh_guess, lowest=True).run()
        found.append((mf.deqh_report.states[0], mf.e_tot))
    (state, energy), (state_in_vacuum, vacuum) = found
    assert state - state_in_vacuum == pytest.approx(energy - vacuum, abs=2e-4)
    assert abs(energy - vacuum) > 5e-3


def test_a_surface_makes_way_for_the_integrals_of_another_range():
    mol = make_mol(WATER)
    cavity = cavity_of(in_solvent("C-PCM", mol), build=True)
    _, _, _, ((c, _),) = some_densities(5, 5, 1)
    orbitals, hcore = np.sqrt(2) * c, scf.RHF(mol).get_hcore()
    plenty = FittedFock(mol)
    plenty.put_into(cavity)
    expected = plenty(hcore, orbitals, "camb3lyp")
    one_range = plenty._integral_bytes
    # Three quarters of the memory: enough for one range of the integrals and the surface.
    tight = FittedFock(mol, memory=(1.5 * one_range + plenty._surface_bytes) / 0.75e6)
    tight.put_into(cavity)
    assert tight.response_is_exact
    found = tight(hcore, orbitals, "camb3lyp")
    assert not tight.response_is_exact
    assert np.linalg.norm(found[0] - expected[0]) < 1e-2
    assert found[1] == pytest.approx(expected[1], abs=1e-2)
    tight.put_into(None)
    assert tight._left == pytest.approx(tight._limit - 2 * tight._integral_bytes, abs=1.0)


@pytest.mark.parametrize("fits", [False, True])
def test_without_memory_for_a_surface_the_scf_goes_on(fits, monkeypatch):
    def fail(*args):
        raise MemoryError

    monkeypatch.setattr("pyscf_deqh.fock.fitted.CavityResponse", fail)
    if not fits:
        monkeypatch.setattr(FittedFock, "_fit_surface", fail)
    mf = in_solvent("C-PCM", make_mol(WATER)).apply(deqh_guess).run()
    assert mf.converged
    assert mf.deqh_report.fallback is None
    assert mf.e_tot == pytest.approx(in_solvent("C-PCM", make_mol(WATER)).run().e_tot, abs=1e-8)


def test_solvents_without_a_response():
    mol = make_mol(WATER)
    assert cavity_of(scf.RHF(mol)) is None
    assert cavity_of(in_solvent("C-PCM", mol)) is None  # not built yet
    assert cavity_of(in_solvent("C-PCM", mol), build=True) is not None
    assert cavity_of(in_solvent("ddCOSMO", mol).run(max_cycle=0)) is None
    mf = in_solvent("C-PCM", mol).run(max_cycle=0)
    assert cavity_of(mf) is not None
    mf.with_solvent.frozen = True
    assert cavity_of(mf) is None
    mf.with_solvent.frozen, mf.with_solvent._intermediates["f_epsilon"] = False, -1.0
    assert cavity_of(mf) is None  # as SMD without a solvent has it in PySCF 2.14
