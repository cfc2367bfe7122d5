import numpy as np
import pytest
from conftest import FORMAMIDE, make_mol, transformed
from pyscf import dft, scf
from test_so2net import ao_transformation

from pyscf_deqh.errors import ConfigError
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.reference import sad_reference
from pyscf_deqh.fock.system import System
from pyscf_deqh.graph.build import build_graph


def reference(mol):
    return sad_reference(System(mol), FittedFock(mol))


def test_reference_is_a_pbe_fock_matrix_of_the_minao_density():
    """Against PySCF's exact integrals on its finest grid: density fitting and grid cost 1e-4."""
    mol = make_mol()
    dm = System(mol).atomic_density
    np.testing.assert_allclose(dm, scf.hf.init_guess_by_minao(mol), atol=1e-14)
    mf = dft.RKS(mol, xc="pbe")
    mf.grids.level = 5
    exact = mf.get_hcore() + mf.get_veff(mol, dm)
    error = np.abs(reference(mol) - exact)
    assert error.mean() < 5e-5
    assert error.max() < 3e-3


def test_reference_turns_with_the_molecule_up_to_its_grid(rotation):
    before, after = make_mol(), make_mol(transformed(FORMAMIDE, rotation))
    t = ao_transformation(before, after)(rotation)
    f, g = (reference(m) for m in (before, after))
    assert np.abs(t @ f @ t.T - g).mean() < 3e-5


def test_charged_and_open_shells_have_a_reference_too():
    for options in ({"charge": 1, "spin": 1}, {"spin": 2}, {"symmetry": True}):
        mol = make_mol(**options)
        f = reference(mol)
        assert np.isfinite(f).all()
        np.testing.assert_allclose(f, f.T, atol=1e-10)


def test_without_reference_there_are_zeros():
    assert not build_graph(make_mol(), "none").reference.any()


def test_unknown_reference():
    with pytest.raises(ConfigError, match="none, sad"):
        build_graph(make_mol(), "core")
