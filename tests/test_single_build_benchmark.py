"""The command that measures energies of one Fock matrix."""

import json

import pytest
from pyscf import dft

from pyscf_deqh.benchmark import single_build as command
from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.sets import SUITE
from pyscf_deqh.benchmark.single_build import table


def test_rows_survive_and_errors_are_of_pyscfs_energies(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    monkeypatch.setattr(type(SUITE["qm9"]), "geometries", _smallest)
    assert main(["single-build", "--sets", "qm9", "--n", "2", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "| QM9 test | 2 |" in shown
    rows = json.loads(out.read_text())["rows"]
    (row, _) = rows
    entry = SUITE["qm9"]
    mol = entry.method().molecule(next(g for g in _smallest(entry) if g.name == row["molecule"]))
    expected = dft.RKS(mol, xc="b3lyp").run(conv_tol=1e-12).e_tot
    assert row["energy"] == pytest.approx(expected, abs=1e-9)
    assert abs(row["error"]) <= row["error_bar"]
    assert row["upper"] > 0
    monkeypatch.setattr(command, "one_molecule", None)  # nothing is left to do
    assert main(["single-build", "--sets", "qm9", "--n", "2", "--json", str(out)]) == 0
    assert capsys.readouterr().out == shown


def _smallest(entry, n=None):
    from pyscf_deqh.data.geometry import read_geometries

    return sorted(read_geometries(entry.file), key=lambda g: sum(g.numbers))[:n]


def test_what_is_not_converged_is_listed():
    row = {"set": "smd", "molecule": "a", "n_atoms": 2, "converged": True, "error": 2e-6,
           "error_bar": 1e-6, "upper": 1e-3, "seconds": 1.0, "scf_seconds": 4.0}  # fmt: skip
    text = table([row, row | {"molecule": "b", "converged": False}])
    assert "| QM9 test, SMD, water | 1 | 1 ± 0 | 2 | 1 ± 0 | 0 |" in text
    assert text.endswith("left out: smd b")
