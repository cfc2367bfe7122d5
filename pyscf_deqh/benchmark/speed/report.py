"""Rows of figures: printed as they are measured, and written to JSON after each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import DEQHError
from ...files import write_json
from ..environment import environment
from .timing import Sample


class Report:
    """All rows of one run.

    Args:
        path: JSON file, rewritten after every row; None for none.
        settings: what the run was asked for; goes into the file.
    """

    def __init__(self, path: Path | None = None, settings: dict[str, Any] | None = None):
        self.path = path
        self.settings = settings or {}
        self.environment = environment()
        self.rows: list[dict[str, Any]] = []
        self._part = ""

    def start(self, part: str, title: str) -> None:
        """Begin a part: the rows that follow belong to it."""
        self._part = part
        print(f"\n{part}: {title}\n  {'':58} {'median':>10} {'IQR':>9} {'n':>4}", flush=True)

    def add(
        self, name: str, sample: Sample | float, unit: str = "", note: str = "", **details: Any
    ) -> None:
        """One figure: repeated measurements, or a single number."""
        if not isinstance(sample, Sample):
            sample = Sample((float(sample),))
        spread = f"{sample.spread:.2g}" if sample.n > 1 else ""
        text = f"  {name:58} {sample.median:>10.4g} {spread:>9} {sample.n:>4}  {unit}"
        print(f"{text}   {note}" if note else text, flush=True)
        self._append(
            name=name, unit=unit, n=sample.n, median=sample.median, spread=sample.spread,
            values=list(sample.values), note=note, **details,
        )  # fmt: skip

    def say(self, name: str, note: str, **details: Any) -> None:
        """A row without a figure: what was left out or found, and why."""
        print(f"  {name}: {note}", flush=True)
        self._append(name=name, note=note, **details)

    def _append(self, **row: Any) -> None:
        self.rows.append({"part": self._part} | row)
        self.save()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """A row's failure is a row; the others go on.

        Raises:
            DEQHError: the run was asked for something impossible; no row can do better.
        """
        try:
            yield
        except DEQHError:
            raise
        except Exception as error:
            first = (str(error).strip() or repr(error)).splitlines()[0][:200]
            self.say(name, f"failed: {type(error).__name__}: {first}", failed=True)

    def find(self, name: str) -> dict[str, Any]:
        """The last row of this name.

        Raises:
            KeyError: there is none.
        """
        for row in reversed(self.rows):
            if row["name"] == name:
                return row
        raise KeyError(name)

    @property
    def failures(self) -> Sequence[dict[str, Any]]:
        return [row for row in self.rows if row.get("failed")]

    def save(self) -> None:
        if self.path is None:
            return
        content = {
            "environment": self.environment,
            "settings": self.settings,
            "rows": self.rows,
        }
        write_json(self.path, content, default=str)
