"""The guess for gpu4pyscf's objects: with strict stand-ins where there is no GPU."""

import functools
import importlib.util
import json
import pickle
import sys
from dataclasses import replace
from types import SimpleNamespace

import gpu_stand_in
import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import dft, scf

from pyscf_deqh import (
    ConfigError,
    UnsupportedMoleculeError,
    deqh_guess,
    plugin,
    predict_hamiltonian,
    predict_hamiltonians,
    single_build,
)
from pyscf_deqh.benchmark.gpu4pyscf import main
from pyscf_deqh.engine import gpu_engine
from pyscf_deqh.fock import diis
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.orbitals import solve_roothaan
from pyscf_deqh.fock.reference import sad_reference
from pyscf_deqh.fock.system import System

pytestmark = pytest.mark.usefixtures("coarse_grids")

RADICAL = [("N", (0.0, 0.0, 0.14)), ("H", (0.0, 0.80, -0.49)), ("H", (0.0, -0.80, -0.49))]


def gpu4pyscf_itself():
    """Its classes, where it can run."""
    if not torch.cuda.is_available():
        return None
    lib, df, dft, scf = (pytest.importorskip(f"gpu4pyscf.{x}") for x in ("lib", "df", "dft", "scf"))
    classes = {name: getattr(scf, name) for name in ("RHF", "UHF", "ROHF", "GHF")}
    classes |= {name: getattr(dft, name) for name in ("RKS", "UKS", "ROKS")}
    return SimpleNamespace(LibDIIS=lib.diis.DIIS, DF=df.DF, ndarray=importlib.import_module(
        "cupy").ndarray, **classes)  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    """gpu4pyscf, or stand-ins that the plug-in knows as it would know that after its import."""
    itself = gpu4pyscf_itself()
    if itself is not None:
        monkeypatch.setattr("gpu4pyscf.dft.gen_grid.Grids.level", 1)  # as of PySCF's
        yield itself
        return
    module = gpu_stand_in.install(monkeypatch)
    gpu_engine.cache_clear()
    diis._corrected_class.cache_clear()
    from pyscf_deqh.engine.gpu import GPU4PySCF

    monkeypatch.setattr(GPU4PySCF, "device", "cpu")
    generalized = sys.modules["gpu4pyscf.scf.ghf"]
    original, of_spinors = module.SCF.get_init_guess, generalized.GHF.get_init_guess
    plugin._know_deqh(module.SCF)
    plugin._know_generalized(generalized)
    yield gpu_stand_in
    module.SCF.get_init_guess, generalized.GHF.get_init_guess = original, of_spinors
    gpu_stand_in.remove()
    gpu_engine.cache_clear()
    diis._corrected_class.cache_clear()


METHODS = {
    "RHF": ("RHF", WATER, {}, {}),
    "RKS": ("RKS", FORMAMIDE, {}, {"xc": "b3lyp"}),
    "RKS, range-separated": ("RKS", WATER, {}, {"xc": "wb97x"}),
    "RKS, meta-GGA": ("RKS", WATER, {}, {"xc": "tpss"}),
    "RKS, def2-TZVP": ("RKS", WATER, {"basis": "def2-tzvp"}, {"xc": "pbe0"}),
    "RKS, sulfur": ("RKS", [("S", WATER[0][1]), *WATER[1:]], {}, {"xc": "pbe0"}),
    "UHF": ("UHF", RADICAL, {"spin": 1}, {}),
    "UKS": ("UKS", RADICAL, {"spin": 1}, {"xc": "b3lyp"}),
    "ROHF": ("ROHF", RADICAL, {"spin": 1}, {}),
    "ROKS": ("ROKS", RADICAL, {"spin": 1}, {"xc": "pbe"}),
}


# The others differ in what PySCF itself evaluates in the stand-ins; a GPU takes them all.
ALWAYS = ("RKS, range-separated", "RKS, def2-TZVP", "UKS", "ROHF")
SLOW = () if torch.cuda.is_available() else METHODS.keys() - ALWAYS


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] if m in SLOW else []) for m in METHODS]
)
def test_scfs_take_fewer_fock_matrices_to_the_same_result(gpu, method):
    name, atoms, options, settings = METHODS[method]
    mol = make_mol(atoms, **options)
    plain = getattr(gpu, name)(mol, **settings)
    energy = plain.kernel()
    mf = getattr(gpu, name)(mol, **settings).apply(deqh_guess)
    assert issubclass(mf.DIIS, gpu.LibDIIS)
    assert abs(mf.kernel() - energy) < 1e-8
    assert plain.converged
    assert mf.converged
    assert mf.deqh_report.fallback is None
    assert any(cycle.accepted for cycle in mf.deqh_cycles)
    assert mf.cycles <= plain.cycles - 3
    reference = getattr(dft if "KS" in name else scf, name)(mol)
    for key, value in settings.items():
        setattr(reference, key, value)
    assert abs(reference.kernel() - energy) < 1e-8


def test_generalized_spins_start_from_gpu4pyscfs_density(gpu):
    mf = gpu.GHF(make_mol(WATER)).apply(deqh_guess)
    mf._deqh = replace(mf._deqh, frugal=False)
    assert abs(mf.kernel() - scf.RHF(make_mol(WATER)).kernel()) < 1e-8
    assert "breaks the spin symmetry" in mf.deqh_report.fallback
    assert mf.converged


@pytest.mark.parametrize("name", ["RKS", "ROKS"])
def test_the_way_back_is_to_minaos_matrix(gpu, name):
    mf = getattr(gpu, name)(make_mol(WATER), xc="pbe").apply(deqh_guess)
    mf.kernel()
    corrected = mf.DIIS(mf)
    corrected._cycles = [diis.CorrectedCycle(0.1)]
    minao = gpu_engine().array(mf.get_init_guess(mf.mol, key="minao"))
    expected = mf.get_fock(None, None, None, minao)
    found = corrected._begin_anew(mf.get_fock(None, None, None, mf.make_rdm1()), mf)
    np.testing.assert_allclose(gpu_engine().host(found), gpu_engine().host(expected), atol=1e-8)
    assert corrected._cycles[-1].restarted


def test_projected_densities_are_tagged_with_their_orbitals(gpu):
    for name in ("RKS", "UKS"):
        mol = make_mol(WATER, basis="def2-tzvp")
        mf = getattr(gpu, name)(mol, xc="pbe").apply(deqh_guess, max_cycles=0, accelerate=False)
        dm = mf.get_init_guess(mol, "deqh")
        c, occupation = dm.mo_coeff, dm.mo_occ
        made = (c * occupation[..., None, :]) @ c.swapaxes(-1, -2)
        np.testing.assert_allclose(np.asarray((made - dm).get()), 0, atol=1e-10)
        assert "made in def2-svp and projected" in mf.deqh_report.notes


def test_what_it_does_not_serve_is_refused_by_name(gpu, monkeypatch):
    # gpu.RKS may be a function that chooses a class.
    class RKS(type(gpu.RKS(make_mol(WATER), xc="pbe"))):
        __module__ = "gpu4pyscf.dft.rks_lowmem"

    with pytest.raises(UnsupportedMoleculeError, match="none of the molecular classes"):
        RKS(make_mol(WATER), xc="pbe").apply(deqh_guess)
    gpu_engine.cache_clear()
    monkeypatch.setattr("pyscf_deqh.engine.gpu.num_devices", 2)  # each with a part of the integrals
    with pytest.raises(UnsupportedMoleculeError, match=r"uses 2 GPUs.*CUDA_VISIBLE_DEVICES"):
        gpu.RHF(make_mol(WATER)).apply(deqh_guess)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedMoleculeError, match="PyTorch sees no GPU"):
        gpu.RHF(make_mol(WATER)).apply(deqh_guess)
    monkeypatch.setattr(sys.modules["gpu4pyscf"], "__version__", "1.7.6")
    with pytest.raises(UnsupportedMoleculeError, match=r"too old for a guess, which takes 1\.8"):
        gpu.RHF(make_mol(WATER)).apply(deqh_guess)


def test_objects_keep_their_options_when_they_move(gpu):
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess)
    moved = mf.DIIS.to_gpu()
    assert issubclass(moved, gpu.LibDIIS)
    assert moved.to_cpu() is mf.DIIS
    assert pickle.loads(pickle.dumps(moved)) is moved


def test_an_object_that_was_left_alone_has_no_diis_of_its_own(monkeypatch):
    """PySCF's to_gpu() calls a method of the DIIS that an object itself has."""
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess)
    monkeypatch.setattr("pyscf_deqh.guess.too_cheap", lambda mf, again=False: "it is small")
    mf.kernel()
    assert mf.deqh_report.fallback == "it is small"
    assert "DIIS" not in vars(mf)


@pytest.mark.parametrize("name", ["RHF", "UHF", "ROHF"])
def test_a_single_build(gpu, name):
    radical = {} if name == "RHF" else {"spin": 1}
    mol = make_mol(WATER if name == "RHF" else RADICAL, **radical)
    found = single_build(getattr(gpu, name)(mol))
    expected = getattr(scf, name)(mol).kernel()
    assert abs(found.energy - expected) < found.error + 1e-8
    assert found.error < 1e-5


def test_one_fitted_density_is_pyscfs(gpu):
    """Integrals, grid, functional and linear algebra of this engine against PySCF's."""
    mol = make_mol(FORMAMIDE)
    engine = gpu_engine()
    here, there = System(mol), System(mol, engine=engine)
    for name in ("overlap", "core_hamiltonian"):
        found = engine.host(getattr(there, name))
        np.testing.assert_allclose(found, getattr(here, name), atol=1e-9)
    expected = sad_reference(here, FittedFock(mol, dtype=torch.float64))
    fitted = FittedFock(mol, dtype=torch.float64, engine=engine)
    found = engine.host(sad_reference(there, fitted))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    energies, orbitals = solve_roothaan(engine.array(expected), there.overlap, engine)
    reference = solve_roothaan(expected, here.overlap)[0]
    np.testing.assert_allclose(engine.host(energies), reference, atol=1e-9)
    c = engine.host(orbitals)[:, :12]
    for xc in ("pbe", "camb3lyp", "tpss"):
        differences = [
            f.engine.host(f.differences(f.engine.array(c), xc)(f.engine.array(1.05 * c)))
            for f in (fitted, FittedFock(mol, dtype=torch.float64))
        ]
        np.testing.assert_allclose(*differences, atol=1e-6)


def test_a_density_fitted_scf_lends_its_integrals(gpu):
    """Fitted matrices from them are PySCF's of the same auxiliary basis set, exchange too."""
    mol = make_mol(FORMAMIDE)
    engine = gpu_engine()
    mf = gpu.RHF(mol)
    mf.with_df, mf.only_dfj = gpu.DF(mol), False
    mf.with_df.auxbasis = "def2-universal-jkfit"
    assert engine.own_fit(mf) is None  # not made yet
    mf.with_df.build()
    assert engine.own_fit(mf) is mf.with_df
    fitted = FittedFock(mol, memory=0.0, engine=engine, own=mf.with_df)
    reference = scf.RHF(mol).density_fit("def2-universal-jkfit")
    c = np.linalg.qr(np.random.default_rng(0).normal(size=(mol.nao, 12)))[0]
    hcore = np.zeros((mol.nao, mol.nao))
    found, _ = fitted(engine.array(hcore), engine.array(c), "hf")
    expected = reference.get_veff(dm=c @ c.T)
    np.testing.assert_allclose(engine.host(found), expected, atol=2e-5)
    mf.only_dfj = True
    assert engine.own_fit(mf) is None


def test_superposed_atoms_are_those_of_pyscfs_guess(gpu):
    engine = gpu_engine()
    transition_metal = [("Fe", (0, 0, 0)), ("C", (0, 0, 1.8)), ("O1", (0, 0, 2.95))]
    for mol in (
        make_mol(FORMAMIDE), make_mol(transition_metal), make_mol("Br 0 0 0; H 0 0 1.4", cart=True),
        make_mol("I 0 0 0; H 0 0 1.6"), make_mol("O 0 0 0; ghost-H 0 0 1.6", spin=2),
    ):  # fmt: skip
        found = System(mol, engine=engine).atomic_density
        expected = scf.hf.init_guess_by_minao(mol)
        np.testing.assert_allclose(engine.host(found), expected, atol=1e-8)
        np.testing.assert_allclose(engine.host(found.mo_occ), expected.mo_occ)
        np.testing.assert_allclose(engine.host(found.mo_coeff), expected.mo_coeff, atol=1e-8)


def test_batches_of_molecules_are_predicted_as_single_ones():
    mols = [make_mol(WATER), make_mol(FORMAMIDE), make_mol(WATER, charge=1, spin=1)]
    found = list(predict_hamiltonians(mols, batch_size=2))
    assert [p.hamiltonian.shape[0] for p in found] == [mol.nao for mol in mols]
    for mol, prediction in zip(mols, found, strict=True):
        single = predict_hamiltonian(mol)
        # Single precision, whose sums have no fixed order on a GPU.
        atol = 2e-5 if torch.cuda.is_available() else 2e-6
        np.testing.assert_allclose(prediction.hamiltonian, single.hamiltonian, atol=atol)
        assert prediction.iterations == single.iterations
    with pytest.raises(ConfigError, match="batch_size"):
        list(predict_hamiltonians(mols, batch_size=0))
    with pytest.raises(UnsupportedMoleculeError):
        list(predict_hamiltonians([make_mol(WATER, basis="sto-3g")]))


def test_the_benchmark_compares_both_guesses(gpu, tmp_path, capsys, monkeypatch):
    on_cpu = functools.partial(predict_hamiltonians, device="cpu")
    monkeypatch.setattr("pyscf_deqh.benchmark.gpu4pyscf.predict_hamiltonians", on_cpu)
    xyz, found = tmp_path / "a.xyz", tmp_path / "a.json"
    write_xyz(xyz, WATER)
    options = ["--molecules", str(xyz), "--basis", "def2-svp", "--mode", "direct", "--xc", "pbe"]
    options += ["--batches", "1", "2"]
    assert main([*options, "--repeats", "1", "--json", str(found)]) == 0
    (row,) = json.loads(found.read_text())["rows"]
    assert row["atoms"] == 3
    assert row["converged"]
    assert abs(row["energy_difference"]) < 1e-8
    assert row["ratio"] == row["deqh_seconds"] / row["minao_seconds"]
    assert "molecules/s" in capsys.readouterr().out
    assert main([*options, "--atoms", "1"]) == 2


def write_xyz(path, atoms):
    lines = [f"{symbol} {x} {y} {z}" for symbol, (x, y, z) in atoms]
    path.write_text("\n".join([str(len(atoms)), "name=water", *lines]) + "\n")


def test_without_gpu4pyscf_the_benchmark_says_so(capsys):
    if importlib.util.find_spec("gpu4pyscf"):
        pytest.skip("gpu4pyscf is there")
    assert main([]) == 2
    assert "pip install 'pyscf_deqh[gpu]'" in capsys.readouterr().err


def test_the_lowest_state_is_left_out_with_a_note(gpu):
    mf = gpu.RHF(make_mol(WATER)).apply(deqh_guess, lowest=True)
    mf.get_init_guess(mf.mol, "deqh")
    assert "the lowest state is not looked for on a GPU" in mf.deqh_report.notes


def test_scans_go_on_where_there_is_no_guess(gpu, monkeypatch):
    gpu_engine.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    scan = scf.hf.as_scanner(gpu.RHF(make_mol(WATER)))
    scan.init_guess = "deqh"
    for _ in range(2):
        mol = make_mol(WATER)
        assert abs(scan(mol) - scf.RHF(mol).kernel()) < 1e-8
    assert "PyTorch sees no GPU" in scan.deqh_report.fallback
