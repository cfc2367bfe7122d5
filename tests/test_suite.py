"""The suite: bundled sets, resumption, and its table against numbers worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pyscf_deqh import CheckpointError, UnsupportedMoleculeError
from pyscf_deqh.benchmark import acceleration, suite
from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.acceleration import WATER, benchmark_molecule, run_benchmark
from pyscf_deqh.benchmark.scf_runs import Method
from pyscf_deqh.benchmark.sets import BUNDLED, PUBLISHED, SUITE
from pyscf_deqh.checkpoint import DEFAULT_MODEL, weights_hash
from pyscf_deqh.data.geometry import Geometry, read_geometries
from pyscf_deqh.data.splits import split_of
from pyscf_deqh.graph.basis import n_orbitals

pytestmark = pytest.mark.usefixtures("coarse_grids")

# Bundled molecules


def geometries_of(name):
    return read_geometries(SUITE[name].file)


@pytest.mark.parametrize(
    ("name", "least", "smallest", "largest"),
    [("qm9", 60, 7, 9), ("md", 48, 6, 9), ("larger", 36, 12, 30)],
)
def test_sets(name, least, smallest, largest):
    geometries = geometries_of(name)
    assert len(geometries) >= least
    assert len({g.name for g in geometries}) == len(geometries)
    for geometry in geometries:
        assert set(geometry.numbers.tolist()) <= {1, 6, 7, 8, 9}
        assert geometry.numbers.sum() % 2 == 0
        assert smallest <= geometry.n_heavy <= largest
        # What has more than nine heavy atoms is not in QM9.
        assert largest > 9 or split_of(geometry.qm9_id) == "test"


def test_the_published_molecules_come_first():
    """Sorted by number in QM9, then those that were added."""
    ids = [g.qm9_id for g in read_geometries(BUNDLED)]
    assert len(set(ids)) == len(ids)
    assert ids[:PUBLISHED] == sorted(ids[:PUBLISHED])
    assert ids[PUBLISHED - 1] == 126387
    assert ids[PUBLISHED:] == sorted(ids[PUBLISHED:])


def test_snapshots_are_of_each_molecule_at_each_temperature():
    geometries = geometries_of("md")
    molecules = {g.qm9_id for g in geometries}
    found = {(g.qm9_id, int(g.info["temperature"])) for g in geometries}
    assert found == {(m, t) for m in molecules for t in (300, 400, 500)}
    assert len({g.info["id"] for g in geometries}) == len(geometries) == 48


@pytest.mark.parametrize("name", ["larger", "large"])
def test_larger_molecules_are_those_of_their_smiles(name):
    Chem = pytest.importorskip("rdkit.Chem")
    for geometry in geometries_of(name):
        molecule = Chem.AddHs(Chem.MolFromSmiles(geometry.info["smiles"]))
        assert [a.GetAtomicNum() for a in molecule.GetAtoms()] == geometry.numbers.tolist()


def test_large_molecules_have_600_to_900_orbitals():
    sizes = [n_orbitals(geometry.numbers, "def2-svp") for geometry in geometries_of("large")]
    assert len(sizes) == 8
    assert 600 <= min(sizes) < max(sizes) <= 900


OTHERS = ("fragments", "ions", "heavy", "radicals", "counterpoise")


@pytest.mark.parametrize("name", OTHERS)
def test_other_molecules_can_be_built(name):
    entry = SUITE[name]
    method = entry.method()
    molecules = [(g, method.molecule(g)) for g in entry.geometries()]
    assert len(molecules) == {"fragments": 40, "ions": 20, "heavy": 30}.get(name, 10)
    assert len({g.name for g, _ in molecules}) == len(molecules)
    for geometry, mol in molecules:
        assert mol.spin == (name == "radicals")
        assert bool(mol.charge) == ("charge" in geometry.info)
        assert mol.charge == (geometry.whole_number("charge") or 0)
        ghosts = geometry.whole_number("ghosts") or 0
        assert sum(mol.atom_charges() == 0) == ghosts
        assert bool(ghosts) == (name == "counterpoise")
        core = sum(mol.atom_nelec_core(i) for i in range(mol.natm))
        assert bool(core) == (geometry.numbers > 36).any()
    assert entry.is_transfer


@pytest.mark.parametrize("name", ["fragments", "ions"])
def test_geometries_of_smiles_are_theirs_and_of_the_test_split(name):
    Chem = pytest.importorskip("rdkit.Chem")
    for geometry in geometries_of(name):
        molecule = Chem.AddHs(Chem.MolFromSmiles(geometry.info["smiles"]))
        assert [a.GetAtomicNum() for a in molecule.GetAtoms()] == geometry.numbers.tolist()
        assert Chem.GetFormalCharge(molecule) == (geometry.whole_number("charge") or 0)
        assert geometry.info["name"].endswith("7")
        assert geometry.n_heavy <= 14


def test_selections_grow():
    entry = SUITE["qm9"]
    everything = [g.name for g in entry.geometries()]
    assert [g.name for g in entry.geometries(10)] == everything[:10]
    assert sorted(everything) == sorted(g.name for g in geometries_of("qm9"))
    assert len(SUITE["pbe"].geometries()) == len(SUITE["pbe"].geometries(30)) == 20
    assert len(SUITE["pbe"].geometries(2)) == 2


# Runs, without SCFs


def run(converged=True, energy=-1.0, cycles=10, builds=12, corrected=(), guess=0.0, scf=10.0):
    return {"converged": converged, "energy": energy, "cycles": cycles, "full_builds": builds,
            "guess_fitted_builds": 3, "corrected": list(corrected), "guess_seconds": guess,
            "scf_seconds": scf, "gradient": [1.0], "fitted_gradients": [0.1, 0.01]}  # fmt: skip


def row(name, deqh, baselines, mae=1e-4, own_share=None):
    ratios, differences = {}, {}
    for init, other in baselines.items():
        seconds = [r["guess_seconds"] + r["scf_seconds"] for r in (deqh, other)]
        ratios[init] = {
            "achieved_ratio": deqh["cycles"] / other["cycles"],
            "optimal_ratio": 1 / other["cycles"],
            "error_level_ratio": 0.5,
            "full_builds_ratio": deqh["full_builds"] / other["full_builds"],
            "wall_ratio": seconds[0] / seconds[1],
        }
        if own_share is not None:
            ratios[init]["own_share"] = own_share
        differences[init] = deqh["energy"] - other["energy"]
    return {"name": name, "n_atoms": 9, "n_heavy": 7, "nao": 80, "deqh": deqh,
            "baselines": baselines, "ratios": ratios, "energy_difference": differences,
            "hamiltonian_mae": mae, "refined_mae": mae and mae / 10}  # fmt: skip


def write(folder, name, rows, failures=(), weights="0" * 64, **environment):
    entry = SUITE[name]
    method = {"xc": entry.xc, "basis": entry.basis, "model": "mine", "weights": weights,
              "device": "cpu"}  # fmt: skip
    content = {"method": method, "environment": {"machine": "abacus", "threads": 2} | environment,
               "failures": list(failures), "rows": rows}  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(content))


def cells_of(text, title):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_by_hand(tmp_path, capsys):
    def qm9_row(name, cycles, corrected, energy=-1.0, mae=1e-4, own_share=None):
        deqh = run(cycles=cycles, builds=cycles + 2, corrected=corrected, guess=1.0,
                   scf=float(cycles), energy=energy)  # fmt: skip
        return row(name, deqh, {"minao": run()}, mae, own_share)

    # Files of before have no own share and no memory.
    rows = [qm9_row("a", 4, [1, 0]), qm9_row("b", 5, [2, 1, 0], energy=-1.0 + 2e-6, mae=2e-4,
                                             own_share=0.5)]  # fmt: skip
    rows.append(qm9_row("c", 12, [4, 4], mae=6e-4, own_share=0.7))
    rows[2]["deqh"]["peak_memory"], rows[2]["baselines"]["minao"]["peak_memory"] = 700.4, 500.0
    write(tmp_path, "qm9", rows, [{"name": "d", "reason": "ValueError: no"}])
    found = row("g", run(), {"minao": run(converged=False)}, None)
    lost = row("e", run(converged=False, energy=-0.5), {"minao": run()}, None)
    rows = [lost, row("f", run(cycles=8), {"minao": run()}), found]
    write(tmp_path, "pbe", rows, threads=4)
    assert main(["suite", "--table-only", "--out", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == text.removesuffix("\n")
    # Seconds 5, 6, 13 over 10: mean 0.8, deviations -0.3, -0.2, 0.5, of mean square 0.38 / 3.
    # Builds 6, 7, 14 and 12. Cycles: two of the guess and 1, 3, 8 of the SCF: 3, 5, 10 of mean 6,
    # deviations of mean square 26 / 3.
    assert cells_of(text, "QM9 test") == [
        "QM9 test", "3 of 4", "0.800 ± 0.436 (0.600)", "9.0 ± 4.4 (7.0)", "12.0 ± 0.0 (12.0)",
        "300 ± 265 (200)", "30.00 ± 26.46 (20.00)", "6.0 ± 3.6 (5.0)",
        "0.60 ± 0.14 (0.60), n = 2", "700, n = 1", "500, n = 1",
    ]  # fmt: skip
    # The network's error is against another functional.
    assert cells_of(text, "QM9 test, pbe/def2-svp") == [
        "QM9 test, pbe/def2-svp", "1 of 3", "1.000", "12.0", "12.0", "", "10.00", "2.0", "", "", "",
    ]  # fmt: skip
    assert "Not run: 1\n\n- qm9: d: ValueError: no\n" in text
    assert "Not converged, although minao converged: 1\n\n- pbe: e\n" in text
    assert "Energy above minao's by more than 1e-06 Eh: 1\n\n- qm9: b: 2.0e-06 Eh\n" in text
    assert "More cycles than from minao: 1\n\n- qm9: c: 12 instead of 10\n" in text
    assert "Longer than from minao: 1\n\n- qm9: c: 1.30 of the time\n" in text
    assert "Converged, although minao did not: 1\n\n- pbe: g\n" in text
    assert "model mine (weights 000000000000), device cpu" in text
    assert text.count("machine abacus, threads 2") == text.count("machine abacus, threads 4") == 1
    assert "seed 0" in text


def test_table_without_failures(tmp_path, capsys):
    write(tmp_path, "md", [row("a", run(cycles=5), {"minao": run()})])
    assert main(["suite", "--table-only", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(": none") == 7


def test_files_that_do_not_fit_are_refused(tmp_path, capsys):
    command = ["suite", "--table-only", "--out", str(tmp_path)]
    assert main(command) == 2
    assert "no results of the suite" in capsys.readouterr().err
    write(tmp_path, "md", [])
    (tmp_path / "md.json").rename(tmp_path / "pbe.json")
    assert main(command) == 2
    assert "pbe.json was made with another method" in capsys.readouterr().err
    (tmp_path / "pbe.json").write_text("{}")
    assert main(command) == 2
    assert "pbe.json holds no results" in capsys.readouterr().err


@pytest.mark.parametrize("old", [0, 1])
def test_rows_of_earlier_versions_are_refused(tmp_path, capsys, old):
    """Whichever row it is, and before anything is run or written."""
    rows = [row(name, run(), {"minao": run()}) for name in ("a", "b")]
    deqh = rows[old]["deqh"]
    del deqh["corrected"]
    deqh |= {"guess_full_builds": 1, "corrected_gradients": [0.001]}
    write(tmp_path, "md", rows, weights=weights_hash(DEFAULT_MODEL))
    for options in (["--table-only"], ["--sets", "md", "--n", "1"]):
        assert main(["suite", *options, "--out", str(tmp_path)]) == 2
        expected = "md.json was written by an earlier version: name another file\n"
        assert capsys.readouterr().err.endswith(f"error: {tmp_path / expected}")
    assert [path.name for path in tmp_path.iterdir()] == ["md.json"]


@pytest.fixture
def benchmarked(monkeypatch):
    """Names of the molecules that run_benchmark was to run; rows are made up."""
    names = []

    def pretend(geometry, method, inits, deqh_first):
        names.append(geometry.name)
        return row(geometry.name, run(cycles=5), {init: run() for init in inits})

    monkeypatch.setattr(acceleration, "benchmark_molecule", pretend)
    monkeypatch.setattr(acceleration, "warm_up", lambda *args: None)
    return names


def test_resumption(benchmarked, tmp_path):
    command = ["suite", "--sets", "md", "hf", "--out", str(tmp_path), "--n"]
    assert main([*command, "4"]) == 0
    assert main([*command, "6"]) == 0
    wanted = [
        g.name for part in (slice(4), slice(4, 6)) for name in ("md", "hf")
        for g in SUITE[name].geometries(6)[part]
    ]  # fmt: skip
    assert benchmarked == wanted
    cells = cells_of((tmp_path / "table.md").read_text(), "MD snapshots")
    assert (cells[1], cells[7]) == ("6", "2.0 ± 0.0 (2.0)")
    assert {path.name for path in tmp_path.iterdir()} == {"md.json", "hf.json", "table.md"}
    # What a file holds is not run again.
    benchmarked.clear()
    assert main([*command, "6"]) == 0
    assert benchmarked == []


def test_molecules_side_by_side(quick_workers):
    """Workers count the same Fock builds, and one's failure is no other's."""
    method = Method(frugal=False)  # workers would leave water alone
    bad = Geometry(np.array([1, 1]), np.zeros((2, 3)), {"name": "bad"})
    two = [WATER, bad, replace(WATER, info={"name": "again"})]
    results = run_benchmark(two, method, ["minao"], progress=False, workers=2)
    assert {row["name"] for row in results.rows} == {"water", "again"}
    assert {row["deqh"]["full_builds"] for row in results.rows} == {
        run_benchmark([WATER], method, ["minao"], progress=False).rows[0]["deqh"]["full_builds"]
    }
    assert [failure["name"] for failure in results.failures] == ["bad"]
    assert results.environments[0]["threads"] == 1
    # Of seconds beside others nothing is said.
    summary = results.summaries()["minao"]
    assert (summary["wall_ratio"]["n"], summary["full_builds_ratio"]["n"]) == (0, 2)


def test_interrupted_suite_stops(benchmarked, tmp_path, monkeypatch):
    pretend = acceleration.benchmark_molecule

    def interrupted(*args):
        if len(benchmarked) == 2:
            raise KeyboardInterrupt
        return pretend(*args)

    monkeypatch.setattr(acceleration, "benchmark_molecule", interrupted)
    assert main(["suite", "--n", "3", "--out", str(tmp_path)]) == 130
    assert len(json.loads((tmp_path / "qm9.json").read_text())["rows"]) == 2
    assert not (tmp_path / "md.json").exists()


def test_errors_are_listed_as_failures(benchmarked, tmp_path, monkeypatch, capsys):
    """A basis set that the model does not serve, and the same command once it does."""

    def unsupported(*args):
        raise UnsupportedMoleculeError("the basis set")

    command = ["suite", "--sets", "def2-tzvp", "--n", "1", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(acceleration, "run_deqh", unsupported)
        patch.setattr(acceleration, "benchmark_molecule", benchmark_molecule)
        assert main(command) == 1
    printed = capsys.readouterr().out
    assert cells_of(printed, "QM9 test, b3lyp/def2-tzvp")[1] == "0 of 1"
    assert "UnsupportedMoleculeError: the basis set" in printed
    assert main(command) == 0
    assert "Not run: none" in capsys.readouterr().out


def test_failures_not_yet_tried_again_stay_in_the_list(benchmarked, tmp_path, monkeypatch):
    geometries = SUITE["md"].geometries(3)
    old = [{"name": g.name, "reason": "an earlier run"} for g in geometries]
    write(tmp_path, "md", [], old, weights_hash(DEFAULT_MODEL))
    assert main(["suite", "--sets", "md", "--n", "1", "--out", str(tmp_path)]) == 1
    content = json.loads((tmp_path / "md.json").read_text())
    assert [f["name"] for f in content["failures"]] == [g.name for g in geometries[1:]]


def test_another_model_is_refused(benchmarked, tmp_path, capsys):
    write(tmp_path, "md", [], weights="0" * 64)
    assert main(["suite", "--sets", "md", "--out", str(tmp_path)]) == 2
    assert "results of another model" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        suite.run_set(SUITE["md"], tmp_path, model="unknown", progress=False)
