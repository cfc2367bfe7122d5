"""Files that were cut off or changed at random: a clear error or what was in them, nothing else."""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import pickle
import random
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol, small_model

from pyscf_deqh.checkpoint import ModelSpec, load_model, save_model
from pyscf_deqh.data.dataset import GraphStore
from pyscf_deqh.data.formats import open_labels
from pyscf_deqh.data.formats.foreign import ao_order
from pyscf_deqh.data.formats.qh9 import QH9Database
from pyscf_deqh.data.geometry import read_geometries
from pyscf_deqh.data.make.convert import convert
from pyscf_deqh.data.make.embed import geometry_of, read_smiles
from pyscf_deqh.data.record import Record
from pyscf_deqh.errors import CheckpointError, ConfigError, DatasetError, DEQHError
from pyscf_deqh.nn.so2net import SO2NetConfig
from pyscf_deqh.table import RowTable
from pyscf_deqh.train.__main__ import main
from pyscf_deqh.train.checkpoints import WholeCheckpoints
from pyscf_deqh.train.config import TrainConfig
from pyscf_deqh.train.module import HamiltonianModule, build_model
from pyscf_deqh.train.run import _initialize, read_config, write_config

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


def test_packed_geometries(tmp_path):
    path = tmp_path / "a.xyz.gz"
    path.write_bytes(gzip.compress(b"3\nname=water\nO 0 0 0\nH 0 0.8 0.6\nH 0 -0.8 0.6\n" * 20))
    refused = survive(path, lambda p: list(read_geometries(p)), (DatasetError, ConfigError))
    assert refused > TRIALS // 2


def test_smiles(tmp_path):
    path = tmp_path / "a.smi"
    path.write_text("# molecules\nCC[O-] ethoxide\nC[N+](C)(C)C\n[OH-] hydroxide\n")

    @functools.lru_cache  # most are as they were
    def embedded(smiles):
        with contextlib.suppress(ValueError):  # one molecule's, which the others outlive
            geometry_of(smiles, 0)

    def read(path):
        for smiles in read_smiles(path).values():
            embedded(smiles)

    survive(path, read, (DatasetError, ConfigError))


def test_tables_of_rows(tmp_path):
    path = tmp_path / "rows.parquet"
    columns = {"id": "int64", "name": "string", "energy": "float64", "gradient": "doubles"}

    def table():
        return RowTable(path, columns, {"xc": "hf"})

    def read(path):
        with table() as rows:
            rows.column("name"), rows.column("gradient")

    with table() as rows:
        for i in range(50):
            rows.add({"id": i, "name": f"molecule {i}", "energy": -1.5 * i, "gradient": [0.1] * i})
    assert survive(path, read, DatasetError) > TRIALS // 4
    with contextlib.suppress(ZeroDivisionError), table() as rows:
        rows.add({"id": 77, "name": "killed"})
        journal = rows._journal_path
        content = journal.read_bytes()
        raise ZeroDivisionError
    journal.write_bytes(content)
    path.unlink()

    def go_on(journal):
        try:
            read(path)
        finally:
            path.unlink(missing_ok=True)

    survive(journal, go_on, DatasetError)


@pytest.fixture
def small(tmp_path, template):
    """The folder of a small exported model."""
    model = small_model(template).float()
    spec = ModelSpec(
        "def2-svp", template, model.backbone.config, model.settings, "md17", (4, 2), {"a.db": [7]}
    )
    save_model(model, spec, tmp_path / "small")
    return tmp_path / "small"


def test_models(small):
    assert survive(small / "config.json", lambda p: load_model(p.parent), DEQHError) > 0


def test_weights(small):
    """Those of whoever changes their hash as well."""
    config = json.loads((small / "config.json").read_text())

    def read(path):
        config["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (small / "config.json").write_text(json.dumps(config))
        load_model(small)

    assert survive(small / "model.safetensors", read, CheckpointError) > TRIALS // 8
    # The header, which is a small part of the file.
    content = (small / "model.safetensors").read_bytes()
    rng, refused = random.Random(1), 0
    for _ in range(TRIALS):
        head = bytearray(content[:1000])
        for _ in range(rng.choice((1, 30))):
            head[rng.randrange(len(head))] = rng.randrange(256)
        (small / "model.safetensors").write_bytes(bytes(head) + content[1000:])
        try:
            read(small / "model.safetensors")
        except CheckpointError:
            refused += 1
    assert refused > TRIALS // 2


def test_checkpoints_of_trainings(tmp_path):
    config = TrainConfig(so2net=SO2NetConfig(natural_channels=8, pseudo_channels=4, invariants=16))
    module = HamiltonianModule(build_model(config), config)
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"state_dict": module.state_dict(), "rows": {}}, path)

    def read(path):
        WholeCheckpoints().load_checkpoint(path, weights_only=True)
        _initialize(module, path)

    assert survive(path, read, CheckpointError) > TRIALS // 8


def test_configurations(tmp_path):
    path = tmp_path / "config.yaml"
    write_config(TrainConfig(), path)
    assert survive(path, read_config, DEQHError) > TRIALS // 4


class RunsCode:
    """What a pickle may hold: reading it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def test_no_file_runs_code(tmp_path, small):
    mark = tmp_path / "mark"
    content = pickle.dumps(RunsCode(mark))
    pickle.loads(content)  # it does
    mark.rmdir()
    config = TrainConfig(so2net=SO2NetConfig(natural_channels=8, pseudo_channels=4, invariants=16))
    module = HamiltonianModule(build_model(config), config)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": RunsCode(mark)}, path)
    for checkpoint in (content, path.read_bytes()):
        path.write_bytes(checkpoint)
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            _initialize(module, path)
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            WholeCheckpoints().load_checkpoint(path, weights_only=True)
    (small / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load_model(small)
    np.savez(tmp_path / "a.npz", **dict.fromkeys("ZR", np.array([RunsCode(mark)], object)),
             hamiltonian=np.zeros(1), overlap=np.zeros(1))  # fmt: skip
    with pytest.raises(DatasetError, match="Python objects"):
        open_labels(tmp_path / "a.npz")
    text = f"data: !!python/object/apply:os.mkdir ['{mark}']\n"
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="cannot read the configuration"):
        read_config(tmp_path / "config.yaml")
    with pytest.raises((SystemExit, DEQHError)):
        main(["--config", str(tmp_path / "config.yaml")])
    assert not mark.exists()


def test_no_file_fills_the_memory(tmp_path, small):
    """Small files that announce or unpack to much."""
    with gzip.open(tmp_path / "a.xyz.gz", "wb", compresslevel=1) as handle:
        for _ in range(110):
            handle.write(b" " * 1_000_000)
    with pytest.raises(DatasetError, match="unpacks to more than"):
        list(read_geometries(tmp_path / "a.xyz.gz"))
    arrays = {"Z": np.ones(2, int), "R": np.zeros((1, 2, 3)), "overlap": np.zeros((1, 2, 2))}
    np.savez_compressed(tmp_path / "a.npz", hamiltonian=np.zeros((1, 4000, 4000)), **arrays)
    with pytest.raises(DatasetError, match="hamiltonian unpacks from"):
        open_labels(tmp_path / "a.npz")
    # The member of this name alone, which NumPy's own reader would prefer, is none of an npz file.
    np.savez_compressed(tmp_path / "a.npz", hamiltonian=np.ones((1, 2, 2)), **arrays)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("hamiltonian", b"no array")
    with open_labels(tmp_path / "a.npz") as file:
        assert file._arrays["hamiltonian"].all()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1, 10**6, 10**6)}
    )
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        np.savez(tmp_path / "a.npz", **arrays)
        with zipfile.ZipFile(tmp_path / "a.npz", "a", kind) as archive:
            archive.writestr("hamiltonian.npy", header.getvalue() + bytes(100))
        with pytest.raises(DatasetError, match="its header announces"):
            open_labels(tmp_path / "a.npz")
    (small / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    config = json.loads((small / "config.json").read_text())
    content = (small / "model.safetensors").read_bytes()
    config["sha256"] = hashlib.sha256(content).hexdigest()
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot"):
        load_model(small)
