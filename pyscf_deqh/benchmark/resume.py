"""Rows in a JSON file, which a command that was stopped goes on after."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, exit_status
from ..files import only_writer, write_json
from .environment import environment


def read_rows(
    path: Path, settings: dict[str, Any], check: Callable[[dict[str, Any]], object] = dict
) -> list[dict[str, Any]]:
    """Rows of an earlier run, or none.

    Args:
        path: of the file, which does not have to exist.
        settings: what the rows were made with, and have to be.
        check: of a row, which it calls; raises ValueError, KeyError or TypeError.

    Raises:
        ConfigError: other settings, or no such file of rows.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text())
        rows, found = [dict(row) for row in content["rows"]], dict(content["settings"])
        for row in rows:
            check(row)
            row.setdefault("environment", None)  # of before rows said it
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no rows of this command: {error!r}") from error
    different = {key for key in found | settings if found.get(key) != settings.get(key)}
    if different:
        made = ", ".join(f"{key} {found.get(key)}" for key in sorted(different))
        raise ConfigError(f"{path} was made with {made}: name another file")
    return rows


def write_rows(path: Path, settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """All rows so far, new ones with the state of machine and code that has made them."""
    now = environment()
    for row in rows:
        row.setdefault("environment", now)
    write_json(path, {"environment": now, "settings": settings, "rows": rows})


def run_resumable(command: Callable[[], int], path: Path | None) -> int:
    """Exit status of a command that writes rows to ``path``, its ``--json``, as the only one that
    does; without it rows are not kept."""
    if path is None:
        return exit_status(command, "interrupted; with --json, the same command goes on")
    return exit_status(only_writer(path)(command), "interrupted; the same command goes on")
