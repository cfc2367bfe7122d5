import numpy as np
import pytest
import torch
from conftest import WATER, make_mol
from pyscf import dft, scf
from test_fitted import pyscfs_own

from pyscf_deqh.fock.auxiliary import LIGHT
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.orbitals import density_matrix
from pyscf_deqh.fock.refine import refine
from pyscf_deqh.fock.shells import Shells


def run(mol, xc, start, max_builds, tolerance, dtype=torch.float64):
    hcore, overlap = scf.hf.get_hcore(mol), mol.intor("int1e_ovlp")
    fitted = FittedFock(mol, dtype=dtype)
    return refine(
        lambda orbitals: fitted(hcore, orbitals, xc)[0],
        overlap, Shells.of(scf.RHF(mol), mol), start, max_builds, tolerance,
    )  # fmt: skip


@pytest.mark.parametrize("xc", ["b3lyp", "hf"])
def test_converges_to_pyscfs_solution(xc):
    mol = make_mol()
    mf = pyscfs_own(mol, xc).run(conv_tol=1e-11)
    result = run(mol, xc, mf.get_hcore(), 60, 1e-6)
    assert result.gradients[-1] < 1e-6
    np.testing.assert_allclose(result.orbitals @ result.orbitals.T, mf.make_rdm1(), atol=1e-5)
    np.testing.assert_allclose(result.fock, mf.get_fock(), atol=1e-5)
    energy = FittedFock(mol, dtype=torch.float64)(mf.get_hcore(), result.orbitals, xc)[1]
    assert energy + mol.energy_nuc() == pytest.approx(mf.e_tot, abs=1e-8)


def test_gradient_is_pyscfs():
    mol = make_mol()
    mf = pyscfs_own(mol, "pbe")
    energy, c = mf.eig(mf.get_hcore(), mf.get_ovlp())
    occupation = mf.get_occ(energy, c)
    expected = np.linalg.norm(
        mf.get_grad(c, occupation, mf.get_fock(dm=mf.make_rdm1(c, occupation)))
    )
    result = run(mol, "pbe", mf.get_hcore(), 1, 0)
    assert len(result.gradients) == 1
    assert result.gradients[0] == pytest.approx(expected, rel=1e-6)


def test_unrestricted_cycles_converge_to_pyscfs_solution():
    mol = make_mol(WATER, charge=1, spin=1)
    mf = pyscfs_own(mol, "b3lyp", unrestricted=True).run(conv_tol=1e-11)
    fitted, start = FittedFock(mol, dtype=torch.float64), mf.get_hcore()

    def run(max_builds, tolerance):
        return refine(
            lambda orbitals: fitted(mf.get_hcore(), orbitals, "b3lyp")[0], mf.get_ovlp(),
            Shells.of(mf, mol), np.array([start] * 2), max_builds, tolerance,
        )  # fmt: skip

    result = run(60, 1e-6)
    assert result.gradients[-1] < 1e-6
    np.testing.assert_allclose(density_matrix(result.orbitals), mf.make_rdm1(), atol=1e-4)
    energy = fitted(mf.get_hcore(), result.orbitals, "b3lyp")[1] + mol.energy_nuc()
    assert energy == pytest.approx(mf.e_tot, abs=1e-8)
    first = run(1, 0)
    mo_energy, c = mf.eig((start, start), mf.get_ovlp())
    occupation = mf.get_occ(mo_energy, c)
    fock = mf.get_fock(dm=mf.make_rdm1(c, occupation))
    expected = np.linalg.norm(mf.get_grad(c, occupation, fock))
    assert first.gradients[0] == pytest.approx(expected, rel=1e-6)


def test_one_fock_matrix_is_not_extrapolated():
    mol = make_mol()
    result = run(mol, "hf", scf.hf.get_hcore(mol), 1, 0)
    np.testing.assert_allclose(result.hamiltonian, result.fock, atol=1e-12)


def test_a_known_density_takes_part_in_the_extrapolation():
    mol = make_mol()
    mf = scf.RHF(mol)
    overlap, dm = mf.get_ovlp(), mf.get_init_guess(key="minao")
    fock = mf.get_fock(dm=dm)

    def build(orbitals):
        return mf.get_fock(dm=orbitals @ orbitals.T)

    result = refine(build, overlap, Shells.closed(mol.nelectron), fock, 1, 0, density=dm)
    diis = scf.diis.CDIIS()
    diis.update(overlap, dm, fock)
    expected = diis.update(overlap, result.orbitals @ result.orbitals.T, result.fock)
    np.testing.assert_allclose(result.hamiltonian, expected, atol=1e-10)


def test_earlier_densities_take_part_as_well():
    """From the third of four cycles on, with what they knew, the fourth is the same."""
    mol = make_mol()
    mf = scf.RHF(mol)
    overlap, made = mf.get_ovlp(), []

    def build(orbitals):
        made.append(orbitals)
        return mf.get_fock(dm=orbitals @ orbitals.T)

    shells, start = Shells.closed(mol.nelectron), mf.get_hcore()
    whole = refine(build, overlap, shells, start, 4, 0)
    first, second, third = made[:3]
    dm = third @ third.T
    last = refine(
        build, overlap, shells, mf.get_fock(dm=dm), 1, 0, density=dm, earlier=[first, second]
    )
    assert last.gradients[0] == pytest.approx(whole.gradients[3], rel=1e-6)
    np.testing.assert_allclose(last.hamiltonian, whole.hamiltonian, atol=1e-8)


def test_stops_at_the_tolerance_or_the_limit():
    mol = make_mol()
    start = dft.RKS(mol, xc="pbe").run().get_fock()
    early = run(mol, "pbe", start, 10, 0.1)
    assert len(early.gradients) == 1
    assert len(run(mol, "pbe", start, 3, 0).gradients) == 3


def test_restricted_open_shells_converge_to_pyscfs_solution():
    mol = make_mol(WATER, charge=1, spin=1)
    mf = scf.ROHF(mol).density_fit(auxbasis=LIGHT).run(conv_tol=1e-11)
    fitted, shells = FittedFock(mol, dtype=torch.float64), Shells.of(mf, mol)
    start, overlap = mf.get_hcore(), mf.get_ovlp()

    def run(max_builds, tolerance):
        return refine(
            lambda spins: fitted(start, spins, "hf")[0], overlap, shells, start, max_builds,
            tolerance,
        )  # fmt: skip

    result = run(60, 1e-6)
    assert result.gradients[-1] < 1e-6
    np.testing.assert_allclose(density_matrix(result.orbitals), mf.make_rdm1(), atol=1e-4)
    np.testing.assert_allclose(result.fock, mf.get_fock(), atol=1e-4)
    mo_energy, c = mf.eig(start, overlap)
    occupation = mf.get_occ(mo_energy, c)
    fock = mf.get_fock(dm=mf.make_rdm1(c, occupation))
    expected = np.linalg.norm(mf.get_grad(c, occupation, fock))
    assert run(1, 0).gradients[0] == pytest.approx(expected, rel=1e-6)
