"""``python -m pyscf_deqh.benchmark suite``: all bundled sets, one table.

Results go to a folder, one JSON file for each set, and are written after every molecule: the same
command goes on where it stopped. With ``--shard``, several processes share the molecules; each
writes files of its own, and the table is of all files in the folder. Give each process its threads
with OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import DEFAULT_MODEL, weights_hash
from ..errors import ConfigError, exit_status
from ..files import only_writer, write_text
from .acceleration import Results, check_rows, environments_of, run_benchmark
from .scf_runs import Method
from .sets import SUITE, SuiteSet
from .suite_table import failed, suite_table

_CLASSICAL = ("minao",)


@dataclass
class SetResults:
    """What all files of one set hold together.

    Attributes:
        results: rows and failures, each molecule once; a failure that a later run mended is none.
        methods: the ``method`` entries of the files: they agree in all but the device.
        environments: hardware and versions, each combination once.
    """

    results: Results
    methods: list[dict[str, Any]]
    environments: list[dict[str, Any]]


def read_results(folder: Path, entry: SuiteSet) -> SetResults | None:
    """Merge the files of a set; None if there are none.

    Raises:
        ConfigError: a file that is not the suite's, or an earlier version's, or files with
            different models or methods.
    """
    details = entry.method().details
    rows: dict[str, dict] = {}
    failures: dict[str, dict] = {}
    methods: list[dict] = []
    environments: list[dict] = []
    for path in sorted(folder.glob(f"{entry.name}-*of*.json")):
        try:
            content = json.loads(path.read_text())
            check_rows(content["rows"], path)
            method = content["method"]
            weights = method["weights"]
            # Files of before a detail existed have its default.
            made_with = Method().details | {k: v for k, v in method.items() if k in details}
            for row in content["rows"]:
                rows.setdefault(row["name"], row)
            failures |= {failure["name"]: failure for failure in content["failures"]}
            found = environments_of(content)
        except ConfigError:
            raise  # a ValueError as well
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} holds no results of the suite: {error!r}") from error
        if made_with != details or (methods and weights != methods[0]["weights"]):
            raise ConfigError(f"{path} was made with another model or method: name another --out")
        methods.append(method)
        environments += [environment for environment in found if environment not in environments]
    if not methods:
        return None
    results = Results(entry.method(methods[0]["model"]), _CLASSICAL, None)
    results.rows = list(rows.values())
    results.failures = [f for name, f in failures.items() if name not in rows]
    return SetResults(results, methods, environments)


def run_set(
    entry: SuiteSet,
    folder: Path,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    n: int | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> None:
    """Run the molecules of one shard of a set that no file in ``folder`` holds yet.

    Args:
        entry: the set.
        folder: of the results.
        model: bundled model or exported folder.
        device: of the network.
        n: at most this many molecules.
        shard: (K, N) for every N-th molecule, from the K-th on.
        progress: show a progress bar.

    Raises:
        ConfigError: the folder holds results of another model.
        CheckpointError: no such model.
        OutputError: another process runs this shard, or the folder cannot be written to.
        KeyboardInterrupt: the run was interrupted; what was finished is in the folder.
    """
    k, of = shard
    present = read_results(folder, entry)
    if present and present.methods[0]["weights"] != weights_hash(model):
        raise ConfigError(f"{folder} has results of another model: name another --out")
    done = {row["name"] for row in present.results.rows} if present else set()
    todo = [g for g in entry.geometries(n)[k - 1 :: of] if g.name not in done]
    if not todo:
        return
    path = folder / f"{entry.name}-{k}of{of}.json"
    method = entry.method(model, device)
    with only_writer(path):
        if run_benchmark(todo, method, _CLASSICAL, path, progress, resume=True).interrupted:
            raise KeyboardInterrupt


def _shard(text: str) -> tuple[int, int]:
    try:
        k, of = (int(word) for word in text.split("/"))
    except ValueError as error:
        raise argparse.ArgumentTypeError("K/N, for example 1/4") from error
    if not 1 <= k <= of:
        raise argparse.ArgumentTypeError("K must be from 1 to N")
    return k, of


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark suite",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sets", nargs="+", choices=SUITE, default=list(SUITE))
    parser.add_argument("--n", type=int, help="at most this many molecules of each set")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundled model or exported folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda …")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="K/N",
                        help="only every N-th molecule, from the K-th on")  # fmt: skip
    parser.add_argument("--table-only", action="store_true", help="no runs: the table once more")
    return parser


def _print_table(folder: Path) -> int:
    """Print and write the table of all sets in the folder; 1 if a run failed."""
    found = {name: read_results(folder, entry) for name, entry in SUITE.items()}
    present = {name: results for name, results in found.items() if results}
    if not present:
        raise ConfigError(f"{folder} holds no results of the suite")
    text = suite_table(
        {name: entry.results for name, entry in present.items()},
        [method for entry in present.values() for method in entry.methods],
        [environment for entry in present.values() for environment in entry.environments],
    )
    write_text(folder / "table.md", text)
    print(text)
    return int(any(failed(entry.results) for entry in present.values()))


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    def run() -> int:
        if not args.table_only:
            for name in args.sets:
                print(f"{name}:", file=sys.stderr)
                run_set(SUITE[name], args.out, args.model, args.device, args.n, args.shard)
        return _print_table(args.out)

    return exit_status(run, "interrupted; run the same command again to go on")
