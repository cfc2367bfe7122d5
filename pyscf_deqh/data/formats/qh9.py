"""Reader and writer of the QH9 SQLite schema (Yu et al., NeurIPS 2023).

Table ``data``: ``id INTEGER, N INTEGER, Z BLOB (int32), pos BLOB (float64, angstrom),
Ham BLOB (float64, hartree, row-major, PySCF AO order)``. Databases that this package writes
add three tables that QH9 readers ignore: ``meta`` (origin and energy of each row),
``settings`` (how the labels were made) and ``failures`` (molecules without a label, and why).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DatasetError
from ..record import LabelFile, Record, check_arrays

_SCHEMA = """
CREATE TABLE IF NOT EXISTS data
    (id INTEGER NOT NULL PRIMARY KEY, N INTEGER, Z BLOB, pos BLOB, Ham BLOB);
CREATE TABLE IF NOT EXISTS meta
    (id INTEGER NOT NULL PRIMARY KEY, qm9_id INTEGER, smiles TEXT, kind TEXT, energy REAL,
     grid_level INTEGER, temperature REAL);
CREATE TABLE IF NOT EXISTS settings (key TEXT NOT NULL PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS failures (id INTEGER NOT NULL PRIMARY KEY, qm9_id INTEGER, reason TEXT);
"""
_META = ("qm9_id", "smiles", "kind", "energy", "grid_level", "temperature")


def decode_atoms(n_atoms: int, numbers: bytes, positions: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (N,) and positions (N, 3) from blobs; raises ValueError or TypeError."""
    # Some files hold 64-bit numbers; the length of the blob tells.
    z = np.frombuffer(numbers, np.int64 if len(numbers) == 8 * n_atoms else np.int32)
    if z.size != n_atoms:
        raise ValueError(f"N is {n_atoms}, but Z holds {z.size} numbers")
    return z.astype(np.int32), np.frombuffer(positions, np.float64).reshape(n_atoms, 3)


def decode_matrix(blob: bytes) -> np.ndarray:
    """A square matrix from a row-major float64 blob; raises ValueError or TypeError."""
    values = np.frombuffer(blob, np.float64)
    size = round(np.sqrt(values.size))
    if size * size != values.size:
        raise ValueError(f"Ham holds {values.size} numbers, which is no square matrix")
    return values.reshape(size, size)


@contextmanager
def opening(path: Path, kind: str) -> Iterator[None]:
    """Turn errors of SQLite into a DatasetError that says what the file was to be."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise DatasetError(f"{path} cannot be opened as {kind} database: {error}") from error


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open an SQLite file for reading; works on read-only media and makes no files beside it."""
    if not path.is_file():
        raise DatasetError(f"no database at {path}")
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def table_columns(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Names of the columns of every table."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
    return {
        name: {row[1] for row in connection.execute(f'PRAGMA table_info("{name}")')}
        for (name,) in tables
    }


def columns_of(path: Path) -> dict[str, set[str]]:
    """The same of a file."""
    with closing(connect_read_only(path)) as connection:
        return table_columns(connection)


def check_columns(path: Path, columns: dict[str, set[str]], wanted: set[str]) -> None:
    """Refuse a file whose table ``data`` is missing or lacks columns."""
    if "data" not in columns:
        raise DatasetError(
            f"{path} has no table 'data' (found: {', '.join(sorted(columns)) or 'none'}); "
            "expected the QH9 schema"
        )
    missing = wanted - columns["data"]
    if missing:
        raise DatasetError(f"{path}: table 'data' lacks the columns {', '.join(sorted(missing))}")


def _check_own(path: Path) -> None:
    """Refuse to write into a database that :class:`QH9Database` has not made."""
    if not path.is_file() or not path.stat().st_size:
        return
    found = set(columns_of(path))
    if found and not {"data", "meta", "settings", "failures"} <= found:
        raise DatasetError(f"{path} was not made by this package: name another file to write to")


class QH9Database(LabelFile):
    """A QH9 database opened for reading (default) or, with ``writable=True``, for adding rows.

    Rows are added to new files and to those that this class has made, and to no others.

    Raises:
        DatasetError: not a database, a wrong schema, or a row whose arrays do not fit together.
    """

    format = "QH9"

    def __init__(self, path: str | Path, writable: bool = False):
        self.path = Path(path)
        with opening(self.path, "a QH9"):
            if writable:
                _check_own(self.path)
                self._connection = sqlite3.connect(self.path)
                self._connection.executescript(_SCHEMA)
            else:
                self._connection = connect_read_only(self.path)
            columns = table_columns(self._connection)
        check_columns(self.path, columns, {"id", "N", "Z", "pos", "Ham"})
        if "geo_id" in columns["data"]:
            # Its positions are in bohr.
            raise DatasetError(f"{self.path} is a QH9-dynamic file; open it with open_labels")
        self._tables = set(columns)

    def close(self) -> None:
        self._connection.close()

    def __len__(self) -> int:
        return self._connection.execute("SELECT COUNT(*) FROM data").fetchone()[0]

    def ids(self) -> list[int]:
        return [i for (i,) in self._connection.execute("SELECT id FROM data ORDER BY rowid")]

    def sizes(self) -> list[int]:
        return [n for (n,) in self._connection.execute("SELECT N FROM data ORDER BY rowid")]

    def molecules(self) -> list[int]:
        """``qm9_id`` of each row where the file has one, else its id."""
        ids = self.ids()
        if "meta" not in self._tables:
            return ids
        known = dict(
            self._connection.execute("SELECT id, qm9_id FROM meta WHERE qm9_id IS NOT NULL")
        )
        return [known.get(i, i) for i in ids]

    def __getitem__(self, row_id: int) -> Record:
        try:
            row = self._connection.execute(
                "SELECT N, Z, pos, Ham FROM data WHERE id = ?", (row_id,)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error
        if row is None:
            raise KeyError(f"{self.path} has no row with id {row_id}")
        try:
            numbers, positions = decode_atoms(*row[:3])
            hamiltonian = decode_matrix(row[3])
            check_arrays(numbers, positions, hamiltonian)
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error
        return Record(row_id, numbers, positions, hamiltonian, self.meta(row_id))

    def atoms(self, row_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Atomic numbers (N,) and positions (N, 3) in angstrom of a row, without its matrix."""
        query = "SELECT N, Z, pos FROM data WHERE id = ?"
        return decode_atoms(*self._connection.execute(query, (row_id,)).fetchone())

    def meta(self, row_id: int) -> dict[str, Any]:
        """The row of table ``meta``, or ``{}`` where the database has none."""
        if "meta" not in self._tables:
            return {}
        row = self._connection.execute(
            f"SELECT {', '.join(_META)} FROM meta WHERE id = ?", (row_id,)
        ).fetchone()
        return dict(zip(_META, row, strict=True)) if row else {}

    def add(self, record: Record) -> None:
        """Write one row, with its meta data, in a transaction of its own."""
        with self._connection:
            self._connection.execute(
                "INSERT INTO data VALUES (?, ?, ?, ?, ?)",
                (
                    record.id,
                    len(record.numbers),
                    np.asarray(record.numbers, np.int32).tobytes(),
                    np.asarray(record.positions, np.float64).tobytes(),
                    np.asarray(record.hamiltonian, np.float64).tobytes(),
                ),
            )
            self._connection.execute(
                f"INSERT INTO meta (id, {', '.join(_META)}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (record.id, *(record.meta.get(key) for key in _META)),
            )
            self._connection.execute("DELETE FROM failures WHERE id = ?", (record.id,))

    def add_failure(self, row_id: int, qm9_id: int | None, reason: str) -> None:
        """Record a molecule that has no label, so that it is never dropped without a word."""
        with self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", (row_id, qm9_id, reason)
            )

    def failures(self) -> dict[int, str]:
        """Reasons by row id."""
        if "failures" not in self._tables:
            return {}
        return dict(self._connection.execute("SELECT id, reason FROM failures ORDER BY id"))

    def settings(self) -> dict[str, Any]:
        """How the labels were made: method, basis, grid, tolerance, PySCF version …"""
        if "settings" not in self._tables:
            return {}
        rows = self._connection.execute("SELECT key, value FROM settings")
        return {key: json.loads(value) for key, value in rows}

    def write_settings(self, settings: dict[str, Any]) -> None:
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO settings VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in settings.items()],
            )
