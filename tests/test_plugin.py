"""The plug-in in PySCF: every SCF class, the log, bad input."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import dft, gto, scf
from pyscf.pbc import gto as pbc_gto
from pyscf.pbc import scf as pbc_scf
from pyscf.qmmm.itrf import mm_charge

from pyscf_deqh import (
    CheckpointError,
    ConfigError,
    UnsupportedMoleculeError,
    deqh_guess,
    init_guess_by_deqh,
    plugin,
    predict_hamiltonian,
)
from pyscf_deqh import guess as guess_module
from pyscf_deqh import predict as predict_module
from pyscf_deqh.checkpoint import DEFAULT_MODEL, resolve_model
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.problem import Problem
from pyscf_deqh.fock.shells import breaks_spin_symmetry

pytestmark = pytest.mark.usefixtures("coarse_grids")

# The bundled model that iterates; the default one applies f once.
EQUILIBRIUM = "b3lyp-def2svp-equilibrium"

# Symmetry-adapted classes want the molecule's symmetry; each line is one way to an SCF object.
CASES = {
    "RHF": (lambda m: scf.RHF(m), {}),
    "UHF": (lambda m: scf.UHF(m), {}),
    "UHF triplet": (lambda m: scf.UHF(m), {"spin": 2}),
    "ROHF": (lambda m: scf.ROHF(m), {}),
    "ROHF cation": (lambda m: scf.ROHF(m), {"spin": 1, "charge": 1}),
    "HF dispatches to ROHF": (lambda m: scf.HF(m), {"spin": 1, "charge": 1}),
    "GHF": (lambda m: scf.GHF(m), {}),
    "RKS": (lambda m: dft.RKS(m, xc="b3lyp"), {}),
    "UKS": (lambda m: dft.UKS(m, xc="pbe"), {"spin": 1, "charge": 1}),
    "ROKS": (lambda m: dft.ROKS(m, xc="pbe"), {"spin": 1, "charge": 1}),
    "GKS": (lambda m: dft.GKS(m, xc="pbe"), {}),
    "density fitting": (lambda m: dft.RKS(m, xc="pbe").density_fit(), {}),
    "newton": (lambda m: scf.RHF(m).newton(), {}),
    "newton of UKS": (lambda m: dft.UKS(m, xc="pbe").newton(), {"spin": 1, "charge": 1}),
    "symmetry": (lambda m: scf.RHF(m), {"symmetry": True}),
    "symmetry UKS": (lambda m: dft.UKS(m, xc="pbe"), {"symmetry": True, "spin": 1, "charge": 1}),
    "symmetry ROHF": (lambda m: scf.ROHF(m), {"symmetry": True, "spin": 1, "charge": 1}),
    "x2c": (lambda m: scf.RHF(m).x2c(), {}),
    "x2c of UHF": (lambda m: scf.UHF(m).x2c(), {"spin": 1, "charge": 1}),
    "solvent of UKS": (lambda m: dft.UKS(m, xc="pbe").PCM(), {"spin": 1, "charge": 1}),
    "solvent of ROHF": (lambda m: scf.ROHF(m).PCM(), {"spin": 1, "charge": 1}),
    "dynamic level shift": (
        lambda m: scf.addons.dynamic_level_shift(scf.UHF(m)),
        {"spin": 1, "charge": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_scf_class_reaches_the_minao_energy(case, monkeypatch):
    make, options = CASES[case]
    energies, reports = {}, []
    original = plugin.make_guess

    def reported(*args):
        guess = original(*args)
        reports.append(guess.report)
        return guess

    monkeypatch.setattr(plugin, "make_guess", reported)
    for key in ("minao", "deqh"):
        mf = make(make_mol(WATER, **options))
        mf.conv_tol = 1e-10
        mf.init_guess = key
        energies[key] = mf.kernel()
        assert mf.converged
    (report,) = reports
    broken = isinstance(mf, (scf.uhf.UHF, scf.ghf.GHF)) and breaks_spin_symmetry(mf, mf.mol)
    assert (report.start, report.fallback) == (
        ("minao", "PySCF breaks the spin symmetry of its own density") if broken
        else ("network", None)
    )  # fmt: skip
    assert energies["deqh"] == pytest.approx(energies["minao"], abs=1e-7)


def test_guess_is_better_than_minao():
    """Less than half of minao's energy error, and fewer cycles."""
    energy, cycles = {}, {}
    for key in ("minao", "deqh"):
        first = dft.RKS(make_mol(), xc="b3lyp")
        energy[key] = first.energy_tot(first.get_init_guess(key=key))
        mf = dft.RKS(make_mol(), xc="b3lyp")
        mf.init_guess = key
        converged = mf.kernel()
        cycles[key] = mf.cycles
    # minao's density is not idempotent: its energy can lie on either side.
    assert abs(energy["deqh"] - converged) < 0.5 * abs(energy["minao"] - converged)
    assert cycles["deqh"] < cycles["minao"]


def test_density_matrix_holds_all_electrons_and_is_idempotent():
    mol = make_mol()
    dm = init_guess_by_deqh(mol)
    s = mol.intor("int1e_ovlp")
    assert np.trace(dm @ s) == pytest.approx(mol.nelectron, abs=1e-9)
    np.testing.assert_allclose(dm @ s @ dm, 2 * dm, atol=1e-9)
    assert dm.mo_coeff.shape == (mol.nao, mol.nao)
    assert dm.mo_occ.sum() == mol.nelectron


IONS = {
    "formate": ("C 0 0 0; O 1.13 0 .55; O -1.13 0 .55; H 0 0 -1.13", -1),
    "ammonium": ("N 0 0 0; H .59 .59 .59; H -.59 -.59 .59; H -.59 .59 -.59; H .59 -.59 -.59", 1),
}


@pytest.mark.parametrize("ion", IONS)
def test_ions_with_closed_shells(ion):
    atoms, charge = IONS[ion]
    mf = dft.RKS(make_mol(atoms, charge=charge), xc="b3lyp")
    expected, cycles = mf.kernel(), mf.cycles
    assert mf.apply(deqh_guess).kernel() == pytest.approx(expected, abs=1e-8)
    assert mf.cycles <= cycles / 2


def test_density_of_an_odd_number_of_electrons():
    mol = make_mol(WATER, charge=1, spin=1)
    dm = init_guess_by_deqh(mol)
    assert np.trace(dm @ mol.intor("int1e_ovlp")) == pytest.approx(mol.nelectron, abs=1e-9)


def test_restricted_guess_is_tagged_as_pyscf_tags_its_own():
    mf = scf.RHF(make_mol(WATER))
    dm = mf.get_init_guess(key="deqh")
    assert dm.mo_coeff is not None
    assert dm.mo_occ.sum() == 10


def test_hamiltonian_is_hermitian_and_solved():
    prediction = predict_hamiltonian(make_mol(), EQUILIBRIUM)
    h = prediction.hamiltonian
    np.testing.assert_array_equal(h, h.T)
    assert h.dtype == np.float64
    assert prediction.iterations >= 1
    assert prediction.residual < 0.2


def test_iteration_can_start_from_pyscfs_own_guess():
    """One solution, whatever the start; and one that is already solved stays."""
    mol = make_mol()
    mf = dft.RKS(mol, xc="b3lyp")
    fock = mf.get_fock(dm=mf.get_init_guess(key="minao"))
    solved = predict_hamiltonian(mol, EQUILIBRIUM).hamiltonian
    from_fock = predict_hamiltonian(mol, EQUILIBRIUM, initial=fock).hamiltonian
    again = predict_hamiltonian(mol, EQUILIBRIUM, initial=solved).hamiltonian
    distance = np.abs(fock - solved).mean()
    assert np.abs(from_fock - solved).mean() < 0.1 * distance
    assert np.abs(again - solved).mean() < 0.03 * distance
    with pytest.raises(UnsupportedMoleculeError, match="initial has shape"):
        predict_hamiltonian(mol, initial=np.eye(3))


def test_apply_returns_the_object_and_chains():
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, device="cpu")
    assert isinstance(mf, scf.hf.RHF)
    assert mf.init_guess == "deqh"
    assert deqh_guess(mf) is mf
    assert mf.density_fit().run().converged


def test_log_says_what_ran(tmp_path):
    log = tmp_path / "log"
    mf = dft.RKS(make_mol(WATER, verbose=4, output=str(log)), xc="pbe")
    mf.init_guess = "deqh"
    mf.get_init_guess(key="deqh")
    mf.mol.stdout.flush()
    text = log.read_text()
    for part in ("DEQH model b3lyp-def2svp", "iterations", "residual", "network"):
        assert part in text


def test_the_model_is_loaded_once(monkeypatch):
    predict_hamiltonian(make_mol(WATER))
    monkeypatch.setattr(predict_module, "load_model", None)
    predict_hamiltonian(make_mol(WATER))


def _silicon():
    return gto.M(atom="Si 0 0 0; H 0 0 1.48; H 1.4 0 -.5; H -.7 1.2 -.5; H -.7 -1.2 -.5",
                 basis="def2-svp", verbose=0)  # fmt: skip


def _moved(position):
    mol = make_mol(WATER)
    coordinates = mol.atom_coords()
    coordinates[2] = position(coordinates)
    mol._env[mol._atm[2, gto.PTR_COORD] + np.arange(3)] = coordinates[2]
    return mol


def with_omega(mol, omega):
    mol.omega = omega
    return mol


BAD = {
    "element": (_silicon, "does not know the element"),
    "ghost atom": (lambda: make_mol([*WATER, ("ghost-O", (0, 0, 3.0))]), "ghost"),
    "element without def2-SVP": (
        lambda: make_mol("Ce 0 0 0", basis={"Ce": [[k, [1.0, 1.0]] for k in range(6)]}),
        "does not know the element",
    ),
    "no electrons": (lambda: make_mol("H 0 0 0", charge=1), "no electrons"),
    "too few orbitals": (
        lambda: make_mol("He 0 0 0", basis="sto-3g", spin=2),
        "2 electrons of one spin do not fit",
    ),
    "no atoms": (lambda: gto.M(verbose=0), "no atoms"),
    "range-separated operators": (lambda: with_omega(make_mol(WATER), 0.3), "omega"),
    "NaN": (lambda: _moved(lambda r: np.full(3, np.nan)), "NaN"),
    "coincident": (lambda: _moved(lambda r: r[1]), "same place"),
    "ECP": (lambda: make_mol(WATER, basis="bfd-vdz", ecp={"O": "bfd"}), "ECP"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_explicit_calls(case):
    make, message = BAD[case]
    with pytest.raises(UnsupportedMoleculeError, match=message):
        init_guess_by_deqh(make(), start="network")


def test_explicit_guess_raises_or_falls_back(tmp_path):
    with pytest.raises(UnsupportedMoleculeError):
        scf.RHF(_silicon()).apply(deqh_guess, start="network").kernel()
    log = tmp_path / "log"
    mol = _silicon()
    mol.verbose, mol.stdout = 3, log.open("w")
    mf = scf.RHF(mol).apply(deqh_guess, start="network", on_unsupported="minao")
    energy = mf.kernel()
    mol.stdout.close()
    assert "minao guess is used instead" in log.read_text()
    assert energy == pytest.approx(scf.RHF(_silicon()).kernel(), abs=1e-8)


def test_periodic_cells_fall_back():
    cell = pbc_gto.M(a=np.eye(3) * 6, atom="H 0 0 0; H 0 0 .74", basis="def2-svp", verbose=0)
    with pytest.raises(UnsupportedMoleculeError, match="periodic"):
        init_guess_by_deqh(cell)
    mf = pbc_scf.RHF(cell)
    np.testing.assert_allclose(mf.get_init_guess(key="deqh"), mf.get_init_guess(key="minao"))


def test_spinors_fall_back():
    for spinors in (scf.DHF, scf.X2C):
        mf = spinors(make_mol(WATER))
        minao = mf.get_init_guess(key="minao")
        np.testing.assert_allclose(mf.get_init_guess(key="deqh"), minao)
        with pytest.raises(UnsupportedMoleculeError, match="none of the molecular classes"):
            mf.apply(deqh_guess)


def test_objects_of_other_packages_are_refused_at_once():
    with pytest.raises(UnsupportedMoleculeError, match=r"no guess for builtins\.object"):
        deqh_guess(object())


def test_network_is_in_single_precision_whatever_the_default():
    expected = predict_hamiltonian(make_mol(WATER)).hamiltonian
    predict_module._load_once.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        found = predict_hamiltonian(make_mol(WATER)).hamiltonian
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, expected)


def test_a_model_folder_is_found_from_another_directory(tmp_path, monkeypatch):
    shutil.copytree(resolve_model(DEFAULT_MODEL), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, model="mine")
    monkeypatch.chdir("/")
    assert mf.get_init_guess(key="deqh").shape == (24, 24)


def test_guess_for_another_molecule_than_the_objects_own():
    stretched = make_mol([(s, tuple(1.1 * x for x in r)) for s, r in WATER])
    dm = scf.RHF(make_mol(WATER)).get_init_guess(stretched, key="deqh")
    s = stretched.intor("int1e_ovlp")
    np.testing.assert_allclose(dm @ s @ dm, 2 * dm, atol=1e-8)


def test_a_users_core_hamiltonian_is_of_his_molecule_alone():
    """cc-pVDZ has as many orbitals as the model's basis set, in which the guess begins."""
    mol = make_mol(WATER, basis="cc-pvdz")
    mf = scf.RHF(mol)
    field = 0.01 * mol.intor("int1e_r")[2]
    hcore = mf.get_hcore() + field
    mf.get_hcore = lambda *args: hcore
    problem = Problem.of(mf, mol)
    np.testing.assert_array_equal(problem.core_hamiltonian, hcore)
    other = make_mol(WATER)
    np.testing.assert_allclose(
        problem.in_basis_of(other).core_hamiltonian, scf.RHF(other).get_hcore(), atol=1e-12
    )
    plain = scf.RHF(mol).set(get_hcore=mf.get_hcore)
    expected = plain.kernel()
    mf.apply(deqh_guess)
    assert mf.kernel() == pytest.approx(expected, abs=1e-8)
    assert mf.deqh_report.fallback is None
    assert mf.cycles < plain.cycles


def test_the_plain_function_says_where_it_is_minaos(monkeypatch):
    def lost(*args):
        return replace(original(*args)[0], failure="the orbital gradient is 1"), None

    original = guess_module._cycles
    monkeypatch.setattr(guess_module, "_cycles", lost)
    mol = make_mol(WATER)
    with pytest.warns(UserWarning, match="minao's density, because the orbital gradient is 1"):
        density = init_guess_by_deqh(mol, xc="hf")
    np.testing.assert_allclose(density, scf.hf.init_guess_by_minao(mol), atol=1e-12)
    _, report = init_guess_by_deqh(mol, xc="hf", return_report=True)
    assert report.fallback == "the orbital gradient is 1"


def test_an_scf_that_is_left_alone_makes_its_core_hamiltonian_once(monkeypatch):
    """Beside many external charges that takes long."""
    mf = mm_charge(scf.UHF(make_mol(WATER)), [[3.0, 0.0, 0.0]], [0.5]).apply(deqh_guess)
    made, original = [], mf.get_hcore
    mf.get_hcore = lambda *args: made.append(1) or original(*args)
    mf.max_cycle = 0
    mf.kernel()
    assert "breaks the spin symmetry" in mf.deqh_report.fallback
    assert len(made) == 1


def test_other_basis_sets_take_the_atoms_as_they_are(tmp_path, monkeypatch):
    """Not the file that they were read from, which may have changed."""
    monkeypatch.chdir(tmp_path)
    lines = [f"{symbol} {x} {y} {z}" for symbol, (x, y, z) in WATER]
    Path("water.xyz").write_text("\n".join(["3", "", *lines]))
    from_file = make_mol("water.xyz", basis="cc-pvdz")
    Path("water.xyz").unlink()
    expected = init_guess_by_deqh(make_mol(WATER, basis="cc-pvdz"))
    np.testing.assert_allclose(init_guess_by_deqh(from_file), expected, atol=1e-8)


@pytest.mark.parametrize("change", ["omega", "define_xc_"])
def test_cheap_cycles_follow_a_functional_that_the_user_has_changed(change):
    def kohn_sham(changed=True):
        mf = dft.RKS(make_mol(WATER), xc="camb3lyp")
        if changed and change == "omega":
            mf.omega = 1.0
        elif changed:
            mf.define_xc_("pbe", xctype="GGA")
        return mf

    mf = kohn_sham().run()
    s, exact = mf.get_ovlp(), mf.make_rdm1()

    def error(mf):
        dm = deqh_guess(mf, accelerate=False).get_init_guess(key="deqh")
        return np.trace((dm - exact) @ s @ (dm - exact) @ s)

    assert error(kohn_sham()) < 0.1 * error(kohn_sham(changed=False))


def test_unknown_names():
    with pytest.raises(CheckpointError, match="bundled: b3lyp-def2svp, b3lyp-def2svp-equilibrium"):
        scf.RHF(make_mol(WATER)).apply(deqh_guess, model="gpt")
    with pytest.raises(ConfigError, match="start must be one of"):
        scf.RHF(make_mol(WATER)).apply(deqh_guess, start="minao")
    with pytest.raises(ConfigError, match="start must be one of"):
        init_guess_by_deqh(make_mol(WATER), start="minao")
    with pytest.raises(ConfigError, match="on_unsupported"):
        scf.RHF(make_mol(WATER)).apply(deqh_guess, on_unsupported="ignore")
    with pytest.raises(ConfigError, match="max_cycles"):
        scf.RHF(make_mol(WATER)).apply(deqh_guess, max_cycles=-1)
    with pytest.raises(ConfigError, match="unknown device"):
        predict_hamiltonian(make_mol(WATER), device="abacus")
    with pytest.raises(ConfigError, match="double precision"):
        predict_hamiltonian(make_mol(WATER), device="mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_gpu_is_said():
    with pytest.raises(ConfigError, match="sees no GPU"):
        predict_hamiltonian(make_mol(WATER), device="cuda")


def test_out_of_gpu_memory_falls_back_to_the_cpu(monkeypatch):
    """A device that has no memory for Fock matrices, without needing one."""
    load, build = predict_module.cached_model, FittedFock.__call__
    expected = predict_hamiltonian(make_mol(WATER))

    def full(self, *args):
        if self.device.type == "meta":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(self, *args)

    monkeypatch.setattr(predict_module, "cached_model", lambda folder, _: load(folder, "cpu"))
    monkeypatch.setattr(predict_module, "resolve_device", lambda *_: "meta")
    monkeypatch.setattr(FittedFock, "__call__", full)
    prediction = predict_hamiltonian(make_mol(WATER), device="cuda")
    assert prediction.device == "cpu"
    assert "ran out of memory" in prediction.notes[0]
    np.testing.assert_allclose(prediction.hamiltonian, expected.hamiltonian, atol=1e-6)


def test_registering_twice_wraps_once():
    before = scf.hf.SCF.get_init_guess
    plugin.register()
    assert scf.hf.SCF.get_init_guess is before


def test_molecule_is_left_alone():
    mol = make_mol(FORMAMIDE, symmetry=False)
    before = mol.dumps()
    init_guess_by_deqh(mol)
    assert mol.dumps() == before


def test_linear_dependencies_are_handled():
    """Two waters so close that functions nearly coincide still give a valid density."""
    shifted = [(s, (x + 0.15, y, z)) for s, (x, y, z) in WATER]
    mol = make_mol(WATER + shifted)
    dm = scf.RHF(mol).apply(deqh_guess, max_cycles=0).get_init_guess(key="deqh")
    assert np.trace(dm @ mol.intor("int1e_ovlp")) == pytest.approx(20, abs=1e-6)
