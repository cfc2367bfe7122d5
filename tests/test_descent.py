"""Direct minimization, in PySCF's own Fock matrices."""

import numpy as np
import pytest
import scipy.linalg
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import dft, gto, scf

from pyscf_deqh import deqh_guess
from pyscf_deqh.fock.descent import Point, descend, rotated
from pyscf_deqh.fock.orbitals import by_spin
from pyscf_deqh.fock.refine import refine
from pyscf_deqh.fock.shells import Shells

# Of PySCF's scf.hf: the norm of the gradient at an energy threshold of 1e-9 hartree.
CONVERGED = 3e-5


def exact(mf):
    """Fock matrices of occupied orbitals, each scaled by the root of its occupation."""

    def build(orbitals):
        if isinstance(orbitals, list):
            return mf.get_fock(dm=np.stack([c @ c.T for c in orbitals]))
        return mf.get_fock(dm=orbitals @ orbitals.T)

    return build


def energy_of(mf, refined):
    spins = [c @ c.T for c in by_spin(refined.orbitals)]
    return mf.energy_tot(spins[0] if len(spins) == 1 else np.stack(spins))


def start_of(mf, init_guess="minao"):
    """A Hamiltonian to begin with."""
    return mf.get_fock(dm=mf.get_init_guess(key=init_guess))


def minimized(mf, hamiltonian=None, max_builds=150, cycles=1):
    """Where direct minimization after so many cycles ends."""
    start = start_of(mf) if hamiltonian is None else hamiltonian
    return refine(exact(mf), mf.get_ovlp(), Shells.of(mf, mf.mol), start, cycles, CONVERGED,
                  descent=max_builds)  # fmt: skip


@pytest.mark.parametrize(("n", "occupied"), [(7, 3), (7, 5), (4, 4), (4, 0)])
def test_orbitals_are_turned_by_the_exponential(n, occupied):
    rng = np.random.default_rng(0)
    rotation = rng.normal(size=(n - occupied, occupied))
    k = np.zeros((n, n))
    k[occupied:, :occupied] = rotation
    orbitals = rng.normal(size=(9, n))
    expected = orbitals @ scipy.linalg.expm(k - k.T)
    np.testing.assert_allclose(rotated(orbitals, occupied, rotation), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (scf.RHF, {}),
        (lambda mol: dft.RKS(mol, xc="b3lyp"), {}),
        (scf.UHF, {"charge": 1, "spin": 1}),
        (lambda mol: dft.UKS(mol, xc="pbe"), {"spin": 2}),
        (scf.UHF, {"charge": 9, "spin": 1}),  # no electron of the other spin
    ],
)
def test_the_minimum_is_pyscfs(make, options):
    mf = make(make_mol(WATER, **options))
    refined = minimized(mf)
    assert 1 < len(refined.gradients) < 80
    assert refined.gradients[-1] < CONVERGED
    mf.kernel()
    assert energy_of(mf, refined) < mf.e_tot + 1e-8


def test_its_hamiltonian_has_its_orbitals():
    mf = scf.RHF(make_mol(FORMAMIDE))
    refined = minimized(mf, max_builds=10)
    shells, overlap = Shells.of(mf, mf.mol), mf.get_ovlp()
    orbitals = shells.filled(*shells.orbitals(refined.hamiltonian, overlap, refined.fock))
    expected = refined.orbitals @ refined.orbitals.T
    np.testing.assert_allclose(orbitals @ orbitals.T, expected, atol=1e-9)
    # It is the best of the way, and the last of the gradients is its own.
    assert refined.gradients[-1] == min(refined.gradients)


def test_each_step_lowers_the_energy():
    mf = scf.RHF(make_mol(WATER))
    overlap = mf.get_ovlp()
    h = start_of(mf)
    shells = Shells.of(mf, mf.mol)
    coefficients, occupations = shells.orbitals(h, overlap, h)
    energies, build = [], exact(mf)

    def recorded(c):
        orbitals = shells.filled(c, occupations)
        energies.append(mf.energy_tot(orbitals @ orbitals.T))
        return [build(orbitals)]

    begin = Point(coefficients, [5], recorded(coefficients))
    end, gradients = descend(
        recorded, begin, lambda g: float(np.linalg.norm(g[0])), 100, 1e-5
    )  # fmt: skip
    assert gradients[-1] < 1e-5
    assert energies[-1] == min(energies)
    assert energies[-1] == pytest.approx(mf.kernel(), abs=1e-9)
    np.testing.assert_allclose(end.coefficients[0].T @ overlap @ end.coefficients[0],
                               np.eye(mf.mol.nao), atol=1e-10)  # fmt: skip


def test_it_leaves_a_saddle_point_that_diis_stays_on():
    """Stretched H2, of broken symmetry by a hair: DIIS ends in the closed shell."""
    mf = scf.UHF(gto.M(atom="H 0 0 0; H 0 0 3", basis="cc-pvdz", verbose=0))
    closed = scf.RHF(mf.mol).run()
    mix = 1e-3
    c = closed.mo_coeff
    turned = [np.cos(a) * c[:, 0] + np.sin(a) * c[:, 1] for a in (mix, -mix)]
    hamiltonian = mf.get_fock(dm=np.stack([np.outer(x, x) for x in turned]))
    refined = minimized(mf, hamiltonian)
    mf.init_guess_breaksym = "mix"
    mf.kernel()
    assert mf.e_tot < closed.e_tot - 0.1
    assert energy_of(mf, refined) == pytest.approx(mf.e_tot, abs=1e-7)


def test_it_does_not_end_with_lower_orbitals_empty():
    """From PySCF's ``1e``: a configuration of its own symmetry, which no gradient leads out of."""
    mf = scf.RHF(make_mol(WATER))
    refined = minimized(mf, start_of(mf, "1e"))
    assert refined.gradients[-1] < CONVERGED
    assert energy_of(mf, refined) == pytest.approx(mf.kernel(), abs=1e-8)


@pytest.mark.parametrize(
    ("atoms", "spin"),
    [
        pytest.param("Fe 0 0 0; N 0 0 1.58", 1, marks=pytest.mark.slow),
        ("Ti 0 0 0; Cl 0 0 2.26", 1),
    ],
)
@pytest.mark.usefixtures("coarse_grids")
def test_scfs_that_pyscf_does_not_bring_to_an_end(atoms, spin):
    """Not in 50 cycles from minao; the energy is that of PySCF's second-order solver from there."""
    mol = gto.M(atom=atoms, basis="def2-svp", spin=spin, verbose=0)
    mf = dft.UKS(mol, xc="b3lyp").apply(deqh_guess, start="atoms")
    mf.kernel()
    assert mf.converged
    assert mf.cycles < 12
    again = dft.UKS(mol, xc="b3lyp").newton()
    again.kernel(mf.mo_coeff, mf.mo_occ)
    assert again.converged
    assert mf.e_tot == pytest.approx(again.e_tot, abs=2e-7)
