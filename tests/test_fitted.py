import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import df, dft, lib, scf

from pyscf_deqh.engine import HOST, host
from pyscf_deqh.errors import NotEnoughMemoryError
from pyscf_deqh.fock import blocks
from pyscf_deqh.fock.auxiliary import LIGHT
from pyscf_deqh.fock.blocks import BlockIntegrals, OrbitalGroups
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.functional import Functional
from pyscf_deqh.fock.grid import GRID
from pyscf_deqh.fock.orbitals import nearest_combination

FUNCTIONALS = ["hf", "lda,vwn", "pbe", "b3lyp", "wb97x", "m06-2x", "tpss"]


def pyscfs_own(mol, xc, unrestricted=False):
    """PySCF's density-fitted mean field on the same grid."""
    if unrestricted:
        mf = scf.UHF(mol) if xc == "hf" else dft.UKS(mol, xc=xc)
    else:
        mf = scf.RHF(mol) if xc == "hf" else dft.RKS(mol, xc=xc)
    mf = mf.density_fit(auxbasis=LIGHT)
    if xc != "hf":
        mf.grids = HOST.grids(mol, GRID)
    return mf


def some_orbitals(mol):
    """Orbitals of the one-electron Hamiltonian: normalized, and no stationary point of anything."""
    mf = scf.RHF(mol)
    energy, c = mf.eig(mf.get_hcore(), mf.get_ovlp())
    occupation = mf.get_occ(energy, c)
    return c[:, occupation > 0] * np.sqrt(2)


@pytest.mark.parametrize("xc", FUNCTIONALS)
def test_fock_matrix_and_energy_are_pyscfs(xc):
    mol = make_mol()
    mf, c = pyscfs_own(mol, xc), some_orbitals(mol)
    dm = c @ c.T
    expected, energy = mf.get_fock(dm=dm), mf.energy_elec(dm)[0]
    fock, e = FittedFock(mol, dtype=torch.float64)(mf.get_hcore(), c, xc)
    np.testing.assert_allclose(fock, expected, atol=1e-6)
    assert e == pytest.approx(energy, abs=1e-6)
    single, _ = FittedFock(mol)(mf.get_hcore(), c, xc)
    assert single.dtype == np.float64
    assert np.abs(single - expected).mean() < 2e-6
    assert np.abs(single - expected).max() < 2e-4


def spin_orbitals(mol, n_electrons):
    """The same for spins that fill different numbers of them."""
    mf = scf.RHF(mol)
    c = mf.eig(mf.get_hcore(), mf.get_ovlp())[1]
    return [c[:, :n] for n in n_electrons]


def spin_densities(orbitals):
    return np.array([c @ c.T for c in orbitals])


@pytest.mark.parametrize("xc", FUNCTIONALS)
def test_unrestricted_fock_matrices_and_energy_are_pyscfs(xc):
    mol = make_mol(spin=2)
    mf, spins = pyscfs_own(mol, xc, unrestricted=True), spin_orbitals(mol, (13, 11))
    dm = spin_densities(spins)
    expected, energy = mf.get_fock(dm=dm), mf.energy_elec(dm)[0]
    fitted = FittedFock(mol, dtype=torch.float64)
    fock, e = fitted(mf.get_hcore(), spins, xc)
    np.testing.assert_allclose(fock, expected, atol=1e-6)
    assert e == pytest.approx(energy, abs=1e-6)
    others = spin_orbitals(mol, (12, 12))
    change = fitted.differences(spins, xc)(others)
    np.testing.assert_allclose(change, mf.get_fock(dm=spin_densities(others)) - expected, atol=1e-6)


@pytest.mark.parametrize("xc", ["hf", "b3lyp", "wb97x"])
def test_one_spin_may_have_no_electrons(xc):
    mol = make_mol("H 0 0 0", spin=1)
    mf, spins = pyscfs_own(mol, xc, unrestricted=True), spin_orbitals(mol, (1, 0))
    fock, energy = FittedFock(mol, dtype=torch.float64)(mf.get_hcore(), spins, xc)
    dm = spin_densities(spins)
    np.testing.assert_allclose(fock, mf.get_fock(dm=dm), atol=1e-6)
    assert energy == pytest.approx(mf.energy_elec(dm)[0], abs=1e-6)


def nearby_orbitals(mol, step):
    """Those of :func:`some_orbitals`, rotated by about ``step``."""
    mf, c = scf.RHF(mol), some_orbitals(mol)
    noise = np.random.default_rng(0).normal(size=(mol.nao, mol.nao)) * step
    h = mf.get_hcore() + noise + noise.T
    return mf.eig(h, mf.get_ovlp())[1][:, : c.shape[1]] * np.sqrt(2)


@pytest.mark.parametrize("xc", FUNCTIONALS)
def test_differences_are_pyscfs(xc):
    mol = make_mol()
    mf, c, d = pyscfs_own(mol, xc), some_orbitals(mol), nearby_orbitals(mol, 0.1)
    expected = mf.get_fock(dm=d @ d.T) - mf.get_fock(dm=c @ c.T)
    assert np.abs(expected).max() > 1e-3
    difference = FittedFock(mol, dtype=torch.float64).differences(c, xc)
    np.testing.assert_allclose(difference(d), expected, atol=1e-6)
    np.testing.assert_allclose(difference(c), 0, atol=1e-12)


@pytest.mark.parametrize("xc", ["hf", "b3lyp"])
def test_what_was_made_of_orbitals_is_not_made_again(xc, monkeypatch):
    mol = make_mol()
    fitted, functional = FittedFock(mol), Functional.of(xc)
    orbitals = [nearby_orbitals(mol, 0.1 * i) for i in range(12)]
    hcore = scf.hf.get_hcore(mol)
    focks = [fitted(hcore, c, functional)[0] for c in orbitals]
    known = fitted.remembered(functional)
    assert [id(c) for c in known] == [id(c) for c in orbitals[-len(known) :]]
    assert 2 < len(known) < 12
    assert not fitted.remembered(Functional.of("pbe"))

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(fitted, "semilocal", never)
    monkeypatch.setattr(fitted, "exchange", never)
    np.testing.assert_array_equal(fitted(hcore, known[0], functional)[0], focks[-len(known)])
    change = fitted.differences(known[-1], functional)(known[0])
    np.testing.assert_allclose(change, focks[-len(known)] - focks[-1], atol=1e-4)
    with pytest.raises(AssertionError, match="made again"):  # equal ones are others
        fitted(hcore, known[0].copy(), functional)
    fitted.forget()
    assert not fitted.remembered(functional)


@pytest.mark.parametrize("basis", ["def2-svp", {"H": "def2-svp", "default": "aug-cc-pvdz"}])
def test_the_grid_leaves_out_only_what_no_electron_sees(basis):
    mol = make_mol([*FORMAMIDE, ("ghost-N", (0, 0, 3)), ("H1", (0, 0, 30))], basis=basis, spin=1)
    whole = dft.gen_grid.Grids(mol)
    whole.atom_grid = GRID
    whole.build()
    grids = HOST.grids(mol, GRID)
    assert len(grids.weights) < 0.95 * len(whole.weights)
    ni = dft.numint.NumInt()
    focks = [ni.nr_rks(mol, g, "pbe", c @ c.T) for g in (grids, whole) for c in [diffuse(mol)]]
    assert focks[0][0] == pytest.approx(focks[1][0], abs=1e-5)
    np.testing.assert_allclose(focks[0][2], focks[1][2], atol=5e-6)


def diffuse(mol):
    """An electron in each of the softest orbitals of a molecule."""
    energy, c = scf.RHF(mol).eig(mol.intor("int1e_kin"), mol.intor("int1e_ovlp"))
    return c[:, np.argsort(energy)[: mol.nelectron]]


def test_differences_of_similar_densities_are_precise_in_single_precision():
    """At least twice as much as the difference of two single-precision Fock matrices."""
    mol = make_mol()
    c, d, hcore = some_orbitals(mol), nearby_orbitals(mol, 1e-4), scf.hf.get_hcore(mol)
    expected = FittedFock(mol, dtype=torch.float64).differences(c, "b3lyp")(d)
    single = FittedFock(mol)
    plain = single(hcore, d, "b3lyp")[0] - single(hcore, c, "b3lyp")[0]
    error = np.abs(single.differences(c, "b3lyp")(d) - expected).mean()
    assert error < 2e-7
    assert error < 0.5 * np.abs(plain - expected).mean()


def turned(c):
    """The same density of other orbitals."""
    return c @ np.linalg.qr(np.random.default_rng(0).normal(size=(c.shape[1],) * 2))[0]


@pytest.mark.parametrize("unrestricted", [False, True])
def test_exchange_of_similar_densities_loses_no_digits(unrestricted):
    """Where single precision tells less than is asked for; in any order of the orbitals."""
    mol = make_mol()
    c, d, far = some_orbitals(mol), nearby_orbitals(mol, 1e-4), nearby_orbitals(mol, 1.0)
    if unrestricted:
        c, d, far = ([x / np.sqrt(2), x[:, :-1] / np.sqrt(2)] for x in (c, d, far))
        d = [turned(x) for x in d]
    else:
        d = turned(d)
    expected = FittedFock(mol, dtype=torch.float64).differences(c, "hf")
    fitted = FittedFock(mol)
    single, errors = fitted.differences(c, "hf"), {}
    for accuracy in (1e-2, 1e-6):
        fitted.forget()
        single.accuracy = accuracy
        errors[accuracy] = np.abs(single(d) - expected(d)).max()
    assert errors[1e-6] < min(2e-7, 0.2 * errors[1e-2])
    np.testing.assert_allclose(single(far), expected(far), atol=1e-3)


def test_long_range_integrals_are_those_of_the_screened_operator():
    mol, omega = make_mol(), 0.3
    c = some_orbitals(mol)
    mf = scf.RHF(mol).density_fit(auxbasis=LIGHT)
    _, expected = mf.with_df.get_jk(c @ c.T, with_j=False, omega=omega)
    auxiliary = df.addons.make_auxmol(mol, LIGHT)
    found = BlockIntegrals(mol, auxiliary, OrbitalGroups.of(mol), "cpu", torch.float64, omega)
    np.testing.assert_allclose(found.exchange(torch.from_numpy(c)), expected, atol=1e-6)


def test_blocks_change_nothing(monkeypatch):
    mol = make_mol(WATER)
    c, hcore = some_orbitals(mol), scf.hf.get_hcore(mol)
    monkeypatch.setattr(host, "NEGLIGIBLE", 0.0)
    for xc in ("lda,vwn", "b3lyp", "m062x"):
        with monkeypatch.context() as patch:
            expected = FittedFock(mol, dtype=torch.float64)(hcore, c, xc)[0]
            patch.setattr(host.Engine, "block_bytes", 2**16)
            patch.setattr(host, "GRID_BLOCK", 112)
            patch.setattr(blocks, "_GROUP", 1)
            fitted = FittedFock(mol, dtype=torch.float64)
            np.testing.assert_allclose(fitted(hcore, c, xc)[0], expected, atol=1e-10)
            fitted = FittedFock(mol, dtype=torch.float64)
            fitted.orbital_values.release()
            patch.setattr(fitted, "_keeps_twice", False)
            np.testing.assert_allclose(fitted(hcore, c, xc)[0], expected, atol=1e-10)
            assert not fitted.orbital_values.nbytes
            some = FittedFock(mol, dtype=torch.float64)
            room = iter([True] * 9)
            some.orbital_values._reserve = lambda _, room=room: next(room, False)
            np.testing.assert_allclose(some(hcore, c, xc)[0], expected, atol=1e-10)
            np.testing.assert_allclose(some.semilocal(some.tensors(c), Functional.of(xc))[0][0],
                                       fitted.semilocal(some.tensors(c), Functional.of(xc))[0][0],
                                       atol=1e-10)  # fmt: skip
            assert len(some.orbital_values._kept) == 9
            unrestricted = fitted(hcore, [c / np.sqrt(2)] * 2, xc)[0]
            np.testing.assert_allclose(unrestricted, [expected] * 2, atol=1e-8)


def test_threads_make_the_same_values_on_the_grid():
    mol = make_mol(FORMAMIDE)
    grids = HOST.grids(mol, (30, 110))
    for first in (0, host.GRID_BLOCK):
        made = []
        for threads in (1, 3):
            with lib.with_omp_threads(threads):
                made.append(list(HOST.orbital_values(mol, grids, "cpu", torch.float64, first)))
        assert made[0][0][0].start == first
        for one, several in zip(*made, strict=True):
            assert one[0] == several[0]
            torch.testing.assert_close(one[1:], several[1:], atol=0, rtol=0)


def test_far_orbitals_are_left_out():
    """Of three molecules in a row; the Fock matrix is PySCF's in the same fitting functions."""
    far = [(s, (x, y, z + 12 * i)) for i in (2, 0, 1) for s, (x, y, z) in FORMAMIDE]
    mol = make_mol(far)
    c, fitted = some_orbitals(mol), FittedFock(mol, dtype=torch.float64)
    mf = scf.RHF(mol).density_fit(auxbasis=LIGHT)
    fock, _ = fitted(mf.get_hcore(), c, "hf")
    np.testing.assert_allclose(fock, mf.get_fock(dm=c @ c.T), atol=1e-6)
    assert fitted.integrals.nbytes == fitted._integral_bytes + fitted._twice_bytes
    fitted.integrals.keep_twice(False)
    assert (
        fitted.integrals.nbytes
        == fitted._integral_bytes
        < 0.6 * 4 * fitted._auxiliary.nao * mol.nao**2
    )
    fitted(mf.get_hcore(), c, "pbe")
    kept = fitted.orbital_values.nbytes
    assert kept < 0.8 * 8 * 4 * len(fitted.grids.weights) * mol.nao
    expected = dft.numint.NumInt().nr_rks(mol, fitted.grids, "pbe", c @ c.T)[2]
    found = fitted.semilocal(fitted.tensors(c), Functional.of("pbe"))[0][0]
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_atoms_without_functions_are_in_no_group():
    mol = make_mol([("X", (0, 0, 3)), *WATER], basis={"O": "def2-svp", "H": "def2-svp"}, verbose=0)
    groups, alone = OrbitalGroups.of(mol), OrbitalGroups.of(make_mol(WATER))
    np.testing.assert_array_equal(groups.orbitals, alone.orbitals)
    np.testing.assert_array_equal(groups.first_shell, alone.first_shell)


def test_too_little_memory_leaves_coulomb_matrices_only():
    mol = make_mol()
    c, hcore = some_orbitals(mol), scf.hf.get_hcore(mol)
    expected = FittedFock(mol)(hcore, c, "pbe")[0]
    mol.max_memory = 1
    np.testing.assert_allclose(FittedFock(mol)(hcore, c, "pbe")[0], expected, atol=2e-4)
    with pytest.raises(NotEnoughMemoryError, match="orbitals do not fit into 1 MB"):
        FittedFock(mol)(hcore, c, "b3lyp")


@pytest.mark.parametrize("unrestricted", [False, True])
@pytest.mark.parametrize("xc", ["hf", "b3lyp", "wb97x"])
def test_exchange_of_nearly_a_combination_is_that_combination(xc, unrestricted, monkeypatch):
    """Within the accuracy that is asked for."""
    mol, functional = make_mol(FORMAMIDE), Functional.of(xc)
    c, d, near, far = (
        [x / np.sqrt(2)] * 2 if unrestricted else x
        for x in (some_orbitals(mol), *(nearby_orbitals(mol, s) for s in (0.05, 0.0501, 0.2)))
    )
    exact = FittedFock(mol, dtype=torch.float64).differences(c, functional)
    expected = {id(x): exact(x) for x in (near, far)}
    fitted, made, original = FittedFock(mol, dtype=torch.float64), [], FittedFock.exchange
    difference = fitted.differences(c, functional)
    difference(d)
    monkeypatch.setattr(FittedFock, "exchange", lambda *args: made.append(1) or original(*args))
    for x, accuracy, made_anew in ((near, 1e-2, False), (near, 1e-5, True), (far, 1e-2, True)):
        difference.accuracy = accuracy
        made.clear()
        error = np.linalg.norm(difference(x) - expected[id(x)])
        assert bool(made) == made_anew
        assert error < 1e-9 if made_anew else 1e-7 < error < accuracy
        assert any(known is x for known in fitted.remembered(functional)) == made_anew
        assert any(known is x for known in fitted.remembered(functional, accuracy))


def test_nearest_combination_of_densities():
    mol = make_mol()
    overlap = mol.intor("int1e_ovlp")
    c = scf.RHF(mol).eig(mol.intor("int1e_kin"), overlap)[1]
    one, two, rest = c[:, :3], c[:, 1:6], c[:, 8:9]
    both = np.hstack([np.sqrt(0.3) * one, np.sqrt(1.7) * two])
    weights, left = nearest_combination(both, [one, two], overlap)
    np.testing.assert_allclose(weights, [0.3, 1.7], atol=1e-10)
    assert abs(left) < 2e-7  # as far as the traces can tell
    more = np.hstack([both, np.sqrt(0.01) * rest])
    weights, left = nearest_combination(more, [one, two, one], overlap)
    np.testing.assert_allclose(weights, [0.15, 1.7, 0.15], atol=1e-10)
    assert left == pytest.approx(0.01, abs=1e-9)
