"""The speed benchmark: its clock, its molecules, its fits; each part runs at a tiny size."""

import json
from importlib.metadata import version

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, make_mol, small_qhnet
from pyscf.data.elements import NUC

from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.speed import command, gpu
from pyscf_deqh.benchmark.speed.geometries import (
    CC_BOND,
    CH_BOND,
    HOH_ANGLE,
    OH_BOND,
    WATER_SPACING,
    polyethylene,
    water_cluster,
)
from pyscf_deqh.benchmark.speed.one_system import system
from pyscf_deqh.benchmark.speed.peaks import Peaks, Work, count_work
from pyscf_deqh.benchmark.speed.plain_recursion import (
    molecule_frame,
    plain_recursion,
    with_full_products,
)
from pyscf_deqh.benchmark.speed.report import Report
from pyscf_deqh.benchmark.speed.samples import untrained
from pyscf_deqh.benchmark.speed.settings import SMOKE
from pyscf_deqh.benchmark.speed.steps import TrainingSteps
from pyscf_deqh.benchmark.speed.timing import Sample, growth_exponent, measure
from pyscf_deqh.benchmark.speed.training import saved_bytes
from pyscf_deqh.errors import DEQHError
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph

# Timing.


def test_median_and_spread():
    sample = Sample((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (sample.n, sample.median, sample.spread) == (5, 3.0, 2.0)
    assert sample.scaled(10.0).spread == 20.0
    assert sample.rate(60.0).median == 20.0
    assert Sample((7.0,)).spread == 0.0


def test_measure_counts_its_calls(monkeypatch):
    """With a clock that goes on by one second a look, each call takes one second."""
    now = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    calls = []
    sample = measure(lambda: calls.append(1), repeats=4, warmup=2)
    assert sample.values == (1.0,) * 4
    assert len(calls) == 6
    waits = []
    assert measure(lambda: None, 9, 1, limit=0.0, synchronize=lambda: waits.append(1)).n == 1
    assert len(waits) == 2  # after the warm-up, and in the timed call


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.2, 3.0])
def test_growth_exponent_of_a_power_law(exponent):
    sizes = [11, 29, 59, 119]
    assert growth_exponent(sizes, [0.3 * n**exponent for n in sizes]) == pytest.approx(exponent)


@pytest.mark.parametrize(("sizes", "values"), [([1], [1]), ([1, 2], [0, 1])])
def test_growth_exponent_needs_positive_values(sizes, values):
    with pytest.raises(ValueError, match="positive"):
        growth_exponent(sizes, values)


# Molecules.


def distances(geometry):
    positions = geometry.positions
    d = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    return d + 100 * np.eye(len(d))


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_chains_are_alkanes(n):
    geometry = polyethylene(n)
    carbon = geometry.numbers == 6
    assert (carbon.sum(), (~carbon).sum()) == (n, 2 * n + 2)
    d = distances(geometry)
    bonds = np.where(carbon[:, None] & carbon, CC_BOND, CH_BOND)
    bonded = d < 1.7
    bonded &= carbon[:, None] | carbon
    np.testing.assert_allclose(d[bonded], bonds[bonded], atol=1e-12)
    np.testing.assert_array_equal(bonded.sum(1), np.where(carbon, 4, 1))
    assert d[~carbon][:, ~carbon].min() > 1.7  # hydrogen atoms keep off each other
    for i in np.flatnonzero(carbon):
        to = geometry.positions[bonded[i]] - geometry.positions[i]
        cosine = (to @ to.T) / np.outer(*[np.linalg.norm(to, axis=1)] * 2)
        np.testing.assert_allclose(cosine[~np.eye(4, dtype=bool)], -1 / 3, atol=1e-12)


@pytest.mark.parametrize("n", [1, 4, 27, 30])
def test_clusters_are_water(n):
    geometry = water_cluster(n)
    molecules = geometry.positions.reshape(n, 3, 3)
    assert geometry.numbers.tolist() == [8, 1, 1] * n
    for one in molecules:
        a, b = one[1] - one[0], one[2] - one[0]
        np.testing.assert_allclose([np.linalg.norm(a), np.linalg.norm(b)], OH_BOND)
        np.testing.assert_allclose(a @ b / OH_BOND**2, np.cos(HOH_ANGLE))
    d = distances(geometry)
    between = ~np.kron(np.eye(n, dtype=bool), np.ones((3, 3), dtype=bool))
    if n > 1:
        assert d[between].min() > 1.5
        assert d[::3, ::3].min() == pytest.approx(WATER_SPACING)


def test_systems_have_the_size_that_was_asked_for():
    for n in (10, 30, 60, 120, 250, 500):
        for kind in ("chain", "cluster"):
            assert n - 3 < len(system(kind, n).numbers) <= n
    assert NUC["C"] in system("chain", 10).numbers


# Work.


def test_work_of_a_matrix_product():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    work = count_work(lambda: torch.relu(a @ b))
    assert work == Work(flops=2 * 3 * 4 * 5, bytes=4 * (12 + 20 + 15))
    assert work.seconds(Peaks(flops=60.0, bandwidth=47.0)) == (2.0, 4.0)


def test_steps_draw_every_depth():
    model = untrained("so2net", SMOKE.so2net)
    graph = build_graph(make_mol(FORMAMIDE), "sad", np.eye(len(make_mol().ao_labels())))
    batch = collate([graph], model.backbone.template, model.backbone.cutoff)
    steps = TrainingSteps(model, batch)
    assert steps.per_call == 3
    drawn = []
    for seed in steps.seeds:
        torch.manual_seed(seed)
        drawn.append(int(model(batch).iterations[0]))
    assert drawn == [1, 2, 3]
    before = [p.clone() for p in model.parameters()]
    steps()
    assert any((p != q).any() for p, q in zip(model.parameters(), before, strict=True))
    # Saved are more than the features of one layer, and less than all memory there is.
    edges = batch.edge_index.shape[1]
    assert 4 * edges * 25 * 6 < saved_bytes(steps) < 2**28


# The paper's recursion.


@pytest.mark.parametrize("applications", [1, 3])
def test_full_products_give_the_same_recursion(template, applications):
    model = small_qhnet(template)
    net = model.backbone
    batch = collate([build_graph(make_mol(FORMAMIDE), "none")], template, net.cutoff, torch.float64)
    start = batch.overlap + 0.1 * model.initial_hamiltonian(batch)
    full = with_full_products(net).double()
    with torch.no_grad():
        expected = plain_recursion(net, start, batch, applications)
        with molecule_frame():
            found = plain_recursion(full, start, batch, applications)
    # e3nn's couplings carry single-precision constants in places.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in full.parameters()) == sum(p.numel() for p in net.parameters())


# Report and command.


def test_report_keeps_failures_and_goes_on(tmp_path, capsys):
    report = Report(tmp_path / "out.json", {"threads": 1})
    report.start("part", "a title")
    report.add("time", Sample((1.0, 2.0, 3.0)), "s", "a note", atoms=3)
    with report.attempt("bad"):
        raise RuntimeError("it broke\nin detail")
    data = json.loads((tmp_path / "out.json").read_text())
    first, second = data["rows"]
    assert first == {
        "part": "part", "name": "time", "unit": "s", "n": 3, "median": 2.0, "spread": 1.0,
        "values": [1.0, 2.0, 3.0], "note": "a note", "atoms": 3,
    }  # fmt: skip
    assert second["failed"]
    assert second["note"] == "failed: RuntimeError: it broke"
    assert data["settings"] == {"threads": 1}
    assert data["environment"]["torch"] == version("torch")
    assert "failed: RuntimeError" in capsys.readouterr().out
    with pytest.raises(DEQHError), report.attempt("impossible"):
        raise DEQHError("no such thing")


def run_part(tmp_path, part, *options):
    """Rows of a part at its smallest size, by name."""
    threads, path = torch.get_num_threads(), tmp_path / "speed.json"
    try:
        code = main(["speed", "--smoke", "--parts", part, "--threads", "1", "--repeats", "1",
                     "--json", str(path), *options])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["part"] for row in rows} == {part}
    return {row["name"]: row for row in rows}


def test_guess(tmp_path):
    rows = run_part(tmp_path, "guess")
    for atoms in (5, 8):
        label = f"{atoms} atoms: "
        stages = ("overlap", "superposed atomic density", "fitted integrals", "grid",
                  "orbitals on the grid", "reference", "Fock matrix of a density-fitted cycle",
                  "orbitals of the reference", "features", "network",
                  "eigenproblem and density")  # fmt: skip
        assert all(rows[label + stage]["median"] > 0 for stage in stages)
        guesses = ("whole guess, network alone", "whole guess",
                   "whole guess without corrected cycles after it")  # fmt: skip
        # Cycles that nothing follows stop later.
        cycles = [int(rows[label + guess]["note"].split()[0]) for guess in guesses]
        assert cycles[0] == 0 < cycles[1] <= cycles[2]
        for guess in guesses:
            ratio = rows[label + guess]["median"] / rows[label + "one SCF cycle"]["median"]
            assert rows[f"{label}{guess} / one SCF cycle"]["median"] == pytest.approx(ratio)
        assert rows[label + "network, floor"]["flops"] > 1e6
    # Methane's few are the same, ethane's are not.
    assert cycles[1] < cycles[2]


@pytest.mark.slow
def test_paper(tmp_path):
    rows = run_part(tmp_path, "paper")
    assert rows["max deviation / max |H|, float32"]["median"] < 1e-4
    assert rows["speed-up at the same output"]["median"] > 0


def test_training(tmp_path):
    rows = run_part(tmp_path, "training")
    rate, loading = (rows[f"{what}, batch 2"]["median"] for what in ("training", "loading"))
    assert rows["loading / training, batch 2"]["median"] == pytest.approx(loading / rate)
    assert rows["memory kept for backward, batch 2"]["median"] > 0


@pytest.mark.slow
def test_growth(tmp_path, monkeypatch):
    monkeypatch.setattr("pyscf_deqh.benchmark.speed.growth.SYSTEMS", ("chain",))
    rows = run_part(tmp_path, "growth", "--max-atoms", "9")
    assert rows["chain, 8 atoms: network"]["note"] == "58 orbitals, 56 pairs"
    times = [rows[f"chain, 8 atoms: {what}"]["median"] for what in ("network", "layers", "density")]
    # The default model applies f once, to the reference, whose density is an input.
    assert times[0] == times[1]
    assert times[2] > 0
    # All atoms see each other: 5 * 4 and 8 * 7 pairs.
    slope = np.log(56 / 20) / np.log(8 / 5)
    assert rows["chain: exponent of pairs, all"]["median"] == pytest.approx(slope)
    inside = rows["C2: mean |H - prediction|, inside"]["median"]
    assert inside < rows["C2: mean |H - reference|, inside"]["median"]


def test_import(tmp_path):
    rows = run_part(tmp_path, "import")
    assert rows["PyTorch"]["lazy"]
    assert rows["import torch, after that"]["median"] > 0


def test_gpu_part_on_the_cpu(tmp_path, monkeypatch):
    # Compiling takes long and needs a C++ compiler; profiles of QHNet take long.
    monkeypatch.setattr(gpu, "_compiled", lambda *args: None)
    profiled = gpu._kernels
    monkeypatch.setattr(gpu, "_kernels", lambda bench, name, *args: (
        profiled(bench, name, *args) if name.startswith("so2net") else None
    ))  # fmt: skip
    rows = run_part(tmp_path, "gpu", "--device", "cpu")
    for kind in ("so2net", "qhnet"):
        for what in ("inference", "training"):
            assert rows[f"{kind}, {what}, batch 2"]["unit"] == "molecules/s"
        errors = [rows[f"{kind}, {mode}: mean |H - H(float64)|"]["median"]
                  for mode in ("float32", "bfloat16 layers")]  # fmt: skip
        assert 0 < errors[0] < errors[1]
    shares = [r["median"] for n, r in rows.items() if r.get("kernel") and "inference" in n]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_part_is_left_out_without_a_gpu(capsys):
    assert command.main(["--parts", "gpu", "--smoke"]) == 0
    assert "PyTorch sees no GPU" in capsys.readouterr().out


def test_unknown_model_is_an_error(capsys):
    assert main(["speed", "--parts", "guess", "--smoke", "--model", "unknown"]) == 2
    assert "no model 'unknown'" in capsys.readouterr().err
