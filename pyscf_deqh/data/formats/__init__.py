"""One way to open every file of labels: the format is recognised from the content.

A file that is to be written is of the format that its suffix names.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import ConfigError, DatasetError
from ..record import LabelFile, WritableLabels
from .md17 import MD17Arrays, MD17Database
from .nabladft import NablaDFTDatabase, is_nabladft
from .qh9 import QH9Database
from .qh9_dynamic import QH9DynamicDatabase
from .sqlite import DAMAGE, columns_of, what_to_do
from .store import SUFFIX, LabelStore

SUFFIXES = (".db", ".npz", SUFFIX)


def open_labels(path: str | Path) -> LabelFile:
    """Open labels of any known format for reading: a label store, QH9, QH9-dynamic, nablaDFT, MD17
    as ASE database or npz.

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
    except DAMAGE as error:
        advice = what_to_do(error) or (
            "Expected a label store, a database of QH9, QH9-dynamic, nablaDFT or MD17 (ASE), or an "
            ".npz file of MD17"
        )
        raise DatasetError(f"{path} cannot be opened: {error}. {advice}") from error
    if "records" in columns:
        return LabelStore(path)
    if "systems" in columns:
        return MD17Database(path)
    if "geo_id" in columns.get("data", ()):
        return QH9DynamicDatabase(path)
    if is_nabladft(columns):
        return NablaDFTDatabase(path)
    return QH9Database(path)


def open_for_writing(
    path: str | Path, precision: str | None = None, steps: int | None = None
) -> WritableLabels:
    """Open a label store (``.store``) or a database of QH9 (any other suffix) for adding rows.

    Args:
        path: made if it is absent.
        precision: of a label store's matrices: ``float64`` (default) or ``float32``.
        steps: that a label store has of each SCF.

    Raises:
        DatasetError: the file is of another format or of another precision, or has a writer.
        ConfigError: a precision, or steps, that the format does not have.
    """
    path = Path(path)
    if path.suffix == SUFFIX:
        return LabelStore(path, writable=True, precision=precision, steps=steps)
    if steps:
        raise ConfigError(
            f"QH9's schema has no place for steps of an SCF: name the file {path.stem}{SUFFIX}"
        )
    if precision not in (None, "float64"):
        raise ConfigError(f"QH9's schema has float64 alone: name the file {path.stem}{SUFFIX}")
    return QH9Database(path, writable=True)
