"""``python -m pyscf_deqh.benchmark rates``: how fast this machine is, so that guesses know.

An SCF that takes no longer than a guess is left alone. The estimate behind this needs the rates of
the machine: they are measured in a minute, on benzene, and kept in the user's cache folder
(``$XDG_CACHE_HOME`` or ``~/.cache``). Run it while nothing else runs; with the number of threads of
later calculations.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from pyscf import dft, gto, lib, scf
from tqdm import tqdm

from ..errors import DEQHError
from ..files import write_json
from ..fock.cost import OWN, Rates, rates_file, seconds_of_matrix
from .scf_runs import Method, run_guess

_RING = [(1.395, "C"), (2.48, "H")]  # angstrom
_REPEATS = 5
_IMPORT = "import time; t = time.perf_counter(); import torch; print(time.perf_counter() - t)"


def _benzene() -> gto.Mole:
    angles = np.arange(6) * np.pi / 3
    atoms = [
        (symbol, (radius * np.cos(a), radius * np.sin(a), 0.0))
        for radius, symbol in _RING
        for a in angles
    ]
    return gto.M(atom=atoms, basis="def2-svp", verbose=0)


def _seconds(function: Callable[[], object]) -> float:
    """Median of some repetitions after a first one, which prepares things."""
    function()
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _seconds_of_guess(mol: gto.Mole) -> float:
    """The same of a guess and the corrected cycles of its SCF; PySCF's own integrals, which every
    SCF makes, left out."""
    method = Method(frugal=False)
    runs = [run_guess(mol, method, "deqh", method.options())[0] for _ in range(1 + _REPEATS)]
    return float(np.median([run.own_seconds for run in runs[1:]]))


def _seconds_of_import() -> float:
    done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else Rates.imports


def measure() -> Rates:
    """The rates of this machine, by real work."""
    mol, water = _benzene(), gto.M(atom="O; H 1 .96; H 1 .96 2 104.5", basis="def2-svp", verbose=0)
    density = np.asarray(scf.hf.init_guess_by_minao(mol))
    n = mol.nao
    in_core, direct, fitted = scf.RHF(mol), scf.RHF(mol), scf.RHF(mol).density_fit()
    direct.max_memory = 1
    ks, small = dft.RKS(mol, xc="pbe"), dft.RKS(water, xc="b3lyp")
    ks.initialize_grids(mol, density)
    points = len(ks.grids.weights)
    steps: dict[str, Callable[[], float]] = {
        "in_core": lambda: _seconds(lambda: in_core.get_veff(mol, density)) / n**4,
        "direct": lambda: _seconds(lambda: direct.get_veff(mol, density)) / n**3,
        "fitted": lambda: _seconds(lambda: fitted.get_veff(mol, density)) / n**3 / mol.nelectron,
        "grid": lambda: (
            _seconds(lambda: ks._numint.nr_rks(mol, ks.grids, "pbe", density)) / points / n
        ),
        "imports": lambda: float(np.median([_seconds_of_import() for _ in range(3)])),
        "fixed": lambda: _seconds_of_guess(water),
    }
    progress = tqdm(steps.items(), desc="rates", unit="rate")
    rates = Rates(**{name: step() for name, step in progress})
    # A guess is a fixed time and some work that grows with the molecule.
    own = OWN * seconds_of_matrix(small, rates)
    return Rates(**asdict(rates) | {"fixed": max(rates.fixed - own, rates.fixed / 2)})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark rates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    try:
        measured = measure()
        write_json(rates_file(), asdict(measured))
    except (DEQHError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in asdict(measured).items():
        print(f"{name:8} {value:10.3g}   (default {getattr(Rates, name):.3g})")
    print(f"seconds, with {lib.num_threads()} threads; written to {rates_file()}")
    return 0
