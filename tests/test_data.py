import gzip
import sqlite3
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from conftest import make_mol
from pyscf import lib, scf
from safetensors.numpy import load as load_tensors

from pyscf_deqh import DatasetError
from pyscf_deqh.data import dataset as dataset_module
from pyscf_deqh.data.dataset import GraphStore, HamiltonianDataset
from pyscf_deqh.data.formats.qh9 import QH9Database, Record
from pyscf_deqh.data.geometry import Geometry, read_geometries
from pyscf_deqh.data.make.label import LabelSettings, label
from pyscf_deqh.data.splits import split_of
from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import collate

pytestmark = pytest.mark.usefixtures("quick_workers")

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
    label(geometries, tmp_path / "a.db", FAST, 0, progress=False)
    return tmp_path / "a.db"


def test_dataset_keeps_graphs_on_disk(tmp_path, labelled, spawned_workers, monkeypatch):
    monkeypatch.setattr(dataset_module, "_CHUNK", 1)  # or the two rows are made in this process
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
    monkeypatch.undo()
    monkeypatch.setattr(dataset_module, "ProcessPoolExecutor", None)
    here = GraphStore(tmp_path / "other", "sad", "def2-svp")
    found = HamiltonianDataset([labelled], "train", here, workers=1, progress=False)
    np.testing.assert_array_equal(found[0].hamiltonian, graph.hamiltonian)


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

    def counted(mol, *arguments, **options):
        molecules.append(mol)
        return original(mol, *arguments, **options)

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


def test_labels_of_different_methods_are_refused(tmp_path):
    geometries = read_geometries(write_xyz(tmp_path / "a.xyz", 1))
    for xc in ("hf", "pbe"):
        settings = LabelSettings(xc=xc, conv_tol=1e-8)
        label(geometries, tmp_path / f"{xc}.db", settings, workers=0, progress=False)
    files, store = (
        (tmp_path / "hf.db", tmp_path / "pbe.db"),
        GraphStore(tmp_path, "sad", "def2-svp"),
    )
    with pytest.raises(DatasetError, match=r"different functionals: hf in .*, pbe in "):
        HamiltonianDataset(files, "all", store, progress=False)
    other = GraphStore(tmp_path, "sad", "def2-tzvp")
    with pytest.raises(DatasetError, match="has labels in def2-svp, not in def2-tzvp"):
        HamiltonianDataset(files[:1], "all", other, progress=False)


def test_labels_in_several_basis_sets(tmp_path):
    """Each graph has its own label's orbitals, in the slots that both basis sets share."""
    geometries = read_geometries(write_xyz(tmp_path / "a.xyz", 1))
    files = []
    for basis in ("def2-svp", "6-31g*"):
        files.append(tmp_path / f"{len(files)}.db")
        settings = LabelSettings(xc="hf", basis=basis, conv_tol=1e-8)
        label(geometries, files[-1], settings, workers=0, progress=False)
    store = GraphStore(tmp_path, "none", "def2-svp", ("6-31G*",))
    template = template_of("def2-svp", (1, 8))
    graphs = list(HamiltonianDataset(files, "all", store, progress=False))
    for graph, basis in zip(graphs, ("def2-svp", "6-31g*"), strict=True):
        mol = make_mol(geometries[0].atom(), basis=basis)
        np.testing.assert_allclose(graph.overlap, mol.intor("int1e_ovlp"), atol=1e-6)
    batch = collate(graphs, template, 15.0, torch.float64)
    assert (batch.orbital >= 0).sum(dim=1).tolist() == [5, 5, 2, 2]
    square = (template.size, template.size)
    onsite = batch.onsite_blocks(batch.overlap)[..., 0].unflatten(1, square)
    pairs = batch.blocks(*batch.edge_index, batch.overlap)[..., 0].unflatten(1, square)
    torch.testing.assert_close(batch.matrix(onsite, pairs), batch.overlap)
    with pytest.raises(DatasetError, match=r"labels in 6-31g\*, not in def2-svp"):
        HamiltonianDataset(files, "all", GraphStore(tmp_path, "none", "def2-svp"), progress=False)


def test_damaged_archives(tmp_path):
    path = write_xyz(tmp_path / "a.xyz")
    whole = gzip.compress(path.read_bytes())
    (tmp_path / "b.xyz.gz").write_bytes(whole[:12] + b"\xff" * 40 + whole[52:])
    with pytest.raises(DatasetError, match="cannot read"):
        read_geometries(tmp_path / "b.xyz.gz")
