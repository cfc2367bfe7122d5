"""Downloads of the published data sets from their official places, resumable and checked.

No checksums are published. The SHA-256 of what came is written beside the file (``FILE.sha256``,
as ``sha256sum`` has it), and a later run compares the file with it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ...errors import DatasetError, OutputError
from ...files import cannot_write, is_full, write_text, writing

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_SQLITE = b"SQLite format 3\0"
_DRIVE_FOLDER = "https://drive.google.com/drive/folders/1LXTC8uaOQzmb76FsuGfwSocAbK5Hshfj"
_MD17 = "http://quantum-machine.org/data/schnorb_hamiltonian"


@dataclass(frozen=True)
class Published:
    """Where a data set lies, and the name of its database on disk.

    A ``drive`` file on Google Drive is the database itself, any other URL is a ``.tgz`` with it.
    """

    url: str
    database: str
    drive: bool = False


def _drive(file_id: str, database: str) -> Published:
    return Published(f"https://drive.google.com/file/d/{file_id}", database, drive=True)


def _md17(stem: str) -> Published:
    return Published(f"{_MD17}/{stem}.tgz", f"{stem}.db")


DATASETS = {
    "qh9-stable": _drive("1LcEJGhB8VUGkuyb0oQ_9ANJdSkky9xMS", "QH9Stable.db"),
    "qh9-dynamic-100k": _drive("1SNWk0GD6Nt96qNAJJU2uedwWDQ4bbB1w", "QH9Dynamic_100k.db"),
    "qh9-dynamic-300k": _drive("1sbf-sFhh3ZmhXgTcN2ke_la39MaG0Yho", "QH9Dynamic_300k.db"),
    "md17-water": _md17("schnorb_hamiltonian_water"),
    "md17-ethanol": _md17("schnorb_hamiltonian_ethanol_dft"),
    "md17-malondialdehyde": _md17("schnorb_hamiltonian_malondialdehyde"),
    "md17-uracil": _md17("schnorb_hamiltonian_uracil"),
}


def _sha256(path: Path, progress: bool) -> str:
    digest = hashlib.sha256()
    with (
        open(path, "rb") as handle,
        _bar(f"checking {path.name}", path.stat().st_size, 0, progress) as bar,
    ):
        while block := handle.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _bar(description: str, total: int | None, initial: int, progress: bool) -> tqdm:
    return tqdm(
        desc=description, total=total, initial=initial, unit="B", unit_scale=True,
        disable=not progress,
    )  # fmt: skip


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _verify(path: Path, progress: bool) -> None:
    """Compare a file with its recorded checksum; record it where there is none yet."""
    found, record = _sha256(path, progress), _record(path)
    if not record.exists():
        write_text(record, f"{found}  {path.name}\n")
        return
    wanted = record.read_text().split()[:1]
    if wanted != [found]:
        raise DatasetError(
            f"{path} is not what was downloaded: its SHA-256 is {found}, {record.name} says "
            f"{' '.join(wanted) or 'nothing'}. Delete both and run the same command again"
        )


def _total(response, start: int) -> int | None:
    """Size of the whole file, where the server says it."""
    length = response.headers.get("Content-Length")
    return None if length is None else start + int(length)


def fetch(url: str, target: Path, progress: bool = True) -> None:
    """Download ``url`` to ``target`` by way of ``target.part``, which a later call goes on from.

    Raises:
        DatasetError: the server refuses, the connection breaks, or bytes are missing at the end.
        OutputError: the disk is full.
    """
    part = target.with_name(target.name + ".part")
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            resumed = response.status == 206
            if resumed and not response.headers.get("Content-Range", "").startswith(
                f"bytes {start}-"
            ):
                raise DatasetError(f"{url}: the server sent another part than it was asked for")
            start = start if resumed else 0
            total = _total(response, start)
            with (
                open(part, "ab" if resumed else "wb") as handle,
                _bar(target.name, total, start, progress) as bar,
            ):
                while block := response.read(_BLOCK):
                    handle.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        complete = error.headers.get("Content-Range") == f"bytes */{start}"
        if error.code != 416 or not complete:
            hint = f"; delete {part} to start anew" if error.code == 416 else ""
            raise DatasetError(f"{url}: HTTP {error.code} {error.reason}{hint}") from error
    except (OSError, http.client.HTTPException) as error:  # an OSError: URLError and timeouts
        if isinstance(error, OSError) and is_full(error):
            raise OutputError(cannot_write(part, error)) from error
        raise DatasetError(
            f"{url}: {error}; run the same command again to go on from {part}"
        ) from error
    else:
        size = part.stat().st_size
        if total is not None and size != total:
            raise DatasetError(
                f"{url}: {size} of {total} bytes came; run the same command again to go on"
            )
    os.replace(part, target)


def _fetch_from_drive(source: Published, target: Path, progress: bool) -> None:
    by_hand = (
        f"download {source.url} (or from {_DRIVE_FOLDER}) by hand, put it at {target} and run the "
        "same command again"
    )
    try:
        import gdown
    except ImportError as error:
        raise DatasetError(
            "the file lies on Google Drive, which needs the package gdown: pip install "
            f"'pyscf_deqh[download]'. Or {by_hand}"
        ) from error
    part = target.with_name(target.name + ".part")
    file_id = source.url.rsplit("/", 1)[1]
    try:
        done = gdown.download(id=file_id, output=str(part), quiet=not progress, resume=True)
    except Exception as error:  # gdown lets those of several libraries through
        raise DatasetError(
            f"{source.url}: {error}. Run the same command again, or {by_hand}"
        ) from error
    if done is None or not part.exists():
        raise DatasetError(f"Google Drive did not give {source.url}; {by_hand}")
    os.replace(part, target)


def _check_database(path: Path) -> None:
    with open(path, "rb") as handle:
        if handle.read(len(_SQLITE)) != _SQLITE:
            raise DatasetError(
                f"{path} is not a database; perhaps it is a web page that was sent in its place. "
                "Look into it, delete it and run the same command again"
            )


@contextmanager
def unpacked(archive: Path, target: Path) -> Iterator[Path]:
    """What is in a tar archive, in a folder beside ``target`` that goes away.

    Raises:
        DatasetError: the archive is damaged, or Python is too old to be safe from what is in it.
        OutputError: the disk is full.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DatasetError(
            f"this Python cannot unpack archives safely; update it within its minor version, or "
            f"unpack {archive} by hand to {target}"
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as folder:
        try:
            with tarfile.open(archive) as handle:
                handle.extractall(folder, filter="data")
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and is_full(error):
                raise OutputError(cannot_write(target, error)) from error
            record = _record(archive)
            and_record = f" and {record.name}" if record.exists() else ""
            raise DatasetError(
                f"cannot unpack {archive}: {error}. Delete it{and_record} and run the same command "
                "again"
            ) from error
        yield Path(folder)


def _extract(archive: Path, database: Path) -> None:
    """Take the database out of a tar archive."""
    with unpacked(archive, database) as folder:
        found = [path for path in folder.rglob("*.db") if path.is_file()]
        if len(found) != 1:
            raise DatasetError(f"{archive} holds {len(found)} databases instead of one")
        os.replace(found[0], database)


def download(name: str, folder: str | Path, progress: bool = True) -> Path:
    """Fetch one of :data:`DATASETS`; what is there already is verified and not fetched again.

    Args:
        name: key of :data:`DATASETS`.
        folder: where to put it; made if absent.
        progress: show progress bars.

    Returns:
        The database.

    Raises:
        DatasetError: an unknown name, no connection, a file that is not the one downloaded before,
            or a Google Drive file without the package gdown.
        OutputError: the folder takes no more data; what has come by then is kept.
    """
    if name not in DATASETS:
        raise DatasetError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    source, folder = DATASETS[name], Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    database = folder / source.database
    if not database.exists() and source.drive:
        _fetch_from_drive(source, database, progress)
    elif not database.exists():
        archive = folder / source.url.rsplit("/", 1)[1]
        if not archive.exists():
            fetch(source.url, archive, progress)
        _verify(archive, progress)
        _extract(archive, database)
    _check_database(database)
    _verify(database, progress)
    return database
