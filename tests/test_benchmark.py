import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyscf import dft, scf

from pyscf_deqh.benchmark import acceleration
from pyscf_deqh.benchmark.__main__ import BUNDLED, main
from pyscf_deqh.benchmark.acceleration import run_benchmark
from pyscf_deqh.benchmark.memory import PeakMemory
from pyscf_deqh.benchmark.scf_runs import Method, run_classical, run_deqh
from pyscf_deqh.data.geometry import read_geometries
from pyscf_deqh.data.splits import split_of
from pyscf_deqh.errors import ConfigError
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.potentials import Potentials

pytestmark = pytest.mark.usefixtures("coarse_grids")


def test_bundled_molecules_are_test_molecules():
    geometries = read_geometries(BUNDLED)
    assert len(geometries) >= 40
    ids = {int(g.info["qm9_id"]) for g in geometries}
    assert len(ids) == len(geometries)
    assert {split_of(i) for i in ids} == {"test"}
    assert all(7 <= g.n_heavy <= 9 for g in geometries)


def test_cycles_and_builds_are_pyscfs(monkeypatch):
    """Cycles are counted as PySCF counts them; builds are get_veff's calls."""
    mol = make_mol(WATER)
    calls = []
    monkeypatch.setattr(dft.rks.RKS, "get_veff", counted(dft.rks.RKS.get_veff, calls))
    run = run_classical(mol, Method(), "minao")
    assert run.corrected == []
    mf = dft.RKS(make_mol(WATER), xc="b3lyp").run()
    assert run.cycles == mf.cycles == len(run.focks)
    assert run.energy == pytest.approx(mf.e_tot, abs=1e-9)
    np.testing.assert_allclose(run.hamiltonian, mf.get_fock(), atol=1e-5)
    # The run's last Fock matrix is asked for once more, after the clock has stopped; then mf's own.
    assert len(calls) == (run.full_builds + 1) + (mf.cycles + 2) + 1


@pytest.mark.parametrize("accelerate", [True, False])
def test_builds_of_a_guess_and_its_scf(monkeypatch, accelerate):
    """Full ones are the SCF's alone; fitted ones are counted in each of its cycles."""
    full, fitted, made = [], [], []
    for cls, name, calls in (
        (dft.rks.RKS, "get_veff", full),
        (FittedFock, "__call__", fitted),
        (Potentials, "anew", made),
    ):
        monkeypatch.setattr(cls, name, counted(getattr(cls, name), calls))
    run, guess = run_deqh(make_mol(WATER), Method(xc="pbe", accelerate=accelerate))
    assert run.converged
    # The run's last Fock matrix is asked for once more, after the clock has stopped.
    assert len(full) == run.full_builds + 1 == run.cycles + 3
    assert len(fitted) == run.guess_fitted_builds == 1 + len(guess.report.fitted_gradients)
    solved = sum(map(bool, run.corrected))  # one more for each, of PySCF's density
    assert len(made) == run.guess_fitted_builds + sum(run.corrected) + solved
    assert len(run.corrected) == len(run.gradient) * accelerate
    assert any(run.corrected) == accelerate


def counted(original, calls):
    return lambda *args, **options: calls.append(1) or original(*args, **options)


@pytest.mark.parametrize("init", ["1e", "atom", "huckel", "sap", "vsap", "cheap-scf", "no-network"])
def test_every_baseline_runs(init):
    run = run_classical(make_mol(WATER), Method(xc="pbe"), init)
    assert run.converged
    assert (run.guess_fitted_builds > 0) == (init in ("cheap-scf", "no-network"))
    assert len(run.corrected) == (run.cycles if init == "no-network" else 0)
    assert any(run.corrected) == (init == "no-network")


def test_command_prints_a_table_and_writes_everything(tmp_path, capsys):
    xyz = tmp_path / "mols.xyz"
    water = "3\nname=water\n" + "".join(f"{s} {x} {y} {z}\n" for s, (x, y, z) in WATER)
    xyz.write_text(water + "2\nname=twice\nHe 0 0 0\nHe 0 0 0\n" + water)
    out, image = tmp_path / "out.json", tmp_path / "out.png"
    code = main(["--init", "minao", "1e", "--molecules", str(xyz), "--xc", "hf",
                 "--json", str(out), "--plot", str(image)])  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 1
    assert "against minao, n = 2" in printed
    assert "failed: twice: " in printed
    data = json.loads(out.read_text())
    keys = {"achieved_ratio", "optimal_ratio", "error_level_ratio", "full_builds_ratio",
            "wall_ratio", "max_energy_difference", "n", "model", "init"}  # fmt: skip
    assert keys <= set(data["summaries"]["minao"])
    assert data["summaries"]["minao"]["init"] == "minao"
    assert set(data["summaries"]) == {"minao", "1e"}
    assert data["summaries"]["minao"]["max_energy_difference"] < 1e-7
    row = data["rows"][0]
    counts = [row["deqh"], row["baselines"]["1e"]]
    # The paper counts from 0.
    cycles, builds = ([run[key] for run in counts] for key in ("cycles", "full_builds"))
    ratios = row["ratios"]["1e"]
    assert ratios["achieved_ratio"] == pytest.approx((cycles[0] - 1) / (cycles[1] - 1))
    assert ratios["full_builds_ratio"] == pytest.approx(builds[0] / builds[1])
    for row in data["rows"]:
        assert len(row["deqh"]["corrected"]) == row["deqh"]["cycles"]
        assert any(row["deqh"]["corrected"])
        assert row["deqh"]["peak_memory"] is None or row["deqh"]["peak_memory"] > 0
        assert all(run["corrected"] == [] for run in row["baselines"].values())
    assert image.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(PeakMemory()() is None, reason="the system does not count it")
def test_peak_memory_is_what_was_held_more_than_before():
    memory = PeakMemory()
    array = np.ones(20_000_000)
    del array
    held = memory()
    assert held > 150
    assert PeakMemory()() < held / 2


BY_HAND = {
    "density_fit": (lambda mol: scf.RHF(mol).density_fit(), {"density_fit": True}),
    "PCM": (lambda mol: scf.RHF(mol).PCM(), {"solvent": "PCM"}),
    "SMD": (lambda mol: smd_in_water(scf.RHF(mol)), {"solvent": "SMD"}),
    "unrestricted": (scf.UHF, {"unrestricted": True}),
    "unrestricted Kohn-Sham": (lambda mol: dft.UKS(mol, xc="pbe"),
                               {"unrestricted": True, "xc": "pbe"}),
    "triplet": (scf.UHF, {"spin": 2}),
    "cation in PCM": (lambda mol: dft.UKS(mol, xc="pbe").PCM(),
                      {"charge": 1, "xc": "pbe", "solvent": "PCM", "unrestricted": True}),
}  # fmt: skip


def smd_in_water(mf):
    mf = mf.SMD()
    mf.with_solvent.solvent = "water"
    return mf


@pytest.mark.parametrize("case", BY_HAND)
def test_methods_are_what_they_are_called(case):
    by_hand, options = BY_HAND[case]
    method = Method(**({"xc": "hf", "basis": "sto-3g"} | options))
    mol = method.molecule(acceleration.WATER)
    found = method.scf(mol)
    expected = by_hand(mol.copy())
    assert type(found).__name__ == type(expected).__name__
    assert found.kernel() == pytest.approx(expected.kernel(), abs=1e-9)


def test_command_without_corrected_cycles(tmp_path):
    """The network alone, and PySCF's DIIS after it."""
    xyz, out = tmp_path / "water.xyz", tmp_path / "out.json"
    xyz.write_text("3\n\n" + "".join(f"{s} {x} {y} {z}\n" for s, (x, y, z) in WATER))
    assert main(["--molecules", str(xyz), "--xc", "hf", "--max-cycles", "0", "--no-accelerate",
                 "--json", str(out)]) == 0  # fmt: skip
    data = json.loads(out.read_text())
    assert (data["method"]["max_cycles"], data["method"]["accelerate"]) == (0, False)
    deqh = data["rows"][0]["deqh"]
    assert deqh["converged"]
    assert deqh["fitted_gradients"] == deqh["corrected"] == []
    assert data["rows"][0]["hamiltonian_mae"] == data["rows"][0]["refined_mae"]


def test_interrupt_keeps_the_results(tmp_path, monkeypatch):
    geometry = acceleration.WATER
    done = []
    original = acceleration.benchmark_molecule

    def interrupted(*args):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return original(*args)

    monkeypatch.setattr(acceleration, "benchmark_molecule", interrupted)
    path = tmp_path / "out.json"
    results = acceleration.run_benchmark(
        [geometry, geometry], Method(xc="hf"), ["minao"], path, progress=False
    )
    assert len(results.rows) == 1
    assert json.loads(path.read_text())["summaries"]["minao"]["n"] == 1
    resumed = acceleration.run_benchmark(
        [geometry], Method(xc="hf"), ["minao"], path, progress=False, resume=True
    )
    assert resumed.rows == json.loads(path.read_text())["rows"]


def test_files_of_earlier_versions_are_refused(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"rows": [{"name": "water", "deqh": {}}], "failures": []}))
    with pytest.raises(ConfigError, match=r"old\.json was written by an earlier version"):
        acceleration.run_benchmark(
            [acceleration.WATER], Method(xc="hf"), ["minao"], path, progress=False, resume=True
        )


def test_bad_arguments(tmp_path, capsys):
    assert main(["--molecules", str(tmp_path / "none.xyz")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main(["--model", "unknown", "--n", "1"]) == 2
    assert "no model 'unknown'" in capsys.readouterr().err


def test_failures_of_molecules_without_a_name_are_all_kept(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no")

    monkeypatch.setattr(acceleration, "benchmark_molecule", fail)
    water = replace(acceleration.WATER, info={})
    path = tmp_path / "rows.json"
    for resume in (False, True):
        results = run_benchmark([water] * 3, Method(), ["minao"], path, False, resume)
        assert [f["name"] for f in results.failures] == ["molecule"] * 3
        assert json.loads(path.read_text())["failures"] == results.failures


def test_errors_of_a_guess_that_was_not_used_are_not_counted(monkeypatch):
    monkeypatch.setattr("pyscf_deqh.guess.too_cheap", lambda mf, again=False: "it is small")
    row = acceleration.benchmark_molecule(acceleration.WATER, Method(), ["minao"])
    assert row["deqh"]["fallback"] == "it is small"
    assert row["hamiltonian_mae"] is None
    assert row["refined_mae"] is None
    assert row["ratios"]["minao"]["error_level_ratio"] is None


def test_each_scf_finds_the_memory_that_the_others_did(monkeypatch):
    """PySCF decides by it whether two-electron integrals fit."""
    made, alive, original = [], [], Method.scf

    def scf(self, mol):
        alive.append(sum(reference() is not None for reference in made))
        mf = original(self, mol)
        made.append(weakref.ref(mf))
        return mf

    monkeypatch.setattr(Method, "scf", scf)
    acceleration.benchmark_molecule(acceleration.WATER, Method(), ["minao", "1e"])
    assert alive == [0, 0, 0]
