"""``python -m pyscf_deqh.benchmark ablation``: the guess's cycles, one thing changed at a time.

Cycles and errors are counted, no seconds: other work on the machine does no harm.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pyscf import gto
from tqdm import tqdm

from ..checkpoint import DEFAULT_MODEL, weights_hash
from ..data.geometry import Geometry, read_geometries
from ..errors import OutputError
from ..fock.cycles import CONVERGED, CycleSettings
from ..fock.grid import GRID
from ..guess import Guess, Options
from ..starts import Start
from ..starts.atoms import AtomsStart
from ..starts.network import NetworkStart
from .environment import measured_with
from .ratios import hamiltonian_mae, spread
from .report import markdown_table
from .resume import read_rows, run_resumable, write_rows
from .scf_runs import Method, SCFRun, run_guess
from .sets import BUNDLED, distinct_names, in_random_order

Row = dict[str, Any]

_ENOUGH_CYCLES = 30
# What single precision allows.
_TIGHT = 2e-5


@dataclass(frozen=True)
class Variant:
    """One way to make the guess.

    Attributes:
        title: in the table.
        network: whether the cycles start from the network's Hamiltonian, or from superposed atoms.
        cycles: which density-fitted cycles follow; None for the start alone.
        accelerate: whether the SCF goes on with corrected cycles.
        auxbasis, grid: of the fitted Fock matrices, where there is no network.
    """

    title: str
    network: bool = True
    cycles: CycleSettings | None = field(default_factory=CycleSettings)
    accelerate: bool = True
    auxbasis: str | None = None
    grid: tuple[int, int] = GRID

    def options(self, method: Method) -> Options:
        """Of the guess."""
        if self.network:
            start: Start = NetworkStart(method.model, method.device)
        else:
            start = AtomsStart(method.device, self.auxbasis, self.grid)
        return Options((start,), self.cycles, self.accelerate)


def _tolerance(value: float) -> Variant:
    cycles = CycleSettings(tolerance=value)
    return Variant(f"{value:.1e} hartree per root of a pair", cycles=cycles, accelerate=False)


def _fitting(auxbasis: str, grid: tuple[int, int]) -> Variant:
    cycles = CycleSettings(_ENOUGH_CYCLES, _TIGHT)
    return Variant(f"{auxbasis}, {grid}", False, cycles, False, auxbasis, grid)


PARTS = {
    "fitting": [
        _fitting(auxbasis, grid)
        for auxbasis in ("def2-universal-jkfit", "def2-universal-jfit")
        for grid in ((30, 110), (35, 146), (40, 194))
    ],
    "tolerance": [
        Variant("no density-fitted cycles", cycles=None, accelerate=False),
        *(_tolerance(value) for value in (1e-3, CONVERGED, 1.5e-4, 5e-5)),
    ],
    "start": [
        Variant("atoms, no density-fitted cycles", False, None),
        Variant("atoms, density-fitted cycles", False),
        Variant("network, no density-fitted cycles", cycles=None),
        Variant("network, density-fitted cycles"),
    ],
}  # fmt: skip
_MEANING = {
    "fitting": "converged density-fitted cycles in other auxiliary basis sets and grids, then DIIS",
    "tolerance": "where density-fitted cycles stop, then DIIS",
    "start": "where the SCF with corrected cycles starts",
}
_COLUMNS = ("fitted Fock matrices", "MAE of H of the guess / micro-Eh", "cycles that PySCF prints",
            "largest error of the energy / Eh", "n")  # fmt: skip


def _solution(mol: gto.Mole, method: Method) -> SCFRun:
    """What all guesses are compared with: an SCF converged further than by PySCF's default."""
    tight = replace(method, conv_tol=1e-11, conv_tol_grad=1e-6)
    return run_guess(mol, tight, "deqh", method.options())[0]


def _row(run: SCFRun, guess: Guess, converged: SCFRun) -> Row:
    hamiltonian = None if guess.report.fallback else guess.solution.hamiltonian
    corrected = sum(n + 1 for n in run.corrected if n)
    return {
        "fitted_builds": len(guess.report.fitted_gradients) + corrected,
        "full_builds": run.full_builds,
        "hamiltonian_mae": hamiltonian_mae(hamiltonian, converged),
        "cycles": run.cycles,
        "converged": run.converged and converged.converged,
        "energy_error": run.energy - converged.energy,
    }


def _rows(
    geometry: Geometry, method: Method, variants: Sequence[tuple[str, Variant]]
) -> Iterator[tuple[str, Variant, Row]]:
    mol = method.molecule(geometry)
    converged = _solution(mol, method)
    for part, variant in variants:
        run, guess = run_guess(mol, method, "deqh", variant.options(method))
        row = _row(run, guess, converged)
        del guess  # each SCF finds the memory that the others did
        yield part, variant, row


def _place(row: Row) -> tuple[str, str, str]:
    """What a row is of."""
    return row["part"], row["variant"], row["molecule"]


def run_ablation(
    geometries: Mapping[str, Geometry],
    method: Method,
    parts: Sequence[str],
    path: Path | None = None,
    progress: bool = True,
) -> tuple[list[Row], dict[str, str]]:
    """Rows of each variant and molecule, those that ``path`` holds already included; and why
    molecules failed.

    Args:
        geometries: molecules of the model's elements, by name.
        method: of the SCFs, in the model's basis set.
        parts: keys of :data:`PARTS`.
        path: JSON file, written after every row.
        progress: show a progress bar.

    Raises:
        ConfigError: ``path`` is another file.
    """
    settings = {"xc": method.xc, "basis": method.basis, "weights": weights_hash(method.model)}
    rows = read_rows(path, settings, _place) if path else []
    done = set(map(_place, rows))
    todo = [
        (geometry, name, [(part, variant) for part in parts for variant in PARTS[part]
                          if (part, variant.title, name) not in done])
        for name, geometry in geometries.items()
    ]  # fmt: skip
    failures = {}
    bar = tqdm(total=sum(len(entry[2]) for entry in todo), unit="SCF", disable=not progress)
    with bar:
        for geometry, name, variants in todo:
            if not variants:
                continue
            try:
                for part, variant, row in _rows(geometry, method, variants):
                    rows.append({"part": part, "variant": variant.title, "molecule": name} | row)
                    if path:
                        write_rows(path, settings, rows)
                    bar.update()
            except OutputError:
                raise
            except Exception as error:  # of one molecule: the others go on
                failures[name] = f"{type(error).__name__}: {error}"
    return rows, failures


def _cell(rows: Iterable[Row], name: str, factor: float, digits: int) -> str:
    known = (row[name] for row in rows)
    values = (None if value is None else factor * value for value in known)
    return spread(values, f".{digits}f", f".{digits}f")


def ablation_table(rows: Sequence[Row]) -> str:
    """Mean ± standard deviation over molecules, one table in Markdown for each part; SCFs that did
    not converge are left out and listed below."""
    lines = []
    lost = [f"- {r['variant']}: {r['molecule']}" for r in rows if not r["converged"]]
    rows = [row for row in rows if row["converged"]]
    for part, variants in PARTS.items():
        cells = []
        for variant in variants:
            found = [r for r in rows if (r["part"], r["variant"]) == (part, variant.title)]
            if found:
                cells.append([
                    variant.title,
                    _cell(found, "fitted_builds", 1, 1),
                    _cell(found, "hamiltonian_mae", 1e6, 2),
                    _cell(found, "cycles", 1, 1),
                    f"{max(abs(r['energy_error']) for r in found):.0e}",
                    f"{len(found)}",
                ])  # fmt: skip
        if cells:
            lines += [*markdown_table([_MEANING[part], *_COLUMNS], cells), ""]
    if lost:
        lines += ["Not converged, left out:", "", *lost]
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

    def run() -> int:
        geometries = in_random_order(read_geometries(args.molecules))
        named = zip(distinct_names(geometries), geometries, strict=True)  # whatever --n is
        chosen = dict(islice(named, args.n))
        rows, failures = run_ablation(chosen, method, args.parts, args.json)
        print("\n".join([ablation_table(rows), *measured_with(rows)]))
        for name, reason in failures.items():
            print(f"- not all rows of {name}: {reason}")
        return int(bool(failures) or not all(row["converged"] for row in rows))

    return run_resumable(run, args.json)
