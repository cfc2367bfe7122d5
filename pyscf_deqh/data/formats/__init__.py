"""One way to open every file of labels: the format is recognised from the content."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ...errors import DatasetError
from ..record import LabelFile
from .md17 import MD17Arrays, MD17Database
from .qh9 import QH9Database
from .qh9_dynamic import QH9DynamicDatabase
from .sqlite import columns_of, what_to_do


def open_labels(path: str | Path) -> LabelFile:
    """Open labels of any known format for reading: QH9, QH9-dynamic, MD17 as ASE database or npz.

    Raises:
        DatasetError: no such file, or none of these formats; the message says what was found.
    """
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as handle:
            if handle.read(4) == b"PK\x03\x04":
                return MD17Arrays(path)
    try:
        columns = columns_of(path)
    except sqlite3.DatabaseError as error:
        advice = what_to_do(error) or (
            "Expected a database of QH9, QH9-dynamic or MD17 (ASE), or an .npz file of MD17"
        )
        raise DatasetError(f"{path} cannot be opened: {error}. {advice}") from error
    if "systems" in columns:
        return MD17Database(path)
    if "geo_id" in columns.get("data", ()):
        return QH9DynamicDatabase(path)
    return QH9Database(path)
