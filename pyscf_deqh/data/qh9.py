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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError
from .geometry import Geometry

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


@dataclass
class Record:
    """A labelled molecule: positions (N, 3) in angstrom, hamiltonian (nao, nao) in hartree."""

    id: int
    numbers: np.ndarray
    positions: np.ndarray
    hamiltonian: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    def geometry(self) -> Geometry:
        info = {"id": str(self.id)} | {k: str(v) for k, v in self.meta.items() if v is not None}
        return Geometry(self.numbers, self.positions, info)


class QH9Database:
    """A QH9 database opened for reading (default) or, with ``writable=True``, for adding rows.

    Raises:
        DatasetError: not a database, a wrong schema, or a row whose arrays do not fit together.
    """

    def __init__(self, path: str | Path, writable: bool = False):
        self.path = Path(path)
        if not writable and not self.path.is_file():
            raise DatasetError(f"no database at {self.path}")
        # Read-only mode works on read-only media and never makes journal files beside the data.
        mode = "rwc" if writable else "ro"
        try:
            self._connection = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode={mode}", uri=True
            )
            if writable:
                self._connection.executescript(_SCHEMA)
            self._check_schema()
        except sqlite3.DatabaseError as error:
            raise DatasetError(
                f"{self.path} cannot be opened as a QH9 database: {error}"
            ) from error

    def _tables(self) -> set[str]:
        rows = self._connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
        return {name for (name,) in rows}

    def _check_schema(self) -> None:
        tables = self._tables()
        if "data" not in tables:
            raise DatasetError(
                f"{self.path} has no table 'data' (found: {', '.join(sorted(tables)) or 'none'}); "
                "expected the QH9 schema"
            )
        columns = {row[1] for row in self._connection.execute("PRAGMA table_info(data)")}
        missing = {"id", "N", "Z", "pos", "Ham"} - columns
        if missing:
            raise DatasetError(
                f"{self.path}: table 'data' lacks the columns {', '.join(sorted(missing))}"
            )
        self._has_meta = "meta" in tables

    def __enter__(self) -> QH9Database:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def __len__(self) -> int:
        return self._connection.execute("SELECT COUNT(*) FROM data").fetchone()[0]

    def ids(self) -> list[int]:
        return [i for (i,) in self._connection.execute("SELECT id FROM data ORDER BY id")]

    def __iter__(self) -> Iterator[Record]:
        for row_id in self.ids():
            yield self[row_id]

    def __getitem__(self, row_id: int) -> Record:
        try:
            row = self._connection.execute(
                "SELECT N, Z, pos, Ham FROM data WHERE id = ?", (row_id,)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error
        if row is None:
            raise KeyError(f"{self.path} has no row with id {row_id}")
        n_atoms, z_blob, pos_blob, ham_blob = row
        try:
            numbers = np.frombuffer(z_blob, np.int32)
            positions = np.frombuffer(pos_blob, np.float64).reshape(n_atoms, 3)
            hamiltonian = np.frombuffer(ham_blob, np.float64)
            nao = round(np.sqrt(hamiltonian.size))
            hamiltonian = hamiltonian.reshape(nao, nao)
            if numbers.size != n_atoms:
                raise ValueError(f"N is {n_atoms}, but Z holds {numbers.size} numbers")
            if not (np.isfinite(positions).all() and np.isfinite(hamiltonian).all()):
                raise ValueError("NaN or infinite values")
            if np.abs(hamiltonian - hamiltonian.T).max() > 1e-6:
                raise ValueError("Ham is not symmetric")
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error
        return Record(row_id, numbers, positions, hamiltonian, self.meta(row_id))

    def meta(self, row_id: int) -> dict[str, Any]:
        """The row of table ``meta``, or ``{}`` where the database has none."""
        if not self._has_meta:
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
        if "failures" not in self._tables():
            return {}
        return dict(self._connection.execute("SELECT id, reason FROM failures ORDER BY id"))

    def settings(self) -> dict[str, Any]:
        """How the labels were made: method, basis, grid, tolerance, PySCF version …"""
        if "settings" not in self._tables():
            return {}
        rows = self._connection.execute("SELECT key, value FROM settings")
        return {key: json.loads(value) for key, value in rows}

    def write_settings(self, settings: dict[str, Any]) -> None:
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO settings VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in settings.items()],
            )
