import numpy as np
import pytest
import torch
from conftest import make_mol
from pyscf import scf

from pyscf_deqh.fock.orbitals import orthonormal_basis, solve_roothaan
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.density import _purified, density_matrix


def test_density_equals_pyscf_in_a_padded_batch(template):
    """Molecules of different size in one batch; PySCF's density of each converged Fock matrix."""
    graphs, expected = [], []
    for atoms in (
        "O 0 0 0; H 0 .76 .59; H 0 -.76 .59",
        "H 0 0 0; F 0 0 .92",
        "C 0 0 0; O 0 0 1.13",
    ):
        mf = scf.RHF(make_mol(atoms)).run(conv_tol=1e-12)
        graphs.append(build_graph(mf.mol, "none", mf.get_fock()))
        expected.append(mf.make_rdm1())
    batch = collate(graphs, template, 20.0, torch.float64)
    density = density_matrix(batch.hamiltonian, batch.basis_vectors, batch.n_occupied)
    for d, dm in zip(density, expected, strict=True):
        n = len(dm)
        np.testing.assert_allclose(d[:n, :n], dm, atol=1e-6)
        assert not d[n:].any()


def test_mixed_precision_is_not_for_densities(template):
    """Bfloat16 has 0.1 hartree between the neighbours of oxygen's core energy."""
    mf = scf.RHF(make_mol("O 0 0 0; H 0 .76 .59; H 0 -.76 .59")).run()
    batch = collate([build_graph(mf.mol, "none", mf.get_fock())], template, 20.0, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        density = density_matrix(batch.hamiltonian, batch.basis_vectors, batch.n_occupied)
    assert density.dtype == torch.float32
    np.testing.assert_allclose(density[0], mf.make_rdm1(), atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_purification_equals_the_eigenvectors_projector(seed):
    """Gapped spectra of two molecules, the smaller one padded by orbitals above all others."""
    rng = np.random.default_rng(seed)
    hamiltonians, projectors = np.zeros((2, 12, 12)), np.zeros((2, 12, 12))
    for k, (n, occupied) in enumerate(((12, 5), (7, 2))):
        energies = np.concatenate(
            [rng.uniform(-20, -0.3, occupied), rng.uniform(0, 4, n - occupied)]
        )
        vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
        hamiltonians[k, :n, :n] = vectors * energies @ vectors.T
        hamiltonians[k, n:, n:] = 20 * np.eye(12 - n)
        projectors[k, :n, :n] = vectors[:, :occupied] @ vectors[:, :occupied].T
    pairs = torch.tensor([5.0, 2.0], dtype=torch.float64)
    found = _purified(torch.from_numpy(hamiltonians), pairs)
    np.testing.assert_allclose(found, projectors, rtol=0, atol=1e-6)


def test_gradient_against_finite_differences():
    rng = np.random.default_rng(0)
    n, occupied = 7, 3
    a = rng.normal(size=(n, n))
    overlap = np.eye(n) + 0.1 * (a + a.T) / n
    x = torch.from_numpy(orthonormal_basis(overlap))[None]
    h = rng.normal(size=(n, n))
    h = torch.from_numpy(h + h.T)[None].requires_grad_()
    weight = torch.from_numpy(rng.normal(size=(n, n)))

    def f(h):
        h = (h + h.mT) / 2
        return (density_matrix(h, x, torch.tensor([occupied])) * weight).sum()

    assert torch.autograd.gradcheck(f, h, atol=1e-6)


def test_solve_roothaan_drops_linear_dependencies():
    """Two functions that coincide: SciPy's Cholesky fails, the canonical basis does not."""
    a = np.random.default_rng(1).normal(size=(6, 5))
    a = np.column_stack([a, a[:, -1]])
    overlap = a.T @ a
    hamiltonian = a.T @ np.diag(np.arange(6.0)) @ a
    energies, orbitals = solve_roothaan(hamiltonian, overlap)
    assert len(energies) == 5
    np.testing.assert_allclose(orbitals.T @ overlap @ orbitals, np.eye(5), atol=1e-7)


@pytest.mark.parametrize("n", [1, 4])
def test_orthonormal_basis_is_symmetric(n):
    a = np.random.default_rng(n).normal(size=(n, n))
    overlap = a @ a.T + np.eye(n)
    x = orthonormal_basis(overlap)
    np.testing.assert_allclose(x.T @ overlap @ x, np.eye(n), atol=1e-12)
    np.testing.assert_allclose(x, x.T, atol=1e-12)
