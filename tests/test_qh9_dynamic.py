"""Files in the published schema of QH9-dynamic, written with SQL alone."""

import sqlite3

import numpy as np
import pytest
from conftest import make_mol
from pyscf import scf

from pyscf_deqh import DatasetError
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.dataset import GraphStore, HamiltonianDataset
from pyscf_deqh.data.formats import open_labels
from pyscf_deqh.data.formats.qh9 import QH9Database
from pyscf_deqh.data.formats.qh9_dynamic import QH9DynamicDatabase
from pyscf_deqh.data.geometry import read_geometries
from pyscf_deqh.data.make.label import LabelSettings, label
from pyscf_deqh.data.splits import SPLITS, split_ids

SCHEMA = """CREATE TABLE data (id INTEGER NOT NULL, geo_id INTEGER NOT NULL, N INTEGER, Z BLOB,
    pos BLOB, ekin FLOAT, epot FLOAT, etot FLOAT, time FLOAT, Ham BLOB, converged INT)"""


def hydrogen(distance):
    """H2 at a distance in bohr: positions (2, 3) in bohr, and a matrix in hartree."""
    mol = make_mol([("H", (0, 0, 0)), ("H", (0, 0, distance))], unit="bohr")
    return mol.atom_coords(), scf.hf.get_hcore(mol)


def row(molecule, geometry, positions, matrix, **change):
    values = {
        # The generator stores a NumPy integer, of which SQLite makes a blob.
        "id": np.int64(molecule).tobytes(), "geo_id": geometry, "N": 2,
        "Z": np.array([1, 1], np.int32).tobytes(), "pos": positions.tobytes(), "ekin": 0.01,
        "epot": -1.1, "etot": -1.09, "time": 5.0 * geometry, "Ham": matrix.tobytes(),
        "converged": 1,
    }  # fmt: skip
    return tuple((values | change).values())


def write(path, rows):
    connection = sqlite3.connect(path)
    connection.execute(SCHEMA)
    connection.executemany(f"INSERT INTO data VALUES ({', '.join('?' * 11)})", rows)
    connection.commit()
    connection.close()
    return path


@pytest.fixture
def small(tmp_path):
    """Three geometries of molecule 41, and one of molecule 7 whose SCF did not converge."""
    rows = [row(41, i, *hydrogen(1.4 + 0.1 * i)) for i in range(3)]
    rows.append(row(7, 0, *hydrogen(1.8), converged=0))
    return write(tmp_path / "dynamic.db", rows)


def test_rows_are_read(small):
    positions, matrix = hydrogen(1.5)
    with open_labels(small) as file:
        assert isinstance(file, QH9DynamicDatabase)
        assert len(file) == 4
        assert file.molecules() == [41, 41, 41, 7]
        assert file.sizes() == [2, 2, 2, 2]
        record = file[2]
        with pytest.raises(KeyError):
            file[9]
    np.testing.assert_array_equal(record.hamiltonian, matrix)
    assert record.meta == {"qm9_id": 41, "geo_id": 1, "kind": "md", "energy": -1.1}
    # Angstrom, and PySCF comes back to the same bohr.
    assert record.positions[1, 2] == pytest.approx(1.5 * 0.529177, abs=1e-6)
    mol = make_mol(record.geometry().atom())
    np.testing.assert_allclose(mol.atom_coords(), positions, atol=1e-14)


@pytest.mark.parametrize("molecule", [41, np.int64(41).tobytes()])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_both_widths_of_integers(tmp_path, molecule, dtype):
    numbers = np.array([1, 1], dtype).tobytes()
    path = write(tmp_path / "a.db", [row(0, 0, *hydrogen(1.4), id=molecule, Z=numbers)])
    with open_labels(path) as file:
        assert file.molecules() == [41]
        assert file[1].numbers.tolist() == [1, 1]


def test_unconverged_rows_are_never_used(small, tmp_path, capsys, quick_workers):
    with open_labels(small) as file:
        with pytest.raises(DatasetError, match=r"dynamic\.db, row 4: .*did not converge"):
            file[4]
        assert list(file.failures()) == [4]
        assert [r.id for r in file] == [1, 2, 3]
    assert len(read_geometries(small)) == 3
    assert main(["info", str(small)]) == 0
    printed = capsys.readouterr().out
    assert "4 molecules, 1 failures" in printed
    assert "failed, row 4" in printed
    store = GraphStore(tmp_path / "cache", "none", "def2-svp")
    with pytest.warns(UserWarning, match=r"1 of 4 rows of split 'all' are left out \(rows 4\)"):
        dataset = HamiltonianDataset([small], "all", store, workers=1, progress=False)
    assert len(dataset) == 3
    positions, matrix = hydrogen(1.6)
    np.testing.assert_allclose(dataset[2].positions, positions, atol=1e-6)
    np.testing.assert_allclose(dataset[2].hamiltonian, matrix, atol=1e-6)
    # The molecule's id decides, not the row's.
    train = HamiltonianDataset([small], "train", store, workers=1, progress=False)
    assert len(train) == 3


def test_the_stable_reader_refuses_bohr(small):
    with pytest.raises(DatasetError, match="QH9-dynamic"):
        QH9Database(small)


def test_published_rules(tmp_path):
    positions, matrix = np.zeros((2, 3)), np.zeros((1, 1))
    rows = [row(50 + m, g, positions, matrix) for m in range(10) for g in range(100)]
    with open_labels(write(tmp_path / "a.db", rows)) as file:
        geo = {s: set(split_ids(file, s, "qh9-dynamic-geo")) for s in SPLITS}
        mol = {s: set(split_ids(file, s, "qh9-dynamic-mol")) for s in SPLITS}
        by_id = {s: len(split_ids(file, s, "qm9-id")) for s in SPLITS}
    assert [len(geo[s]) for s in SPLITS] == [800, 100, 100]
    assert [len(mol[s]) for s in SPLITS] == [800, 100, 100]
    assert by_id == {"train": 800, "valid": 100, "test": 100}
    assert not geo["train"] & geo["test"]
    assert len({(i - 1) // 100 for i in geo["valid"]}) == 10
    assert len({(i - 1) // 100 for i in mol["valid"]}) == 1
    with (
        open_labels(write(tmp_path / "b.db", rows[50:150])) as file,
        pytest.raises(DatasetError, match=r"b\.db.*successive rows"),
    ):
        split_ids(file, "train", "qh9-dynamic-mol")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"N": 3}, "N is 3, but Z holds 2"),
        ({"Z": b""}, "Z holds 0"),
        ({"Z": None}, "row 1"),
        ({"Z": np.array([1, -2], np.int32).tobytes()}, "not atomic numbers"),
        ({"pos": np.zeros(5).tobytes()}, "reshape"),
        ({"pos": np.full(6, np.inf).tobytes()}, "NaN or infinite"),
        ({"Ham": np.full((10, 10), np.nan).tobytes()}, "NaN or infinite"),
        ({"Ham": np.arange(100.0).tobytes()}, "not symmetric"),
        ({"Ham": np.zeros(99).tobytes()}, "no square matrix"),
        ({"Ham": b"short"}, "row 1"),
        ({"Ham": b""}, "row 1"),
        ({"Ham": None}, "row 1"),
        ({"converged": None}, "did not converge"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, message):
    path = write(tmp_path / "bad.db", [row(0, 0, *hydrogen(1.4), **change)])
    with open_labels(path) as file, pytest.raises(DatasetError, match=message) as caught:
        file[1]
    assert "bad.db, row 1" in str(caught.value)


def test_matrix_of_another_basis(tmp_path, quick_workers):
    path = write(tmp_path / "bad.db", [row(10, 0, hydrogen(1.4)[0], np.eye(4))])
    store = GraphStore(tmp_path, "none", "def2-svp")
    with pytest.raises(DatasetError, match=r"bad\.db, row 1: .*\(4, 4\) does not fit 10"):
        HamiltonianDataset([path], "all", store, workers=1, progress=False)


def test_missing_columns(tmp_path):
    connection = sqlite3.connect(tmp_path / "bad.db")
    connection.execute("CREATE TABLE data (id INTEGER, geo_id INTEGER, N INTEGER, Z BLOB)")
    connection.commit()
    with pytest.raises(DatasetError, match=r"bad\.db.*lacks the columns Ham, converged, epot, pos"):
        open_labels(tmp_path / "bad.db")


def test_geometries_of_a_molecule_stay_in_one_split_when_they_are_labelled_anew(tmp_path):
    rows = [row(41, i, *hydrogen(1.4 + 0.1 * i)) for i in range(3)]
    path = write(tmp_path / "a.db", rows)
    geometries = read_geometries(path)
    assert [geometry.qm9_id for geometry in geometries] == [41, 41, 41]
    label(geometries, tmp_path / "new.db", LabelSettings(xc="hf"), workers=0, progress=False)
    with open_labels(tmp_path / "new.db") as file:
        assert file.molecules() == [41, 41, 41]
