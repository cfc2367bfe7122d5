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

import numpy as np
from pyscf import lib
from tqdm import tqdm

from ..checkpoint import weights_hash
from ..data.geometry import Geometry, read_geometries
from ..errors import ConfigError
from ..process import trim_memory
from .acceleration import WATER, warm_up
from .ratios import spread
from .report import markdown_table
from .resume import read_rows, run_resumable, write_rows
from .scf_runs import Method
from .sets import BUNDLED, distinct_names, in_random_order
from .trajectories import RUNS

_BERNY = ("baker", "birkholz")
_RUNS = {"minao": False, "deqh": True}


def _geometries(molecules: str) -> list[Geometry]:
    """Those of a file, a folder, or a benchmark of optimizers by its name, these smallest first.

    Raises:
        ConfigError: pyberny is not installed.
        DatasetError: no such file.
    """
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
    for side in sorted(_RUNS, key=lambda side: side != first):
        trim_memory()
        mol = method.molecule(geometry)
        try:
            with lib.temporary_env(mol, verbose=0):
                row[side] = run(mol, method, _RUNS[side], steps)
        except RuntimeError as error:  # PySCF's drivers end at an SCF that did not converge
            row[side] = {"converged": False, "error": str(error)}
    return row


def _ratio(rows: Sequence[dict[str, Any]], key: str) -> str:
    return spread((row["deqh"][key] / row["minao"][key] for row in rows), ".3f", ".3f")


def _displacement(row: dict[str, Any]) -> float:
    """Largest difference of two distances between atoms, in angstrom."""
    last = [np.array(row[name]["positions"]) for name in _RUNS]
    distances = [np.linalg.norm(p[:, None] - p, axis=-1) for p in last]
    return float(abs(distances[0] - distances[1]).max()) * lib.param.BOHR


def _frequencies(row: dict[str, Any]) -> float:
    """Largest difference of two harmonic frequencies, in 1/cm."""
    found = [np.array(row[name]["frequencies"]) for name in _RUNS]
    return float(abs(found[0] - found[1]).max())


def _measures(rows: Sequence[dict[str, Any]]) -> str:
    """Other results than time, of either run."""
    cells = [
        [row["name"], quantity, *(f"{row[name]['measures'][quantity]:.2e}" for name in _RUNS)]
        for row in rows
        if all("error" not in row[name] for name in _RUNS)
        for quantity in row["deqh"].get("measures", ())
    ]
    return "\n".join(["", *markdown_table(["molecule", "", *_RUNS], cells)]) if cells else ""


def _open_ends(row: dict[str, Any]) -> str:
    """What did not converge in either run, for behind the molecule's name."""
    open_ends = [name for name in _RUNS if not row[name]["converged"]]
    open_ends += [
        f"{n} SCFs, {name}" for name in _RUNS if (n := row[name].get("scfs_not_converged"))
    ]
    return f" (not converged: {', '.join(open_ends)})" if open_ends else ""


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Each molecule, and the means of all whose two runs came to their end."""
    cells, difference, quantity = [], _displacement, "distances, angstrom"
    if any("frequencies" in row["deqh"] for row in rows):
        difference, quantity = _frequencies, "frequencies, 1/cm"
    ended = [row for row in rows if all(row[name]["converged"] for name in _RUNS)]
    for row in rows:
        plain, deqh = row["minao"], row["deqh"]
        name = row["name"] + _open_ends(row)
        if "error" in plain or "error" in deqh:
            cells.append([name, f"{row['nao']}", *["-"] * 8])
            continue
        cells.append([
            name, f"{row['nao']}", f"{len(plain['builds'])}", f"{len(deqh['builds'])}",
            f"{np.mean(plain['builds']):.1f}", f"{np.mean(deqh['builds']):.1f}",
            _ratio([row], "seconds").split()[0], _ratio([row], "scf_seconds").split()[0],
            f"{1e6 * (deqh['energy'] - plain['energy']):.2f}", f"{difference(row):.4f}",
        ])  # fmt: skip
    if ended:
        means = [np.mean([np.mean(r[name]["builds"]) for r in ended]) for name in _RUNS]
        cells.append([
            f"mean of {len(ended)}", "", "", "", *(f"{mean:.1f}" for mean in means),
            _ratio(ended, "seconds"), _ratio(ended, "scf_seconds"), "", "",
        ])  # fmt: skip
    columns = ["molecule", "orbitals", "points, minao", "points, DEQH", "builds a point, minao",
               "builds a point, DEQH", "wall time", "SCF time", "energy, 1e-6 hartree",
               quantity]  # fmt: skip
    return "\n".join(markdown_table(columns, cells)) + _measures(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark steps",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("kind", choices=RUNS)
    parser.add_argument("--molecules", default=str(BUNDLED),
                        help="xyz/extxyz file, folder of them, baker or birkholz")  # fmt: skip
    parser.add_argument("--n", type=int, help="so many of them: of a file in random order, of a "
                        "benchmark the smallest")  # fmt: skip
    parser.add_argument("--steps", type=int, default=100, help="limit of an optimization, or "
                        "length of a trajectory")  # fmt: skip
    parser.add_argument("--xc", default=Method.xc)
    parser.add_argument("--basis", default=Method.basis)
    parser.add_argument("--json", type=Path, metavar="OUT", required=True,
                        help="write all rows here, and go on after those in it")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    method = Method(args.xc, args.basis)
    settings = {"kind": args.kind, "molecules": Path(args.molecules).name, "xc": args.xc,
                "basis": args.basis, "steps": args.steps,
                "weights": weights_hash(method.model)}  # fmt: skip

    def run() -> int:
        rows = read_rows(args.json, settings)
        geometries = _geometries(args.molecules)[: args.n]
        done, names = {row["name"] for row in rows}, distinct_names(geometries)
        todo = [(k, g) for k, g in enumerate(geometries) if names[k] not in done]
        if todo:
            # The first calls of a process load PyTorch, the model, and libraries; water itself is
            # left alone by the guess.
            warm_up(method, "minao")
            first_kind = "optimize" if args.kind == "torsion" else args.kind
            run_molecule(WATER, "water", method, first_kind, 2)
        for k, geometry in tqdm(todo, desc=args.kind, unit="mol"):
            first = tuple(_RUNS)[k % 2]
            try:
                row = run_molecule(geometry, names[k], method, args.kind, args.steps, first)
            except ConfigError as error:  # no bond to turn
                tqdm.write(f"{names[k]}: {error}", file=sys.stderr)
                continue
            rows.append(row)
            write_rows(args.json, settings, rows)
        print(table(rows))
        return 0

    return run_resumable(run, args.json)
