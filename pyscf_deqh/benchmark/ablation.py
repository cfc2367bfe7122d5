"""``python -m pyscf_deqh.benchmark ablation``: the guess's cycles, one thing changed at a time.

Cycles and errors are counted, no seconds: other work on the machine does no harm.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyscf import gto
from tqdm import tqdm

from ..checkpoint import DEFAULT_MODEL, weights_hash
from ..data.geometry import Geometry, read_geometries
from ..errors import ConfigError, DEQHError
from ..files import write_json
from ..fock.cycles import DEFAULT_THRESHOLDS, Cycles, Thresholds, run_cycles
from ..fock.fitted import AUXBASIS, GRID, FittedFock
from ..fock.reference import sad_reference, superposed_atomic_density
from ..guess import MAX_CYCLES, Options, density_of, make_guess
from ..predict import predict_hamiltonian
from ..process import one_blas_thread
from .environment import environment
from .ratios import distribution
from .report import markdown_table
from .scf_runs import Method, SCFRun, run_scf
from .sets import BUNDLED, in_random_order

_ENOUGH_CYCLES = 30
# What single precision allows.
_CONVERGED = Thresholds(fitted=2e-5)


@dataclass(frozen=True)
class Variant:
    """One way to make the guess.

    Attributes:
        title: in the table.
        network: whether the cycles start from the network's Hamiltonian, or from the reference.
        max_cycles, exact_build, thresholds: see :func:`pyscf_deqh.cycles.run_cycles`.
        auxbasis, grid: of the fitted Fock matrices.
    """

    title: str
    network: bool = True
    max_cycles: int = MAX_CYCLES
    exact_build: bool = True
    thresholds: Thresholds = DEFAULT_THRESHOLDS
    auxbasis: str = AUXBASIS
    grid: tuple[int, int] = GRID


def _tolerance(value: float) -> Variant:
    return Variant(f"{value:.1e} hartree", exact_build=False, thresholds=Thresholds(fitted=value))


PARTS = {
    "fitting": [
        Variant(f"{auxbasis}, {grid}", False, _ENOUGH_CYCLES, False, _CONVERGED, auxbasis, grid)
        for auxbasis in ("def2-universal-jkfit", "def2-universal-jfit")
        for grid in ((30, 110), (35, 146), (40, 194))
    ],
    "tolerance": [
        Variant("no cheap cycles", max_cycles=0, exact_build=False),
        *(_tolerance(value) for value in (1e-3, 4e-4, 1.5e-4, 5e-5)),
    ],
    "exact": [
        Variant("reference, no cheap cycles", network=False, max_cycles=0),
        Variant("reference, cheap cycles", network=False),
        Variant("network, no cheap cycles", max_cycles=0),
        Variant("network, cheap cycles"),
    ],
    "corrected": [
        Variant(f"{factor:g} of the SCF's threshold", thresholds=Thresholds(corrected=factor))
        for factor in (1.0, 0.5, 0.25)
    ],
}
_MEANING = {
    "fitting": "converged cheap cycles in other auxiliary basis sets and grids, no exact matrix",
    "tolerance": "where cheap cycles stop, no exact matrix",
    "exact": "whose orbitals the exact matrix is built of",
    "corrected": "where corrected cycles stop",
}
_COLUMNS = ("cheap Fock matrices", "MAE of H of the guess / micro-Eh", "index of the last cycle",
            "largest error of the energy / Eh", "n")  # fmt: skip


def _solution(mol: gto.Mole, method: Method) -> SCFRun:
    """What all guesses are compared with: an SCF converged further than by PySCF's default."""
    mf = method.scf(mol)
    mf.conv_tol, mf.conv_tol_grad = 1e-11, 1e-6
    guess = make_guess(mf, mol, Options(method.model, method.device))
    return run_scf(mf, "deqh", guess.density_matrix, 0.0, 0, 0)


def run_variant(
    mol: gto.Mole, method: Method, variant: Variant, predicted: np.ndarray
) -> tuple[SCFRun, Cycles]:
    """SCF from a variant of the guess, and the guess's cycles.

    Args:
        mol: the molecule, in the model's basis set.
        method: of the SCF.
        variant: of the guess.
        predicted: (nao, nao) the network's Hamiltonian, hartree.
    """
    mf = method.scf(mol)
    with one_blas_thread():
        fitted = FittedFock(mol, auxbasis=variant.auxbasis, grid=variant.grid)
        start = predicted
        if not variant.network:
            start = sad_reference(mol, superposed_atomic_density(mol), fitted)
    cycles = Cycles(start)
    run_cycles(cycles, mf, mol, fitted, variant.max_cycles, variant.exact_build, variant.thresholds)
    dm = density_of(cycles, mf, mol)
    return run_scf(mf, "deqh", dm, 0.0, cycles.exact_builds, cycles.cheap_builds), cycles


def _row(run: SCFRun, cycles: Cycles, solution: SCFRun) -> dict[str, Any]:
    return {
        "cheap_builds": cycles.cheap_builds,
        "exact_builds": cycles.exact_builds,
        "hamiltonian_mae": float(np.abs(cycles.hamiltonian - solution.hamiltonian).mean()),
        "cycles": run.cycles,
        "converged": run.converged,
        "energy_error": run.energy - solution.energy,
    }


class Results:
    """Rows by part, variant and molecule; written after each of them."""

    def __init__(self, method: Method, path: Path | None):
        self.path = path
        self.method = {"xc": method.xc, "basis": method.basis,
                       "weights": weights_hash(method.model)}  # fmt: skip
        self.rows: list[dict[str, Any]] = []
        self._done: set[tuple[str, str, str]] = set()
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        """Take the rows of an earlier run.

        Raises:
            ConfigError: of another model or method, or something else altogether.
        """
        try:
            content = json.loads(path.read_text())
            method, rows = content["method"], content["rows"]
            made_with = {key: method[key] for key in self.method}
            done = {(row["part"], row["variant"], row["molecule"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} holds no ablation: {error!r}") from error
        if made_with != self.method:
            raise ConfigError(f"{path} was made with another model or method: name another --json")
        self.rows, self._done = rows, done

    def has(self, part: str, variant: Variant, molecule: str) -> bool:
        return (part, variant.title, molecule) in self._done

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.path is not None:
            content = {"method": self.method, "environment": environment(), "rows": self.rows}
            write_json(self.path, content)


def run_ablation(
    geometries: Sequence[Geometry],
    method: Method,
    parts: Sequence[str],
    path: Path | None = None,
    progress: bool = True,
) -> Results:
    """Run what ``path`` does not hold yet.

    Args:
        geometries: molecules of the model's elements.
        method: of the SCFs, in the model's basis set.
        parts: keys of :data:`PARTS`.
        path: JSON file of the rows.
        progress: show a progress bar.

    Raises:
        ConfigError: ``path`` holds something else.
        UnsupportedMoleculeError: the model cannot describe a molecule.
    """
    results = Results(method, path)
    todo = [
        (geometry, [(part, variant) for part in parts for variant in PARTS[part]
                    if not results.has(part, variant, geometry.name)])
        for geometry in geometries
    ]  # fmt: skip
    bar = tqdm(total=sum(len(variants) for _, variants in todo), unit="SCF", disable=not progress)
    with bar:
        for geometry, variants in todo:
            if not variants:
                continue
            mol = method.molecule(geometry)
            predicted = predict_hamiltonian(mol, method.model, method.device).hamiltonian
            solution = _solution(mol, method)
            for part, variant in variants:
                bar.set_postfix_str(f"{geometry.name}, {variant.title}")
                row = _row(*run_variant(mol, method, variant, predicted), solution)
                results.add({"part": part, "variant": variant.title,
                             "molecule": geometry.name} | row)  # fmt: skip
                bar.update()
    return results


def _cell(rows: Iterable[dict[str, Any]], name: str, factor: float, digits: int) -> str:
    values = distribution(factor * row[name] for row in rows)
    return f"{values['mean']:.{digits}f} ± {values['std']:.{digits}f}"


def ablation_table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean ± standard deviation over molecules, one table in Markdown for each part."""
    lines = []
    for part, variants in PARTS.items():
        cells = []
        for variant in variants:
            found = [r for r in rows if (r["part"], r["variant"]) == (part, variant.title)]
            if found:
                cells.append([
                    variant.title,
                    _cell(found, "cheap_builds", 1, 1),
                    _cell(found, "hamiltonian_mae", 1e6, 2),
                    _cell(found, "cycles", 1, 1),
                    f"{max(abs(r['energy_error']) for r in found):.0e}",
                    f"{len(found)}",
                ])  # fmt: skip
        if cells:
            lines += [*markdown_table([_MEANING[part], *_COLUMNS], cells), ""]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark ablation",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--molecules", type=Path, default=BUNDLED,
                        help="xyz/extxyz file, folder of them, or QH9 database")  # fmt: skip
    parser.add_argument("--n", type=int, default=3, help="so many of them, in random order")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundled model or exported folder")
    parser.add_argument("--device", default="auto", help="of the network: auto, cpu, cuda …")
    parser.add_argument("--json", type=Path, metavar="OUT",
                        help="write all rows here, and go on after those in it")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    method = Method(model=args.model, device=args.device)
    try:
        geometries = in_random_order(read_geometries(args.molecules))[: args.n]
        results = run_ablation(geometries, method, args.parts, args.json)
    except DEQHError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; with --json, the same command goes on", file=sys.stderr)
        return 130
    print(ablation_table(results.rows))
    return 0
