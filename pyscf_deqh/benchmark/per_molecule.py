"""Commands that make one row of each molecule of some of the suite's sets, and a table of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..checkpoint import DEFAULT_MODEL, weights_hash
from ..data.geometry import Geometry
from .environment import measured_with
from .resume import read_rows, run_resumable, write_rows
from .sets import SUITE, SuiteSet

Row = dict[str, Any]
# Of a molecule of a set, by a model on a device.
OneMolecule = Callable[[Geometry, SuiteSet, str | Path, str], Row]


def measure(
    one_molecule: OneMolecule,
    sets: Sequence[str],
    n: int | None,
    path: Path | None,
    model: str | Path,
    device: str,
    own: str,
) -> list[Row]:
    """Rows of the first molecules of each set, those that ``path`` holds already included; of what
    failed, with a ``reason``.

    Args:
        one_molecule: makes a row; what it raises is the reason.
        sets: names of the suite's sets.
        n: molecules of each; None for all.
        path: JSON file, written after every molecule.
        model, device: of the guess.
        own: what a row of this command has, and no other's.

    Raises:
        ConfigError: ``path`` is another file.
    """
    settings = {"weights": weights_hash(model)}

    def check(row: Row) -> object:
        return row["set"], row["molecule"], "reason" in row or row[own]

    rows = read_rows(path, settings, check) if path else []
    done = {(row["set"], row["molecule"]) for row in rows if "reason" not in row}
    todo = [(g, SUITE[name]) for name in sets for g in SUITE[name].geometries(n)]
    todo = [(g, entry) for g, entry in todo if (entry.name, g.name) not in done]
    again = {(entry.name, g.name) for g, entry in todo}  # those that failed get another chance
    rows = [row for row in rows if (row["set"], row["molecule"]) not in again]
    for geometry, entry in tqdm(todo, unit="mol"):
        row = {"set": entry.name, "molecule": geometry.name}
        try:
            rows.append(row | one_molecule(geometry, entry, model, device))
        except Exception as error:  # of one molecule: the others go on
            rows.append(row | {"reason": f"{type(error).__name__}: {error}"})
        if path:
            write_rows(path, settings, rows)
    return rows


def left_out(reasons: Sequence[tuple[Row, str]]) -> list[str]:
    """Lines about rows that are in no table."""
    lines = [f"- {row['set']} {row['molecule']}: {reason}" for row, reason in reasons]
    return ["", "Left out:", "", *lines] if lines else []


def run_command(
    argv: Sequence[str] | None,
    name: str,
    description: str,
    one_molecule: OneMolecule,
    table: Callable[[Sequence[Row]], str],
    sets: Sequence[str],
    n: int | None,
    own: str,
) -> int:
    """``python -m pyscf_deqh.benchmark NAME``: the rows, a table, and the exit status.

    Args:
        argv: of the command line.
        sets, n: defaults of the options; n is None for all molecules.
        own: see :func:`measure`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m pyscf_deqh.benchmark {name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sets", nargs="+", choices=SUITE, default=list(sets))
    parser.add_argument("--n", type=int, default=n, help="molecules of each, in random order"
                        f"{'; all of them without it' if n is None else ''}")  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundled model or exported folder")
    parser.add_argument("--device", default="auto", help="of the network: auto, cpu, cuda …")
    parser.add_argument("--json", type=Path, metavar="OUT",
                        help="write all rows here, and go on after those in it")  # fmt: skip
    args = parser.parse_args(argv)

    def command() -> int:
        rows = measure(one_molecule, args.sets, args.n, args.json, args.model, args.device, own)
        print("\n".join([table(rows), *measured_with(rows)]))
        return int(any("reason" in row or row.get("converged") is False for row in rows))

    return run_resumable(command, args.json)
