"""Energies of one full Fock matrix, against PySCF's SCFs."""

import pytest
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import dft, gto, scf

from pyscf_deqh import ConfigError, single_build

pytestmark = pytest.mark.usefixtures("coarse_grids")

CATION = {"charge": 1, "spin": 1}
METHODS = {
    "RHF": (scf.RHF, {}),
    "B3LYP": (lambda mol: dft.RKS(mol, xc="b3lyp"), {}),
    "M06-2X": (lambda mol: dft.RKS(mol, xc="m06-2x"), {}),
    "density fitting": (lambda mol: dft.RKS(mol, xc="pbe").density_fit(), {}),
    "UHF": (scf.UHF, CATION),
    "UKS": (lambda mol: dft.UKS(mol, xc="b3lyp"), CATION),
    "ROHF": (scf.ROHF, CATION),
    "ROKS": (lambda mol: dft.ROKS(mol, xc="b3lyp"), CATION),
    "symmetry": (scf.RHF, {"symmetry": True}),
    "GHF": (scf.GHF, CATION),
    "broken symmetry": (scf.UHF, {}),
    "PCM": (lambda mol: dft.RKS(mol, xc="b3lyp").PCM(), {}),
}


@pytest.mark.parametrize("case", METHODS)
def test_the_energy_is_the_scfs_within_its_error(case):
    make, options = METHODS[case]
    mf = make(make_mol(WATER, **options))
    builds, original = [], mf.get_veff
    mf.get_veff = lambda *a, **k: builds.append(1) or original(*a, **k)
    found = single_build(mf)
    assert len(builds) == 1
    converged = make(make_mol(WATER, **options)).run(conv_tol=1e-11)
    assert abs(found.energy - converged.e_tot) < found.error + 1e-10
    if case != "GHF":  # which starts from PySCF's density, of no orbitals
        assert found.upper > converged.e_tot - 1e-10
    assert mf.e_tot == found.energy
    assert not mf.converged
    if case not in ("GHF", "broken symmetry"):  # whose guess is of another kind
        assert found.error < 1e-6
        homo = mf.mo_occ > 0
        assert mf.mo_energy[homo].max() == pytest.approx(
            converged.mo_energy[converged.mo_occ > 0].max(), abs=1e-3
        )


def test_a_solvent_that_does_not_respond():
    """Its potential is part of the Fock matrix, of the energy a constant."""

    def frozen():
        mf = scf.RHF(make_mol(WATER)).PCM()
        mf.run()
        mf.with_solvent.frozen = True
        return mf

    found = single_build(frozen())
    converged = frozen().run(conv_tol=1e-11)
    assert abs(found.energy - converged.e_tot) < max(found.error, 1e-7)
    assert found.error < 1e-4


def test_a_larger_molecule_and_other_ways_to_start():
    converged = dft.RKS(make_mol(FORMAMIDE), xc="b3lyp").run(conv_tol=1e-11)
    for options in ({}, {"start": "atoms"}, {"max_cycles": 0}, {"accelerate": False}):
        found = single_build(dft.RKS(make_mol(FORMAMIDE), xc="b3lyp"), **options)
        assert abs(found.energy - converged.e_tot) < found.error


def test_without_the_response_of_nonlocal_correlation_the_correction_is_the_error():
    found = single_build(dft.RKS(make_mol(WATER), xc="wb97x-v"))
    assert found.error == pytest.approx(abs(found.energy - found.upper))


def test_nearly_dependent_functions():
    """PySCF leaves out combinations of functions whose overlap is below 1e-6."""
    mol = gto.M(atom="H 0 0 0; H 0 0 .4; H 0 0 .8; H 0 0 1.2", basis="aug-cc-pvtz", verbose=0)
    mf, converged = scf.RHF(mol), scf.RHF(mol).run(conv_tol=1e-11)
    found = single_build(mf)
    assert abs(found.energy - converged.e_tot) < found.error
    assert found.error < 1e-5
    assert mf.mo_coeff.shape == converged.mo_coeff.shape


def test_a_level_shift_is_no_part_of_the_energy():
    mf, plain = (scf.RHF(make_mol(WATER)) for _ in range(2))
    found = single_build(mf.set(level_shift=0.5))
    expected = single_build(plain, accelerate=False)  # DIIS is the user's
    assert found.energy == pytest.approx(expected.energy, abs=1e-8)
    assert found.error == pytest.approx(expected.error, abs=1e-8)


def test_small_scfs_are_not_left_alone():
    mol = make_mol([("H", (0, 0, 0)), ("H", (0, 0, 0.74))])
    mf = scf.RHF(mol)
    found = single_build(mf)
    assert mf.deqh_report.fallback is None
    assert found.energy == pytest.approx(scf.RHF(mol).kernel(), abs=1e-8)


def test_options_are_the_guesss():
    with pytest.raises(ConfigError, match="start must be one of"):
        single_build(scf.RHF(make_mol(WATER)), start="somewhere")
