"""Datasets of graphs: converted once from files of labels, kept on disk, read one at a time."""

from __future__ import annotations

import functools
import hashlib
import os
import sqlite3
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pyscf import gto
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import DatasetError, UnsupportedMoleculeError
from ..files import writing
from ..graph.basis import check_all_electron, shells_of
from ..graph.batch import MolecularGraph
from ..graph.build import build_graph
from ..process import use_threads
from .formats import open_labels
from .formats.sqlite import DAMAGE, what_to_do
from .record import LabelFile, Record, SCFStep
from .splits import split_ids

# Change when the content of a graph or of the store changes, so that old caches are not read.
_FORMAT = 3
_OPTIONAL = ("shells", "steps")
_MATRICES = [f.name for f in fields(MolecularGraph) if f.name not in ("n_occupied", *_OPTIONAL)]
# Zero without a reference Hamiltonian; then they are not stored.
_OFTEN_ZERO = ("reference", "atomic_density")
# Molecules per task and transaction. Two tasks per worker are under way, which bounds the memory.
_CHUNK = 8
# SQLite takes less where it was compiled for less.
_MMAP_BYTES = 2**40
_TIMEOUT = 60  # seconds that another process may write for

_SCHEMA = """
CREATE TABLE IF NOT EXISTS graphs
    (key TEXT NOT NULL PRIMARY KEY, heaviest INTEGER, graph BLOB);
CREATE TABLE IF NOT EXISTS files
    (id INTEGER PRIMARY KEY, path TEXT UNIQUE, size INTEGER, mtime_ns INTEGER);
CREATE TABLE IF NOT EXISTS rows
    (file INTEGER, row INTEGER, key TEXT, PRIMARY KEY (file, row)) WITHOUT ROWID;
"""


def _encode(graph: MolecularGraph) -> bytes:
    arrays = {"n_occupied": np.array([graph.n_occupied])}
    there = [name for name in _OPTIONAL if getattr(graph, name) is not None]
    for name in (*_MATRICES, *there):
        value = np.ascontiguousarray(getattr(graph, name))
        if name in _OFTEN_ZERO and not value.any():
            continue
        # Single precision: half the disk and memory; what it costs is in docs/data.md.
        arrays[name] = value.astype(np.float32) if value.dtype == np.float64 else value
    return save_tensors(arrays)


def encoded_size(graph: MolecularGraph) -> int:
    """Bytes that a graph takes in the store."""
    return len(_encode(graph))


def _decode(blob: bytes) -> MolecularGraph:
    try:
        arrays = load_tensors(blob)
        for name in _OFTEN_ZERO:
            arrays.setdefault(name, np.zeros_like(arrays["overlap"]))
        found: dict[str, Any] = {name: arrays[name] for name in _MATRICES}
        found |= {name: arrays.get(name) for name in _OPTIONAL}
        return MolecularGraph(n_occupied=int(arrays["n_occupied"][0]), **found)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SafetensorError(f"no graph: {error!r}") from error


def _key(record: Record) -> str:
    digest = hashlib.sha256()
    for array in (record.numbers, record.positions, record.hamiltonian):
        digest.update(np.ascontiguousarray(array).tobytes())
    if record.charge:
        digest.update(str(record.charge).encode())
    return digest.hexdigest()[:24]


class GraphStore:
    """Graphs of labelled molecules in one SQLite file; a build that is interrupted goes on later.

    Graphs are found by a hash of their label. The store remembers the hash of every row of every
    file (known by path, size and time of change), so that labels are read once and never again.

    Args:
        folder: where the file lies; its name carries reference, basis and format.
        reference: kind of reference Hamiltonian, see :mod:`pyscf_deqh.fock.reference`.
        basis: basis set of the labels.
        other_bases: those that labels may be in, too.
        steps: of the labels' SCFs that each graph has.
    """

    def __init__(
        self,
        folder: str | Path,
        reference: str,
        basis: str,
        other_bases: Sequence[str] = (),
        steps: int = 0,
    ):
        self.reference, self.basis, self.steps = reference, basis, steps
        self.other_bases = tuple(other_bases)
        with writing(Path(folder)):
            Path(folder).mkdir(parents=True, exist_ok=True)
        kind = f"{reference}-{basis}" + (f"-{steps}scf" if steps else "")
        self.path = Path(folder) / f"graphs-{kind}-v{_FORMAT}.db"
        self._connection: sqlite3.Connection | None = None
        self._pid = -1

    def basis_of(self, path: str | Path, settings: dict[str, Any]) -> str:
        """The basis set of a file of labels by its settings; ``basis`` where they do not tell.

        Raises:
            DatasetError: it is none of the store's.
        """
        found = settings.get("basis", self.basis)
        for basis in (self.basis, *self.other_bases):
            if found.lower() == basis.lower():
                return basis
        known = " or ".join((self.basis, *self.other_bases))
        raise DatasetError(f"{path} has labels in {found}, not in {known}")

    def _connect(self) -> sqlite3.Connection:
        # A connection must not be carried into a forked data-loading worker.
        if self._connection is None or self._pid != os.getpid():
            self._connection = sqlite3.connect(self.path, timeout=_TIMEOUT)
            self._connection.executescript(_SCHEMA)
            self._connection.execute(f"PRAGMA mmap_size = {_MMAP_BYTES}")
            self._pid = os.getpid()
        return self._connection

    def __getstate__(self):
        return self.__dict__ | {"_connection": None}

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn errors of the file into a DatasetError that says what to do."""
        try:
            yield
        except (*DAMAGE, SafetensorError) as error:
            advice = (isinstance(error, sqlite3.Error) and what_to_do(error)) or (
                "If it is damaged, delete it: all graphs in it are made anew from the labels"
            )
            raise DatasetError(f"{self.path} cannot be used: {error}. {advice}") from error

    def __contains__(self, key: str) -> bool:
        query = "SELECT 1 FROM graphs WHERE key = ?"
        with self._usable():
            return self._connect().execute(query, (key,)).fetchone() is not None

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Largest atomic number, and length of the graph in bytes, of every graph by its key."""
        query = "SELECT key, heaviest, length(graph) FROM graphs"
        with self._usable():
            return {key: (heaviest, n) for key, heaviest, n in self._connect().execute(query)}

    def __getitem__(self, key: str) -> MolecularGraph:
        query = "SELECT graph FROM graphs WHERE key = ?"
        with self._usable():
            row = self._connect().execute(query, (key,)).fetchone()
            if row is not None:
                return _decode(row[0])
        raise KeyError(key)

    def _file_id(self, path: str) -> int:
        """Number of a file of labels; what is remembered of an earlier content is dropped."""
        connection, found = self._connect(), os.stat(path)
        name, state = str(Path(path).resolve()), (found.st_size, found.st_mtime_ns)
        query = "SELECT id, size, mtime_ns FROM files WHERE path = ?"
        row = connection.execute(query, (name,)).fetchone()
        if row is not None and row[1:] == state:
            return row[0]
        with connection:
            if row is not None:
                connection.execute("DELETE FROM rows WHERE file = ?", row[:1])
                connection.execute("DELETE FROM files WHERE id = ?", row[:1])
            # Another process may have come first.
            query = "INSERT OR IGNORE INTO files (path, size, mtime_ns) VALUES (?, ?, ?)"
            connection.execute(query, (name, *state))
            query = "SELECT id FROM files WHERE path = ?"
            return connection.execute(query, (name,)).fetchone()[0]

    def build(
        self, rows: Sequence[tuple[str, int]], workers: int | None, progress: bool
    ) -> list[str]:
        """Make the graphs that are missing, in parallel.

        Args:
            rows: (path of a file of labels, row id).
            workers: processes (default: all cores).
            progress: show a progress bar.

        Returns:
            The key of each row.

        Raises:
            DatasetError: a row cannot be used, and what was made before it is kept; or the store is
                damaged.
        """
        with self._usable():
            return self._build(rows, workers, progress)

    def _build(
        self, rows: Sequence[tuple[str, int]], workers: int | None, progress: bool
    ) -> list[str]:
        connection = self._connect()
        files = {path: self._file_id(path) for path in dict.fromkeys(path for path, _ in rows)}
        query = "SELECT row, key FROM rows WHERE file = ?"
        known = {path: dict(connection.execute(query, (i,))) for path, i in files.items()}
        missing = [(path, row) for path, row in rows if row not in known[path]]
        with tqdm(
            total=len(missing), desc="graphs", unit="mol", disable=not (progress and missing)
        ) as bar:
            for made in self._made(missing, workers or os.cpu_count() or 1):
                with connection:
                    connection.executemany(
                        "INSERT OR REPLACE INTO graphs VALUES (?, ?, ?)",
                        [(key, *graph) for _, _, key, graph in made if graph is not None],
                    )
                    connection.executemany(
                        "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)",
                        [(files[path], row, key) for path, row, key, _ in made],
                    )
                for path, row, key, _ in made:
                    known[path][row] = key
                bar.update(len(made))
        return [known[path][row] for path, row in rows]

    def _made(self, missing: list[tuple[str, int]], workers: int) -> Iterator[list[_Made]]:
        chunks = [missing[i : i + _CHUNK] for i in range(0, len(missing), _CHUNK)]
        if len(chunks) <= 1:  # there is nothing to do side by side
            yield from (_make(self, chunk, open_labels) for chunk in chunks)
            return
        pool = ProcessPoolExecutor(
            min(workers, len(chunks)), get_context("spawn"), use_threads, (1,)
        )
        running: deque[Future[list[_Made]]] = deque()
        try:
            for chunk in chunks:
                running.append(pool.submit(_make, self, chunk, _kept_open))
                if len(running) == 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


# Path, row, key; largest atomic number and encoded graph, unless the store has it already.
_Made = tuple[str, int, str, tuple[int, bytes] | None]


def _make(
    store: GraphStore,
    rows: list[tuple[str, int]],
    opened: Callable[[str], AbstractContextManager[LabelFile]],
) -> list[_Made]:
    """Graphs of a few rows."""
    made: list[_Made] = []
    for path, of_file in groupby(rows, key=lambda row: row[0]):
        with opened(path) as file:
            basis = store.basis_of(path, file.settings())
            made += [_graph(store, file, basis, path, row_id) for _, row_id in of_file]
    return made


@functools.lru_cache(maxsize=1)  # rows come file after file
def _kept_open(path: str) -> AbstractContextManager[LabelFile]:
    """For a process that is asked for others of the same file: opening a compressed one of MD17's
    format reads all of it."""
    return nullcontext(open_labels(path))


def _graph(store: GraphStore, file: LabelFile, basis: str, path: str, row_id: int) -> _Made:
    """That of one row of an open file, whose labels are in ``basis``."""
    record = file[row_id]
    key = _key(record)
    if key in store:
        return path, row_id, key, None
    try:
        check_all_electron(record.numbers, basis)
        mol = gto.M(
            atom=record.geometry().atom(),
            basis=basis,
            charge=record.charge,
            spin=int(record.numbers.sum() - record.charge) % 2,
            verbose=0,
        )
        reference, n = store.reference, store.steps
        steps = file.steps_of(row_id) if n or (file.steps and reference == "sad") else ()
        # A label's SCF began at the reference: no integrals are needed for it again.
        fock = np.array(steps[0].hamiltonian) if steps and reference == "sad" else None
        graph = build_graph(mol, reference, np.array(record.hamiltonian), fock=fock)
        if basis != store.basis:
            graph.shells = shells_of(mol)
        if n:
            if not steps:
                raise DatasetError(f"{path}, {file.row_name} {row_id}: no steps of its SCF")
            graph.steps = _steps(steps, n)
    except (UnsupportedMoleculeError, RuntimeError) as error:
        raise DatasetError(f"{path}, {file.row_name} {row_id}: {error}") from error
    return path, row_id, key, (int(graph.numbers.max()), _encode(graph))


def _steps(steps: Sequence[SCFStep], n: int) -> np.ndarray:
    """Matrices (n, 2, nao, nao) of a label's SCF, the last ones again where it took fewer steps."""
    found = [(step.hamiltonian, step.fock) for step in steps[:n]]
    return np.array([*found, *found[-1:] * (n - len(found))])


def _check_method(
    path: str | Path, settings: dict[str, Any], store: GraphStore, methods: dict[str, str]
) -> None:
    """Refuse labels of another basis set, or of another functional than those before.

    Args:
        path: of the file.
        settings: how its labels were made, as far as it is known.
        store: of the graphs.
        methods: functionals so far and the first file of each.
    """
    store.basis_of(path, settings)
    xc = settings.get("xc")
    if xc is not None:
        methods.setdefault(xc.lower(), str(path))
    if len(methods) > 1:
        kinds = ", ".join(f"{name} in {file}" for name, file in methods.items())
        raise DatasetError(f"labels of different functionals: {kinds}")


class HamiltonianDataset(Dataset):
    """Labelled graphs of one split of one or more files of labels.

    Rows without a usable label (an SCF that did not converge) are left out, with a warning that
    names them; the split rules count them, so that the other rows stay where they belong.

    Args:
        databases: files of any format that :func:`~pyscf_deqh.data.formats.open_labels` knows.
        split: ``train``, ``valid``, ``test`` or ``all``.
        store: where graphs are kept.
        max_molecules: use only so many, evenly spread over the databases.
        workers: processes that build missing graphs.
        progress: show a progress bar while building.
        split_rule: one of :data:`.splits.SPLIT_RULES`; applied to each file by itself.
        split_sizes: for ``md17``: training, validation and perhaps test rows.

    Attributes:
        xc: functional of the labels; None where the files do not tell.
        rows: numbers of rows of the files of each name.

    Raises:
        DatasetError: a file cannot be read, a row contradicts itself, the rule does not exist or
            does not fit a file, the split is empty, or labels are of another basis set or of
            different functionals.
    """

    def __init__(
        self,
        databases: Iterable[str | Path],
        split: str,
        store: GraphStore,
        max_molecules: int | None = None,
        workers: int | None = None,
        progress: bool = True,
        split_rule: str = "qm9-id",
        split_sizes: Sequence[int] = (),
    ):
        self.store = store
        databases = list(databases)
        rows: list[tuple[str, int]] = []
        self.rows: dict[str, list[int]] = {}
        methods: dict[str, str] = {}
        for path in databases:
            with open_labels(path) as file:
                _check_method(path, file.settings(), store, methods)
                if file.steps < store.steps:
                    raise DatasetError(
                        f"{path} has {file.steps} steps of each SCF, not {store.steps}: 'python -m "
                        f"pyscf_deqh.data label … --steps {store.steps}' keeps them"
                    )
                self.rows.setdefault(Path(path).name, []).append(len(file))
                ids = split_ids(file, split, split_rule, split_sizes)
                failures = file.failures()
            unusable = [i for i in ids if i in failures]
            if unusable:
                some = ", ".join(map(str, unusable[:10])) + (", …" if len(unusable) > 10 else "")
                warnings.warn(
                    f"{path}: {len(unusable)} of {len(ids)} rows of split {split!r} are left out "
                    f"(rows {some}): {failures[unusable[0]]}",
                    stacklevel=2,
                )
            rows += [(str(path), i) for i in ids if i not in failures]
        self.xc = next(iter(methods), None)
        if not rows:
            raise DatasetError(
                f"no molecule of split {split!r} in {', '.join(map(str, databases))}"
            )
        if max_molecules is not None and max_molecules < len(rows):
            chosen = np.linspace(0, len(rows) - 1, max_molecules).round().astype(int)
            rows = [rows[i] for i in chosen]
        self.keys = store.build(rows, workers, progress)

    def __len__(self) -> int:
        return len(self.keys)

    def sizes(self) -> list[tuple[int, int]]:
        """Largest atomic number, and bytes of each graph, which go with its number of AOs."""
        sizes = self.store.sizes()
        return [sizes[key] for key in self.keys]

    def __getitem__(self, index: int) -> MolecularGraph:
        return self.store[self.keys[index]]
