"""Label stores: round trips, damage, kills, two writers, read-only media, workers, conversions."""

import errno
import fcntl
import os
import signal
import sqlite3
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol
from test_data import FAST, hydrogen, write_xyz

from pyscf_deqh import ConfigError, DatasetError, OutputError
from pyscf_deqh.benchmark import store as benchmark
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.dataset import GraphStore, HamiltonianDataset
from pyscf_deqh.data.formats import open_for_writing, open_labels
from pyscf_deqh.data.formats.foreign import ao_order
from pyscf_deqh.data.formats.qh9 import QH9Database
from pyscf_deqh.data.formats.store import LabelStore
from pyscf_deqh.data.geometry import read_geometries
from pyscf_deqh.data.make import convert as convert_module
from pyscf_deqh.data.make.convert import convert
from pyscf_deqh.data.make.label import label
from pyscf_deqh.data.record import Provenance, Record, SCFStep
from pyscf_deqh.data.splits import SPLITS, split_ids

pytestmark = pytest.mark.usefixtures("quick_workers")

SETTINGS = {"xc": "b3lyp", "basis": "def2-svp", "pyscf_version": "2.14.0", "conv_tol": 1e-9}


def record(row_id, atoms=WATER, seed=None, **meta):
    mol = make_mol(atoms)
    noise = np.random.default_rng(row_id if seed is None else seed).normal(size=(mol.nao, mol.nao))
    matrix = np.triu(noise) + np.triu(noise, 1).T
    return Record(row_id, mol.atom_charges(), mol.atom_coords(unit="Ang"), matrix, meta)


def records(n):
    return [
        record(3 * i, (WATER, FORMAMIDE)[i % 2], qm9_id=10 + i, smiles="O", kind="eq",
               energy=-76.4 - i / 7, temperature=300.0)
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    with LabelStore(tmp_path / "a.store", writable=True) as store:
        store.write_settings(SETTINGS)
        store.add_all(records(6))
        store.add_failure(7, 9, "no convergence")
    return tmp_path / "a.store"


@pytest.fixture
def database(tmp_path):
    with QH9Database(tmp_path / "a.db", writable=True) as file:
        file.write_settings(SETTINGS)
        file.add_all(records(6))
        file.add_failure(7, 9, "no convergence")
    return tmp_path / "a.db"


# What is written comes back


def test_there_and_back_to_the_last_bit(tmp_path, database):
    """QH9's database to a store and to a database again."""
    convert(database, tmp_path / "b.store", progress=False)
    convert(tmp_path / "b.store", tmp_path / "b.db", progress=False)
    with (
        open_labels(database) as first,
        open_labels(tmp_path / "b.store") as store,
        open_labels(tmp_path / "b.db") as again,
    ):
        assert store.format == "label store, float64"
        for file in (store, again):
            assert file.ids() == first.ids() == [0, 3, 6, 9, 12, 15]
            assert file.sizes() == first.sizes() == [3, 6] * 3
            assert file.molecules() == first.molecules() == [10, 11, 12, 13, 14, 15]
            assert file.settings() == first.settings() == SETTINGS
            assert file.failures() == first.failures() == {7: "no convergence"}
            assert file.failed_molecules() == {7: 9}
            for row_id in first.ids():
                found, wanted = file[row_id], first[row_id]
                for name in ("numbers", "positions", "hamiltonian"):
                    np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
                meta = {k: v for k, v in wanted.meta.items() if v is not None}
                assert {k: v for k, v in found.meta.items() if v is not None} == meta
        assert store[3].provenance.source == "a.db (QH9)"
        assert store[3].provenance.settings == SETTINGS
        assert store[3].provenance.written_by.startswith("pyscf_deqh")


def test_single_precision_is_that_of_numpy(tmp_path):
    wanted = record(5, FORMAMIDE)
    for precision in ("float32", "float64"):
        with LabelStore(tmp_path / f"{precision}.store", True, precision) as store:
            store.add(wanted)
            found = store[5].hamiltonian
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, wanted.hamiltonian.astype(precision))
    sizes = [(tmp_path / f"{p}.store").stat().st_size for p in ("float32", "float64")]
    assert sizes[0] < sizes[1]


def test_matrices_that_are_not_exactly_symmetric(tmp_path):
    """The mean with the transpose is kept; more than rounding is refused, and nothing written."""
    nearly, wrong = record(1), record(2)
    nearly.hamiltonian[0, 1] += 1e-9
    wrong.hamiltonian[0, 1] += 1e-3
    with LabelStore(tmp_path / "a.store", writable=True) as store:
        store.add(nearly)
        mean = (nearly.hamiltonian + nearly.hamiltonian.T) / 2
        np.testing.assert_array_equal(store[1].hamiltonian, mean)
        with pytest.raises(DatasetError, match=r"cannot write id 2 to .*not symmetric"):
            store.add_all([record(3), wrong])
        assert store.ids() == [1]
        with pytest.raises(KeyError, match="no record with id 3"):
            store[3]


def test_steps_of_scfs(tmp_path):
    """They come along to another store, not to a database, and a damaged one is found."""
    wanted = record(1)
    wanted.steps = tuple(
        SCFStep(record(1, seed=k).hamiltonian, record(1, seed=k + 9).hamiltonian) for k in range(2)
    )
    with LabelStore(tmp_path / "a.store", writable=True, steps=2) as store:
        store.add_all([wanted, record(2)])
        large = record(3)
        large.steps = (SCFStep(large.hamiltonian, record(3, FORMAMIDE).hamiltonian),)
        with pytest.raises(DatasetError, match=r"step 0 of id 3 .* of shape"):
            store.add(large)
    convert(tmp_path / "a.store", tmp_path / "b.store", "float32", progress=False)
    convert(tmp_path / "a.store", tmp_path / "b.db", progress=False)
    for name, precision in (("a.store", "float64"), ("b.store", "float32")):
        with open_labels(tmp_path / name) as file:
            assert file.steps_of(2) == ()
            for found, step in zip(file.steps_of(1), wanted.steps, strict=True):
                np.testing.assert_array_equal(found.hamiltonian, step.hamiltonian.astype(precision))
                np.testing.assert_array_equal(found.fock, step.fock.astype(precision))
    with open_labels(tmp_path / "b.db") as file:
        assert file.steps_of(1) == ()
    connection = sqlite3.connect(tmp_path / "a.store")
    connection.execute("UPDATE steps SET fock = zeroblob(length(fock)) WHERE step = 1")
    connection.commit()
    with LabelStore(tmp_path / "a.store") as store, pytest.raises(DatasetError, match="step 1"):
        store.steps_of(1)
    assert main(["info", str(tmp_path / "a.store"), "--check"]) == 1


def test_provenance_is_kept_for_each_record(tmp_path):
    """Once for all records that share it; versions may differ, the method may not."""
    other = SETTINGS | {"pyscf_version": "2.13.1"}
    with LabelStore(tmp_path / "a.store", writable=True) as store:
        store.write_settings(SETTINGS, "one.db")
        store.add_all([record(1), record(2)])
        store.write_settings(other, "two.db")
        store.add(record(3))
        assert len(store.provenances()) == 2
        assert [store[i].provenance.source for i in (1, 2, 3)] == ["one.db", "one.db", "two.db"]
        assert store.settings() == SETTINGS | {"pyscf_version": ["2.14.0", "2.13.1"]}
        with pytest.raises(DatasetError, match=r"other settings \(xc: b3lyp there, pbe now"):
            store.write_settings(SETTINGS | {"xc": "pbe"})
        strange = record(4)
        strange.provenance = Provenance({"xc": "pbe"})
        with pytest.raises(DatasetError, match="basis: def2-svp there, None now"):
            store.add(strange)
    convert(tmp_path / "a.store", tmp_path / "b.store", "float32", progress=False)
    with open_labels(tmp_path / "b.store") as copy:
        assert [copy[i].provenance.source for i in (1, 2, 3)] == ["one.db", "one.db", "two.db"]
        assert len(copy.provenances()) == 2
        assert copy.settings()["pyscf_version"] == ["2.14.0", "2.13.1"]


def test_meta_data_of_any_kind(tmp_path):
    meta = {"qm9_id": np.int64(4), "energy": np.float64(-0.1), "geo_id": 3, "smiles": None}
    with LabelStore(tmp_path / "a.store", writable=True) as store:
        store.add(record(1, **meta))
        assert store[1].meta == {"qm9_id": 4, "energy": -0.1, "geo_id": 3}
        for wrong in ({"qm9_id": "four"}, {"smiles": b"O"}):
            with pytest.raises(DatasetError, match="cannot write id 2"):
                store.add(record(2, **wrong))
        with pytest.raises(DatasetError, match="has a record with id 1"):
            store.add(record(1))


def test_geometries_of_a_store(path):
    geometries = read_geometries(path)
    assert [g.qm9_id for g in geometries] == [10, 11, 12, 13, 14, 15]


# Damage


@pytest.mark.parametrize(
    "change",
    [
        "records SET triangle = zeroblob(length(triangle))",
        "records SET triangle = substr(triangle, 9)",
        "records SET positions = 'words'",
        "records SET numbers = x'080108'",
        "records SET meta = replace(meta, '76', '77')",
        "records SET meta = NULL",
        "records SET provenance = 2",
        "molecules SET qm9_id = 3",
        "molecules SET atoms = 4",
    ],
)
def test_damaged_records_are_named(path, change):
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {change} WHERE id = 6")
    connection.close()
    with open_labels(path) as store:
        store[3]
        with pytest.raises(DatasetError, match=r"a\.store, id 6: its checksum is another"):
            store[6]


def test_a_record_that_is_gone_and_settings_that_are_damaged(path):
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM records WHERE id = 6")
        connection.execute("UPDATE provenance SET settings = replace(settings, 'b3', 'b4')")
    connection.close()
    with open_labels(path) as store:
        with pytest.raises(DatasetError, match=r"a\.store, id 6: its record is missing"):
            store[6]
        with pytest.raises(DatasetError, match=r"a\.store: provenance 1 is damaged"):
            store.settings()


def test_check_reads_all(path, capsys):
    assert main(["info", str(path), "--check"]) == 0
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE records SET checksum = 0 WHERE id IN (3, 9)")
    connection.close()
    assert main(["info", str(path), "--check"]) == 1
    printed = capsys.readouterr().out
    assert "label store, float64" in printed
    assert "id 9: its checksum is another" in printed
    assert "2 records are damaged" in printed


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END",
        "CREATE VIEW v AS SELECT * FROM records",
        "ALTER TABLE records ADD COLUMN extra",
        "PRAGMA user_version = 1",
        "DROP TABLE failures",
    ],
)
def test_other_tables_are_refused(path, change):
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    content = path.read_bytes()
    for writable in (False, True):
        with pytest.raises(DatasetError, match="no label store of version 2"):
            LabelStore(path, writable)
    assert path.read_bytes() == content
    assert not Path(f"{path}.lock").exists()


def test_files_of_other_kinds_are_refused(tmp_path, database):
    database.rename(tmp_path / "a.store")
    with pytest.raises(DatasetError, match="no label store"):
        open_for_writing(tmp_path / "a.store")
    with pytest.raises(DatasetError, match="no database"):
        LabelStore(tmp_path / "none.store")
    with pytest.raises(ConfigError, match="float16: choose from float32, float64"):
        LabelStore(tmp_path / "b.store", True, "float16")
    with pytest.raises(ConfigError, match=r"float64 alone: name the file b\.store"):
        open_for_writing(tmp_path / "b.db", "float32")


# Kills


def forked(function, *arguments):
    """Exit status of a function in a forked process."""
    child = os.fork()
    if not child:
        try:
            function(*arguments)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def write_on(path):
    with LabelStore(path, writable=True) as store:
        while True:
            n = len(store)
            store.add_all(record(i, seed=0) for i in range(n, n + 4))


def test_a_killed_writer_leaves_what_it_committed(tmp_path):
    path, n = tmp_path / "a.store", 0
    for _ in range(5):
        child = forked(write_on, path)
        while not path.exists() or (found := count(path)) <= n:
            time.sleep(0.002)
            assert os.waitpid(child, os.WNOHANG) == (0, 0)  # alive
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open_labels(path) as store:
            assert len(store) >= found
            assert store.ids() == list(range(len(store)))
            n = len(store)
            np.testing.assert_array_equal(store[n - 1].hamiltonian, record(0).hamiltonian)


def count(path):
    try:
        with open_labels(path) as store:
            return len(store)
    except DatasetError:  # no tables yet
        return 0


def die_in_a_transaction(path):
    store = LabelStore(path, writable=True)
    store._connection.execute("PRAGMA cache_size = 1")  # pages go to the disk at once

    def some():
        yield from (record(i) for i in range(100, 150))
        os.kill(os.getpid(), signal.SIGKILL)

    store.add_all(some())


def test_a_transaction_that_was_killed_is_taken_back(path):
    """By the next who opens the file, reader or not."""
    content = path.read_bytes()
    os.waitpid(forked(die_in_a_transaction, path), 0)
    assert Path(f"{path}-journal").exists()
    assert path.read_bytes() != content
    with open_labels(path) as store:
        assert store.ids() == [0, 3, 6, 9, 12, 15]
        assert len(list(store)) == 6
    with LabelStore(path, writable=True) as store:
        store.add(record(100))


# Writers and readers side by side


def test_two_writers(path):
    with LabelStore(path, writable=True) as store:
        with pytest.raises(OutputError, match="another process writes to"):
            LabelStore(path, writable=True)
        with open_labels(path) as reader:
            store.add(record(50))
            assert 50 in reader.ids()
    assert not Path(f"{path}.lock").exists()
    LabelStore(path, writable=True).close()


def test_the_lock_ends_with_its_process(path):
    def hold():
        LabelStore(path, writable=True)
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(forked(hold), 0)
    with LabelStore(path, writable=True) as store:
        store.add(record(50))


def test_a_file_system_without_locks(path, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with LabelStore(path, writable=True) as store:  # SQLite's own locks are left
        store.add(record(50))
    with open_labels(path) as store:
        assert 50 in store.ids()


def test_readers_do_not_write(path):
    with open_labels(path) as store:
        with pytest.raises(DatasetError, match="open for reading"):
            store.add(record(50))
        with pytest.raises(DatasetError, match="open for reading"):
            store.add_failure(50, None, "")


def read_all(path):
    if os.geteuid() == 0:  # root may write anywhere
        os.setegid(65534)
        os.seteuid(65534)
    assert not os.access(path.parent, os.W_OK, effective_ids=True)
    with open_labels(path) as store:
        assert len(list(store)) == 6


def test_read_only_media(path):
    with TemporaryDirectory() as folder:
        copy = Path(folder, "a.store")
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o444)
        os.chmod(folder, 0o555)
        _, status = os.waitpid(forked(read_all, copy), 0)
        os.chmod(folder, 0o755)
        assert status == 0
        assert os.listdir(folder) == ["a.store"]


def matrices(batch):
    return [torch.from_numpy(item.hamiltonian) for item in batch]


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_loading_processes(path, method, workers):
    """The reader that the parent has used goes into the workers."""
    with open_labels(path) as store:
        wanted = {row_id: store[row_id].hamiltonian for row_id in store.ids()}
        order = [9, 0, 15, 3, 12, 6]
        loader = torch.utils.data.DataLoader(
            store, sampler=order, batch_size=2, num_workers=workers, collate_fn=matrices,
            multiprocessing_context=method,
        )  # fmt: skip
        found = [matrix for batch in loader for matrix in batch]
        for row_id, matrix in zip(order, found, strict=True):
            np.testing.assert_array_equal(matrix, wanted[row_id])
        assert store.ids() == sorted(order)


def test_datasets_of_a_store(tmp_path, path):
    store = GraphStore(tmp_path / "cache", "none", "def2-svp")
    data = HamiltonianDataset([path], "all", store, workers=1, progress=False)
    valid = HamiltonianDataset([path], "valid", store, workers=1, progress=False)
    assert len(data) == 6
    with open_labels(path) as file:
        np.testing.assert_allclose(data[2].hamiltonian, file[6].hamiltonian, rtol=1e-6)
        np.testing.assert_allclose(valid[0].hamiltonian, file[9].hamiltonian, rtol=1e-6)


# Split rules


def dynamic(path, n=200, failed=(5, 17)):
    """A file of QH9-dynamic: 100 geometries of each molecule, some without a label."""
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE data (id INTEGER, geo_id INTEGER, N INTEGER, Z BLOB, pos BLOB, ekin REAL, "
        "epot REAL, etot REAL, time REAL, Ham BLOB, converged INTEGER)"
    )
    made = record(0, seed=0)
    arrays = (made.numbers.astype(np.int32).tobytes(), made.positions.tobytes())
    for row in range(1, n + 1):
        connection.execute(
            "INSERT INTO data VALUES (?, ?, 3, ?, ?, 0, -76, 0, 0, ?, ?)",
            (row // 101, np.int64(row).tobytes(), *arrays, made.hamiltonian.tobytes(),
             row not in failed),
        )  # fmt: skip
    connection.commit()
    connection.close()
    return path


def splits_of(path, rule, sizes=()):
    with open_labels(path) as file:
        return [split_ids(file, split, rule, sizes) for split in SPLITS]


def test_split_rules(tmp_path, database):
    out = tmp_path / "b.store"
    convert(database, out, progress=False)
    for rule in ("qm9-id", "qh9-stable-id", "qh9-stable-ood"):
        assert splits_of(out, rule) == splits_of(database, rule)
    assert splits_of(out, "md17", (2, 1)) == splits_of(database, "md17", (2, 1))


def test_rows_without_a_label_keep_their_place(tmp_path, capsys):
    source, out = dynamic(tmp_path / "dynamic.db"), tmp_path / "b.store"
    assert convert(source, out, "float32", progress=False) == 198
    assert convert(source, out, progress=False) == 0
    for rule in ("qh9-dynamic-geo", "qh9-dynamic-mol"):
        assert splits_of(out, rule) == splits_of(source, rule)
    with open_labels(out) as store, open_labels(source) as labels:
        assert store.ids() == labels.ids() == list(range(1, 201))
        assert store.failures() == labels.failures()
        assert store.failed_molecules() == {5: 0, 17: 0}
        assert store[6].meta["geo_id"] == 6
        with pytest.raises(DatasetError, match="id 5: the SCF of this row did not converge"):
            store[5]
        with pytest.raises(KeyError):
            store.atoms(5)
    with sqlite3.connect(source) as connection:
        connection.execute("UPDATE data SET converged = 1 WHERE rowid = 5")
    connection.close()
    assert convert(source, out, progress=False) == 1
    with open_labels(out) as store:
        assert list(store.failures()) == [17]
        assert store[5].meta["geo_id"] == 5
    assert main(["convert", str(source), str(tmp_path / "c.db")]) == 2
    assert "has no place for rows without a label" in capsys.readouterr().err


# Conversions


def test_an_interrupted_conversion_goes_on(tmp_path, database, monkeypatch):
    original, read = QH9Database.__getitem__, []

    def some(self, row_id):
        read.append(row_id)
        if len(read) == 4:
            raise KeyboardInterrupt
        return original(self, row_id)

    monkeypatch.setattr(convert_module, "_CHUNK", 2)
    monkeypatch.setattr(QH9Database, "__getitem__", some)
    with pytest.raises(KeyboardInterrupt):
        convert(database, tmp_path / "b.store", progress=False)
    with open_labels(tmp_path / "b.store") as store:
        assert store.ids() == [0, 3]
    assert convert(database, tmp_path / "b.store", progress=False) == 4
    # The first and the last that were there are compared.
    assert sorted(read[4:]) == [0, 3, 6, 9, 12, 15]


def test_what_does_not_go_together_is_refused(tmp_path, database, path, capsys):
    command = ["convert", str(database)]
    assert main([*command, str(tmp_path / "b.store"), "--precision", "float32"]) == 0
    assert main([*command, str(tmp_path / "b.store"), "--precision", "float64"]) == 2
    assert "b.store holds float32, not float64" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "b.db"), "--precision", "float32"]) == 2
    assert "float64 alone" in capsys.readouterr().err
    assert main([*command, str(database)]) == 2
    assert "is the file to convert" in capsys.readouterr().err
    with open_for_writing(tmp_path / "steps.store", None, 2) as file:
        file.write_settings(SETTINGS)
    assert main([*command, str(tmp_path / "steps.store")]) == 2
    assert "has 2 steps of each SCF" in capsys.readouterr().err
    # A database of QH9 has one place for the settings of all its rows.
    for out, key in (("c.store", "xc"), ("c.db", "basis"), ("d.db", "pyscf_version")):
        with open_for_writing(tmp_path / out) as file:
            file.write_settings(SETTINGS | {key: "another"})
            file.add(record(1000))
        for source in (database, path):
            assert main(["convert", str(source), str(tmp_path / out)]) == 2
            assert f"{key}: another there" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"atoms": FORMAMIDE}, {"qm9_id": 5}, {"seed": 5}])
def test_other_molecules_under_the_same_ids_are_refused(tmp_path, database, change):
    other = record(0, **({"qm9_id": 10} | change))
    other.positions = other.positions + ("seed" in change)
    with LabelStore(tmp_path / "b.store", writable=True) as store:
        store.write_settings(SETTINGS)
        store.add(other)
    with pytest.raises(DatasetError, match=r"b\.store has another molecule than .* under id 0"):
        convert(database, tmp_path / "b.store", progress=False)


def test_two_files_in_one_store(tmp_path, database):
    with LabelStore(tmp_path / "more.store", writable=True) as store:
        store.write_settings(SETTINGS | {"pyscf_version": "2.13.1"})
        store.add(record(1000, qm9_id=77))
        store.add_failure(1001, 78, "no convergence")
    for source in (database, tmp_path / "more.store"):
        convert(source, tmp_path / "b.store", progress=False)
    with open_labels(tmp_path / "b.store") as store:
        assert store.ids() == [0, 3, 6, 9, 12, 15, 1000]
        assert store.failed_molecules() == {7: 9, 1001: 78}
        assert store.settings()["pyscf_version"] == ["2.14.0", "2.13.1"]


def test_published_arrays_with_rounded_matrices(tmp_path):
    """MD17's may be off symmetry by more than QH9's; copies are exactly symmetric."""
    mol = make_mol(WATER)
    back = np.argsort(ao_order(mol))
    kinetic, overlap = (mol.intor(f"int1e_{x}")[np.ix_(back, back)] for x in ("kin", "ovlp"))
    kinetic[0, 3] += 5e-6
    np.savez(tmp_path / "a.npz", Z=mol.atom_charges(), R=[mol.atom_coords(unit="Ang")] * 2,
             energy=[-76.0] * 2, hamiltonian=[kinetic] * 2, overlap=[overlap] * 2)  # fmt: skip
    for suffix in (".store", ".db"):
        assert convert(tmp_path / "a.npz", tmp_path / f"b{suffix}", progress=False) == 2
        with open_labels(tmp_path / f"b{suffix}") as file:
            matrix = file[1].hamiltonian
            assert file.settings()["xc"] == "pbe"
            assert file[1].meta["energy"] == -76.0
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_allclose(matrix, mol.intor("int1e_kin"), atol=3e-6)


# Labels


def test_labels_into_a_store(tmp_path, capsys):
    geometries = [hydrogen(0.7 + 0.01 * i, qm9_id=str(i)) for i in range(3)]
    out = tmp_path / "a.store"
    written, failures = label(geometries[:2], out, FAST, 1, progress=False, precision="float32")
    assert (written, failures) == (2, {})
    assert label(geometries, out, FAST, 0, progress=False) == (1, {})
    label(geometries, tmp_path / "a.db", FAST, 0, progress=False)
    with open_labels(out) as store, open_labels(tmp_path / "a.db") as wanted:
        assert store.precision == "float32"
        assert store.ids() == wanted.ids()
        assert store.settings() == wanted.settings()
        for found, other in zip(store, wanted, strict=True):
            np.testing.assert_allclose(found.hamiltonian, other.hamiltonian, rtol=1e-6, atol=1e-9)
            assert found.meta["energy"] == pytest.approx(other.meta["energy"])
    with LabelStore(out, writable=True), pytest.raises(OutputError, match="another process"):
        label(geometries, out, FAST, 0, progress=False)
    xyz = write_xyz(tmp_path / "a.xyz", 4)
    command = ["label", str(xyz), "--out", str(tmp_path / "b.store"), "--xc", "hf"]
    assert main([*command, "--workers", "0", "--exclude", str(out)]) == 0
    with open_labels(tmp_path / "b.store") as store:
        assert store.molecules() == [3]


# The benchmark


def test_benchmark(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "_alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(benchmark, "kills", lambda *arguments: {"lost": 0})
    out = tmp_path / "out.json"
    command = ["--n", "20", "--repeats", "1", "--folder", str(tmp_path), "--json", str(out)]
    assert benchmark.main(command) == 0
    printed = capsys.readouterr().out
    assert "| float32 |" in printed
    assert "qh9, killed: {'lost': 0}" in printed
    assert os.listdir(tmp_path) == ["out.json"]


def test_what_the_benchmark_calls_damage(tmp_path):
    with LabelStore(tmp_path / "a.store", writable=True) as store:
        store.add_all(benchmark._record(i) for i in (0, 1, 3))
        assert benchmark._damage(store, 4) == (1, 0)
        store._connection.execute("UPDATE records SET checksum = 0 WHERE id = 3")
        assert benchmark._damage(store, 4) == (1, 1)
