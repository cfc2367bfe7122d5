"""``python -m pyscf_deqh.benchmark robustness``: random SCFs, with corrected cycles and without.

Bundled molecules of many kinds (``molecules/README.md``), most families as often as any other;
those of up to seven atoms also with all distances stretched, those of the G2 set also charged.
Methods and basis sets are drawn at random, for small molecules starts too. Fock builds and energies
are counted; seconds are written as well, but mean something only on a machine that does nothing
else. Rows are written after every case; the same command goes on where it stopped. It ends with
status 1 where a case failed or got worse.
"""

from __future__ import annotations

import argparse
import functools
import random
import re
import statistics
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pyscf import dft, scf
from tqdm import tqdm

from ..checkpoint import DEFAULT_MODEL, weights_hash
from ..data.geometry import Geometry, read_geometries
from ..errors import ConfigError
from ..files import writing
from ..fock.cost import too_cheap
from ..fock.diis import corrected_diis
from ..graph.basis import n_orbitals
from ..plugin import deqh_guess
from ..process import trim_memory
from ..pyscf_api import full_builds
from ..tasks import Failure, add_options, one_process, outcomes
from .environment import measured_with
from .ratios import spread
from .report import markdown_table, new_figure
from .resume import read_rows, run_resumable, write_rows
from .scf_runs import Method
from .sets import FOLDER

_XC = ("hf", "pbe", "b3lyp", "m06-2x", "camb3lyp")
_BASIS = ("def2-svp", "6-31g*", "cc-pvdz", "aug-cc-pvdz", "sto-3g")
_STARTS = ("minao", "minao", "atom", "1e", "huckel")
_STRETCHES = (1.0, 1.0, 1.0, 1.15, 1.5)
_CHARGES = (0, 0, 0, 1, -1)
# Bundled files beside that of many families.
_FILES = ("qm9", "fragments", "ions", "heavy", "radicals", "counterpoise")
_SMALL = 7  # atoms
_WEIGHTS = {"upu23": 0.1}  # of families that take minutes for each SCF
# Orbitals; molecules that have more in each basis set get the one with the fewest.
_MAX_ORBITALS = 180
_MINIMAL = 0.2  # how often STO-3G is drawn, relative to any other basis set
_ALL_ELECTRON = 36  # last element for which other basis sets than the def2 ones are drawn
# Hartree: where an energy counts as another one.
_SAME = 1e-6
# Where a run counts as slower: this part, and so many seconds.
_SLOWER, _SECONDS = 1.02, 0.03
_REPEATS = 3
_FAILED = r"\w+(Error|Exception): "  # how a fallback begins that is an error
RUNS = ("plain", "corrected", "deqh")


@functools.cache
def molecules() -> dict[str, dict[str, Geometry]]:
    """Bundled molecules by family and name."""
    found: dict[str, dict[str, Geometry]] = {}
    for geometry in read_geometries(FOLDER / "varied_test.xyz.gz"):
        family, name = geometry.info["name"].split(" ", 1)
        found.setdefault(family, {})[name] = geometry
    for family in _FILES:
        geometries = read_geometries(FOLDER / f"{family}_test.xyz")
        found[family] = {geometry.name: geometry for geometry in geometries}
    return found


@dataclass(frozen=True)
class Case:
    """One SCF.

    Attributes:
        family, molecule: see :func:`molecules`.
        xc, basis, charge, spin, init: as PySCF names them.
        stretch: factor of all distances.
        restricted: orbitals of either spin alike, open shells too.
        breaksym: how PySCF breaks the spin symmetry of unrestricted singlets.
    """

    family: str
    molecule: str
    xc: str
    basis: str
    charge: int
    spin: int
    stretch: float
    restricted: bool
    breaksym: str | int
    init: str

    def scf(self) -> Any:
        geometry = molecules()[self.family][self.molecule]
        info = geometry.info | {"charge": str(self.charge), "spin": str(self.spin)}
        positions = self.stretch * geometry.positions
        mol = Method(basis=self.basis).molecule(replace(geometry, positions=positions, info=info))
        kind = "HF" if self.xc == "hf" else "KS"
        name = ("RO" if self.spin else "R") + kind if self.restricted else f"U{kind}"
        mf = getattr(scf if kind == "HF" else dft, name)(mol)
        if kind == "KS":
            mf.xc = self.xc
        if not self.restricted:
            mf.init_guess_breaksym = self.breaksym
        mf.init_guess = self.init
        return mf


def _size(geometry: Geometry, basis: str) -> float:
    """Orbitals of a molecule; infinitely many where the basis set lacks one of its elements."""
    if geometry.numbers.max() > _ALL_ELECTRON and not basis.startswith("def2"):
        return float("inf")
    try:
        return n_orbitals(geometry.numbers, basis)
    except ConfigError:
        return float("inf")


def _basis_for(geometry: Geometry, rng: random.Random) -> str:
    sizes = {basis: _size(geometry, basis) for basis in _BASIS}
    suitable = [basis for basis in _BASIS if sizes[basis] <= _MAX_ORBITALS]
    if not suitable:
        return min(_BASIS, key=sizes.__getitem__)
    weights = [_MINIMAL if basis == "sto-3g" else 1.0 for basis in suitable]
    return rng.choices(suitable, weights)[0]


def cases(n: int, seed: int = 0) -> list[Case]:
    """The first n of an endless list of random cases."""
    rng, families = random.Random(seed), molecules()
    names = sorted(families)
    found: dict[Case, None] = {}  # in their order, each once
    while len(found) < n:
        (family,) = rng.choices(names, [_WEIGHTS.get(name, 1.0) for name in names])
        name, geometry = rng.choice(sorted(families[family].items()))
        small, own = len(geometry.numbers) <= _SMALL, geometry.whole_number("charge") or 0
        charge = own + (rng.choice(_CHARGES) if family == "g2" else 0)
        electrons = int(geometry.numbers.sum()) - charge
        if ghosts := geometry.whole_number("ghosts"):
            electrons -= int(geometry.numbers[-ghosts:].sum())
        unpaired = geometry.whole_number("spin") or 0
        spin = unpaired if (electrons - unpaired) % 2 == 0 else abs(unpaired - 1)
        case = Case(
            family, name, rng.choice(_XC), _basis_for(geometry, rng), charge, spin,
            rng.choice(_STRETCHES) if small else 1.0, rng.random() < 0.5, rng.choice((1, "mix")),
            rng.choice(_STARTS) if small else "minao",
        )  # fmt: skip
        if electrons > 1 and spin <= electrons:
            found[case] = None
    return list(found)


def _run(mf: Any) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        mf.kernel()
    except Exception as error:  # to be reported, and not to end the others
        return {"converged": False, "error": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - started
    spin_square = mf.spin_square()[0] if hasattr(mf, "spin_square") else None
    return {
        "converged": bool(mf.converged),
        "energy": float(mf.e_tot),
        "builds": full_builds(mf),
        "seconds": seconds,
        "spin_square": None if spin_square is None else float(spin_square),
        "gradients": [cycle.gradient for cycle in mf.deqh_cycles],
        "fitted": [len(cycle.fitted_gradients) for cycle in mf.deqh_cycles],
        "accepted": [cycle.accepted for cycle in mf.deqh_cycles],
        "fallback": mf.deqh_report and mf.deqh_report.fallback,
    }


def run_case(case: Case, model: str | Path = DEFAULT_MODEL) -> dict[str, Any]:
    """One row: the SCF without and with corrected cycles, and from the DEQH guess, all of them
    also where the cost rule would leave it alone; ``worth`` is whether it would not."""
    worth = too_cheap(case.scf()) is None
    row: dict[str, Any] = {"case": asdict(case), "worth": worth}
    for name in RUNS:
        trim_memory()  # one after the other: what one holds would change the next one's integrals
        mf = case.scf()
        if name == "corrected":
            corrected_diis(mf)
        elif name == "deqh":
            deqh_guess(mf, model, on_unsupported="minao")
            mf._deqh = replace(mf._deqh, frugal=False)
        row[name] = _run(mf)
        if name != "plain" and _is_higher(row, name):
            row[name]["stable"] = _is_stable(mf)
        del mf
    return row


def _is_higher(row: dict[str, Any], run: str) -> bool:
    plain, other = row["plain"], row[run]
    both = plain["converged"] and other["converged"]
    return both and other["energy"] > plain["energy"] + _SAME


def _is_stable(mf: Any) -> bool | None:
    """Whether no rotation within the kind of its orbitals lowers the energy; None if unknown."""
    try:
        return bool(mf.stability(return_status=True)[2])
    except Exception:  # it is an explanation of a row, which is written without it
        return None


def retime(row: dict[str, Any], model: str | Path = DEFAULT_MODEL) -> None:
    """Medians of seconds, without a guess and with it, as a user gets it."""
    seconds: dict[str, list[float]] = {"plain": [], "deqh": []}
    for k in range(_REPEATS):
        for name in sorted(seconds, reverse=bool(k % 2)):
            mf = Case(**row["case"]).scf()
            if name == "deqh":
                deqh_guess(mf, model, on_unsupported="minao")
            found = _run(mf)
            if "seconds" not in found:
                return  # it had some at first; its single time stays
            seconds[name].append(found["seconds"])
    row["retimed"] = {name: statistics.median(times) for name, times in seconds.items()}


def is_slower(row: dict[str, Any], at_first: bool = False) -> bool:
    """Whether a guess took longer than none, where the cost rule does not leave the SCF alone.

    Args:
        at_first: by the single times, also where it was timed again.
    """
    if not row["worth"] or not all(row[run]["converged"] for run in RUNS):
        return False
    single = {name: row[name]["seconds"] for name in ("plain", "deqh")}
    found = single if at_first else row.get("retimed") or single
    plain, deqh = found["plain"], found["deqh"]
    return deqh > _SLOWER * plain and deqh > plain + _SECONDS


def verdicts(row: dict[str, Any], run: str) -> list[str]:
    """What is worse than in the plain SCF: nothing, in a good row."""
    plain, other = row["plain"], row[run]
    worse = []
    if "error" in other and "error" not in plain:
        worse.append(other["error"])
    elif plain["converged"] and not other["converged"]:
        worse.append("not converged")
    if re.match(_FAILED, other.get("fallback") or ""):
        worse.append(other["fallback"])
    if plain["converged"] and other["converged"]:
        if _is_higher(row, run):
            stable = {True: "a stable state", False: "not stable"}.get(other.get("stable"), "")
            higher = f"{1e3 * (other['energy'] - plain['energy']):.3f} mEh higher"
            worse.append(", ".join(word for word in (higher, stable) if word))
        if other["builds"] > plain["builds"] + 1:
            worse.append(f"{other['builds']} builds instead of {plain['builds']}")
    return worse


def is_good(row: dict[str, Any]) -> bool:
    """Whether nothing got worse, but for an end above minao's that is a saddle point: a state that
    any start may end in, minao too."""
    for run in RUNS[1:]:
        explained = _is_higher(row, run) and row[run].get("stable") is False
        if len(verdicts(row, run)) > explained:
            return False
    return True


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Fock builds of the cases that converge in all runs, of all and by family; seconds; and every
    row with something worse."""
    good = [row for row in rows if all(row[run]["converged"] for run in RUNS)]
    exceptions = [
        f"- {run}, {' '.join(f'{value}' for value in row['case'].values())}: {verdict}"
        for run in RUNS[1:]
        for row in rows
        for verdict in verdicts(row, run)
    ]
    lines: list[str] = []
    if good:
        lines += [*_builds(rows, good), ""]
        for title, chosen in (("A guess of this package", True), ("PySCF's own start", False)):
            some, of_good = (
                [row for row in part if (row["deqh"].get("fallback") is None) == chosen]
                for part in (rows, good)
            )
            if of_good:
                lines += [f"{title} in run deqh:", "", *_builds(some, of_good), ""]
        lines += [*_by_family(good), ""]
        # Timed once: those timed again are a choice of the slower ones.
        alone = [row for row in good if row["worth"] and row.get("alone", True)]
        timed = [row["deqh"]["seconds"] / row["plain"]["seconds"] for row in alone]
        if timed:
            quantiles = " / ".join(f"{q:.2f}" for q in np.quantile(timed, (0.1, 0.5, 0.9)))
            again = [row for row in good if "retimed" in row]
            slower = sum(is_slower(row, at_first=True) for row in alone)
            lines += [
                f"Seconds of deqh over plain, {len(timed)} cases that the cost rule does not leave "
                f"alone, 10 / 50 / 90 %: {quantiles}; {slower} slower"
                + (f"; of {len(again)} that were timed again {sum(map(is_slower, again))}"
                   if again else "") + ".", ""]  # fmt: skip
    return "\n".join([*lines, *exceptions])


def _builds(rows: Sequence[dict[str, Any]], good: Sequence[dict[str, Any]]) -> list[str]:
    cells = []
    for run in RUNS:
        builds = np.array([r[run]["builds"] for r in good])
        change = np.array([r[run]["energy"] - r["plain"]["energy"] for r in good])
        quantiles = " / ".join(f"{q:.0f}" for q in np.quantile(builds, (0.1, 0.5, 0.9)))
        cells.append([
            run, spread(builds, ".2f", ".2f"), quantiles, f"{builds.max()}",
            f"{(change > _SAME).sum()}", f"{(change < -_SAME).sum()}",
            f"{sum(r[run]['converged'] for r in rows)} of {len(rows)}", f"{len(good)}",
        ])  # fmt: skip
    columns = ["run", "full Fock builds", "10 / 50 / 90 %", "most", "higher energy",
               "lower energy", "converged", "n"]  # fmt: skip
    return markdown_table(columns, cells)


def _by_family(good: Sequence[dict[str, Any]]) -> list[str]:
    cells = []
    for family in sorted({row["case"]["family"] for row in good}):
        own = [row for row in good if row["case"]["family"] == family]
        means = [statistics.fmean(row[run]["builds"] for row in own) for run in RUNS]
        cells.append([family, *(f"{mean:.2f}" for mean in means), f"{len(own)}"])
    return markdown_table(["full Fock builds, mean", *RUNS, "n"], cells)


def plot(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Histogram of full Fock builds.

    Raises:
        ConfigError: Matplotlib is missing.
    """
    good = [row for row in rows if all(row[run]["converged"] for run in RUNS)]
    figure = new_figure()
    axes = figure.subplots()
    builds = {run: [row[run]["builds"] for row in good] for run in RUNS}
    most = max(map(max, builds.values()))
    axes.hist(builds.values(), bins=np.arange(0.5, most + 1.5), label=list(builds))
    axes.set_xlabel("full Fock builds")
    axes.set_ylabel(f"SCFs of {len(good)}")
    axes.legend()
    with writing(path):
        figure.savefig(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark robustness",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--n", type=int, default=1000, help="so many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundled model or exported folder")
    parser.add_argument("--json", type=Path, metavar="OUT", required=True,
                        help="write all rows here, and go on after those in it")  # fmt: skip
    add_options(parser, default="0")
    parser.add_argument("--retime", action="store_true", help="time those again that were slower "
                        "with a guess: medians of three")  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="PNG", help="histogram of Fock builds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    def run() -> int:
        settings = {"weights": weights_hash(args.model), "orbitals": _MAX_ORBITALS,
                    "minimal": _MINIMAL}  # fmt: skip
        read = read_rows(args.json, settings, lambda row: Case(**row["case"]))
        rows = list({Case(**row["case"]): row for row in read}.values())
        done = [row["case"] for row in rows]
        todo = [case for case in cases(args.n, args.seed) if asdict(case) not in done]
        tasks = deque((case, (case, args.model)) for case in todo)
        failed: dict[Case, str] = {}
        with tqdm(total=len(todo), desc="robustness", unit="SCF") as bar:
            for case, row in outcomes(run_case, tasks, one_process(args), args.scheduler):
                bar.update()
                if isinstance(row, Failure):
                    failed[case] = row.reason
                    continue
                rows.append(row | {"alone": one_process(args) == 0 and not args.scheduler})
                write_rows(args.json, settings, rows)
        slower = [row for row in rows if args.retime and "retimed" not in row and is_slower(row)]
        for row in tqdm(slower, desc="timed again", unit="SCF", disable=not slower):
            retime(row, args.model)
            write_rows(args.json, settings, rows)
        print("\n".join([table(rows), *measured_with(rows)]))
        for case, reason in failed.items():
            print(f"- no row of {case}: {reason}")
        bad = sum(not is_good(row) for row in rows)
        print(f"{bad} of {len(rows)} cases are worse with a guess or corrected cycles, without "
              "saddle points above minao's end")  # fmt: skip
        if args.plot:
            plot(rows, args.plot)
        return 1 if failed or bad else 0

    return run_resumable(run, args.json)
