"""Extended-xyz files that a command appends to, and that are its restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import DatasetError


def complete_frames(path: Path, columns: str) -> Iterator[tuple[int, list[str]]]:
    """Where each complete frame ends (in bytes), and its lines: the comment, then the atoms.

    A last frame that was being written when its run ended is left out.

    Args:
        path: the file.
        columns: the value of ``Properties``, with which all comments have to begin.

    Raises:
        ValueError: a frame of another kind.
    """
    marker = f"Properties={columns} "
    with open(path, "rb") as handle:
        while head := handle.readline():
            lines = [handle.readline().decode() for _ in range(int(head) + 1)]
            # A comment cut short is the marker's beginning; a stranger's file stays untouched.
            if lines[0][: len(marker)] != marker[: len(lines[0])]:
                raise ValueError("another comment line")
            if not lines[-1].endswith("\n"):
                return
            yield handle.tell(), lines


def foreign_file(path: Path, end: int, error: Exception) -> DatasetError:
    """The error for a file with something else than a command's own frames after byte ``end``."""
    return DatasetError(f"{path} was not written by this command (byte {end}: {error})")
