"""``python -m pyscf_deqh.benchmark store``: how fast labels are written and read, and what is lost.

Synthetic labels of the bundled QM9 molecules in def2-SVP, with random numbers for matrix elements,
go into a label store and into a database of QH9: durable commits of a few records, size on disk,
listing, reads of single records at random, in order and shuffled, from the disk and from the
system's cache; memory; and writers that are killed.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.formats import open_for_writing, open_labels
from ..data.geometry import read_geometries
from ..data.record import LabelFile, Record
from ..errors import DatasetError, exit_status
from ..files import write_json
from ..graph.basis import n_orbitals
from .environment import environment
from .report import markdown_table
from .sets import BUNDLED
from .speed.one_system import peak_bytes

# Names of files, and precision of their matrices.
_FORMATS = {"qh9": ("labels.db", None), "float64": ("labels64.store", "float64"),
            "float32": ("labels32.store", "float32")}  # fmt: skip
_RANDOM_READS = 1000
_KILL_SECONDS = 1.0


@functools.lru_cache(maxsize=1)
def _samples() -> list[Record]:
    """A record of each bundled molecule; those of a file are these with other ids."""
    rng = np.random.default_rng(0)
    records = []
    for geometry in read_geometries(BUNDLED):
        n = n_orbitals(geometry.numbers, "def2-svp")
        matrix = rng.normal(size=(n, n)).astype(np.float32).astype(np.float64)
        meta = {"qm9_id": geometry.qm9_id, "smiles": geometry.info["smiles"], "energy": -400.0}
        records.append(
            Record(0, geometry.numbers, geometry.positions, np.triu(matrix) + np.triu(matrix, 1).T,
                   meta)
        )  # fmt: skip
    return records


def _record(row_id: int) -> Record:
    sample = _samples()[row_id % len(_samples())]
    return Record(row_id, sample.numbers, sample.positions, sample.hamiltonian, sample.meta)


def _raw_bytes(n: int) -> float:
    """What the positions, elements and upper triangles of n records hold, in float32."""
    sizes = [
        25 * len(s.numbers) + 4 * len(s.hamiltonian) * (len(s.hamiltonian) + 1) / 2
        for s in _samples()
    ]
    return n * float(np.mean(sizes))


def _write(path: Path, precision: str | None, n: int, transaction: int) -> float:
    """Records written a second."""
    _samples()
    started = time.perf_counter()
    with open_for_writing(path, precision) as file:
        file.write_settings({"basis": "def2-svp"})
        for start in range(0, n, transaction):
            file.add_all(map(_record, range(start, min(start + transaction, n))))
    return n / (time.perf_counter() - started)


def _forget_pages(path: Path) -> None:
    """Let the system drop what it has of a file in its cache, where it can be asked to."""
    with suppress(AttributeError), open(path, "rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> dict[str, Any]:
    """Seconds of listing, records read a second in each order, and how the process grows by it."""
    _forget_pages(path)
    rates: dict[str, float] = {}
    started = time.perf_counter()
    with open_labels(path) as file:
        ids, _, _ = file.ids(), file.sizes(), file.molecules()
        listing, before = time.perf_counter() - started, peak_bytes()
        shuffled = random.Random(0).sample(ids, len(ids))
        orders = {"random": shuffled[:_RANDOM_READS], "in order": ids, "shuffled": shuffled}
        for order, chosen in orders.items():
            _forget_pages(path)
            for state in ("disk", "cache"):
                started = time.perf_counter()
                for row_id in chosen:
                    file[row_id]
                rates[f"{order}, {state}"] = len(chosen) / (time.perf_counter() - started)
    return {"listing": listing, "rates": rates, "grown": peak_bytes() - before}


def _write_on(path: Path, precision: str | None, transaction: int, committed: Any) -> None:
    """Write until killed; tell how many records are committed."""
    with open_for_writing(path, precision) as file:
        n = len(file)
        while True:
            file.add_all(map(_record, range(n, n + transaction)))
            n += transaction
            committed.value = n


def _damage(file: LabelFile, n: int) -> tuple[int, int]:
    """Of records that were committed: those that are not there, and those that cannot be read."""
    ids, unreadable = file.ids(), 0
    for row_id in ids:
        try:
            same = np.array_equal(file[row_id].hamiltonian, _record(row_id).hamiltonian)
        except DatasetError:
            same = False
        unreadable += not same
    return len(set(range(n)) - set(ids)), unreadable


def kills(path: Path, precision: str | None, transaction: int, n: int) -> dict[str, int]:
    """Kill a writer n times at random moments, each going on in the same file.

    Returns:
        Records that were committed at the last kill, and of those committed before each kill all
        that were lost or unreadable after it.
    """
    context, rng = get_context("spawn"), random.Random(0)
    lost = unreadable = 0
    # Without a lock, which a writer that is killed might hold.
    committed = context.Value("q", 0, lock=False)
    for _ in range(n):
        before = committed.value
        writer = context.Process(target=_write_on, args=(path, precision, transaction, committed))
        writer.start()
        while committed.value == before and writer.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, _KILL_SECONDS))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        with open_labels(path) as file:
            missing, broken = _damage(file, committed.value)
        lost, unreadable = lost + missing, unreadable + broken
    return {"committed": committed.value, "lost": lost, "unreadable": unreadable}


def _alone(function: Any, *arguments: Any) -> Any:
    """The result of a call in a new process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(folder: Path, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one format, in a file that is made and left in ``folder``."""
    file, precision = _FORMATS[name]
    path = folder / file
    row: dict[str, Any] = {"format": name}
    row["write"] = _alone(_write, path, precision, args.n, args.transaction)
    row["size"] = path.stat().st_size / _raw_bytes(args.n)
    return row | _alone(_read, path)


def _cell(values: Sequence[float], form: str = ".0f") -> str:
    """Median and range."""
    low, middle, high = np.quantile(values, (0, 0.5, 1))
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def _passes(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for name in dict.fromkeys(row["format"] for row in rows):
        own = [row for row in rows if row["format"] == name]
        yield [
            name, _cell([row["write"] for row in own]), f"{own[0]['size']:.2f}",
            _cell([row["listing"] for row in own], ".2f"),
            *(_cell([row["rates"][key] for row in own]) for key in own[0]["rates"]),
            f"{max(row['grown'] for row in own) / 2**20:.0f}",
        ]  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians and ranges of the repeats; and of each format what the kills did."""
    rates = [f"{key}, 1/s" for key in rows[0]["rates"]]
    columns = ["format", "written, 1/s", "size / raw", "listing, s", *rates, "growth, MiB"]
    lines = markdown_table(columns, list(_passes(rows)))
    for row in rows:
        if "kills" in row:
            lines.append(f"{row['format']}, killed: {row['kills']}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark store",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--n", type=int, default=4000, help="records")
    parser.add_argument("--transaction", type=int, default=8, help="records of a commit")
    parser.add_argument("--formats", nargs="+", choices=_FORMATS, default=list(_FORMATS))
    parser.add_argument("--repeats", type=int, default=3, help="of everything, one after the other")
    parser.add_argument("--kills", type=int, default=10, help="of a writer of each format")
    parser.add_argument("--folder", type=Path, help="where the files are made and removed, on the "
                        "disk that is to be measured (default: for temporary files)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    def run() -> int:
        rows = []
        todo = [name for _ in range(args.repeats) for name in args.formats]
        for i, name in enumerate(tqdm(todo, desc="store", unit="format")):
            with TemporaryDirectory(dir=args.folder) as folder:
                row = measure(Path(folder), name, args)
                if args.kills and i < len(args.formats):
                    path = Path(folder) / f"killed-{_FORMATS[name][0]}"
                    row["kills"] = kills(path, _FORMATS[name][1], args.transaction, args.kills)
            rows.append(row)
        print(table(rows))
        if args.json:
            settings = {"n": args.n, "transaction": args.transaction}
            write_json(args.json, {"environment": environment(), "settings": settings,
                                   "rows": rows})  # fmt: skip
        return 0

    return exit_status(run, "interrupted")
