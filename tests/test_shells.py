import numpy as np
import pytest
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import dft, gto, scf

from pyscf_deqh.fock.orbitals import density_matrix
from pyscf_deqh.fock.shells import Kind, Shells, breaks_spin_symmetry

RADICAL = {"charge": 1, "spin": 1}
KINDS = [
    (scf.RHF, {}, Kind.CLOSED),
    (dft.RKS, {}, Kind.CLOSED),
    (scf.UHF, {}, Kind.UNRESTRICTED),
    (scf.UHF, RADICAL, Kind.UNRESTRICTED),
    (dft.UKS, {"spin": 2}, Kind.UNRESTRICTED),
    (scf.ROHF, {}, Kind.RESTRICTED_OPEN),
    (dft.ROKS, RADICAL, Kind.RESTRICTED_OPEN),
    (scf.ROHF, {"spin": 2}, Kind.RESTRICTED_OPEN),
    (scf.GHF, {}, Kind.AVERAGED),
    (scf.GHF, RADICAL, Kind.AVERAGED),
]


@pytest.mark.parametrize(("method", "options", "kind"), KINDS)
def test_kinds(method, options, kind):
    mol = make_mol(WATER, **options)
    assert Shells.of(method(mol), mol) == Shells(mol.nelec, kind)


@pytest.mark.parametrize("atoms", [WATER, FORMAMIDE])
@pytest.mark.parametrize(("method", "options", "kind"), [k for k in KINDS if k[0] is not scf.GHF])
def test_occupied_orbitals_are_pyscfs(method, options, kind, atoms):
    """Of the Fock matrix that PySCF makes of its own guess, with its tags."""
    mol = make_mol(atoms, **options)
    mf = method(mol)
    fock, overlap = mf.get_fock(dm=mf.get_init_guess()), mf.get_ovlp()
    energy, c = mf.eig(fock, overlap)
    expected = mf.make_rdm1(c, mf.get_occ(energy, c))
    spins = Shells.of(mf, mol).occupied(fock, overlap)
    assert [s.shape[1] for s in spins] == list(mol.nelec)
    found = density_matrix(spins)
    np.testing.assert_allclose(found.sum(0) if kind == Kind.CLOSED else found, expected, atol=1e-9)


def test_open_shells_are_filled_by_the_energies_of_their_own_spin():
    """A higher one of both spins together may be the lower one."""
    shells = Shells((2, 1), Kind.RESTRICTED_OPEN)
    mol = gto.M(atom="He 0 0 0; H 0 0 9", spin=1, basis="def2-svp", verbose=0)
    h = np.diag([-3.0, -1.0, -0.9, 0.0])
    fock = scf.rohf.get_roothaan_fock((h, h), np.zeros((2, 4, 4)), np.eye(4))
    assert fock.focka is h
    fock.focka = np.diag([-3.0, -1.0, -1.5, 0.0])
    energies, c = np.diag(h), np.eye(4)
    assert shells.fill(fock, [energies], [c])[0].tolist() == [2, 0, 1, 0]
    assert shells.fill(h, [energies], [c])[0].tolist() == [2, 1, 0, 0]
    mf = scf.ROHF(mol)
    mo_energy, mo_coeff = mf.eig(fock, np.eye(4))
    assert mf.get_occ(mo_energy, mo_coeff).tolist() == [2, 0, 1, 0]


def test_the_users_numbers_of_electrons_are_for_the_objects_own_molecule():
    mol, other = make_mol(WATER, spin=2), make_mol(WATER)
    mf = scf.UHF(mol)
    mf.nelec = (7, 3)
    assert Shells.of(mf, mol).electrons == (7, 3)
    assert Shells.of(mf, other) == Shells((5, 5), Kind.UNRESTRICTED)


def test_whose_spin_symmetry_is_broken():
    mol = make_mol(WATER)
    mf = scf.UHF(mol)
    assert breaks_spin_symmetry(mf, mol)
    mf.init_guess_breaksym = 0
    assert not breaks_spin_symmetry(mf, mol)
    mf = scf.UHF(mol)
    mf.nelec = (6, 4)
    assert not breaks_spin_symmetry(mf, mol)
    assert not breaks_spin_symmetry(scf.RHF(mol), mol)
    for generalized in (scf.GHF(mol), dft.GKS(mol), scf.GHF(make_mol(WATER, **RADICAL))):
        assert breaks_spin_symmetry(generalized, generalized.mol)


def test_chosen_irreducible_representations_need_no_aufbau_state():
    mol = make_mol(WATER, symmetry=True)
    mf = scf.RHF(mol)
    mf.irrep_nelec = {"A1": 4, "B1": 4}
    assert Shells.of(mf, mol).kind == Kind.AVERAGED


def test_averaged_shells_are_filled_together():
    energies, c = [np.arange(5.0)], [np.eye(5)]
    for electrons in ((4, 3), (3, 4)):
        shells = Shells(electrons, Kind.AVERAGED)
        assert shells.fill(np.eye(5), energies, c)[0].tolist() == [2, 2, 2, 1, 0]
        assert [s.shape[1] for s in shells.occupied(np.diag(energies[0]), np.eye(5))] == list(
            electrons
        )
