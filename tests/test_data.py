import gzip
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyscf import dft, lib, scf
from safetensors.numpy import load as load_tensors

from pyscf_deqh import ConfigError, DatasetError
from pyscf_deqh.data import dataset as dataset_module
from pyscf_deqh.data import label as label_module
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.dataset import GraphStore, HamiltonianDataset
from pyscf_deqh.data.geometry import Geometry, read_geometries
from pyscf_deqh.data.label import LabelSettings, label
from pyscf_deqh.data.qh9 import QH9Database, Record
from pyscf_deqh.data.splits import split_of

FAST = LabelSettings(xc="hf", conv_tol=1e-8)


def hydrogen(distance=0.74, **info):
    return Geometry(np.array([1, 1], np.int32), np.array([[0, 0, 0], [0, 0, distance]]), info)


def helium(**info):
    return Geometry(np.array([2], np.int32), np.zeros((1, 3)), info)


def write_xyz(path, n=3):
    frames = [f"2\nqm9_id={i} smiles=[H][H]\nH 0 0 0\nH 0 0 {0.7 + 0.02 * i}\n" for i in range(n)]
    path.write_text("".join(frames))
    return path


# Geometry files


def test_xyz_and_gzip(tmp_path):
    path = write_xyz(tmp_path / "a.xyz")
    with gzip.open(tmp_path / "b.xyz.gz", "wt") as handle:
        handle.write(path.read_text())
    for name in ("a.xyz", "b.xyz.gz"):
        geometries = read_geometries(tmp_path / name)
        assert [g.info["qm9_id"] for g in geometries] == ["0", "1", "2"]
        np.testing.assert_array_equal(geometries[1].positions[1], [0, 0, 0.72])
    assert len(read_geometries(tmp_path)) == 6


def test_extended_xyz_columns(tmp_path):
    path = tmp_path / "a.extxyz"
    path.write_text(
        '1\nProperties=id:I:1:species:S:1:forces:R:3:pos:R:3 name="two words"\n7 O 9 9 9 1 2 3\n'
    )
    (geometry,) = read_geometries(path)
    assert geometry.numbers.tolist() == [8]
    assert geometry.positions.tolist() == [[1, 2, 3]]
    assert geometry.info["name"] == "two words"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2\n\nH 0 0 0\n", "2 atoms announced, 1 found"),
        ("1\n\nXx 0 0 0\n", "line 1"),
        ("1\n\nD 0 0 0\n", "'D' is not an element"),
        ("1\n\n0 0 0 0\n", "'0' is not an element"),
        ("1\n\nH 0 0\n", "line 1"),
        ("1\n\nH 0 zero 0\n", "line 1"),
        ("", "no molecule"),
    ],
)
def test_malformed_xyz(tmp_path, text, message):
    path = tmp_path / "bad.xyz"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_geometries(path)


def test_atomic_numbers_in_place_of_symbols(tmp_path):
    (tmp_path / "a.xyz").write_text("2\n\n6 0 0 0\n8 0 0 1.13\n")
    (geometry,) = read_geometries(tmp_path / "a.xyz")
    assert geometry.numbers.tolist() == [6, 8]


def test_missing_geometries(tmp_path):
    with pytest.raises(DatasetError, match="cannot read"):
        read_geometries(tmp_path / "none.xyz")
    with pytest.raises(DatasetError, match=r"no \.xyz"):
        read_geometries(tmp_path)


# The QH9 schema


def qh9_file(path, ham=None, numbers=(1, 1), n=2):
    """A database exactly in the published schema, written with SQL alone."""
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE data (id INTEGER NOT NULL PRIMARY KEY, N INTEGER, Z BLOB, pos BLOB, Ham BLOB)"
    )
    mol = make_mol("H 0 0 0; H 0 0 .74")
    ham = scf.RHF(mol).run().get_fock() if ham is None else ham
    z, pos = np.array(numbers, np.int32), np.array([[0, 0, 0], [0, 0, 0.74]])
    row = (5, n, z.tobytes(), pos.tobytes(), np.ascontiguousarray(ham).tobytes())
    connection.execute("INSERT INTO data VALUES (?, ?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    return path, ham


def test_published_files_are_read(tmp_path):
    path, ham = qh9_file(tmp_path / "qh9.db")
    with QH9Database(path) as database:
        record = database[5]
        assert len(database) == 1
    np.testing.assert_array_equal(record.hamiltonian, ham)
    assert record.geometry().n_heavy == 0
    assert len(read_geometries(path)) == 1


def test_written_rows_come_back(tmp_path):
    ham = np.diag([1.0, 2.0])
    meta = {"qm9_id": 12, "smiles": "[H][H]", "kind": "eq", "energy": -1.1}
    with QH9Database(tmp_path / "a.db", writable=True) as database:
        database.add(Record(120, np.array([1, 1]), np.eye(2, 3), ham, meta))
    with QH9Database(tmp_path / "a.db") as database:
        record = database[120]
    np.testing.assert_array_equal(record.hamiltonian, ham)
    np.testing.assert_array_equal(record.positions, np.eye(2, 3))
    assert record.meta["energy"] == -1.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ham": np.ones((3, 2))}, "no square matrix"),
        ({"numbers": (1, 0)}, "not atomic numbers"),
        ({"ham": np.array([[1.0, 2.0], [3.0, 4.0]])}, "not symmetric"),
        ({"ham": np.full((2, 2), np.nan)}, "NaN"),
        ({"numbers": (1, 1, 1)}, "N is 2"),
        ({"n": 3}, "id 5"),
    ],
)
def test_contradicting_rows_are_named(tmp_path, options, message):
    path, _ = qh9_file(tmp_path / "bad.db", **options)
    with QH9Database(path) as database, pytest.raises(DatasetError, match=message):
        database[5]


def test_wrong_files(tmp_path):
    with pytest.raises(DatasetError, match="no database"):
        QH9Database(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("not a database" * 100)
    with pytest.raises(DatasetError, match="cannot be opened"):
        QH9Database(tmp_path / "text.db")
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE data (id INTEGER, Ham BLOB)")
    connection.commit()
    with pytest.raises(DatasetError, match="lacks the columns N, Z, pos"):
        QH9Database(tmp_path / "other.db")
    connection.execute("ALTER TABLE data RENAME TO molecules")
    connection.commit()
    with pytest.raises(DatasetError, match="no table 'data'"):
        QH9Database(tmp_path / "other.db")


# Labels


def test_labels_equal_pyscf(tmp_path):
    geometry = Geometry(
        np.array([8, 1, 1], np.int32), np.array([r for _, r in WATER]), {"qm9_id": "3"}
    )
    written, failures = label([geometry], tmp_path / "a.db", workers=1, progress=False)
    assert (written, failures) == (1, {})
    mf = dft.RKS(make_mol(WATER), xc="b3lyp").run()
    with QH9Database(tmp_path / "a.db") as database:
        record = database[30]
        assert database.settings()["xc"] == "b3lyp"
        assert "pyscf_version" in database.settings()
    np.testing.assert_allclose(record.hamiltonian, mf.get_fock(), atol=2e-5)
    assert record.meta["energy"] == pytest.approx(mf.e_tot, abs=1e-8)


def test_failures_are_listed_and_resumed(tmp_path):
    """A basis without helium fails; an iteration limit of one cycle converges nobody."""
    geometries = [hydrogen(id="1"), helium(id="2")]
    one_cycle = LabelSettings(xc="hf", max_cycle=1)
    written, failures = label(geometries, tmp_path / "a.db", one_cycle, 2, progress=False)
    assert written == 0
    assert "not converged" in failures[1]
    written, failures = label(geometries, tmp_path / "a.db", one_cycle, 1, progress=False)
    assert set(failures) == {1, 2}
    geometries = [hydrogen(id="1"), Geometry(np.array([3]), np.zeros((1, 3)), {"id": "2"})]
    written, failures = label(geometries, tmp_path / "b.db", FAST, 1, progress=False)
    assert written == 1
    assert list(failures) == [2]
    assert "spin" in failures[2]


def test_other_settings_are_refused(tmp_path):
    label([hydrogen(id="1")], tmp_path / "a.db", FAST, 1, progress=False)
    other = LabelSettings(xc="hf", conv_tol=1e-8, basis="sto-3g")
    with pytest.raises(DatasetError, match=r"other settings .*basis"):
        label([hydrogen(id="1")], tmp_path / "a.db", other, 1, progress=False)


def test_repeated_ids_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="same id"):
        label([hydrogen(id="1"), hydrogen(id="1")], tmp_path / "a.db", FAST, progress=False)


def _bonds(path, *lengths):
    path.write_text("".join(f"2\n\nH 0 0 0\nH 0 0 {length}\n" for length in lengths))
    return path


def test_rows_without_an_id_go_by_their_place_in_the_file(tmp_path):
    """Also where a random part of the file is labelled first."""
    xyz, out = _bonds(tmp_path / "a.xyz", 0.7, 0.72, 0.74, 0.76), tmp_path / "a.db"
    command = ["label", str(xyz), "--out", str(out), "--xc", "hf", "--workers", "1"]
    assert main([*command, "--n", "2"]) == 0
    assert main(command) == 0
    with QH9Database(out) as database:
        lengths = [database[i].positions[1, 2] for i in range(4)]
    assert lengths == [0.7, 0.72, 0.74, 0.76]


def test_rows_of_other_geometries_are_not_taken_for_these(tmp_path, capsys):
    out = tmp_path / "a.db"
    label(read_geometries(_bonds(tmp_path / "a.xyz", 0.7)), out, FAST, 1, progress=False)
    with pytest.raises(DatasetError, match="another geometry with id 0"):
        label(read_geometries(_bonds(tmp_path / "b.xyz", 0.8)), out, FAST, 1, progress=False)
    command = ["label", str(tmp_path / "b.xyz"), "--out", str(out), "--exclude", str(out)]
    assert main(command) == 2
    assert "--exclude needs qm9_id" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["id", "qm9_id"])
def test_numbers_in_comments_that_are_none(tmp_path, key):
    with pytest.raises(DatasetError, match=f"{key}=mol_12 .* no whole number"):
        label([hydrogen(**{key: "mol_12"})], tmp_path / "a.db", FAST, 1, progress=False)


def test_a_bad_temperature_fails_its_molecule_alone(tmp_path):
    geometries = [hydrogen(id="1", temperature="300K"), hydrogen(id="2")]
    written, failures = label(geometries, tmp_path / "a.db", FAST, 1, progress=False)
    assert written == 1
    assert "300K" in failures[1]


@pytest.mark.parametrize(
    ("xc", "what"), [("wb97m_v", "nonlocal correlation"), ("b3lyp-d3bj", "dispersion correction")]
)
def test_fitted_labels_of_functionals_with_more_than_a_grid_are_refused(tmp_path, xc, what):
    settings = LabelSettings(xc=xc, density_fit=True)
    with pytest.raises(ConfigError, match=what):
        label([hydrogen(id="1")], tmp_path / "a.db", settings, 1, progress=False)


def test_two_processes_that_write_the_same_rows(tmp_path, monkeypatch):
    class Late(QH9Database):
        def ids(self):
            return []  # as before the other process wrote

    label([hydrogen(id="1")], tmp_path / "a.db", FAST, 1, progress=False)
    monkeypatch.setattr(label_module, "QH9Database", Late)
    with pytest.raises(DatasetError, match="another process writes"):
        label([hydrogen(id="1")], tmp_path / "a.db", FAST, 1, progress=False)


def test_labelling_survives_a_kill(tmp_path):
    """SIGKILL to the whole group at some moment; the same command then completes the database."""
    xyz, out = write_xyz(tmp_path / "a.xyz", 40), tmp_path / "a.db"
    command = [sys.executable, "-m", "pyscf_deqh.data", "label", str(xyz), "--out", str(out),
               "--xc", "hf", "--workers", "1"]  # fmt: skip
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if out.exists() and (n := _count(out)) >= 2:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 2 <= (n := _count(out)) < 40
    assert subprocess.run(command, capture_output=True, check=True).returncode == 0
    with QH9Database(out) as database:
        assert len(database) == 40 > n
        assert all(np.isfinite(r.hamiltonian).all() for r in database)


def _count(path):
    try:
        with QH9Database(path) as database:
            return len(database)
    except DatasetError:
        return 0


def test_a_dying_worker_fails_its_molecule_alone(tmp_path, monkeypatch):
    """The pool breaks with its worker; every other molecule is labelled all the same."""
    monkeypatch.setattr(label_module, "_work", _die_on_two)
    geometries = [hydrogen(0.7 + 0.01 * i, id=str(i)) for i in range(5)]
    written, failures = label(geometries, tmp_path / "a.db", FAST, 2, progress=False)
    assert written == 4
    assert list(failures) == [2]
    assert "died" in failures[2]


def test_a_pool_that_breaks_before_a_molecule_is_sent_loses_none(tmp_path, monkeypatch):
    broken = []

    class Pool(label_module.ProcessPoolExecutor):
        def submit(self, work, row_id, *args):
            if row_id == 3 and not broken:
                broken.append(row_id)
                raise BrokenProcessPool
            return super().submit(work, row_id, *args)

    monkeypatch.setattr(label_module, "_work", _made_up)
    monkeypatch.setattr(label_module, "ProcessPoolExecutor", Pool)
    geometries = [hydrogen(0.7 + 0.01 * i, id=str(i)) for i in range(5)]
    assert label(geometries, tmp_path / "a.db", FAST, 1, progress=False) == (5, {})
    assert broken


def _made_up(row_id, geometry, settings, device):
    return Record(row_id, geometry.numbers, geometry.positions, np.eye(2), {})


def _die_on_two(row_id, geometry, settings, device):
    if row_id == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return _made_up(row_id, geometry, settings, device)


def test_full_disk_keeps_what_is_written(tmp_path, monkeypatch):
    """SQLite's own page limit stands in for a full disk: the same error from the same place."""
    original = QH9Database.__init__

    def small(self, path, writable=False):
        original(self, path, writable)
        if writable:
            self._connection.execute("PRAGMA max_page_count = 14")

    monkeypatch.setattr(QH9Database, "__init__", small)
    geometries = [hydrogen(0.7 + 0.01 * i, id=str(i)) for i in range(40)]
    with pytest.raises(DatasetError, match=r"full.*rows in it are kept"):
        label(geometries, tmp_path / "a.db", FAST, 1, progress=False)
    monkeypatch.undo()
    with QH9Database(tmp_path / "a.db") as database:
        n = len(database)
    assert 0 < n < 40
    written, _ = label(geometries, tmp_path / "a.db", FAST, 1, progress=False)
    assert written == 40 - n


def test_command_line(tmp_path, capsys):
    xyz = write_xyz(tmp_path / "a.xyz", 20)
    out = str(tmp_path / "a.db")
    base = ["label", str(xyz), "--out", out, "--xc", "hf", "--workers", "1"]
    assert main([*base, "--split", "test"]) == 0
    with QH9Database(out) as database:
        assert database.ids() == [70, 170]
    assert main([*base, "--qm9-ids", "3", "5", "--exclude", out]) == 0
    assert main(["info", out]) == 0
    printed = capsys.readouterr().out
    assert "4 molecules, 0 failures" in printed
    assert "basis: def2-svp" in printed
    assert main(["info", str(tmp_path / "none.db")]) == 2
    assert main([*base, "--density-fit", "--grid-level", "1"]) == 2
    assert "grid of its own" in capsys.readouterr().err


# Datasets


def test_split_is_by_molecule():
    assert [split_of(i) for i in (7, 17, 3, 10, 12345)] == [
        "test",
        "test",
        "valid",
        "train",
        "train",
    ]


@pytest.fixture
def labelled(tmp_path):
    geometries = [hydrogen(0.7 + 0.01 * i, qm9_id=str(i)) for i in (1, 3, 7, 12)]
    label(geometries, tmp_path / "a.db", FAST, 1, progress=False)
    return tmp_path / "a.db"


def test_dataset_keeps_graphs_on_disk(tmp_path, labelled):
    store = GraphStore(tmp_path / "cache", "sad", "def2-svp")
    train = HamiltonianDataset([labelled], "train", store, workers=1, progress=False)
    assert len(train) == 2
    assert len(HamiltonianDataset([labelled], "valid", store, workers=1, progress=False)) == 1
    assert len(HamiltonianDataset([labelled], "all", store, workers=1, progress=False)) == 4
    graph = train[0]
    np.testing.assert_allclose(
        graph.target_orbitals.T @ graph.overlap @ graph.target_orbitals, np.eye(10), atol=1e-5
    )
    again = HamiltonianDataset([labelled], "train", store, progress=False)
    np.testing.assert_array_equal(again[0].hamiltonian, graph.hamiltonian)


class InProcess:
    """Stands in for the process pool, so that reads can be counted."""

    def __init__(self, workers, context, initializer, arguments):
        initializer(*arguments)

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except DatasetError as error:
            future.set_exception(error)
        return future

    def shutdown(self, cancel_futures):
        pass


@pytest.fixture
def reads(monkeypatch):
    """Ids of the labels that were read."""
    original = QH9Database.__getitem__
    ids: list[int] = []

    def counted(self, row_id):
        ids.append(row_id)
        return original(self, row_id)

    monkeypatch.setattr(QH9Database, "__getitem__", counted)
    monkeypatch.setattr(dataset_module, "ProcessPoolExecutor", InProcess)
    monkeypatch.setattr(dataset_module, "_CHUNK", 1)
    threads = lib.num_threads()
    yield ids
    lib.num_threads(threads)


@pytest.fixture
def built(monkeypatch):
    """Molecules whose graphs were made."""
    original = dataset_module.build_graph
    molecules: list = []

    def counted(mol, *arguments):
        molecules.append(mol)
        return original(mol, *arguments)

    monkeypatch.setattr(dataset_module, "build_graph", counted)
    return molecules


def test_labels_are_read_once(tmp_path, labelled, reads, built):
    store = GraphStore(tmp_path / "cache", "none", "def2-svp")
    HamiltonianDataset([labelled], "train", store, workers=1, progress=False)
    assert reads == [10, 120]
    keys = HamiltonianDataset([labelled], "all", store, workers=1, progress=False).keys
    assert reads == [10, 120, 30, 70]
    # Another process, later: nothing is read, because the store knows the rows.
    store = GraphStore(tmp_path / "cache", "none", "def2-svp")
    assert HamiltonianDataset([labelled], "all", store, progress=False).keys == keys
    assert len(reads) == 4
    # After a change of the file all is read again, but graphs of the same label are not rebuilt.
    connection = sqlite3.connect(labelled)
    connection.execute("UPDATE data SET pos = (SELECT pos FROM data WHERE id = 10) WHERE id = 120")
    connection.commit()
    connection.close()
    again = HamiltonianDataset([labelled], "all", store, workers=1, progress=False).keys
    assert len(reads) == 8
    assert len(built) == 5
    assert [a == b for a, b in zip(keys, again, strict=True)] == [True, True, True, False]


def test_an_interrupted_conversion_goes_on(tmp_path, labelled, reads, built):
    def set_label(blob):
        connection = sqlite3.connect(labelled)
        (before,) = connection.execute("SELECT Ham FROM data WHERE id = 70").fetchone()
        connection.execute("UPDATE data SET Ham = ? WHERE id = 70", (blob,))
        connection.commit()
        connection.close()
        return before

    good = set_label(b"short")
    store = GraphStore(tmp_path / "cache", "none", "def2-svp")
    with pytest.raises(DatasetError, match=r"a\.db, id 70"):
        HamiltonianDataset([labelled], "all", store, workers=1, progress=False)
    assert len(built) == len(reads) - 1 == 3
    set_label(good)
    dataset = HamiltonianDataset([labelled], "all", store, workers=1, progress=False)
    assert len(dataset) == 4
    # Of the three, the last was made after the failure and not kept.
    assert len(built) == 5


def test_zeros_are_not_stored(tmp_path, labelled, reads):
    for reference, stored in (("none", False), ("sad", True)):
        store = GraphStore(tmp_path / "cache", reference, "def2-svp")
        dataset = HamiltonianDataset([labelled], "test", store, workers=1, progress=False)
        (blob,) = store._connect().execute("SELECT graph FROM graphs").fetchone()
        assert ("reference" in load_tensors(blob)) == stored
        assert ("atomic_density" in load_tensors(blob)) == stored
        assert dataset[0].reference.shape == dataset[0].overlap.shape
        assert dataset[0].atomic_density.any() == stored


def test_unknown_splits_and_rules(tmp_path, labelled):
    store = GraphStore(tmp_path / "cache", "none", "def2-svp")
    with pytest.raises(DatasetError, match="no split 'dev'; there are train"):
        HamiltonianDataset([labelled], "dev", store, progress=False)
    with pytest.raises(DatasetError, match="no split rule 'x'; there are qm9-id, qh9-stable-id"):
        HamiltonianDataset([labelled], "test", store, progress=False, split_rule="x")


def test_dataset_names_the_bad_row(tmp_path):
    path, _ = qh9_file(tmp_path / "a.db", ham=np.eye(3))
    store = GraphStore(tmp_path, "none", "def2-svp")
    with pytest.raises(DatasetError, match=r"a\.db, id 5: a Hamiltonian of shape \(3, 3\)"):
        HamiltonianDataset([path], "all", store, workers=1, progress=False)


def test_empty_split(tmp_path, labelled):
    store = GraphStore(tmp_path, "none", "def2-svp")
    connection = sqlite3.connect(labelled)
    connection.execute("DELETE FROM data WHERE id != 10")
    connection.commit()
    with pytest.raises(DatasetError, match="no molecule of split 'test'"):
        HamiltonianDataset([labelled], "test", store, progress=False)
