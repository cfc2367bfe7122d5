"""``python -m pyscf_deqh.benchmark suite``: all bundled sets, one table.

Results go to a folder, one JSON file for each set, and are written after every molecule: the same
command goes on where it stopped. Molecules run one after the other in this process, so that seconds
can be compared; with ``--workers`` or ``--scheduler`` they run side by side, for Fock builds and
energies.
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
from ..tasks import add_options, one_process
from .acceleration import Results, check_rows, environments_of, failed, run_benchmark
from .scf_runs import Method
from .sets import SUITE, SuiteSet
from .suite_table import suite_table

_CLASSICAL = ("minao",)


@dataclass
class SetResults:
    """What the file of a set holds.

    Attributes:
        results: rows and failures, each molecule once.
        method: what they were made with.
    """

    results: Results
    method: dict[str, Any]


def _file(folder: Path, entry: SuiteSet) -> Path:
    return folder / f"{entry.name}.json"


def read_results(folder: Path, entry: SuiteSet) -> SetResults | None:
    """The results of a set; None if there are none.

    Raises:
        ConfigError: a file that is not the suite's, or an earlier version's, or of another method.
    """
    path = _file(folder, entry)
    if not path.is_file():
        return None
    details = entry.method().details
    try:
        content = json.loads(path.read_text())
        check_rows(content["rows"], path)
        method = content["method"]
        results = Results(entry.method(method["model"]), _CLASSICAL, None)
        results.rows, results.failures = content["rows"], content["failures"]
        results.environments = environments_of(content)
        method["weights"]
        # Files of before a detail existed have its default.
        made_with = Method().details | {k: v for k, v in method.items() if k in details}
    except ConfigError:
        raise  # a ValueError as well
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no results of the suite: {error!r}") from error
    if made_with != details:
        raise ConfigError(f"{path} was made with another method: name another --out")
    return SetResults(results, method)


def run_set(
    entry: SuiteSet,
    folder: Path,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    n: int | None = None,
    progress: bool = True,
    workers: int | None = 0,
    scheduler: str | None = None,
) -> None:
    """Run the molecules of a set that ``folder`` does not hold yet.

    Args:
        entry: the set.
        folder: of the results.
        model: bundled model or exported folder.
        device: of the network.
        n: at most this many molecules.
        progress: show a progress bar.
        workers, scheduler: see :func:`pyscf_deqh.tasks.outcomes`.

    Raises:
        ConfigError: the folder holds results of another model.
        CheckpointError: no such model.
        OutputError: another process runs this set, or the folder cannot be written to.
        KeyboardInterrupt: the run was interrupted; what was finished is in the folder.
    """
    present = read_results(folder, entry)
    if present and present.method["weights"] != weights_hash(model):
        raise ConfigError(f"{folder} has results of another model: name another --out")
    done = {row["name"] for row in present.results.rows} if present else set()
    todo = [g for g in entry.geometries(n) if g.name not in done]
    if not todo:
        return
    method, path = entry.method(model, device), _file(folder, entry)
    with only_writer(path):
        results = run_benchmark(
            todo, method, _CLASSICAL, path, progress, resume=True,
            workers=workers, scheduler=scheduler,
        )  # fmt: skip
    if results.interrupted:
        raise KeyboardInterrupt


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
    add_options(parser, default="0")
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
        [entry.method for entry in present.values()],
    )
    write_text(folder / "table.md", text)
    print(text)
    return int(any(failed(entry.results, _CLASSICAL) for entry in present.values()))


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    def run() -> int:
        if not args.table_only:
            for name in args.sets:
                print(f"{name}:", file=sys.stderr)
                run_set(SUITE[name], args.out, args.model, args.device, args.n,
                        workers=one_process(args), scheduler=args.scheduler)  # fmt: skip
        return _print_table(args.out)

    return exit_status(run, "interrupted; run the same command again to go on")
