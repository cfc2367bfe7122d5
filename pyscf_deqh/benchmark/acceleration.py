"""The acceleration benchmark: real SCFs from DEQH and from other guesses, molecule by molecule."""

from __future__ import annotations

import contextlib
import functools
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..checkpoint import weights_hash
from ..data.geometry import Geometry
from ..errors import ConfigError, UnsupportedMoleculeError
from ..files import write_json
from ..guess import Guess
from ..tasks import Failure, outcomes
from .environment import environment
from .ratios import OF_SECONDS, PAPER_RATIOS, RATIOS, distribution, hamiltonian_mae, ratios
from .scf_runs import CLASSICAL, Method, run_classical, run_deqh, run_guess

# Hartree. Convergence leaves differences of 1e-9; another state lies farther away.
ABOVE = 1e-6

WATER = Geometry(
    np.array([8, 1, 1], dtype=np.int32),
    np.array([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]]),
    {"name": "water"},
)


def benchmark_molecule(
    geometry: Geometry, method: Method, inits: Sequence[str], deqh_first: bool = True
) -> dict:
    """One row: the DEQH run, all baselines, and the ratios between them.

    Args:
        deqh_first: else the baselines come first. What comes first may find a colder processor.
    """
    mol = method.molecule(geometry)
    baselines = {} if deqh_first else {init: run_classical(mol, method, init) for init in inits}
    deqh, guess = run_deqh(mol, method)
    # Where minao's density was used there is nothing to compare.
    used = guess.report.fallback is None
    predicted = guess.start_hamiltonian if used else None
    refined = guess.solution.hamiltonian if used else None
    details = _details(guess)
    del guess  # each SCF finds the memory that the others did
    baselines = baselines or {init: run_classical(mol, method, init) for init in inits}
    converged = (run for run in baselines.values() if run.converged)
    solution = next(converged, baselines[inits[0]])
    return {
        "name": geometry.name,
        "n_atoms": mol.natm,
        "n_heavy": geometry.n_heavy,
        "nao": int(mol.nao),
        "deqh": deqh.to_row() | details,
        "baselines": {init: run.to_row() for init, run in baselines.items()},
        "ratios": {init: ratios(deqh, run, predicted) for init, run in baselines.items()},
        "energy_difference": {init: deqh.energy - run.energy for init, run in baselines.items()},
        "hamiltonian_mae": hamiltonian_mae(predicted, solution),
        "refined_mae": hamiltonian_mae(refined, solution),
    }


def _details(guess: Guess) -> dict:
    report = guess.report
    return {
        "start": report.start,
        "iterations": report.iterations,
        "residual": report.residual,
        "seconds": asdict(report.seconds),
        "fitted_gradients": report.fitted_gradients,
        "notes": report.notes,
        "fallback": report.fallback,
    }


def check_rows(rows: Sequence[dict], path: Path) -> None:
    """Refuse what another version wrote.

    Raises:
        ConfigError: these rows cannot be read.
    """
    if any("corrected" not in row["deqh"] for row in rows):
        raise ConfigError(f"{path} was written by an earlier version: name another file")


def environments_of(content: dict) -> list[dict]:
    """Hardware and versions that the rows of a file were measured with."""
    return [*content.get("earlier_environments", []), content["environment"]]


def _converged(row: dict, init: str) -> bool:
    return row["deqh"]["converged"] and row["baselines"][init]["converged"]


def not_converged_alone(rows: Sequence[dict], init: str) -> list[dict]:
    """Where the baseline converged and DEQH did not."""
    return [r for r in rows if r["baselines"][init]["converged"] and not r["deqh"]["converged"]]


def above_baseline(rows: Sequence[dict], init: str) -> list[dict]:
    """Where DEQH converged to a higher energy than the baseline did, or came by."""
    return [r for r in rows if r["deqh"]["converged"] and r["energy_difference"][init] > ABOVE]


def failed(results: Results, inits: Sequence[str]) -> bool:
    """Whether a run raised, did not converge, or went to a higher energy than from one of PySCF's
    starts."""
    lost = (not_converged_alone(results.rows, init) or above_baseline(results.rows, init)
            for init in inits if init in CLASSICAL)  # fmt: skip
    return bool(results.failures) or any(lost)


def summarize(rows: Sequence[dict], init: str, model: str) -> dict:
    """Distributions of all ratios over the molecules where both runs converged; of seconds over
    those that had the machine to themselves."""
    good = [row for row in rows if _converged(row, init)]
    alone = [row for row in good if row.get("alone", True)]
    guess = [r["deqh"]["guess_seconds"] / _seconds(r["baselines"][init]) for r in alone]
    return {
        **{
            name: distribution(
                r["ratios"][init].get(name) for r in (alone if name in OF_SECONDS else good)
            )
            for name in (*RATIOS, *PAPER_RATIOS)
        },
        "guess_share": distribution(guess),
        **{
            f"{name}_{run}": distribution(entry(r).get(name) for r in good)
            for name in ("cycles", "full_builds", "peak_memory")
            for run, entry in (("deqh", _deqh), ("baseline", lambda r: r["baselines"][init]))
        },
        "hamiltonian_mae": distribution(r["hamiltonian_mae"] for r in good),
        "refined_mae": distribution(r["refined_mae"] for r in good),
        "guess_cycles": distribution(
            len(r["deqh"]["fitted_gradients"]) + sum(r["deqh"]["corrected"]) for r in good
        ),
        "max_energy_difference": max(
            (abs(r["energy_difference"][init]) for r in good), default=float("nan")
        ),
        "n": len(good),
        "not_converged": [r["name"] for r in rows if not _converged(r, init)],
        "model": model,
        "init": init,
    }


def _deqh(row: dict) -> dict:
    return row["deqh"]


def _seconds(run: dict) -> float:
    return run["guess_seconds"] + run["scf_seconds"]


class Results:
    """Rows, failures and summaries; written after every molecule, so that nothing is lost.

    Attributes:
        environments: hardware and versions of the rows, each combination once.
        interrupted: whether molecules were left because the user wanted it.
    """

    def __init__(self, method: Method, inits: Sequence[str], path: Path | None):
        self.method, self.inits, self.path = method, list(inits), path
        self.rows: list[dict] = []
        self.failures: list[dict] = []
        self.environments: list[dict] = []
        self.interrupted = False

    def summaries(self) -> dict[str, dict]:
        model = str(self.method.model)
        return {init: summarize(self.rows, init, model) for init in self.inits}

    def add(self, row: dict, measured_with: dict) -> None:
        self.rows.append(row | {"environment": measured_with})
        if measured_with not in self.environments:
            self.environments.append(measured_with)

    def to_json(self) -> dict:
        *earlier, last = self.environments or [environment()]
        return {
            "method": {
                **self.method.details,
                "max_cycles": self.method.max_cycles,
                "accelerate": self.method.accelerate,
                "model": str(self.method.model),
                "weights": weights_hash(self.method.model),
                "device": self.method.device,
            },
            "environment": last,
            "earlier_environments": earlier,
            "summaries": self.summaries(),
            "failures": self.failures,
            "rows": self.rows,
        }

    def save(self) -> None:
        if self.path is not None:
            write_json(self.path, self.to_json())


@functools.cache
def warm_up(method: Method, init: str) -> None:
    """Once in a process: its first calls load the model and the library of integrals."""
    water = method.molecule(WATER)
    # A model that does not serve the method says so for each molecule.
    with contextlib.suppress(UnsupportedMoleculeError):
        run_guess(water, method, "deqh", replace(method.options(), frugal=False))
    run_classical(water, method, init)


def _measured(
    geometry: Geometry, method: Method, inits: Sequence[str], deqh_first: bool, alone: bool
) -> tuple[dict, dict]:
    """A row, and where it was measured."""
    for init in inits:
        warm_up(replace(method, charge=0, spin=None), init)
    row = benchmark_molecule(geometry, method, inits, deqh_first)
    return row | {"alone": alone}, environment()


def run_benchmark(
    geometries: Sequence[Geometry],
    method: Method,
    inits: Sequence[str],
    path: Path | None = None,
    progress: bool = True,
    resume: bool = False,
    workers: int | None = 0,
    scheduler: str | None = None,
) -> Results:
    """Run every molecule; a failure is listed and the rest goes on.

    A water molecule takes what the first calls of a process load before the clock starts. An
    interrupt returns what is done so far; with ``resume``, rows that ``path`` holds already are
    kept and their molecules (known by name) not run again. ``workers`` and ``scheduler`` are those
    of :func:`pyscf_deqh.tasks.outcomes`; seconds mean something in this process alone.
    """
    weights_hash(method.model)  # raises where there is no such model
    results = Results(method, inits, path)
    if resume and path is not None and path.is_file():
        content = json.loads(path.read_text())
        results.rows, results.failures = content["rows"], content["failures"]
        check_rows(results.rows, path)
        results.environments = environments_of(content)
        done = {row["name"] for row in results.rows}
        geometries = [g for g in geometries if g.name not in done]
        # Those that failed get another chance.
        again = {g.name for g in geometries}
        results.failures = [f for f in results.failures if f["name"] not in again]
        if not geometries:
            return results
    alone, done_before = workers == 0 and scheduler is None, len(results.rows)
    tasks = deque(
        (g.name, (g, method, list(inits), (done_before + k) % 2 == 0, alone))
        for k, g in enumerate(geometries)
    )
    bar = tqdm(total=len(tasks), desc="benchmark", unit="mol", disable=not progress)
    try:
        for name, result in outcomes(_measured, tasks, workers, scheduler):
            if isinstance(result, Failure):
                results.failures.append({"name": name, "reason": result.reason})
                bar.write(f"{name}: {result.reason}")
            else:
                results.add(*result)
            results.save()
            bar.update()
    except KeyboardInterrupt:
        results.interrupted = True
        bar.write("interrupted: the results so far follow")
    finally:
        bar.close()
    return results
