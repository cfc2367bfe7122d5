import numpy as np
import pytest
from conftest import FORMAMIDE, make_mol, transformed
from pyscf import dft, scf
from test_so2net import ao_transformation

from pyscf_deqh.errors import ConfigError
from pyscf_deqh.reference import reference_hamiltonian, superposed_atomic_density


def test_reference_is_a_pbe_fock_matrix_of_the_minao_density():
    """Against PySCF's exact integrals on its finest grid: density fitting and grid cost 1e-4."""
    mol = make_mol()
    dm = superposed_atomic_density(mol)
    np.testing.assert_allclose(dm, scf.hf.init_guess_by_minao(mol), atol=1e-14)
    mf = dft.RKS(mol, xc="pbe")
    mf.grids.level = 5
    exact = mf.get_hcore() + mf.get_veff(mol, dm)
    error = np.abs(reference_hamiltonian(mol, "sad", dm) - exact)
    assert error.mean() < 5e-5
    assert error.max() < 3e-3


def test_reference_turns_with_the_molecule_up_to_its_grid(rotation):
    before, after = make_mol(), make_mol(transformed(FORMAMIDE, rotation))
    t = ao_transformation(before, after)(rotation)
    f, g = (reference_hamiltonian(m, "sad", superposed_atomic_density(m)) for m in (before, after))
    assert np.abs(t @ f @ t.T - g).mean() < 3e-5


def test_charged_and_open_shells_have_a_reference_too():
    for options in ({"charge": 1, "spin": 1}, {"spin": 2}, {"symmetry": True}):
        mol = make_mol(**options)
        f = reference_hamiltonian(mol, "sad", superposed_atomic_density(mol))
        assert np.isfinite(f).all()
        np.testing.assert_allclose(f, f.T, atol=1e-10)


def test_large_molecules_leave_the_integrals_to_pyscf():
    mol = make_mol()
    dm = superposed_atomic_density(mol)
    in_memory = reference_hamiltonian(mol, "sad", dm)
    mol.max_memory = 1
    np.testing.assert_allclose(reference_hamiltonian(mol, "sad", dm), in_memory, atol=1e-10)


def test_without_reference_there_are_zeros():
    assert not reference_hamiltonian(make_mol(), "none", np.ones((3, 3))).any()


def test_unknown_reference():
    with pytest.raises(ConfigError, match="none, sad"):
        reference_hamiltonian(make_mol(), "core", np.eye(3))
