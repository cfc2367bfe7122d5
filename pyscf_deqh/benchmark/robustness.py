"""``python -m pyscf_deqh.benchmark robustness``: random SCFs, with corrected cycles and without.

Molecules of up to seven atoms of the G2 set (ASE; Curtiss et al., J. Chem. Phys. 106, 1063, 1997),
as they are, charged or with all distances stretched; methods, basis sets and starts at random. Fock
builds and energies are counted, no seconds: other work on the machine does no harm. Rows are
written after every case; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pyscf import dft, gto, scf
from tqdm import tqdm

from ..checkpoint import DEFAULT_MODEL, weights_hash
from ..errors import exit_status
from ..fock.diis import corrected_diis
from ..plugin import deqh_guess
from ..pyscf_api import full_builds
from .ratios import distribution
from .report import markdown_table
from .resume import read_rows, write_rows

_XC = ("hf", "pbe", "b3lyp", "m06-2x", "camb3lyp")
_BASIS = ("def2-svp", "6-31g*", "cc-pvdz", "aug-cc-pvdz", "sto-3g")
_STARTS = ("minao", "minao", "atom", "1e", "huckel")
_STRETCHES = (1.0, 1.0, 1.0, 1.15, 1.5)
_CHARGES = (0, 0, 0, 1, -1)
_MAX_ATOMS = 7
# Hartree: where an energy counts as another one.
_SAME = 1e-6
RUNS = ("plain", "corrected", "deqh")


@dataclass(frozen=True)
class Case:
    """One SCF.

    Attributes:
        molecule: its name in the set.
        xc, basis, charge, spin, init: as PySCF names them.
        stretch: factor of all distances.
        restricted: orbitals of either spin alike, open shells too.
        breaksym: how PySCF breaks the spin symmetry of unrestricted singlets.
    """

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
        from ase.collections import g2

        atoms = g2[self.molecule]
        mol = gto.M(
            atom=list(zip(atoms.symbols, (self.stretch * atoms.positions).tolist(), strict=True)),
            basis=self.basis, charge=self.charge, spin=self.spin, verbose=0,
        )  # fmt: skip
        kind = "HF" if self.xc == "hf" else "KS"
        name = ("RO" if self.spin else "R") + kind if self.restricted else f"U{kind}"
        mf = getattr(scf if kind == "HF" else dft, name)(mol)
        if kind == "KS":
            mf.xc = self.xc
        if not self.restricted:
            mf.init_guess_breaksym = self.breaksym
        mf.init_guess = self.init
        return mf


def cases(n: int, seed: int = 0) -> list[Case]:
    """The first n of an endless list of random cases."""
    from ase.collections import g2

    rng, names = random.Random(seed), [name for name in g2.names if len(g2[name]) <= _MAX_ATOMS]
    found: list[Case] = []
    while len(found) < n:
        molecule = rng.choice(names)
        charge = rng.choice(_CHARGES)
        electrons = int(g2[molecule].numbers.sum()) - charge
        unpaired = round(abs(float(g2[molecule].get_initial_magnetic_moments().sum())))
        spin = unpaired if (electrons - unpaired) % 2 == 0 else abs(unpaired - 1)
        case = Case(
            molecule, rng.choice(_XC), rng.choice(_BASIS), charge, spin, rng.choice(_STRETCHES),
            rng.random() < 0.5, rng.choice((1, "mix")), rng.choice(_STARTS),
        )  # fmt: skip
        if electrons > 1 and spin <= electrons:
            found.append(case)
    return found


def _run(mf: Any) -> dict[str, Any]:
    try:
        mf.kernel()
    except Exception as error:  # to be reported, and not to end the others
        return {"converged": False, "error": f"{type(error).__name__}: {error}"}
    stable = mf.spin_square()[0] if hasattr(mf, "spin_square") else None
    return {
        "converged": bool(mf.converged),
        "energy": float(mf.e_tot),
        "builds": full_builds(mf),
        "spin_square": None if stable is None else float(stable),
        "gradients": [cycle.gradient for cycle in mf.deqh_cycles],
        "fitted": [len(cycle.fitted_gradients) for cycle in mf.deqh_cycles],
        "accepted": [cycle.accepted for cycle in mf.deqh_cycles],
        "fallback": mf.deqh_report and mf.deqh_report.fallback,
    }


def run_case(case: Case, model: str | Path = DEFAULT_MODEL) -> dict[str, Any]:
    """One row: the SCF without and with corrected cycles, and from the DEQH guess."""
    plain, corrected, deqh = (case.scf() for _ in RUNS)
    corrected_diis(corrected)
    deqh_guess(deqh, model, on_unsupported="minao")
    deqh._deqh = replace(deqh._deqh, frugal=False)  # small as they are
    runs = dict(zip(RUNS, (plain, corrected, deqh), strict=True))
    return {"case": asdict(case)} | {name: _run(mf) for name, mf in runs.items()}


def verdicts(row: dict[str, Any], run: str) -> list[str]:
    """What is worse than in the plain SCF: nothing, in a good row."""
    plain, other = row["plain"], row[run]
    worse = []
    if "error" in other and "error" not in plain:
        worse.append(other["error"])
    elif plain["converged"] and not other["converged"]:
        worse.append("not converged")
    if plain["converged"] and other["converged"]:
        if other["energy"] > plain["energy"] + _SAME:
            worse.append(f"{1e3 * (other['energy'] - plain['energy']):.3f} mEh higher")
        if other["builds"] > plain["builds"] + 1:
            worse.append(f"{other['builds']} builds instead of {plain['builds']}")
    return worse


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Fock builds of the cases that converge in all runs, and every row with something worse."""
    cells, exceptions = [], []
    good = [r for r in rows if all(r[run]["converged"] for run in RUNS)]
    for run in RUNS if good else ():
        builds = np.array([r[run]["builds"] for r in good])
        change = np.array([r[run]["energy"] - r["plain"]["energy"] for r in good])
        found = distribution(builds)
        quantiles = " / ".join(f"{q:.0f}" for q in np.quantile(builds, (0.1, 0.5, 0.9)))
        cells.append([
            run, f"{found['mean']:.2f} ± {found['std']:.2f}", quantiles, f"{builds.max()}",
            f"{(change > _SAME).sum()}", f"{(change < -_SAME).sum()}",
            f"{sum(r[run]['converged'] for r in rows)} of {len(rows)}", f"{len(good)}",
        ])  # fmt: skip
    for run in RUNS[1:]:
        for row in rows:
            case = " ".join(f"{value}" for value in row["case"].values())
            exceptions += [f"- {run}, {case}: {verdict}" for verdict in verdicts(row, run)]
    columns = ["run", "full Fock builds", "10 / 50 / 90 %", "most", "higher energy",
               "lower energy", "converged", "n"]  # fmt: skip
    return "\n".join([*markdown_table(columns, cells), "", *exceptions])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark robustness",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--n", type=int, default=200, help="so many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundled model or exported folder")
    parser.add_argument("--json", type=Path, metavar="OUT", required=True,
                        help="write all rows here, and go on after those in it")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    def run() -> int:
        settings = {"weights": weights_hash(args.model)}
        rows = read_rows(args.json, settings, lambda row: Case(**row["case"]))
        done = [row["case"] for row in rows]
        todo = [case for case in cases(args.n, args.seed) if asdict(case) not in done]
        for case in tqdm(todo, desc="robustness", unit="SCF"):
            rows.append(run_case(case, args.model))
            write_rows(args.json, settings, rows)
        print(table(rows))
        return 0

    return exit_status(run, "interrupted; the same command goes on")
