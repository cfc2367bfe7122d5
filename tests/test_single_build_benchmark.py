"""The command that measures energies of one Fock matrix."""

import json

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyscf import scf

from pyscf_deqh.benchmark import single_build as command_module
from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.sets import SUITE
from pyscf_deqh.benchmark.single_build import table
from pyscf_deqh.data.geometry import Geometry

AMMONIA = [("N", (0, 0, 0.1)), ("H", (0, 0.94, -0.27)), ("H", (0.81, -0.47, -0.27)),
           ("H", (-0.81, -0.47, -0.27))]  # fmt: skip


def small(entry, n=None):
    molecules = {"water": WATER, "ammonia": AMMONIA}
    return [
        Geometry(make_mol(a).atom_charges(), np.array([r for _, r in a]), {"name": name})
        for name, a in molecules.items()
    ][:n]


def test_rows_survive_and_errors_are_of_pyscfs_energies(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    monkeypatch.setattr(type(SUITE["hf"]), "geometries", small)
    command = ["single-build", "--sets", "hf", "--n", "2", "--json", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "| QM9 test, hf/def2-svp | 2 |" in shown
    rows = json.loads(out.read_text())["rows"]
    for row, atoms in zip(rows, (WATER, AMMONIA), strict=True):
        expected = scf.RHF(make_mol(atoms)).run(conv_tol=1e-12).e_tot
        assert row["energy"] == pytest.approx(expected, abs=1e-9)
        assert abs(row["error"]) <= row["error_bar"]
        assert row["upper"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(command_module, "one_molecule", lambda *args: 1 / 0)
        assert main([*command[:-1], str(tmp_path / "other.json")]) == 1
        assert "hf water: ZeroDivisionError" in capsys.readouterr().out
    monkeypatch.setattr(command_module, "one_molecule", None)  # nothing is left to do
    assert main(command) == 0
    assert capsys.readouterr().out == shown


def test_what_is_not_converged_is_listed():
    row = {"set": "smd", "molecule": "a", "n_atoms": 2, "converged": True, "error": 2e-6,
           "error_bar": 1e-6, "upper": 1e-3, "seconds": 1.0, "scf_seconds": 4.0}  # fmt: skip
    text = table([row, row | {"molecule": "b", "converged": False}])
    assert "| QM9 test, SMD, water | 1 | 1 | 2 | 1 | 0 |" in text
    assert text.endswith("Left out:\n\n- smd b: SCF not converged")
