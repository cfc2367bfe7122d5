"""Molecules whose geometries are made on the way to their labels."""

import sys

import numpy as np
import pytest
from test_data import FAST

from pyscf_deqh import ConfigError, DatasetError
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.formats.store import LabelStore
from pyscf_deqh.data.make.embed import geometry_of
from pyscf_deqh.data.make.label import label, row_ids
from pyscf_deqh.data.make.recipe import GeometryRecipe, read_recipes

LINES = """# Water, methane and ammonium.
O id=7 heavy=1

C id=12 heavy=1 temperature=300
[NH4+] id=20 heavy=1 charge=1
"""


@pytest.fixture(autouse=True)
def packages():
    for name in ("rdkit", "ase", "tblite"):
        pytest.importorskip(name)


@pytest.fixture
def recipes(tmp_path):
    path = tmp_path / "a.smi"
    path.write_text(LINES)
    return path


def test_files(tmp_path, recipes):
    water, methane, ammonium = read_recipes(recipes)
    assert water.smiles == "O"
    assert [r.place for r in (water, methane, ammonium)] == [0, 1, 2]
    assert [r.charge for r in (water, methane, ammonium)] == [0, 0, 1]
    assert methane.n_heavy == 1
    with pytest.raises(DatasetError, match="there is no heavy="):
        _ = GeometryRecipe("O").n_heavy
    for text, message in (("", "holds no molecule"), ("O water", "line 1: 'water' is not key")):
        (tmp_path / "b.smi").write_text(text)
        with pytest.raises(DatasetError, match=message):
            read_recipes(tmp_path / "b.smi")
    with pytest.raises(DatasetError, match="cannot read"):
        read_recipes(tmp_path / "none.smi")


def test_geometries(recipes):
    water, methane, ammonium = read_recipes(recipes)
    minimum = geometry_of("O", 0)[1]
    np.testing.assert_allclose(water.geometry(0).positions, minimum, atol=1e-8)
    moving, again = methane.geometry(12), methane.geometry(12)
    np.testing.assert_allclose(moving.positions, again.positions, atol=1e-8)
    assert moving.info["kind"] == "md"
    assert moving.info["temperature"] == "300"
    # Bonds of a thermal methane differ by some hundredths of an angstrom.
    bonds = np.linalg.norm(moving.positions[1:] - moving.positions[0], axis=1)
    assert 0.01 < np.ptp(bonds) < 0.4
    other = GeometryRecipe("C", {"temperature": "300"}).geometry(13)
    assert np.abs(other.positions - moving.positions).max() > 0.01
    assert ammonium.geometry(20).charge == 1
    with pytest.raises(ValueError, match="has the charge 1, not 0"):
        GeometryRecipe("[NH4+]", {"charge": "0"}).geometry(0)


def test_labels(tmp_path, recipes, capsys):
    out = tmp_path / "a.store"
    command = ["label", str(recipes), "--out", str(out), "--workers", "0", "--xc", "hf",
               "--conv-tol", "1e-8"]  # fmt: skip
    assert main([*command, "--split", "train"]) == 0
    assert main([*command, "--heavy", "2", "3"]) == 0
    with LabelStore(out) as store:
        assert store.ids() == [12, 20]  # 7 is for test
        record = store[20]
    assert record.charge == 1
    assert record.meta["smiles"] == "[NH4+]"
    assert record.geometry().info["kind"] == "eq"
    for changed in ({"temperature": "300"}, {"seed": "1"}):
        other = [GeometryRecipe("[NH4+]", {"id": "20", "charge": "1"} | changed)]
        with pytest.raises(DatasetError, match="another geometry with id 20"):
            label(other, out, FAST, 0, progress=False)
    again = label(read_recipes(recipes), out, FAST, 0, progress=False)
    assert again == (1, {})
    other = [GeometryRecipe("[OH3+]", {"id": "20", "charge": "1"})]
    with pytest.raises(DatasetError, match="another geometry with id 20"):
        label(other, out, FAST, 0, progress=False)
    capsys.readouterr()


def test_ions_by_their_smiles_alone(tmp_path):
    out, recipes = tmp_path / "a.store", [GeometryRecipe("[NH4+]", {"id": "20"})]
    assert label(recipes, out, FAST, 0, progress=False) == (1, {})
    assert label(recipes, out, FAST, 0, progress=False) == (0, {})


def test_a_file_without_room_for_seeds_is_refused(tmp_path):
    recipes = [GeometryRecipe("O", {"id": "3", "seed": "1"})]
    with pytest.raises(ConfigError, match=r"no place for the seeds .* name a \.store"):
        label(recipes, tmp_path / "a.db", FAST, 0, progress=False)


def test_numbers_of_rows_without_an_id(tmp_path):
    pair = [GeometryRecipe("C", {"qm9_id": "1"} | info) for info in ({}, {"temperature": "300"})]
    assert row_ids(pair) == [10, 11]


def test_a_missing_package_is_no_failure_of_molecules(tmp_path, recipes, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ModuleNotFoundError):
        label(read_recipes(recipes), tmp_path / "a.store", FAST, 0, progress=False)
    assert not (tmp_path / "a.store").exists()


def test_molecules_that_cannot_be_made_are_failures(tmp_path):
    bad = [
        GeometryRecipe("C(", {"id": "1"}),
        GeometryRecipe("[CH3]", {"id": "2"}),
        GeometryRecipe("O", {"id": "3"}),
    ]
    written, failures = label(bad, tmp_path / "a.store", FAST, 0, progress=False)
    assert written == 1
    assert "is not a SMILES" in failures[1]
    assert "not a closed shell" in failures[2]
