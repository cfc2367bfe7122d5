"""``python -m pyscf_deqh.benchmark steps``: many SCFs of a molecule, with the guess and without.

``optimize`` optimizes molecules with geomeTRIC, ``torsion`` makes a relaxed scan with it,
``dynamics`` runs molecular dynamics at constant energy with the same velocities at the start,
``hessian`` takes central differences of gradients. ``replay`` says how far energies and forces at
the frames of a trajectory are off, ``reversal`` how far a trajectory that is turned back misses its
beginning. All go through PySCF's own drivers; the seconds of the SCFs are counted apart from those
of gradients and drivers. Rows are written after every molecule; the same command goes on where it
stopped.

``--molecules baker`` and ``birkholz`` are the starting geometries of these benchmarks of
optimizers, which the package pyberny brings; smallest first.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyscf import lib
from tqdm import tqdm

from ..checkpoint import weights_hash
from ..data.geometry import Geometry, read_geometries
from ..errors import ConfigError
from ..process import trim_memory
from .acceleration import WATER, warm_up
from .environment import measured_with
from .report import new_figure
from .resume import read_rows, run_resumable, write_rows
from .scf_runs import Method
from .sets import BUNDLED, FOLDER, distinct_names, in_random_order
from .steps_report import SIDES, is_worse, plot, table
from .trajectories import RUNS

_BERNY = ("baker", "birkholz")
# A ring of six water molecules, aspirin, alanine dipeptide.
_DYNAMICS = "dynamics"
# Whether the guess serves every point.
_GUESS = dict(zip(SIDES, (False, True), strict=True))


def _geometries(molecules: str) -> list[Geometry]:
    """Those of a file, a folder, or a set by its name; benchmarks of optimizers smallest first.

    Raises:
        ConfigError: pyberny is not installed.
        DatasetError: no such file.
    """
    if molecules == _DYNAMICS:
        return read_geometries(FOLDER / "dynamics_test.xyz")
    if molecules not in _BERNY:
        return in_random_order(read_geometries(molecules))
    try:
        benchmarks = importlib.import_module("berny.benchmarks")
    except ImportError as error:
        raise ConfigError(f"--molecules {molecules} needs pyberny>=0.7: pip install it") from error
    geometries = []
    for name, reference in benchmarks.load_reference(molecules).items():
        (geometry,) = read_geometries(benchmarks.data_dir(molecules) / f"{name}.xyz")
        geometry.info = {"name": name, "charge": str(reference["charge"])}
        geometries.append(geometry)
    return sorted(geometries, key=lambda geometry: len(geometry.numbers))


def run_molecule(
    geometry: Geometry, name: str, method: Method, kind: str, steps: int, first: str = "minao"
) -> dict[str, Any]:
    """One row: the same run with PySCF's own starts and with the guess."""
    run = RUNS[kind]
    row: dict[str, Any] = {"name": name, "nao": int(method.molecule(geometry).nao)}
    for side in sorted(SIDES, key=lambda side: side != first):
        trim_memory()
        mol = method.molecule(geometry)
        try:
            with lib.temporary_env(mol, verbose=0):
                row[side] = run(mol, method, _GUESS[side], steps)
        except RuntimeError as error:  # PySCF's drivers end at an SCF that did not converge
            row[side] = {"converged": False, "error": str(error)}
    return row


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark steps",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("kind", choices=RUNS)
    parser.add_argument("--molecules", default=str(BUNDLED),
                        help="xyz/extxyz file, folder of them, baker, birkholz, or dynamics: "
                        "six water molecules, aspirin, alanine dipeptide")  # fmt: skip
    parser.add_argument("--n", type=int, help="so many of them: of a file in random order, of a "
                        "benchmark the smallest")  # fmt: skip
    parser.add_argument("--steps", type=int, default=100, help="limit of an optimization, or "
                        "length of a trajectory")  # fmt: skip
    parser.add_argument("--xc", default=Method.xc)
    parser.add_argument("--basis", default=Method.basis)
    parser.add_argument("--json", type=Path, metavar="OUT", required=True,
                        help="write all rows here, and go on after those in it")  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="PNG", help="ratios of time by size, and "
                        "energies along trajectories")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    method = Method(args.xc, args.basis)
    settings = {"kind": args.kind, "molecules": Path(args.molecules).name, "xc": args.xc,
                "basis": args.basis, "steps": args.steps,
                "weights": weights_hash(method.model)}  # fmt: skip

    def run() -> int:
        if args.plot:
            new_figure()  # says now, not after all runs, that Matplotlib is missing
        rows = read_rows(args.json, settings)
        geometries = _geometries(args.molecules)
        names = distinct_names(geometries)  # of all, so that they do not depend on --n
        geometries, done = geometries[: args.n], {row["name"] for row in rows}
        todo = [(k, g) for k, g in enumerate(geometries) if names[k] not in done]
        if todo:
            # The first calls of a process load PyTorch, the model, and libraries; water itself is
            # left alone by the guess.
            warm_up(method, "minao")
            first_kind = "optimize" if args.kind == "torsion" else args.kind
            run_molecule(WATER, "water", method, first_kind, 2)
        left_out = 0
        for k, geometry in tqdm(todo, desc=args.kind, unit="mol"):
            first = SIDES[k % 2]
            try:
                row = run_molecule(geometry, names[k], method, args.kind, args.steps, first)
            except Exception as error:  # no bond to turn, no basis set: the others go on
                tqdm.write(f"{names[k]}: {type(error).__name__}: {error}", file=sys.stderr)
                left_out += 1
                continue
            rows.append(row)
            write_rows(args.json, settings, rows)
        print("\n".join([table(rows), *measured_with(rows)]))
        if args.plot:
            plot(rows, args.plot)
        return int(bool(left_out) or any(map(is_worse, rows)))

    return run_resumable(run, args.json)
