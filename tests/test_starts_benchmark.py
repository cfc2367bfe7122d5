"""The command that measures how near to the solution a start is."""

import json

import numpy as np
import pytest
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import scf

from pyscf_deqh import predict_hamiltonian
from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.sets import SUITE
from pyscf_deqh.benchmark.starts import table
from pyscf_deqh.data.geometry import Geometry

MOLECULES = {
    "water": WATER,
    "formamide": FORMAMIDE,
    "hydrogen chloride": [("H", (0, 0, 0)), ("Cl", (0, 0, 1.3))],
}


def small(entry, n=None):
    return [
        Geometry(mol.atom_charges(), mol.atom_coords("angstrom"), {"name": name})
        for name, mol in ((name, make_mol(atoms)) for name, atoms in MOLECULES.items())
    ][:n]


def test_gradients_and_errors_are_pyscfs(tmp_path, monkeypatch, capsys):
    """Fitted integrals change them by a few percent at most: they are no label's errors here."""
    out = tmp_path / "rows.json"
    monkeypatch.setattr(type(SUITE["hf"]), "geometries", small)
    assert main(["starts", "--sets", "hf", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "| QM9 test, hf/def2-svp | 2 |" in shown
    assert "| with Cl | 0 | - |" in shown
    rows = json.loads(out.read_text())["rows"]
    assert [row["elements"] for row in rows] == [[1, 8], [1, 6, 7, 8], [1, 17]]
    assert rows[-1]["network"] is None  # the bundled model does not know chlorine
    for row, atoms in zip(rows[:2], MOLECULES.values(), strict=False):
        mf = scf.RHF(make_mol(atoms))
        predicted = predict_hamiltonian(mf.mol).hamiltonian
        energies, orbitals = mf.eig(predicted, mf.get_ovlp())
        occupation = mf.get_occ(energies, orbitals)
        fock = mf.get_fock(dm=mf.make_rdm1(orbitals, occupation))
        gradient = np.linalg.norm(mf.get_grad(orbitals, occupation, fock))
        pairs = mf.mol.nelectron // 2
        assert row["network"] == pytest.approx(gradient / np.sqrt(pairs), rel=0.05)
        mf.kernel()
        assert row["mae"] == pytest.approx(np.abs(predicted - mf.get_fock()).mean(), rel=0.05)
        assert row["network"] < row["atoms"]


def test_ions_and_elements_have_rows_of_their_own():
    row = {"set": "qm9", "molecule": "a", "elements": [1, 6], "charge": 0, "atoms": 0.1,
           "network": 0.01, "mae": 1e-4, "orbital_rotation": 0.01}  # fmt: skip
    ion = row | {"set": "ions", "elements": [1, 8], "charge": -1, "network": 0.03}
    text = table([row, ion, {"set": "md", "molecule": "b", "reason": "ValueError: no"}])
    for title, n, gradient in (
        ("QM9 test", 1, "10.00"), ("charged", 1, "30.00"),
        ("with H", 2, "20.00 ± 14.14"), ("with C", 1, "10.00"),
    ):  # fmt: skip
        atoms = "100.0 ± 0.0" if n > 1 else "100.0"
        assert f"| {title} | {n} | {gradient} | {atoms} |" in text
    assert text.endswith("Left out:\n\n- md b: ValueError: no")


def test_rows_of_another_command_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(type(SUITE["hf"]), "geometries", small)
    out = tmp_path / "rows.json"
    assert main(["starts", "--sets", "hf", "--n", "1", "--json", str(out)]) == 0
    assert main(["single-build", "--sets", "hf", "--n", "1", "--json", str(out)]) == 2
    assert "holds no rows of this command" in capsys.readouterr().err


def test_open_shells_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(type(SUITE["triplet"]), "geometries", small)
    assert main(["starts", "--sets", "triplet", "--n", "1"]) == 1
    assert "triplet water: UnsupportedMoleculeError: starts are" in capsys.readouterr().out
