"""What the formats that are SQLite databases have in common; a damaged file is a DatasetError."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ...errors import DatasetError
from ..record import LabelFile

# What SQLite's module raises for a damaged file; the second where the message itself is damaged.
DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)


@contextmanager
def opening(path: Path, kind: str) -> Iterator[None]:
    """Turn errors of SQLite into a DatasetError that says what the file was to be."""
    try:
        yield
    except DAMAGE as error:
        raise DatasetError(
            f"{path} cannot be opened as {kind} database: {explained(error)}"
        ) from error


# What SQLite says, and what helps.
_AGAIN = "run the same command again"
_ADVICE = {
    "is full": f"Free some space, and {_AGAIN}",
    "is locked": f"Wait for the other process that uses it, and {_AGAIN}; if there is none, its "
    "file system has no locks: take a local disk",
    "locking protocol": "Its file system has no locks: take a local disk",
    "disk I/O error": f"Look after the disk (space, limits, locks), and {_AGAIN}",
    "readonly": "Name a place that you may write to",
    "unable to open": "Look after its folder and your permissions",
    "constraint failed": f"Wait for the other process that writes to it, and {_AGAIN}",
}


def what_to_do(error: Exception) -> str | None:
    """Advice for errors that the place of a database or another process have led to."""
    return next((advice for words, advice in _ADVICE.items() if words in str(error)), None)


def explained(error: Exception) -> str:
    """The error, with advice if there is some."""
    advice = what_to_do(error)
    return f"{error}. {advice}" if advice else str(error)


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open an SQLite file for reading; works on read-only media and makes no files beside it.

    A writer that was killed in a transaction leaves a journal, by which SQLite takes the file back
    to the last whole transaction; that needs leave to write.
    """
    if not path.is_file():
        raise DatasetError(f"no database at {path}")
    mode = "rw" if Path(f"{path}-journal").exists() else "ro"
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", timeout=60, uri=True)
    connection.execute("PRAGMA query_only = ON")
    return connection


@contextmanager
def writing(labels: LabelFile) -> Iterator[None]:
    """Turn errors of SQLite in rows that are added into a DatasetError that says what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DatasetError(
            f"cannot write to {labels.path}: {explained(error)}. The {len(labels)} rows in it are "
            "kept"
        ) from error
    except sqlite3.IntegrityError as error:
        raise DatasetError(
            f"another process writes to {labels.path}: wait for it, and run the same command again"
        ) from error
    except DAMAGE as error:
        raise DatasetError(f"{labels.path} is damaged: {error}") from error


def table_columns(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Names of the columns of every table."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
    return {
        name: {row[1] for row in connection.execute("SELECT * FROM pragma_table_info(?)", (name,))}
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


class SQLiteLabels(LabelFile):
    """Labels in an open connection of SQLite."""

    _connection: sqlite3.Connection

    def close(self) -> None:
        self._connection.close()

    def _query(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query.

        Raises:
            DatasetError: the file is damaged, or cannot be read.
        """
        try:
            return self._connection.execute(query, values).fetchall()
        except DAMAGE as error:
            raise DatasetError(f"{self.path} cannot be read: {explained(error)}") from error
        except OverflowError as error:
            raise DatasetError(f"{self.path} cannot be read: {error}") from error

    def _integers(self, column: str, table: str = "data") -> list[int]:
        """A column in the order of the rows."""
        found = [value for (value,) in self._query(f"SELECT {column} FROM {table} ORDER BY rowid")]
        wrong = [value for value in found if not isinstance(value, int)]
        if wrong:
            raise DatasetError(f"{self.path}: {column} of a row is {wrong[0]!r}, and no integer")
        return found
