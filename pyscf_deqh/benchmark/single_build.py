"""``python -m pyscf_deqh.benchmark single-build``: energies of one Fock matrix against SCFs.

Each molecule's energy by :func:`pyscf_deqh.single_build` is compared with that of an SCF by
:func:`pyscf_deqh.deqh_guess`, converged further than by PySCF's default; its seconds with those of
that SCF to the default.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..checkpoint import DEFAULT_MODEL, weights_hash
from ..data.geometry import Geometry
from ..errors import exit_status
from ..files import only_writer
from ..plugin import deqh_guess
from ..single_build import single_build
from .acceleration import warm_up
from .ratios import distribution
from .report import markdown_table
from .resume import read_rows, write_rows
from .sets import SUITE, SuiteSet

_TIGHT = {"conv_tol": 1e-12, "conv_tol_grad": 1e-6}  # hartree
_SETS = ("qm9", "larger", "fragments", "ions", "heavy", "radicals", "cation", "pcm", "smd", "hf")
_COLUMNS = ("molecules", "n", "error per atom / micro-Eh", "largest error / micro-Eh",
            "error bar / micro-Eh", "within it", "error of the density's own energy / micro-Eh",
            "seconds / SCF's")  # fmt: skip


def one_molecule(
    geometry: Geometry, entry: SuiteSet, model: str | Path, device: str
) -> dict[str, Any]:
    """The row of a molecule of a set: energies in hartree.

    Raises:
        DEQHError: there is no guess for it.
    """
    method = entry.method(model, device)
    mol = method.molecule(geometry)
    started = time.perf_counter()
    found = single_build(method.scf(mol), model=model, device=device)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    mf = deqh_guess(method.scf(mol), model=model, device=device).run()
    scf_seconds = time.perf_counter() - started
    converged = bool(mf.converged)
    mf.set(**_TIGHT).kernel(dm0=mf.make_rdm1())
    return {
        "set": entry.name,
        "molecule": geometry.name,
        "n_atoms": int(mol.natm),
        "energy": float(mf.e_tot),
        "converged": converged and bool(mf.converged),
        "error": found.energy - float(mf.e_tot),
        "error_bar": found.error,
        "upper": found.upper - float(mf.e_tot),
        "seconds": seconds,
        "scf_seconds": scf_seconds,
    }


def run(
    sets: Sequence[str],
    n: int,
    path: Path | None = None,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Rows of the first molecules of each set, those that ``path`` holds already included.

    Args:
        sets: names of the suite's sets.
        n: molecules of each.
        path: JSON file, written after every molecule.
        model, device: of the guess.
        progress: show a progress bar.

    Raises:
        ConfigError: ``path`` is another file.
    """
    settings = {"weights": weights_hash(model)}
    rows = read_rows(path, settings, lambda row: (row["set"], row["molecule"])) if path else []
    rows = [row for row in rows if "reason" not in row]  # those that failed get another chance
    done = {(row["set"], row["molecule"]) for row in rows}
    todo = [(g, SUITE[name]) for name in sets for g in SUITE[name].geometries(n)]
    todo = [(g, entry) for g, entry in todo if (entry.name, g.name) not in done]
    for geometry, entry in tqdm(todo, unit="mol", disable=not progress):
        warm_up(replace(entry.method(model, device), charge=0, spin=None), "minao")
        try:
            rows.append(one_molecule(geometry, entry, model, device))
        except Exception as error:  # of one molecule: the others go on
            reason = f"{type(error).__name__}: {error}"
            rows.append({"set": entry.name, "molecule": geometry.name, "reason": reason})
        if path:
            write_rows(path, settings, rows)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the molecules of each set, in Markdown; those that failed, and
    SCFs that did not converge, are left out and listed below."""
    cells = []
    for name, entry in SUITE.items():
        found = [r for r in rows if r["set"] == name and r.get("converged")]
        if not found:
            continue
        errors = [1e6 * abs(r["error"]) for r in found]
        cells.append([
            entry.title,
            str(len(found)),
            _spread([e / r["n_atoms"] for e, r in zip(errors, found, strict=True)]),
            f"{max(errors):.2g}",
            _spread([1e6 * r["error_bar"] for r in found]),
            str(sum(abs(r["error"]) <= r["error_bar"] for r in found)),
            _spread([1e6 * r["upper"] for r in found]),
            _spread([r["seconds"] / r["scf_seconds"] for r in found]),
        ])  # fmt: skip
    lines = markdown_table(_COLUMNS, cells)
    failed = [
        f"- {r['set']} {r['molecule']}: {r.get('reason', 'SCF not converged')}"
        for r in rows
        if not r.get("converged")
    ]
    if failed:
        lines += ["", "Left out:", "", *failed]
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    found = distribution(values)
    return f"{found['mean']:.2g} ± {found['std']:.1g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark single-build",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sets", nargs="+", choices=SUITE, default=list(_SETS))
    parser.add_argument("--n", type=int, default=10, help="molecules of each, in random order")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundled model or exported folder")
    parser.add_argument("--device", default="auto", help="of the network: auto, cpu, cuda …")
    parser.add_argument("--json", type=Path, metavar="OUT",
                        help="write all rows here, and go on after those in it")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    def command() -> int:
        print(table(run(args.sets, args.n, args.json, args.model, args.device)))
        return 0

    alone = only_writer(args.json)(command) if args.json else command
    return exit_status(alone, "interrupted; with --json, the same command goes on")
