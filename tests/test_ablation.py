"""The ablation: the unchanged guess is the package's own, and rows survive an interruption."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyscf.lib.exceptions import BasisNotFoundError

from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.ablation import PARTS, Variant, ablation_table
from pyscf_deqh.benchmark.scf_runs import Method, run_deqh, run_guess
from pyscf_deqh.fock.cycles import CycleSettings
from pyscf_deqh.predict import predict_hamiltonian
from pyscf_deqh.starts.atoms import AtomsStart

pytestmark = pytest.mark.usefixtures("coarse_grids")

METHOD = Method(xc="pbe", device="cpu")


def run_variant(mol, variant):
    return run_guess(mol, METHOD, "deqh", variant.options(METHOD))


def test_the_unchanged_variant_is_the_guess():
    mol = make_mol(WATER)
    expected, guess = run_deqh(mol, METHOD)
    run, other = run_variant(mol, Variant("default"))
    solution = other.solution
    assert solution.fitted_gradients == pytest.approx(guess.report.fitted_gradients, rel=1e-4)
    assert run.corrected == expected.corrected
    assert run.cycles == expected.cycles
    assert run.full_builds == expected.full_builds
    assert run.guess_fitted_builds == expected.guess_fitted_builds
    # The reference's Fock matrix is the network's input and no cycle.
    assert len(solution.fitted_gradients) == run.guess_fitted_builds - 1
    assert run.energy == pytest.approx(expected.energy, abs=1e-9)


def test_variants_do_what_they_are_called():
    mol = make_mol(WATER)

    def of(cycles, **changes):
        run, guess = run_variant(mol, Variant("changed", cycles=cycles, **changes))
        return run, guess.solution

    predicted = predict_hamiltonian(mol).hamiltonian
    alone, solution = of(None, accelerate=False)
    np.testing.assert_allclose(solution.hamiltonian, predicted, atol=1e-5)
    assert solution.fitted_gradients == ()
    assert alone.corrected == []
    accelerated, solution = of(None)
    np.testing.assert_allclose(solution.hamiltonian, predicted, atol=1e-5)
    assert solution.fitted_gradients == ()
    assert len(accelerated.corrected) == accelerated.cycles < alone.cycles
    assert any(accelerated.corrected)
    loose, solution = of(CycleSettings(tolerance=1e-1), accelerate=False)
    (first,) = solution.fitted_gradients
    tight, solution = of(CycleSettings(30, 2e-5), accelerate=False)
    # Per root of water's five pairs.
    assert solution.fitted_gradients[-1] < 2e-5 * 5**0.5 < solution.fitted_gradients[-2]
    assert tight.cycles < loose.cycles
    fitting = {"auxbasis": "def2-universal-jkfit", "grid": (20, 50)}
    start = AtomsStart(METHOD.device, **fitting)
    assert Variant("changed", False, **fitting).options(METHOD).starts == (start,)
    other = of(CycleSettings(), network=False, accelerate=False, **fitting)[1]
    assert other.fitted_gradients[0] > first


def test_parts_change_one_thing():
    """Each figure of the two parts before DIIS is the fitted cycles' own."""
    for part in ("fitting", "tolerance"):
        assert not any(variant.accelerate for variant in PARTS[part])
    assert not any(variant.network for variant in PARTS["fitting"])
    assert {v.cycles for v in PARTS["fitting"]} == {CycleSettings(30, 2e-5)}
    assert all(variant.accelerate for variant in PARTS["start"])
    starts = [(variant.network, variant.cycles) for variant in PARTS["start"]]
    assert starts == [(n, c) for n in (False, True) for c in (None, CycleSettings())]


@pytest.fixture
def two_variants(monkeypatch, tmp_path):
    monkeypatch.setitem(PARTS, "start", PARTS["start"][2:])
    xyz = tmp_path / "water.xyz"
    xyz.write_text("3\n\n" + "".join(f"{s} {x} {y} {z}\n" for s, (x, y, z) in WATER))
    out = tmp_path / "out.json"
    return ["ablation", "--parts", "start", "--molecules", str(xyz), "--json", str(out)], out


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
    first, second = (variant.title for variant in PARTS["start"])
    assert calls == [first, second, second]
    rows = json.loads(out.read_text())["rows"]
    assert [row["variant"] for row in rows] == [first, second]
    for row in rows:
        assert row["converged"]
        assert abs(row["energy_error"]) < 1e-9
        # The first one, one in each cycle, the check at the end.
        assert row["full_builds"] == row["cycles"] + 2 < 6
        assert row["fitted_builds"] > 0
    # The Hamiltonian is the guess's: the network's, then what density-fitted cycles make of it.
    assert rows[1]["hamiltonian_mae"] < 1e-4 < rows[0]["hamiltonian_mae"] < 1e-2
    assert f"| {second} |" in capsys.readouterr().out
    assert main(arguments) == 0
    assert len(calls) == 3


def test_a_molecule_that_fails_does_not_stop_the_others(two_variants, monkeypatch, capsys):
    arguments, out = two_variants
    xyz = Path(arguments[4])
    xyz.write_text(2 * xyz.read_text().replace("3\n\n", "3\nname=water\n"))
    original = Method.molecule
    calls = []

    def fails(method, geometry):
        calls.append(geometry)
        if len(calls) == 1:
            raise BasisNotFoundError("no such basis set")
        return original(method, geometry)

    monkeypatch.setattr(Method, "molecule", fails)
    assert main([*arguments, "--n", "1"]) == 1
    found = re.search(r"not all rows of (water [01]): BasisNotFoundError", capsys.readouterr().out)
    assert not out.exists()
    assert main([*arguments, "--n", "1"]) == 0
    names = {row["molecule"] for row in json.loads(out.read_text())["rows"]}
    assert names == {found[1]}  # as with more of them


def test_rows_of_something_else_are_refused(two_variants, capsys):
    arguments, out = two_variants
    out.write_text("{}")
    assert main(arguments) == 2
    assert "holds no rows of this command" in capsys.readouterr().err
    settings = {"xc": "b3lyp", "basis": "def2-svp", "weights": "of another model"}
    out.write_text(json.dumps({"settings": settings, "rows": [{"name": "of another command"}]}))
    assert main(arguments) == 2
    assert "holds no rows of this command" in capsys.readouterr().err
    out.write_text(json.dumps({"settings": settings, "rows": []}))
    assert main(arguments) == 2
    assert "was made with weights of another model" in capsys.readouterr().err


def test_table():
    row = {"part": "start", "variant": PARTS["start"][3].title, "full_builds": 4,
           "converged": True}  # fmt: skip
    rows = [
        row | {"molecule": "a", "fitted_builds": 4, "hamiltonian_mae": 1e-6, "cycles": 0,
               "energy_error": -3e-9},
        row | {"molecule": "b", "fitted_builds": 6, "hamiltonian_mae": 3e-6, "cycles": 1,
               "energy_error": 1e-9},
    ]  # fmt: skip
    lines = ablation_table(rows).splitlines()
    assert lines[2] == (
        "| network, density-fitted cycles | 5.0 ± 1.4 | 2.00 ± 1.41 | 0.5 ± 0.7 | 3e-09 | 2 |"
    )
    assert lines[0].startswith(
        "| where the SCF with corrected cycles starts | fitted Fock matrices |"
    )
    assert len(lines) == 3
    lost = row | {"molecule": "c", "fitted_builds": 1, "hamiltonian_mae": None, "cycles": 50,
                  "energy_error": 1.0, "converged": False}  # fmt: skip
    with_it = ablation_table([*rows, lost]).splitlines()
    assert with_it[2] == lines[2]
    assert with_it[-1] == "- network, density-fitted cycles: c"
