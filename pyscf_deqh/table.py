"""Rows that come one by one and end in a Parquet file.

Until the end they lie in a journal beside it (JSON, one line a row), so that none is lost: whoever
opens the file next, after a kill for instance, finds them there.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .errors import ConfigError, DatasetError
from .files import differences, only_writer, replacing, writing

_METADATA = b"pyscf_deqh"


class RowTable:
    """A table with a row for each ``id``; a context, at whose end the Parquet file is written.

    Args:
        path: a ``.parquet`` file; made if absent, else extended.
        columns: type of each by name, one of Arrow's names, or ``doubles`` for a list of them.
        settings: what the rows are made with; those of an existing file have to be the same.

    Raises:
        ConfigError: another kind of file.
        DatasetError: a file with other columns or settings, or damaged.
        OutputError: another process writes to it, or it cannot be written.
        ModuleNotFoundError: pyarrow is not installed.
    """

    def __init__(self, path: Path, columns: dict[str, str], settings: dict[str, Any]):
        import pyarrow as pa

        if path.suffix != ".parquet":
            raise ConfigError(f"{path}: rows are written to a .parquet file")
        self.path, self.settings = path.resolve(), settings
        types = {
            name: pa.list_(pa.float64()) if kind == "doubles" else pa.type_for_alias(kind)
            for name, kind in columns.items()
        }
        metadata = {_METADATA: json.dumps(settings, sort_keys=True)}
        self._schema = pa.schema(types, metadata)
        self._rows: dict[int, dict[str, Any]] = {}
        self._journal: IO[str]
        self._closing: ExitStack

    @property
    def _journal_path(self) -> Path:
        return self.path.with_name(self.path.name + ".journal")

    def __enter__(self) -> RowTable:
        with ExitStack() as stack:
            stack.enter_context(only_writer(self.path))
            with writing(self._journal_path):
                self._journal = open(self._journal_path, "a+", encoding="utf-8")
            stack.callback(self._close)
            self._written = self._read_parquet()
            with writing(self._journal_path):
                self._read_journal()
            self._closing = stack.pop_all()
        return self

    def _close(self) -> None:
        # What a full disk has not taken is tried once more here; the first error says why.
        with suppress(OSError):
            self._journal.close()

    def _read_parquet(self) -> Any:
        import pyarrow as pa
        from pyarrow import parquet

        if not self.path.exists():
            return self._schema.empty_table()
        try:
            table = parquet.read_table(self.path)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{self.path} is no Parquet file: {error}") from error
        found = (table.schema.metadata or {}).get(_METADATA)
        if not table.schema.equals(self._schema) or found is None:
            raise DatasetError(f"{self.path} was not made by this command: name another file")
        if not len(table):
            return self._schema.empty_table()
        self._check_settings(json.loads(found))
        return table

    def _check_settings(self, found: dict[str, Any]) -> None:
        if changed := differences(found, self.settings):
            raise DatasetError(
                f"{self.path} was made with other settings ({'; '.join(changed)}); write to "
                "another file or repeat its settings"
            )

    def _read_journal(self) -> None:
        """Rows of a run that was killed; a line that was being written is cut off."""
        self._journal.seek(0)
        try:
            head = self._journal.readline()
            end = len(head.encode())
            settings = dict(json.loads(head)) if head.endswith("\n") else {}
            while (line := self._journal.readline()).endswith("\n"):
                row = json.loads(line)
                self._rows[row["id"]] = row
                end += len(line.encode())
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{self._journal_path} is damaged: {error}") from error
        if not self._rows:
            self._journal.truncate(0)
            self._append(self.settings)
            return
        self._check_settings(settings)
        self._journal.truncate(end)

    def _append(self, content: dict[str, Any]) -> None:
        self._journal.write(json.dumps(content) + "\n")
        self._journal.flush()

    def column(self, name: str) -> dict[int, Any]:
        """A column by id."""
        ids, values = (self._written.column(key).to_pylist() for key in ("id", name))
        return dict(zip(ids, values, strict=True)) | {i: r.get(name) for i, r in self._rows.items()}

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, in the place of one with the same ``id``; what it lacks is null.

        Raises:
            DatasetError: it does not fit the columns.
            OutputError: it cannot be written; those before are kept.
        """
        import pyarrow as pa

        try:
            pa.Table.from_pylist([row], self._schema)
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise DatasetError(f"a row does not fit the columns of {self.path}: {error}") from error
        with writing(self._journal_path):
            self._append(row)
        self._rows[row["id"]] = row

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._closing:
            self._write(failed=kind is not None)

    def _write(self, failed: bool) -> None:
        """Old and new rows, sorted by id, into a new file that takes the old one's place.

        Args:
            failed: whether an error comes next; then no file is made for no rows.

        Raises:
            OutputError: it cannot be written; all rows are in the journal then.
        """
        import pyarrow as pa
        from pyarrow import compute, parquet

        if self._rows or not (failed or self.path.exists()):
            replaced = compute.is_in(
                self._written.column("id"), pa.array(list(self._rows), "int64")
            )
            new = pa.Table.from_pylist(list(self._rows.values()), self._schema)
            table = pa.concat_tables([self._written.filter(compute.invert(replaced)), new])
            with replacing(self.path) as part:
                parquet.write_table(table.sort_by("id"), part)
        with writing(self._journal_path):
            self._journal_path.unlink()
