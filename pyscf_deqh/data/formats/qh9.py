"""Reader and writer of the QH9 SQLite schema (Yu et al., NeurIPS 2023).

Table ``data``: ``id INTEGER, N INTEGER, Z BLOB (int32), pos BLOB (float64, angstrom),
Ham BLOB (float64, hartree, row-major, PySCF AO order)``. Databases that this package writes
add three tables that QH9 readers ignore: ``meta`` (origin and energy of each row),
``settings`` (how the labels were made) and ``failures`` (molecules without a label, and why).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DatasetError
from ..record import Record, WritableLabels, check_arrays, refuse_mixture
from .sqlite import (
    SQLiteLabels,
    check_columns,
    columns_of,
    connect_read_only,
    opening,
    table_columns,
)

# As a whole or not at all: a part of it is not this package's.
_SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS data
    (id INTEGER NOT NULL PRIMARY KEY, N INTEGER, Z BLOB, pos BLOB, Ham BLOB);
CREATE TABLE IF NOT EXISTS meta
    (id INTEGER NOT NULL PRIMARY KEY, qm9_id INTEGER, smiles TEXT, kind TEXT, energy REAL,
     grid_level INTEGER, temperature REAL);
CREATE TABLE IF NOT EXISTS settings (key TEXT NOT NULL PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS failures (id INTEGER NOT NULL PRIMARY KEY, qm9_id INTEGER, reason TEXT);
COMMIT;
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


def _check_own(path: Path) -> None:
    """Refuse to write into a database that :class:`QH9Database` has not made."""
    if not path.is_file() or not path.stat().st_size:
        return
    found = set(columns_of(path))
    if found and not {"data", "meta", "settings", "failures"} <= found:
        raise DatasetError(f"{path} was not made by this package: name another file to write to")


class QH9Database(SQLiteLabels, WritableLabels):
    """A QH9 database opened for reading (default) or, with ``writable=True``, for adding rows.

    Rows are added to new files and to those that this class has made, and to no others.

    Raises:
        DatasetError: not a database, a wrong schema, or a row whose arrays do not fit together.
    """

    format = "QH9"
    holds_ions = holds_seeds = False

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

    def __len__(self) -> int:
        return self._query("SELECT COUNT(*) FROM data")[0][0]

    def ids(self) -> list[int]:
        return self._integers("id")

    def sizes(self) -> list[int]:
        return self._integers("N")

    def molecules(self) -> list[int]:
        """``qm9_id`` of each row where the file has one, else its id."""
        ids = self.ids()
        if "meta" not in self._tables:
            return ids
        known = dict(self._query("SELECT id, qm9_id FROM meta WHERE qm9_id IS NOT NULL"))
        return [known.get(i, i) for i in ids]

    def __getitem__(self, row_id: int) -> Record:
        rows = self._query("SELECT N, Z, pos, Ham FROM data WHERE id = ?", row_id)
        if not rows:
            raise KeyError(f"{self.path} has no row with id {row_id}")
        *arrays, matrix = rows[0]
        try:
            numbers, positions = decode_atoms(*arrays)
            hamiltonian = decode_matrix(matrix)
            check_arrays(numbers, positions, hamiltonian)
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error
        return Record(row_id, numbers, positions, hamiltonian, self.meta(row_id))

    def atoms(self, row_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Atomic numbers (N,) and positions (N, 3) in angstrom of a row, without its matrix."""
        (row,) = self._query("SELECT N, Z, pos FROM data WHERE id = ?", row_id)
        try:
            return decode_atoms(*row)
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error

    def meta(self, row_id: int) -> dict[str, Any]:
        """The row of table ``meta``, or ``{}`` where the database has none."""
        if "meta" not in self._tables:
            return {}
        rows = self._query(f"SELECT {', '.join(_META)} FROM meta WHERE id = ?", row_id)
        return dict(zip(_META, rows[0], strict=True)) if rows else {}

    def add_all(self, records: Iterable[Record]) -> None:
        with self._connection:
            for record in records:
                if record.charge:
                    raise DatasetError(
                        f"QH9's schema, of {self.path}, has no place for the charge of id "
                        f"{record.id}: write to a label store"
                    )
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

    def add_failure(
        self, row_id: int, qm9_id: int | None, reason: str, atoms: int | None = None
    ) -> None:
        if atoms is not None:
            raise DatasetError(
                f"QH9's schema, of {self.path}, has no place for rows without a label, which split "
                "rules count: write to a label store"
            )
        with self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", (row_id, qm9_id, reason)
            )

    def failures(self) -> dict[int, str]:
        """Reasons by row id."""
        if "failures" not in self._tables:
            return {}
        return dict(self._query("SELECT id, reason FROM failures ORDER BY id"))

    def failed_molecules(self) -> dict[int, int | None]:
        if "failures" not in self._tables:
            return {}
        return dict(self._query("SELECT id, qm9_id FROM failures ORDER BY id"))

    def settings(self) -> dict[str, Any]:
        """How the labels were made: method, basis, grid, tolerance, PySCF version …"""
        if "settings" not in self._tables:
            return {}
        rows = self._query("SELECT key, value FROM settings")
        try:
            return {key: json.loads(value) for key, value in rows}
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{self.path}: the table of settings is damaged: {error}") from error

    def write_settings(self, settings: dict[str, Any], source: str | None = None) -> None:
        """Say how all labels are made; there is no place for ``source``."""
        if found := self.settings():
            refuse_mixture(self.path, found, settings, versions=True)
            return
        with opening(self.path, "a QH9"), self._connection:
            self._connection.executemany(
                "INSERT INTO settings VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in settings.items()],
            )
