"""What a guess saves of another one's SCF, and the ratios of Wang et al. (A.8, Table 3)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..metrics import sample_deviation
from .scf_runs import SCFRun

OF_SECONDS = ("wall_ratio", "own_share")
RATIOS = ("full_builds_ratio", *OF_SECONDS)
# Definitions of the QH9 benchmark; for the paper's table alone.
PAPER_RATIOS = ("achieved_ratio", "optimal_ratio", "error_level_ratio")


def hamiltonian_mae(predicted: np.ndarray | None, baseline: SCFRun) -> float | None:
    """MAE (hartree) of a prediction against the converged Fock matrix.

    None without a prediction, where it is in another basis set, or one matrix where the spins have
    two.
    """
    if predicted is None or predicted.shape != baseline.hamiltonian.shape:
        return None
    return float(np.abs(predicted - baseline.hamiltonian).mean())


def error_level_cycle(baseline: SCFRun, error_level: float) -> int:
    """First cycle, counted from 0, whose Fock matrix is, on average, that close (hartree) to the
    converged one."""
    for cycle, fock in enumerate(baseline.focks):
        if np.abs(fock - baseline.hamiltonian).mean() < error_level:
            return cycle
    return baseline.cycles - 1


def ratios(deqh: SCFRun, baseline: SCFRun, predicted: np.ndarray | None) -> dict[str, float | None]:
    """Ratios of one molecule.

    full_builds: full Fock builds of the SCFs; the guesses have none.
    wall: seconds, guesses included.
    own_share: seconds of the DEQH guess and of all corrected cycles, over those of one full Fock
        build; None where the baseline has too few of them.

    The paper counts cycles from 0, so that an SCF that has nothing left to do makes none:

    achieved: cycles from the DEQH guess over cycles from the baseline's guess.
    optimal: one cycle over the baseline's, what a perfect prediction would reach.
    error_level: cycles that the baseline needs to come as close to the converged Hamiltonian as
        the prediction, over all its cycles; None where :func:`hamiltonian_mae` is.
    """
    cycles = max(baseline.cycles - 1, 1)
    error_level = hamiltonian_mae(predicted, baseline)
    return {
        "full_builds_ratio": deqh.full_builds / baseline.full_builds,
        "wall_ratio": deqh.seconds / baseline.seconds,
        "own_share": _own_share(deqh, baseline),
        "achieved_ratio": (deqh.cycles - 1) / cycles,
        "optimal_ratio": 1 / cycles,
        "error_level_ratio": None
        if error_level is None
        else error_level_cycle(baseline, error_level) / cycles,
    }


def _own_share(deqh: SCFRun, baseline: SCFRun) -> float | None:
    cycles = np.diff(baseline.times)
    if deqh.own_seconds is None or not len(cycles):
        return None
    return float(deqh.own_seconds / np.median(cycles))


def distribution(values: Iterable[float | None]) -> dict[str, float]:
    """Mean, sample standard deviation (0 for a single value), median and number of the values; None
    is no value."""
    array = np.array([value for value in values if value is not None], dtype=float)
    if not len(array):
        return {"mean": float("nan"), "std": float("nan"), "median": float("nan"), "n": 0}
    mean, median = float(array.mean()), float(np.median(array))
    return {"mean": mean, "std": sample_deviation(array), "median": median, "n": len(array)}


def spread(values: Iterable[float | None], form: str = ".2g", form_of_spread: str = ".1g") -> str:
    """Mean ± sample standard deviation, for tables; of a single value that alone."""
    found = distribution(values)
    mean = f"{found['mean']:{form}}"
    return f"{mean} ± {found['std']:{form_of_spread}}" if found["n"] > 1 else mean
