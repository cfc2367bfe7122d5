"""Optimizations and dynamics with the guess and without."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.steps import table

XYZ = "3\nname=water\nO 0 0 0.15\nH 0 0.8 -0.45\nH 0 -0.8 -0.45\n"


@pytest.fixture
def molecules(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(XYZ)
    return path


def run(kind, molecules, out, *options):
    return main(["steps", kind, "--molecules", str(molecules), "--json", str(out),
                 "--xc", "hf", "--basis", "def2-svp", *options])  # fmt: skip


def test_optimizations_end_in_the_same_minimum(molecules, tmp_path, capsys):
    pytest.importorskip("geometric")
    out = tmp_path / "a.json"
    assert run("optimize", molecules, out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    plain, deqh = row["minao"], row["deqh"]
    assert plain["converged"]
    assert deqh["converged"]
    assert deqh["energy"] == pytest.approx(plain["energy"], abs=1e-6)
    assert len(deqh["builds"]) == len(plain["builds"]) > 3
    assert sum(deqh["builds"]) < 0.6 * sum(plain["builds"])
    for name in ("minao", "deqh"):
        assert 0 < row[name]["scf_seconds"] < row[name]["seconds"]
    assert "| mean of 1 |" in capsys.readouterr().out


def test_dynamics_and_resumption(molecules, tmp_path, capsys):
    out = tmp_path / "a.json"
    assert run("dynamics", molecules, out, "--steps", "4") == 0
    content = json.loads(out.read_text())
    (row,) = content["rows"]
    for name in ("minao", "deqh"):
        energies = row[name]["energies"]
        assert len(energies) == 4
        assert max(energies) - min(energies) < 1e-3
    assert row["deqh"]["energies"] == pytest.approx(row["minao"]["energies"], abs=1e-6)
    assert sum(row["deqh"]["builds"]) < 0.6 * sum(row["minao"]["builds"])
    capsys.readouterr()
    assert run("dynamics", molecules, out, "--steps", "4") == 0
    assert json.loads(out.read_text()) == content
    assert run("dynamics", molecules, out, "--steps", "5") == 2
    assert "name another file" in capsys.readouterr().err
    out.write_text("{}")
    assert run("dynamics", molecules, out, "--steps", "4") == 2


def test_table_by_hand():
    def half(factor, energy):
        builds, positions = [10, 10 * factor], [[0, 0, 0], [0, 0, 2 * factor]]
        seconds = {"seconds": 4.0 * factor, "scf_seconds": 2.0 * factor**2}
        return seconds | {"builds": builds, "energy": energy, "positions": positions}

    rows = [{"name": "a", "nao": 7, "minao": half(1, -1.0), "deqh": half(0.5, -1.000002)}]
    line, mean = table(rows).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["a", "7", "2", "2", "10.0", "7.5", "0.500", "0.250", "-2.00", "0.5292"]
    assert "0.500 ± 0.000" in mean
    assert "0.250 ± 0.000" in mean


def test_the_example_of_an_optimization():
    pytest.importorskip("geometric")
    script = Path(__file__).parents[1] / "examples" / "optimize.py"
    done = subprocess.run([sys.executable, script, "1"], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("point ")]
    # The first point alone may not be worth loading PyTorch.
    assert "start network, 4 Fock" in lines[0] or "start minao, " in lines[0]
    assert re.search("start previous, [345] Fock matrices", lines[-1])
    assert "2 points, " in done.stdout
