"""The ablation: the unchanged guess is the package's own, and rows survive an interruption."""

import json

import pytest
from conftest import WATER, make_mol

from pyscf_deqh.benchmark import ablation
from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.ablation import PARTS, Variant, ablation_table, run_variant
from pyscf_deqh.benchmark.scf_runs import Method, run_deqh
from pyscf_deqh.fock.cycles import Thresholds
from pyscf_deqh.predict import predict_hamiltonian

METHOD = Method(xc="pbe", device="cpu")


def test_the_unchanged_variant_is_the_guess():
    mol = make_mol(WATER)
    expected, guess = run_deqh(mol, METHOD)
    predicted = predict_hamiltonian(mol).hamiltonian
    run, cycles = run_variant(mol, METHOD, Variant("default"), predicted)
    assert cycles.gradients == pytest.approx(guess.cycles.gradients, rel=1e-4)
    assert len(cycles.corrected_gradients) == len(guess.cycles.corrected_gradients)
    assert run.cycles == expected.cycles
    assert run.exact_builds == expected.exact_builds
    # The reference's Fock matrix is the network's input and no cycle.
    assert run.guess_cheap_builds == expected.guess_cheap_builds - 1
    assert run.energy == pytest.approx(expected.energy, abs=1e-9)


def test_variants_do_what_they_are_called():
    mol = make_mol(WATER)
    predicted = predict_hamiltonian(mol).hamiltonian

    def of(**changes):
        return run_variant(mol, METHOD, Variant("changed", **changes), predicted)

    alone, cycles = of(max_cycles=0, exact_build=False)
    assert cycles.hamiltonian is predicted
    assert cycles.cheap_builds == alone.guess_exact_builds == 0
    exact, cycles = of(max_cycles=0)
    assert not cycles.gradients
    assert cycles.exact_builds == 1
    assert exact.cycles < alone.cycles
    tight = of(thresholds=Thresholds(corrected=0.1))[1].corrected_gradients
    assert tight[-1] < 0.1 * 1e-9**0.5
    cheap = of(exact_build=False, thresholds=Thresholds(fitted=1e-1))[1].gradients
    assert len(cheap) == 1
    other = of(network=False, exact_build=False, auxbasis="def2-universal-jkfit", grid=(20, 50))[1]
    assert other.gradients[0] > cheap[0]


@pytest.fixture
def two_variants(monkeypatch, tmp_path):
    monkeypatch.setitem(PARTS, "exact", PARTS["exact"][2:])
    xyz = tmp_path / "water.xyz"
    xyz.write_text("3\nname=water\n" + "".join(f"{s} {x} {y} {z}\n" for s, (x, y, z) in WATER))
    out = tmp_path / "out.json"
    return ["ablation", "--parts", "exact", "--molecules", str(xyz), "--json", str(out)], out


def test_command_goes_on_where_it_was_interrupted(two_variants, monkeypatch, capsys):
    arguments, out = two_variants
    original, calls = run_variant, []

    def interrupted(mol, method, variant, predicted):
        calls.append(variant.title)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(mol, method, variant, predicted)

    monkeypatch.setattr(ablation, "run_variant", interrupted)
    assert main(arguments) == 130
    assert len(json.loads(out.read_text())["rows"]) == 1
    assert main(arguments) == 0
    first, second = (variant.title for variant in PARTS["exact"])
    assert calls == [first, second, second]
    rows = json.loads(out.read_text())["rows"]
    assert [row["variant"] for row in rows] == [first, second]
    for row in rows:
        assert row["converged"]
        assert abs(row["energy_error"]) < 1e-9
        assert row["hamiltonian_mae"] < 1e-6
    assert f"| {second} |" in capsys.readouterr().out
    assert main(arguments) == 0
    assert len(calls) == 3


def test_rows_of_something_else_are_refused(two_variants, capsys):
    arguments, out = two_variants
    out.write_text("{}")
    assert main(arguments) == 2
    assert "holds no ablation" in capsys.readouterr().err
    method = {"xc": "b3lyp", "basis": "def2-svp", "weights": "of another model"}
    out.write_text(json.dumps({"method": method, "rows": [{"name": "of another command"}]}))
    assert main(arguments) == 2
    assert "holds no ablation" in capsys.readouterr().err
    out.write_text(json.dumps({"method": method, "rows": []}))
    assert main(arguments) == 2
    assert "name another --json" in capsys.readouterr().err


def test_table():
    row = {"part": "exact", "variant": PARTS["exact"][3].title, "exact_builds": 1,
           "converged": True}  # fmt: skip
    rows = [
        row | {"molecule": "a", "cheap_builds": 4, "hamiltonian_mae": 1e-6, "cycles": 0,
               "energy_error": -3e-9},
        row | {"molecule": "b", "cheap_builds": 6, "hamiltonian_mae": 3e-6, "cycles": 1,
               "energy_error": 1e-9},
    ]  # fmt: skip
    lines = ablation_table(rows).splitlines()
    assert lines[2] == "| network, cheap cycles | 5.0 ± 1.0 | 2.00 ± 1.00 | 0.5 ± 0.5 | 3e-09 | 2 |"
    assert len(lines) == 3
