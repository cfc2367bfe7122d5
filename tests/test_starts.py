"""Where a guess begins: with the network, or with superposed atoms for everything else."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyscf import df, dft, gto, qmmm, scf

from pyscf_deqh import deqh_guess, init_guess_by_deqh
from pyscf_deqh.fock.auxiliary import HEAVY, auxiliary_molecule
from pyscf_deqh.fock.problem import Problem
from pyscf_deqh.starts.atoms import AtomsStart

GHOSTS = [("ghost-O", (0, 0, -2.9)), ("ghost-H", (0, 0.76, -3.4)), ("ghost-H", (0, -0.76, -3.4))]


def dimer():
    return make_mol([*WATER, *GHOSTS])


def atom_centred_functions():
    """Basis functions beside an atom, that no element gives its name."""
    return gto.M(
        atom=[("H", (0, 0, 0)), ("H", (0, 0, 0.74)), ("ghost1", (0, 0, 2.0))], verbose=0,
        basis={"H": "def2-svp", "ghost1": gto.basis.load("def2-svp", "He")},
    )  # fmt: skip


CASES = {
    "second row": lambda: make_mol("Cl 0 0 0; H 0 0 1.28"),
    "silane": lambda: make_mol(
        "Si 0 0 0; H .86 .86 .86; H -.86 -.86 .86; H -.86 .86 -.86; H .86 -.86 -.86"
    ),
    "counterpoise": dimer,
    "functions beside an atom": atom_centred_functions,
    "ECP": lambda: make_mol("I 0 0 0; H 0 0 1.61", ecp={"I": "def2-svp"}),
    "ECP of a light element": lambda: make_mol(WATER, basis="bfd-vdz", ecp={"O": "bfd"}),
    "transition metal": lambda: make_mol("Zn 0 0 0; H 0 0 1.54; H 0 0 -1.54"),
    "salt": lambda: make_mol("Na 0 0 0; Br 0 0 2.5"),
    "no fitting set": lambda: make_mol(
        "U 0 0 0; O 0 0 1.71; O 0 0 -1.71", basis={"U": "lanl2dz", "O": "def2-svp"},
        ecp={"U": "lanl2dz"}, charge=2,
    ),
    "Cartesian": lambda: make_mol("S 0 0 0; H 0 .96 .93; H 0 -.96 .93", basis="6-31g*", cart=True),
}  # fmt: skip


def solved(mol, **options):
    mf = dft.KS(mol, xc="b3lyp")
    mf.grids.level = 1
    if options:
        mf.apply(deqh_guess, **options)
    mf.kernel()
    assert mf.converged
    return mf, mf.cycles + 2


@pytest.mark.parametrize("case", CASES)
def test_atoms_serve_what_the_network_does_not_know(case):
    mol = CASES[case]()
    plain, n_plain = solved(mol)
    guess, n_guess = solved(mol, model="b3lyp-def2svp")
    assert guess.deqh_report.start == "atoms"
    assert guess.deqh_report.fallback is None
    (note,) = guess.deqh_report.notes
    assert note.startswith("atoms, because ")
    assert guess.e_tot == pytest.approx(plain.e_tot, abs=5e-9)
    assert n_guess <= 5 < n_plain


def test_a_start_can_be_chosen():
    plain, _ = solved(make_mol(WATER))
    for start in ("network", "atoms"):
        guess, builds = solved(make_mol(WATER), start=start)
        assert (guess.deqh_report.start, guess.deqh_report.notes) == (start, ())
        assert guess.deqh_report.fallback is None
        assert guess.e_tot == pytest.approx(plain.e_tot, abs=5e-9)
        assert builds <= 5


def test_density_matrices_of_any_element():
    mol = CASES["salt"]()
    density, report = init_guess_by_deqh(mol, return_report=True)
    assert report.start == "atoms"
    converged = dft.RKS(mol, xc="b3lyp").density_fit().run().make_rdm1()
    error = abs(density - converged).max()
    assert error < 0.2 * abs(scf.hf.init_guess_by_minao(mol) - converged).max()


def test_another_basis_set_has_cycles_of_its_own():
    """The first Fock matrix is built where they end, not at the projection of the model's."""
    mol = make_mol(WATER, basis="cc-pvtz")
    guess, builds = solved(mol, max_cycles=8)
    assert builds == 4
    assert guess.deqh_report.notes == ("made in def2-svp and projected",)
    first = guess.deqh_cycles[0].gradient
    assert first < 4e-3 * 5**0.5 * 3  # hartree per root of a pair
    assert guess.deqh_report.fitted_builds > len(guess.deqh_report.fitted_gradients) + 1


def functions_of(mol, atom):
    return sum(mol.bas_atom(shell) == atom for shell in range(mol.nbas))


def test_fitting_sets():
    def named(name, mol):
        return df.addons.make_auxmol(mol, name)

    both = auxiliary_molecule(dimer())
    assert both.nao == named("def2-universal-jfit", dimer()).nao
    assert functions_of(both, 3) == functions_of(both, 0)  # a ghost's are its element's
    salt = CASES["salt"]()
    assert auxiliary_molecule(salt).nao == named("def2-universal-jkfit", salt).nao
    assert auxiliary_molecule(salt, "weigend").nao == named("weigend", salt).nao
    made = auxiliary_molecule(CASES["no fitting set"]())
    oxygen = named("def2-universal-jfit", make_mol("O 0 0 0"))
    assert functions_of(made, 1) == functions_of(made, 2) == oxygen.nbas
    assert functions_of(made, 0) > 20


def test_inner_electrons_of_heavy_atoms_are_fitted():
    """def2's fitting sets beyond krypton are for effective core potentials."""
    mol = gto.M(atom="I 0 0 0; H 0 0 1.61", basis={"I": "adzp", "H": "def2-svp"}, verbose=0)
    plain, mf = (dft.RKS(mol, xc="pbe").sfx2c1e() for _ in range(2))
    plain.kernel()
    assert mf.apply(deqh_guess, start="atoms").kernel() == pytest.approx(plain.e_tot, abs=1e-7)
    assert mf.cycles < plain.cycles / 2
    assert mf.deqh_cycles[0].gradient < 0.5
    named = auxiliary_molecule(mol, HEAVY)
    assert named.nao < auxiliary_molecule(mol).nao / 2
    valence = gto.M(atom="I 0 0 0", basis="def2-svp", ecp="def2-svp", spin=1, verbose=0)
    assert auxiliary_molecule(valence).nao == df.addons.make_auxmol(valence, HEAVY).nao


def test_superposed_atoms_know_of_charges_and_relativity():
    """What the one-electron Hamiltonian has of them, to the last digit."""
    mol = make_mol(WATER)
    plain = scf.RHF(mol)
    for mf in (qmmm.mm_charge(scf.RHF(mol), [(0, 0, 3.0)], [0.7]), scf.RHF(mol).sfx2c1e()):
        matrices = [AtomsStart()(Problem.of(x, mol)).hamiltonian for x in (mf, plain)]
        change = mf.get_hcore() - plain.get_hcore()
        assert np.abs(change).max() > 1e-3
        np.testing.assert_allclose(matrices[0] - matrices[1], change, atol=1e-9)
