"""The acceleration benchmark: real SCFs from DEQH and from other guesses, molecule by molecule."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pyscf import lib
from tqdm import tqdm

from .. import __version__
from ..checkpoint import weights_hash
from ..data.geometry import Geometry
from ..errors import UnsupportedMoleculeError
from ..files import write_json
from ..guess import Guess
from .ratios import RATIOS, distribution, hamiltonian_mae, ratios
from .scf_runs import Method, run_classical, run_deqh

WATER = Geometry(
    np.array([8, 1, 1], dtype=np.int32),
    np.array([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]]),
    {"name": "water"},
)


def _processor() -> str:
    """The processor's name where the system tells one, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict:
    """What the figures were measured with: hardware, threads and versions."""
    import torch

    return {
        "machine": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": lib.num_threads(),
        "python": platform.python_version(),
        "pyscf_deqh": __version__,
        **{name: version(name) for name in ("pyscf", "torch", "numpy")},
    }


def name_of(geometry: Geometry) -> str:
    """What a molecule is known by; a frame of a trajectory by its temperature and number too."""
    info = geometry.info
    words = [f"qm9-{info['qm9_id']}" if "qm9_id" in info else info.get("id", "")]
    words.append(info.get("name", info.get("smiles", "")))
    if "frame" in info:
        words.append(f"{info.get('temperature', '?')} K frame {info['frame']}")
    return " ".join(word for word in words if word) or "molecule"


def benchmark_molecule(geometry: Geometry, method: Method, inits: Sequence[str]) -> dict:
    """One row: the DEQH run, all baselines, and the ratios between them."""
    mol = method.molecule(geometry)
    deqh, guess = run_deqh(mol, method)
    predicted = guess.prediction.hamiltonian
    row = {
        "name": name_of(geometry),
        "n_atoms": mol.natm,
        "n_heavy": geometry.n_heavy,
        "nao": int(mol.nao),
        "deqh": deqh.to_row() | _details(guess),
        "baselines": {},
        "ratios": {},
        "energy_difference": {},
    }
    for init in inits:
        baseline = run_classical(mol, method, init)
        row["baselines"][init] = baseline.to_row()
        row["ratios"][init] = ratios(deqh, baseline, predicted)
        row["energy_difference"][init] = deqh.energy - baseline.energy
        row["hamiltonian_mae"] = hamiltonian_mae(predicted, baseline)
        row["refined_mae"] = hamiltonian_mae(guess.cycles.hamiltonian, baseline)
    return row


def _details(guess: Guess) -> dict:
    prediction, cycles = guess.prediction, guess.cycles
    return {
        "iterations": prediction.iterations,
        "residual": prediction.residual,
        "graph_seconds": prediction.graph_seconds,
        "network_seconds": prediction.network_seconds,
        "refine_seconds": guess.refine_seconds,
        "exact_seconds": cycles.exact_seconds,
        "cheap_gradients": cycles.gradients,
        "corrected_gradients": cycles.corrected_gradients,
        "notes": prediction.notes,
    }


def _converged(row: dict, init: str) -> bool:
    return row["deqh"]["converged"] and row["baselines"][init]["converged"]


def summarize(rows: Sequence[dict], init: str, model: str) -> dict:
    """Distributions of all ratios over the molecules where both runs converged."""
    good = [row for row in rows if _converged(row, init)]
    guess = [r["deqh"]["guess_seconds"] / _seconds(r["baselines"][init]) for r in good]
    return {
        **{name: distribution(r["ratios"][init][name] for r in good) for name in RATIOS},
        "guess_share": distribution(guess),
        "cycles_deqh": distribution(r["deqh"]["cycles"] for r in good),
        "cycles_baseline": distribution(r["baselines"][init]["cycles"] for r in good),
        "hamiltonian_mae": distribution(r["hamiltonian_mae"] for r in good),
        "refined_mae": distribution(r["refined_mae"] for r in good),
        "cheap_cycles": distribution(
            len(r["deqh"]["cheap_gradients"]) + len(r["deqh"]["corrected_gradients"]) for r in good
        ),
        "max_energy_difference": max(
            (abs(r["energy_difference"][init]) for r in good), default=float("nan")
        ),
        "n": len(good),
        "not_converged": [r["name"] for r in rows if not _converged(r, init)],
        "model": model,
        "init": init,
    }


def _seconds(run: dict) -> float:
    return run["guess_seconds"] + run["scf_seconds"]


class Results:
    """Rows, failures and summaries; written after every molecule, so that nothing is lost."""

    def __init__(self, method: Method, inits: Sequence[str], path: Path | None):
        self.method, self.inits, self.path = method, list(inits), path
        self.rows: list[dict] = []
        self.failures: list[dict] = []

    def summaries(self) -> dict[str, dict]:
        model = str(self.method.model)
        return {init: summarize(self.rows, init, model) for init in self.inits}

    def to_json(self) -> dict:
        summaries = self.summaries()
        return {
            "method": {
                "xc": self.method.xc,
                "basis": self.method.basis,
                "charge": self.method.charge,
                "spin": self.method.spin,
                "model": str(self.method.model),
                "weights": weights_hash(self.method.model),
                "device": self.method.device,
            },
            "environment": environment(),
            "summary": summaries[self.inits[0]],
            "summaries": summaries,
            "failures": self.failures,
            "rows": self.rows,
        }

    def save(self) -> None:
        if self.path is not None:
            write_json(self.path, self.to_json())


def run_benchmark(
    geometries: Sequence[Geometry],
    method: Method,
    inits: Sequence[str],
    path: Path | None = None,
    progress: bool = True,
    resume: bool = False,
) -> Results:
    """Run every molecule; a failure is listed and the rest goes on.

    The first calls of a process load the model and the integral library; a water molecule takes
    them before the clock starts. An interrupt returns what is done so far; with ``resume``, rows
    that ``path`` holds already are kept and their molecules (known by name) not run again.
    """
    results = Results(method, inits, path)
    if resume and path is not None and path.is_file():
        results.rows = json.loads(path.read_text())["rows"]
        done = {row["name"] for row in results.rows}
        geometries = [g for g in geometries if name_of(g) not in done]
        if not geometries:
            return results
    water = replace(method, charge=0, spin=None).molecule(WATER)
    # A model that does not serve the method says so for each molecule.
    with contextlib.suppress(UnsupportedMoleculeError):
        run_deqh(water, method)
    run_classical(water, method, inits[0])
    bar = tqdm(geometries, desc="benchmark", unit="mol", disable=not progress)
    try:
        for geometry in bar:
            bar.set_postfix_str(name_of(geometry))
            try:
                results.rows.append(benchmark_molecule(geometry, method, inits))
            except Exception as error:
                failure = {"name": name_of(geometry), "reason": f"{type(error).__name__}: {error}"}
                results.failures.append(failure)
                bar.write(f"{failure['name']}: {failure['reason']}")
            results.save()
    except KeyboardInterrupt:
        bar.write("interrupted: the results so far follow")
    finally:
        bar.close()
    return results
