"""One writer at a time: a lock beside the file, which ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ...errors import DatasetError


class WriterLock:
    """The right to write to a file.

    SQLite's own locks last for a transaction only. This one is an advisory lock (``flock``) of a
    file beside, because locks of the file itself would be SQLite's readers' too on some systems.

    Args:
        path: of the file.

    Raises:
        DatasetError: another process has the right, or the file system has no locks.
    """

    def __init__(self, path: Path):
        self._path = Path(f"{path}.lock")
        while True:
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise DatasetError(f"cannot write beside {path}: {error}") from error
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._file)
                if isinstance(error, BlockingIOError):
                    raise DatasetError(
                        f"another process writes to {path}: wait for it, or write to another file"
                    ) from error
                raise DatasetError(
                    f"the file system of {path} has no locks ({error}), which keep two writers "
                    "apart: write to a local disk, and copy the file when it is complete"
                ) from error
            # Its owner before may have removed it between the two calls.
            if self._is_in_place():
                return
            os.close(self._file)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._file)
