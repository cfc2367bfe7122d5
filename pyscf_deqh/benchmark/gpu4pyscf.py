"""``python -m pyscf_deqh.benchmark gpu4pyscf``: SCFs on a GPU, from this guess and from their own.

B3LYP for molecules of 3 to 122 atoms, direct and density-fitted, each from both guesses in one
process on one card; times are medians. Before that, SCFs of each kind of the file's second molecule
are not counted: what CUDA compiles and loads then is there for all.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.geometry import read_geometries
from ..errors import ConfigError, exit_status
from ..files import write_json
from ..fock.diis import CorrectedCycle
from ..plugin import deqh_guess
from ..predict import predict_hamiltonians
from ..report import Report
from .environment import environment
from .scf_runs import Method
from .sets import FOLDER

MOLECULES = FOLDER / "sizes_test.xyz"
MODES = ("direct", "density-fitted")
_ROW = "{:16} {:>5} {:>6} {:15} {:>8} {:>8} {:>7} {:>6} {:>6} {:>9}"


def _scf(mol: Any, xc: str, mode: str, guess: bool) -> Any:
    from gpu4pyscf import dft

    mf = dft.RKS(mol, xc=xc)
    if mode == "density-fitted":
        mf = mf.density_fit()
    return mf.apply(deqh_guess) if guess else mf


@dataclass(frozen=True)
class _Run:
    """What is kept of an SCF; its object would keep integrals on the GPU beside the next one's."""

    seconds: float
    energy: float
    converged: bool
    cycles: int
    report: Report | None
    corrected: tuple[CorrectedCycle, ...]


def _run(mol: Any, xc: str, mode: str, guess: bool) -> _Run:
    import cupy
    import torch

    mf = _scf(mol, xc, mode, guess)
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()
    cupy.cuda.Device().synchronize()
    started = time.perf_counter()
    mf.kernel()
    cupy.cuda.Device().synchronize()
    seconds = time.perf_counter() - started
    report, corrected = (mf.deqh_report, mf.deqh_cycles) if guess else (None, ())
    return _Run(seconds, float(mf.e_tot), bool(mf.converged), mf.cycles, report, corrected)


def compare(mol: Any, name: str, xc: str, mode: str, repeats: int, guess_first: bool) -> dict:
    """A row: SCFs from either guess, in turns."""
    runs: dict[bool, list[_Run]] = {False: [], True: []}
    for repeat in range(repeats):
        for guess in sorted(runs, reverse=guess_first != bool(repeat % 2)):
            runs[guess].append(_run(mol, xc, mode, guess))
    own, ours = runs[False][-1], runs[True][-1]
    report = ours.report
    assert report is not None
    # The first may wait for what CUDA compiles and loads for molecules of its size.
    seconds = {guess: [run.seconds for run in made] for guess, made in runs.items()}
    middle = {guess: statistics.median(times) for guess, times in seconds.items()}
    return {
        "name": name, "atoms": mol.natm, "orbitals": mol.nao, "basis": mol.basis, "mode": mode,
        "minao_seconds": middle[False], "deqh_seconds": middle[True],
        "ratio": middle[True] / middle[False], "minao_times": seconds[False],
        "deqh_times": seconds[True], "minao_cycles": own.cycles, "deqh_cycles": ours.cycles,
        "guess_seconds": report.seconds.total, "stages": asdict(report.seconds),
        "corrected_seconds": sum(cycle.seconds for cycle in ours.corrected),
        "fitted_cycles": [len(cycle.fitted_gradients) for cycle in ours.corrected],
        "start": report.start,
        "fallback": report.fallback, "notes": list(report.notes),
        "energy_difference": ours.energy - own.energy,
        "converged": own.converged and ours.converged,
    }  # fmt: skip


def _line(row: dict) -> str:
    return _ROW.format(
        row["name"][:16], row["atoms"], row["orbitals"], row["mode"],
        f"{row['minao_seconds']:.2f}", f"{row['deqh_seconds']:.2f}", f"{row['ratio']:.3f}",
        row["minao_cycles"], row["deqh_cycles"], f"{row['energy_difference']:.1e}",
    )  # fmt: skip


def measure(args: argparse.Namespace) -> int:
    import cupy
    import gpu4pyscf

    everything = read_geometries(args.molecules)
    geometries = [g for g in everything if not args.atoms or len(g.numbers) in args.atoms]
    if not geometries:
        sizes = ", ".join(str(len(g.numbers)) for g in everything)
        raise ConfigError(f"{args.molecules} has molecules of {sizes} atoms, none as asked for")
    ends = time.perf_counter() + args.seconds
    versions = {module.__name__: module.__version__ for module in (cupy, gpu4pyscf)}
    results: dict[str, Any] = {"environment": environment() | versions, "xc": args.xc, "rows": []}
    mols = [[Method(basis=basis).molecule(g) for g in geometries] for basis in args.basis]
    small = everything[min(1, len(everything) - 1)]
    warm_up = [Method(basis=basis).molecule(small) for basis in args.basis]
    for mol, mode, guess in itertools.product(warm_up, args.mode, (False, True)):
        _run(mol, args.xc, mode, guess)
    print(_ROW.format("molecule", "atoms", "nao", "mode", "own s", "deqh s", "ratio", "own", "deqh",
                      "E diff"))  # fmt: skip
    for same_basis in mols:
        print(same_basis[0].basis)
        pairs = [(i, mode) for i in range(len(same_basis)) for mode in args.mode]
        for i, mode in tqdm(pairs, desc=same_basis[0].basis, unit="pair"):
            if time.perf_counter() > ends:
                tqdm.write("left out: the time is over")
                break
            name = geometries[i].name
            row = compare(same_basis[i], name, args.xc, mode, args.repeats, bool(i % 2))
            results["rows"].append(row)
            tqdm.write(_line(row))
            if args.json:
                write_json(args.json, results)
    results["predictions"] = _predictions(geometries, args.batches)
    if args.json:
        write_json(args.json, results)
    return int(any(not row["converged"] for row in results["rows"]))


def _predictions(geometries: Sequence[Any], batches: Sequence[int]) -> list[dict]:
    """Molecules per second of ``predict_hamiltonians``, for copies of the second molecule."""
    rows = []
    mol = Method().molecule(geometries[min(1, len(geometries) - 1)])
    for size in batches:
        list(predict_hamiltonians([mol] * size, batch_size=size))
        started = time.perf_counter()
        done = list(predict_hamiltonians([mol] * size * 2, batch_size=size))
        rate = len(done) / (time.perf_counter() - started)
        network = 1 / statistics.fmean(p.network_seconds for p in done)
        rows.append({"atoms": mol.natm, "batch": size, "rate": rate, "network_rate": network})
        print(f"predict_hamiltonians, {mol.natm} atoms, batches of {size}: {rate:.1f} molecules/s "
              f"({network:.0f} of the network alone)")  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark gpu4pyscf",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--molecules", type=Path, default=MOLECULES, help="xyz or extxyz file")
    parser.add_argument("--atoms", type=int, nargs="+", metavar="N",
                        help="molecules of these numbers of atoms alone")  # fmt: skip
    parser.add_argument("--basis", nargs="+", default=["def2-svp", "def2-tzvp"])
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--xc", default="b3lyp")
    parser.add_argument("--repeats", type=int, default=3, help="SCFs from either guess, in turns")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32],
                        help="sizes of batches of predictions; none leaves them out")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no row after these")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures here")
    args = parser.parse_args(argv)
    return exit_status(lambda: measure(args), "stopped")
