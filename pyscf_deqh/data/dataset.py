"""Datasets of graphs: built once from QH9 databases, kept on disk, read one molecule at a time."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from pyscf import gto, lib
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import DatasetError, UnsupportedMoleculeError
from ..graph import MolecularGraph
from .graph import build_graph
from .qh9 import QH9Database, Record
from .splits import split_of

# Change when the content of a graph changes, so that old caches are not read.
_FORMAT = 1
_MATRICES = [f.name for f in fields(MolecularGraph) if f.name != "n_occupied"]


def _encode(graph: MolecularGraph) -> bytes:
    arrays = {"n_occupied": np.array([graph.n_occupied])}
    for name in _MATRICES:
        value = np.ascontiguousarray(getattr(graph, name))
        # Single precision: 1e-6 Eh on the largest (core) elements, half the disk and memory.
        arrays[name] = value.astype(np.float32) if value.dtype == np.float64 else value
    return save_tensors(arrays)


def _decode(blob: bytes) -> MolecularGraph:
    arrays = load_tensors(blob)
    return MolecularGraph(
        n_occupied=int(arrays["n_occupied"][0]), **{n: arrays[n] for n in _MATRICES}
    )


def _build(database: str, row_id: int, reference: str, basis: str) -> bytes:
    with QH9Database(database) as source:
        record = source[row_id]
    mol = gto.M(
        atom=record.geometry().atom(), basis=basis, spin=int(record.numbers.sum()) % 2, verbose=0
    )
    try:
        return _encode(build_graph(mol, reference, np.array(record.hamiltonian)))
    except UnsupportedMoleculeError as error:
        raise DatasetError(f"{database}, id {row_id}: {error}") from error


def _start_worker() -> None:
    lib.num_threads(1)


def _key(record: Record) -> str:
    digest = hashlib.sha256()
    for array in (record.numbers, record.positions, record.hamiltonian):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]


class GraphStore:
    """Graphs of labelled molecules in one SQLite file; a build that is interrupted goes on later.

    Args:
        folder: where the file lies; its name carries reference, basis and format.
        reference: kind of reference Hamiltonian, see :mod:`pyscf_deqh.reference`.
        basis: basis set of the labels.
    """

    def __init__(self, folder: str | Path, reference: str, basis: str):
        self.reference, self.basis = reference, basis
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.path = Path(folder) / f"graphs-{reference}-{basis}-v{_FORMAT}.db"
        self._connection: sqlite3.Connection | None = None
        self._pid = -1

    def _connect(self) -> sqlite3.Connection:
        # A connection must not be carried into a forked data-loading worker.
        if self._connection is None or self._pid != os.getpid():
            self._connection = sqlite3.connect(self.path, timeout=60)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS graphs (key TEXT NOT NULL PRIMARY KEY, graph BLOB)"
            )
            self._pid = os.getpid()
        return self._connection

    def __getstate__(self):
        return self.__dict__ | {"_connection": None}

    def __getitem__(self, key: str) -> MolecularGraph:
        row = self._connect().execute("SELECT graph FROM graphs WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return _decode(row[0])

    def build(
        self, todo: Sequence[tuple[str, str, int]], workers: int | None, progress: bool
    ) -> None:
        """Make the missing graphs of (key, database, row id), in parallel."""
        connection = self._connect()
        present = {key for (key,) in connection.execute("SELECT key FROM graphs")}
        missing = [item for item in todo if item[0] not in present]
        if not missing:
            return
        with ProcessPoolExecutor(
            workers or os.cpu_count(), get_context("spawn"), _start_worker
        ) as pool:
            keys, databases, ids = zip(*missing, strict=True)
            n = len(missing)
            graphs = pool.map(
                _build, databases, ids, [self.reference] * n, [self.basis] * n, chunksize=4
            )
            for key, blob in tqdm(
                zip(keys, graphs, strict=True), total=n, desc="graphs", unit="mol",
                disable=not progress,
            ):  # fmt: skip
                with connection:
                    connection.execute("INSERT OR REPLACE INTO graphs VALUES (?, ?)", (key, blob))


class HamiltonianDataset(Dataset):
    """Labelled graphs of one split of one or more QH9 databases.

    Args:
        databases: QH9 files.
        split: ``train``, ``valid``, ``test`` or ``all``; by ``qm9_id``, else by id, see ``splits``.
        store: where graphs are kept.
        max_molecules: use only so many, evenly spread over the databases.
        workers: processes that build missing graphs.
        progress: show a progress bar while building.

    Raises:
        DatasetError: a database cannot be read, a row contradicts itself, or the split is empty.
    """

    def __init__(
        self,
        databases: Iterable[str | Path],
        split: str,
        store: GraphStore,
        max_molecules: int | None = None,
        workers: int | None = None,
        progress: bool = True,
    ):
        self.store = store
        items = []
        for path in databases:
            with QH9Database(path) as database:
                for row_id in database.ids():
                    qm9_id = database.meta(row_id).get("qm9_id")
                    # Frames of a molecule that is not in QM9 are split one by one.
                    if split in ("all", split_of(row_id if qm9_id is None else qm9_id)):
                        items.append((_key(database[row_id]), str(path), row_id))
        if not items:
            raise DatasetError(
                f"no molecule of split {split!r} in {', '.join(map(str, databases))}"
            )
        if max_molecules is not None and max_molecules < len(items):
            chosen = np.linspace(0, len(items) - 1, max_molecules).round().astype(int)
            items = [items[i] for i in chosen]
        store.build(items, workers, progress)
        self.keys = [key for key, _, _ in items]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> MolecularGraph:
        return self.store[self.keys[index]]
