"""Files that are written as a whole or not at all, by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import OutputError

_AGAIN = "What was there is kept; {}, and run the same command again"
_ADVICE = {
    errno.ENOSPC: _AGAIN.format("free some space"),
    errno.EDQUOT: _AGAIN.format("free some space, or ask for a larger quota"),
    errno.EFBIG: _AGAIN.format("lift the limit of file sizes (ulimit -f)"),
    errno.EIO: _AGAIN.format("look after the disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Name a place that you may write to"),
}
# What a file system answers that has no locks, as some of networks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def most_unpacked(packed: int) -> int:
    """Bytes that a compressed file of so many bytes may reasonably hold.

    Coordinates and matrices shrink to a tenth at best; what was made to fill the memory, to a
    thousandth.
    """
    return max(200 * packed, 100_000_000)


def differences(there: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What settings of a file and those that are wanted differ in, for a message."""
    return [
        f"{key}: {there.get(key)} there, {now.get(key)} now"
        for key in {**now, **there}
        if there.get(key) != now.get(key)
    ]


def is_full(error: BaseException) -> bool:
    """Whether it is a disk's that takes no more data."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cannot_write(path: Path, error: OSError) -> str:
    """What to tell a user whose file the system does not take."""
    advice = _ADVICE.get(error.errno or 0)
    reason = f"cannot write to {path}: {error.strerror or error}"
    return reason if advice is None else f"{reason}. {advice}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the system into one that names the file and says what to do.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(cannot_write(path, error)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` at the end if nothing is raised.

    It lies in the same folder, so that the change is one step, and no other process has its name.
    Of a symbolic link the file that it names is replaced.

    Raises:
        OutputError: it cannot be written; ``path`` stays as it was.
    """
    path = path.resolve()
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with writing(path):
            yield part
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


def write_json(path: Path, content: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write a JSON file; ``default`` makes something of what JSON cannot hold.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1, default=default) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file into an existing folder.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as part:
        part.write_text(text)


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Refuse to write to a file while another process does.

    The lock is one of the system on ``NAME.lock`` beside the file. It ends with its process,
    however that ends. Where a file system has no locks, there is none.

    Raises:
        OutputError: another process writes to it, or its folder cannot be written to.
    """
    path = path.resolve()
    lock = path.with_name(f"{path.name}.lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(lock)
    if handle is None:
        raise OutputError(
            f"another process writes to {path}: wait for it and run the same command again, or "
            "name another place"
        )
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(handle)


def is_being_written(path: Path) -> bool:
    """Whether another process is in :func:`only_writer` of a file."""
    path = path.resolve()
    lock = path.with_name(f"{path.name}.lock")
    try:
        handle = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(handle)
    return False


def _locked(lock: Path) -> int | None:
    """A descriptor that holds the lock; None if another process has it."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return handle
            os.close(handle)
            if isinstance(error, BlockingIOError):
                return None
            raise
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # its last owner has just removed it
