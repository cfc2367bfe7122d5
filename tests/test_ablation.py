"""The ablation: the unchanged guess is the package's own, and rows survive an interruption."""

import json

import numpy as np
import pytest
from conftest import WATER, make_mol

from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.ablation import PARTS, Variant, ablation_table
from pyscf_deqh.benchmark.scf_runs import Method, run_deqh, run_guess
from pyscf_deqh.fock.cycles import CycleSettings, Thresholds
from pyscf_deqh.predict import predict_hamiltonian

METHOD = Method(xc="pbe", device="cpu")


def run_variant(mol, variant):
    return run_guess(mol, METHOD, "deqh", variant.options(METHOD))


def test_the_unchanged_variant_is_the_guess():
    mol = make_mol(WATER)
    expected, guess = run_deqh(mol, METHOD)
    run, other = run_variant(mol, Variant("default"))
    solution = other.solution
    assert solution.fitted_gradients == pytest.approx(guess.report.fitted_gradients, rel=1e-4)
    assert len(solution.corrected_gradients) == len(guess.report.corrected_gradients)
    assert run.cycles == expected.cycles
    assert run.full_builds == expected.full_builds
    assert run.guess_fitted_builds == expected.guess_fitted_builds
    # The reference's Fock matrix is the network's input and no cycle.
    assert solution.fitted_builds == run.guess_fitted_builds - 1
    assert run.energy == pytest.approx(expected.energy, abs=1e-9)


def test_variants_do_what_they_are_called():
    mol = make_mol(WATER)

    def of(cycles, **changes):
        run, guess = run_variant(mol, Variant("changed", cycles=cycles, **changes))
        return run, guess.solution

    alone, solution = of(None)
    predicted = predict_hamiltonian(mol).hamiltonian
    np.testing.assert_allclose(solution.hamiltonian, predicted, atol=1e-5)
    assert solution.fitted_builds == alone.guess_full_builds == 0
    full, solution = of(CycleSettings(max_cycles=0))
    assert not solution.fitted_gradients
    assert solution.full_builds == 1
    assert full.cycles < alone.cycles
    tight = of(CycleSettings(thresholds=Thresholds(corrected=0.1)))[1].corrected_gradients
    assert tight[-1] < 0.1 * 1e-9**0.5
    no_full_build = CycleSettings(full_build=False, thresholds=Thresholds(fitted=1e-1))
    fitted = of(no_full_build)[1].fitted_gradients
    assert len(fitted) == 1
    no_full_build = CycleSettings(full_build=False)
    other = of(no_full_build, network=False, auxbasis="def2-universal-jkfit", grid=(20, 50))[1]
    assert other.fitted_gradients[0] > fitted[0]


@pytest.fixture
def two_variants(monkeypatch, tmp_path):
    monkeypatch.setitem(PARTS, "full", PARTS["full"][2:])
    xyz = tmp_path / "water.xyz"
    xyz.write_text("3\nname=water\n" + "".join(f"{s} {x} {y} {z}\n" for s, (x, y, z) in WATER))
    out = tmp_path / "out.json"
    return ["ablation", "--parts", "full", "--molecules", str(xyz), "--json", str(out)], out


def test_command_goes_on_where_it_was_interrupted(two_variants, monkeypatch, capsys):
    arguments, out = two_variants
    original, calls = Variant.options, []

    def interrupted(variant, method):
        calls.append(variant.title)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(variant, method)

    monkeypatch.setattr(Variant, "options", interrupted)
    assert main(arguments) == 130
    assert len(json.loads(out.read_text())["rows"]) == 1
    assert main(arguments) == 0
    first, second = (variant.title for variant in PARTS["full"])
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
    row = {"part": "full", "variant": PARTS["full"][3].title, "full_builds": 1,
           "converged": True}  # fmt: skip
    rows = [
        row | {"molecule": "a", "fitted_builds": 4, "hamiltonian_mae": 1e-6, "cycles": 0,
               "energy_error": -3e-9},
        row | {"molecule": "b", "fitted_builds": 6, "hamiltonian_mae": 3e-6, "cycles": 1,
               "energy_error": 1e-9},
    ]  # fmt: skip
    lines = ablation_table(rows).splitlines()
    assert lines[2] == (
        "| network, density-fitted cycles | 5.0 ± 1.0 | 2.00 ± 1.00 | 0.5 ± 0.5 | 3e-09 | 2 |"
    )
    assert len(lines) == 3
