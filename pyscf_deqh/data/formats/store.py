"""The label store: labelled molecules in one SQLite file, half a matrix each, with checksums.

Made for millions of molecules. Arrays are little-endian; tables:

- ``records``: ``numbers`` (N,) uint8, ``positions`` (N, 3) float64 in angstrom, ``triangle`` the
  rows of the Hamiltonian's upper triangle in hartree, PySCF's AO order, float32 or float64;
  ``meta`` JSON, ``provenance`` and ``checksum``, the CRC-32 of all that belongs to the record.
- ``steps``: the first ones of a molecule's SCF, where they were asked for: two triangles each, of
  the Hamiltonian whose orbitals were filled, and of the (fitted) Fock matrix of their density.
- ``molecules``: ``atoms`` and ``qm9_id``, which are listed without touching a matrix. A row without
  a record has no label, but keeps its place, which split rules count.
- ``provenance``: settings of the method, source and writer, once for each combination.
- ``failures``: molecules without a label, and why.
- ``store``: ``precision``, and how many ``steps`` each record has.

A Hamiltonian is symmetric: of one that is so up to rounding, the mean with its transpose is kept.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DatasetError
from ...files import only_writer
from ..record import (
    Provenance,
    Record,
    SCFStep,
    WritableLabels,
    check_arrays,
    refuse_mixture,
    symmetric,
)
from .sqlite import SQLiteLabels, connect_read_only, opening

SUFFIX = ".store"
PRECISIONS = {"float32": "<f4", "float64": "<f8"}

_VERSION = 2
_PAGE_BYTES = 8192
# What the least strict of the readers lets pass as rounding.
_ASYMMETRY = 1e-5
_RECORD = """SELECT atoms, qm9_id, numbers, positions, triangle, meta, provenance, checksum
    FROM molecules LEFT JOIN records USING (id) WHERE id = ?"""
_TABLES = (
    "CREATE TABLE store (key TEXT NOT NULL PRIMARY KEY, value TEXT)",
    "CREATE TABLE provenance (id INTEGER NOT NULL PRIMARY KEY, settings TEXT, source TEXT, "
    "written_by TEXT, checksum INTEGER)",
    "CREATE TABLE molecules (id INTEGER NOT NULL PRIMARY KEY, atoms INTEGER, qm9_id INTEGER)",
    "CREATE TABLE records (id INTEGER NOT NULL PRIMARY KEY, numbers BLOB, positions BLOB, "
    "triangle BLOB, meta TEXT, provenance INTEGER, checksum INTEGER)",
    "CREATE TABLE steps (id INTEGER NOT NULL, step INTEGER NOT NULL, hamiltonian BLOB, fock BLOB, "
    "checksum INTEGER, PRIMARY KEY (id, step))",
    "CREATE TABLE failures (id INTEGER NOT NULL PRIMARY KEY, qm9_id INTEGER, reason TEXT)",
)


def _writer() -> str:
    try:
        return f"pyscf_deqh {version('pyscf_deqh')}"
    except PackageNotFoundError:  # run from its sources
        return "pyscf_deqh"


def _plain(value: Any) -> Any:
    """What JSON takes for a scalar of NumPy."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be kept as JSON")


def _checksum(*values: Any) -> int:
    """CRC-32 of values for SQLite: of byte strings, and of all others as JSON."""
    others = json.dumps([value for value in values if not isinstance(value, bytes)])
    crc = zlib.crc32(others.encode())
    for value in values:
        if isinstance(value, bytes):
            crc = zlib.crc32(value, crc)
    return crc


@functools.lru_cache(maxsize=64)
def _upper(size: int) -> np.ndarray:
    """Mask of the upper triangle (size, size)."""
    return np.tri(size, dtype=bool).T


def _unpacked(triangle: bytes, precision: str) -> np.ndarray:
    """The symmetric matrix (nao, nao) in float64 of its triangle.

    Raises:
        ValueError: of no matrix.
    """
    values = np.frombuffer(triangle, PRECISIONS[precision])
    size = (math.isqrt(8 * values.size + 1) - 1) // 2
    if size * (size + 1) != 2 * values.size:
        raise ValueError(f"{values.size} numbers are no triangle of a matrix")
    matrix, upper = np.empty((size, size)), _upper(size)
    matrix[upper] = values
    matrix.T[upper] = values
    return matrix


def _decode_atoms(numbers: bytes, positions: bytes) -> tuple[np.ndarray, np.ndarray]:
    found = np.frombuffer(numbers, np.uint8).astype(np.int32)
    return found, np.frombuffer(positions, "<f8").reshape(found.size, 3)


class LabelStore(SQLiteLabels, WritableLabels):
    """A label store, open for reading (default) or, with ``writable=True``, for adding records.

    Readers may be pickled and forked: each process opens the file for itself.

    Args:
        path: of the file; a writer makes it if it is absent.
        writable: whether records are to be added. There is one writer at a time.
        precision: ``float32`` or ``float64`` (default), of the matrices of a new store.
        steps: that each record of a new store has of its SCF; none if it is None.

    Raises:
        DatasetError: no label store or one of another version, or another precision or number of
            steps than the file's.
        OutputError: another process writes to it, or it cannot be written.
        ConfigError: an unknown precision, or less than no steps.
    """

    def __init__(
        self,
        path: str | Path,
        writable: bool = False,
        precision: str | None = None,
        steps: int | None = None,
    ):
        self.path = Path(path)
        if precision not in (None, *PRECISIONS):
            raise ConfigError(f"precision {precision}: choose from {', '.join(PRECISIONS)}")
        if steps is not None and steps < 0:
            raise ConfigError(f"{steps} steps of an SCF: none or more")
        self._known: dict[int, Provenance] = {}
        self._written: Provenance | None = None
        self._lock = ExitStack() if writable else None
        self._owner = os.getpid()
        if self._lock is not None:
            self._lock.enter_context(only_writer(self.path))
        try:
            self._open(precision or "float64", steps or 0)
            for what, wanted, found in (
                ("", precision, self.precision), (" steps of each SCF", steps, self.steps)
            ):  # fmt: skip
                if wanted not in (None, found):
                    raise DatasetError(
                        f"{self.path} holds {found}{what}, not {wanted}: write to another file"
                    )
        except BaseException:
            self._unlock()
            raise

    @property
    def _writes(self) -> bool:
        """Whether this process adds records; a fork of it only reads."""
        return self._lock is not None and self._owner == os.getpid()

    def _open(self, precision: str, steps: int) -> None:
        with opening(self.path, "a label store's"):
            if not self._writes:
                connection = connect_read_only(self.path)
            else:
                connection = sqlite3.connect(self.path, timeout=60)
                connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                # A commit is on the disk, its folder's entry too.
                connection.execute("PRAGMA synchronous = EXTRA")
            # The file may be a stranger's.
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            self._connection, self._process = connection, os.getpid()
            if self._writes and not self._query("SELECT 1 FROM sqlite_master"):
                self._create(precision, steps)
        self._check_tables()

    def _create(self, precision: str, steps: int) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:
            self._connection.execute(f"PRAGMA user_version = {_VERSION}")
            for table in _TABLES:
                self._connection.execute(table)
            values = (("precision", precision), ("steps", str(steps)))
            self._connection.executemany("INSERT INTO store VALUES (?, ?)", values)

    def _check_tables(self) -> None:
        """Refuse all but the tables of this class: views, triggers, other columns."""
        ((found,),) = self._query("PRAGMA user_version")
        tables = self._query("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        if found != _VERSION or {sql for (sql,) in tables} != set(_TABLES):
            raise DatasetError(
                f"{self.path} is no label store of version {_VERSION}: it was made by something "
                f"else, or by another version of this package (its user_version is {found})"
            )
        stored = dict(self._query("SELECT key, value FROM store"))
        precision, steps = stored.get("precision"), str(stored.get("steps"))
        if precision not in PRECISIONS or not steps.isdecimal():
            raise DatasetError(f"{self.path} is damaged: its precision and steps are {stored}")
        self.precision: str = precision
        self.steps = int(steps)
        self.format = f"label store, {self.precision}"

    def _query(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        # A connection must not be carried into another process.
        if self._process != os.getpid():
            self._open(self.precision, self.steps)
        return super()._query(query, *values)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connection": None, "_lock": None, "_process": -1}

    def _unlock(self) -> None:
        if self._lock is not None and self._writes:
            self._lock.close()
            self._lock = None

    def close(self) -> None:
        if self._process == os.getpid():
            super().close()
            self._unlock()

    def __len__(self) -> int:
        return self._query("SELECT COUNT(*) FROM molecules")[0][0]

    def ids(self) -> list[int]:
        return self._integers("id", "molecules")

    def sizes(self) -> list[int]:
        return self._integers("atoms", "molecules")

    def molecules(self) -> list[int]:
        """``qm9_id`` of each row that has one, else its id."""
        return self._integers("ifnull(qm9_id, id)", "molecules")

    def failures(self) -> dict[int, str]:
        return dict(self._query("SELECT id, reason FROM failures ORDER BY id"))

    def failed_molecules(self) -> dict[int, int | None]:
        return dict(self._query("SELECT id, qm9_id FROM failures ORDER BY id"))

    def provenances(self) -> dict[int, Provenance]:
        """All ways in which labels came about, by the number that records have for theirs."""
        found = {}
        for number, settings, *others, checksum in self._query("SELECT * FROM provenance"):
            try:
                if _checksum(settings, *others) != checksum:
                    raise ValueError("its checksum is another")
                found[number] = Provenance(json.loads(settings), *others)
            except (ValueError, TypeError, RecursionError) as error:
                raise DatasetError(
                    f"{self.path}: provenance {number} is damaged: {error}"
                ) from error
        return found

    def settings(self) -> dict[str, Any]:
        """How the labels were made; where a program had several versions, a list of them."""
        merged: dict[str, list[Any]] = {}
        for provenance in self.provenances().values():
            for key, value in provenance.settings.items():
                values = merged.setdefault(key, [])
                if value not in values:
                    values.append(value)
        return {key: values[0] if len(values) == 1 else values for key, values in merged.items()}

    def __getitem__(self, row_id: int) -> Record:
        try:
            rows = self._query(_RECORD, row_id)
        except DatasetError as error:
            raise DatasetError(f"{error} (id {row_id})") from error
        if not rows:
            raise KeyError(f"{self.path} has no record with id {row_id}")
        *content, checksum = rows[0]
        try:
            if checksum is None:
                raise ValueError(self.failures().get(row_id, "its record is missing"))
            if _checksum(row_id, *content) != checksum:
                raise ValueError("its checksum is another: the record is damaged")
            _, qm9_id, numbers, positions, triangle, meta, provenance = content
            arrays = *_decode_atoms(numbers, positions), _unpacked(triangle, self.precision)
            check_arrays(*arrays, asymmetry=None)
            found = json.loads(meta) | ({} if qm9_id is None else {"qm9_id": qm9_id})
            return Record(row_id, *arrays, found, self._provenance(provenance))
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error

    def _provenance(self, number: int) -> Provenance:
        if number not in self._known:
            self._known = self.provenances()
        return self._known[number]

    def steps_of(self, row_id: int) -> tuple[SCFStep, ...]:
        query = "SELECT step, hamiltonian, fock, checksum FROM steps WHERE id = ? ORDER BY step"
        steps = []
        for step, hamiltonian, fock, checksum in self._query(query, row_id):
            try:
                if _checksum(row_id, step, hamiltonian, fock) != checksum:
                    raise ValueError("its checksum is another: it is damaged")
                matrices = (_unpacked(part, self.precision) for part in (hamiltonian, fock))
                steps.append(SCFStep(*matrices))
            except (ValueError, TypeError) as error:
                raise DatasetError(f"{self.path}, id {row_id}, step {step}: {error}") from error
        return tuple(steps)

    def atoms(self, row_id: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._query("SELECT numbers, positions FROM records WHERE id = ?", row_id)
        if not rows:
            raise KeyError(f"{self.path} has no record with id {row_id}")
        try:
            return _decode_atoms(*rows[0])
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error

    def meta(self, row_id: int) -> dict[str, Any]:
        rows = self._query("SELECT meta FROM records WHERE id = ?", row_id)
        if not rows:
            raise KeyError(f"{self.path} has no record with id {row_id}")
        try:
            found: dict[str, Any] = json.loads(rows[0][0])
        except (ValueError, TypeError, RecursionError) as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error
        return found

    def add_all(self, records: Iterable[Record]) -> None:
        with self._transaction() as connection:
            for record in records:
                molecule, row = self._rows(record)
                try:
                    connection.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                except sqlite3.IntegrityError as error:
                    raise DatasetError(f"{self.path} has a record with id {record.id}") from error
                connection.execute("INSERT OR REPLACE INTO molecules VALUES (?, ?, ?)", molecule)
                connection.execute("DELETE FROM failures WHERE id = ?", (record.id,))
                for step in self._rows_of_steps(record):
                    connection.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?)", step)

    def add_failure(
        self, row_id: int, qm9_id: int | None, reason: str, atoms: int | None = None
    ) -> None:
        row = (row_id, qm9_id, reason)
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", row)
            if atoms is not None:
                place = (row_id, atoms, qm9_id)
                connection.execute("INSERT OR REPLACE INTO molecules VALUES (?, ?, ?)", place)

    def write_settings(self, settings: dict[str, Any], source: str | None = None) -> None:
        # As they will be read again.
        self._written = Provenance(json.loads(json.dumps(settings)), source, _writer())
        with self._transaction():
            self._number(self._written)

    def _transaction(self) -> sqlite3.Connection:
        """The connection, which is a context that commits, or takes all back after an error."""
        if not self._writes:
            raise DatasetError(f"{self.path} is open for reading")
        return self._connection

    def _rows(self, record: Record) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What the tables of molecules and of records hold of one.

        Raises:
            DatasetError: it cannot be a molecule and its Hamiltonian.
        """
        number = self._number(record.provenance or self._own())
        meta = {key: value for key, value in record.meta.items() if value is not None}
        qm9_id = meta.pop("qm9_id", None)
        try:
            check_arrays(record.numbers, record.positions, record.hamiltonian, _ASYMMETRY)
            molecule = len(record.numbers), None if qm9_id is None else operator.index(qm9_id)
            content = (
                np.asarray(record.numbers, np.uint8).tobytes(),
                np.asarray(record.positions, "<f8").tobytes(),
                self._packed(record.hamiltonian),
                json.dumps(meta, default=_plain),
                number,
            )
        except (ValueError, TypeError) as error:
            raise DatasetError(f"cannot write id {record.id} to {self.path}: {error}") from error
        checksum = _checksum(record.id, *molecule, *content)
        return (record.id, *molecule), (record.id, *content, checksum)

    def _packed(self, matrix: np.ndarray) -> bytes:
        """The upper triangle of a matrix that is symmetric up to rounding."""
        triangle = symmetric(matrix)[_upper(len(matrix))]
        return triangle.astype(PRECISIONS[self.precision]).tobytes()

    def _rows_of_steps(self, record: Record) -> Iterator[tuple[Any, ...]]:
        """Rows of the steps of a record's SCF.

        Raises:
            DatasetError: they are not of its molecule.
        """
        for number, step in enumerate(record.steps[: self.steps]):
            try:
                for matrix in (step.hamiltonian, step.fock):
                    check_arrays(record.numbers, record.positions, matrix, _ASYMMETRY)
                    if matrix.shape != record.hamiltonian.shape:
                        raise ValueError(f"a matrix of shape {matrix.shape}")
            except ValueError as error:
                raise DatasetError(
                    f"cannot write step {number} of id {record.id} to {self.path}: {error}"
                ) from error
            packed = self._packed(step.hamiltonian), self._packed(step.fock)
            content = (record.id, number, *packed)
            yield *content, _checksum(*content)

    def _own(self) -> Provenance:
        """That of records that do not say: of the settings that were written last."""
        if self._written is None:
            self._written = Provenance(self.settings(), None, _writer())
        return self._written

    def _number(self, provenance: Provenance) -> int:
        """Number of a provenance, which is written if it is new.

        Raises:
            DatasetError: the method is not that of the other records.
        """
        known = self.provenances()
        for number, other in known.items():
            if other == provenance:
                return number
            refuse_mixture(self.path, other.settings, provenance.settings)
        number = len(known) + 1
        content = (json.dumps(provenance.settings), provenance.source, provenance.written_by)
        row = (number, *content, _checksum(*content))
        self._connection.execute("INSERT INTO provenance VALUES (?, ?, ?, ?, ?)", row)
        return number
