"""Files that were cut off or changed at random: a clear error or what was in them, nothing else."""

import random
import sqlite3

import numpy as np
import pytest
from conftest import FORMAMIDE, WATER, make_mol

from pyscf_deqh.checkpoint import load_model, models_folder
from pyscf_deqh.data.dataset import GraphStore
from pyscf_deqh.data.formats import open_labels
from pyscf_deqh.data.formats.foreign import ao_order
from pyscf_deqh.data.formats.qh9 import QH9Database
from pyscf_deqh.data.geometry import read_geometries
from pyscf_deqh.data.make.convert import convert
from pyscf_deqh.data.record import Record
from pyscf_deqh.errors import ConfigError, DatasetError, DEQHError
from pyscf_deqh.train.config import TrainConfig
from pyscf_deqh.train.run import read_config, write_config

TRIALS = 60


def mutated(content, rng):
    """A copy that was cut off, or in which single bytes or a stretch of them are others."""
    changed = bytearray(content)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(changed[: rng.randrange(len(changed))])
    if kind == 1:
        start = rng.randrange(len(changed))
        length = min(rng.randrange(1, 400), len(changed) - start)
        changed[start : start + length] = rng.randbytes(length)
        return bytes(changed)
    for _ in range(1 if kind == 2 else 30):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def survive(path, read, allowed):
    """How many of the mutations of a file were refused; all others were read."""
    content, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(TRIALS):
        path.write_bytes(mutated(content, rng))
        try:
            read(path)
        except allowed:
            refused += 1
    path.write_bytes(content)
    read(path)
    return refused


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.db"
    with QH9Database(path, writable=True) as database:
        database.write_settings({"xc": "b3lyp", "basis": "def2-svp"})
        for i, atoms in enumerate((WATER, FORMAMIDE, WATER)):
            mol = make_mol(atoms)
            matrix = mol.intor("int1e_kin")
            record = Record(i, mol.atom_charges(), mol.atom_coords(unit="Ang"), matrix)
            record.meta.update(qm9_id=i + 1, kind="qm9")
            database.add(record)
        database.add_failure(7, 9, "no convergence")
    return path


def read_labels(path):
    with open_labels(path) as file:
        assert len(file.ids()) == len(file.sizes()) == len(file)
        file.molecules(), file.failures(), file.settings()
        for row_id in file.ids():
            if row_id not in file.failures():
                file[row_id]


def test_databases_of_labels(labels):
    assert survive(labels, read_labels, DatasetError) > TRIALS // 4


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_label_stores(labels, precision):
    path = labels.with_name("labels.store")
    convert(labels, path, precision, progress=False)
    with open_labels(path) as store:
        whole = {row_id: store[row_id].hamiltonian for row_id in store.ids()}

    def read(path):
        read_labels(path)
        with open_labels(path) as store:
            for row_id in store.ids():
                np.testing.assert_array_equal(store[row_id].hamiltonian, whole[row_id])

    assert survive(path, read, DatasetError) > TRIALS // 4


def test_qh9_dynamic(labels):
    path = labels.with_name("dynamic.db")
    with sqlite3.connect(path) as connection:
        connection.execute("ATTACH ? AS labels", (str(labels),))
        connection.execute(
            "CREATE TABLE data AS SELECT 5 AS id, id AS geo_id, N, Z, pos, 0.0 AS ekin, 0.0 AS "
            "epot, 0.0 AS etot, 0.0 AS time, Ham, 1 AS converged FROM labels.data"
        )
    connection.close()
    assert survive(path, read_labels, DatasetError) > TRIALS // 4


def test_arrays_of_labels(tmp_path):
    mol = make_mol(WATER)
    back = np.argsort(ao_order(mol))
    hamiltonian, overlap = (mol.intor(f"int1e_{x}")[np.ix_(back, back)] for x in ("kin", "ovlp"))
    path = tmp_path / "water.npz"
    np.savez(path, Z=mol.atom_charges(), R=[mol.atom_coords(unit="Ang")] * 3, energy=[0.0] * 3,
             hamiltonian=[hamiltonian] * 3, overlap=[overlap] * 3)  # fmt: skip
    assert survive(path, read_labels, DatasetError) > TRIALS // 4


def test_graph_store(labels, quick_workers):
    store = GraphStore(labels.parent, "none", "def2-svp")
    keys = store.build([(str(labels), i) for i in range(3)], 1, False)
    store.__dict__["_connection"].close()

    def read(path):
        damaged = GraphStore(labels.parent, "none", "def2-svp")
        try:
            damaged.sizes()
            for key in keys:
                if key in damaged:
                    damaged[key]
        finally:
            if damaged._connection is not None:
                damaged._connection.close()

    assert survive(store.path, read, DatasetError) > TRIALS // 8


def test_geometries(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("3\nqm9_id=4 smiles=O\nO 0 0 0\nH 0 0.8 0.6\nH 0 -0.8 0.6\n")
    survive(path, lambda p: list(read_geometries(p)), (DatasetError, ConfigError))


def test_models(tmp_path):
    source = models_folder() / "b3lyp-def2svp"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    assert survive(tmp_path / "config.json", lambda p: load_model(p.parent), DEQHError) > 0


def test_configurations(tmp_path):
    path = tmp_path / "config.yaml"
    write_config(TrainConfig(), path)
    assert survive(path, read_config, DEQHError) > TRIALS // 4
