"""The benchmark's table and plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..files import writing
from .acceleration import Results

_MEANING = {
    "wall_ratio": "seconds, DEQH / baseline, guesses included",
    "full_builds_ratio": "full Fock builds, DEQH / baseline (ERIC)",
    "own_share": "seconds of guess and corrected cycles / a full Fock build's",
    "guess_share": "seconds of the DEQH guess / baseline's seconds",
}


def _molecule_table(results: Results) -> list[str]:
    width = min(max((len(r["name"]) for r in results.rows), default=8), 40)
    header = f"{'molecule':{width}}  atoms" + "".join(
        f"  {i:>10}" for i in ("deqh", *results.inits)
    )
    lines = [header + "   guess s   SCF s   |dE| Eh"]
    for row in results.rows:
        deqh = row["deqh"]
        runs = (deqh, *(row["baselines"][init] for init in results.inits))
        cycles = "".join(f"  {run['cycles']:>5} ({run['full_builds']:>2})" for run in runs)
        worst = max(abs(d) for d in row["energy_difference"].values())
        lines.append(
            f"{row['name'][:width]:{width}}  {row['n_atoms']:5}{cycles}"
            f"  {deqh['guess_seconds']:8.2f}{deqh['scf_seconds']:8.1f}   {worst:.1e}"
        )
    return lines


def table(results: Results) -> str:
    """The results as text: cycles and full Fock builds of each molecule, then the ratios."""
    lines = ["Cycles that PySCF prints (full Fock builds, the first and the last included)", ""]
    lines += _molecule_table(results)
    for init, summary in results.summaries().items():
        lines += ["", f"deqh ({summary['model']}) against {init}, n = {summary['n']}"]
        for name in _MEANING:
            value = summary[name]
            if value["n"]:
                lines.append(
                    f"  {name:18} {value['mean']:6.3f} +- {value['std']:.3f}   {_MEANING[name]}"
                )
        for name, mae in (("network", "hamiltonian_mae"), ("cycles in the guess", "refined_mae")):
            value = summary[mae]
            if value["n"]:
                lines.append(
                    f"  {'MAE of H':18} {1e6 * value['mean']:6.3g} +- {1e6 * value['std']:.2g}"
                    f"   micro-Eh, after the {name}"
                )
        lines.append(f"  {'largest |dE|':18} {summary['max_energy_difference']:.1e} Eh")
        if summary["not_converged"]:
            lines.append("  not converged, left out: " + ", ".join(summary["not_converged"]))
    for failure in results.failures:
        lines.append(f"failed: {failure['name']}: {failure['reason']}")
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _median_curve(curves: Sequence[Sequence[float]]) -> np.ndarray:
    """Median over molecules in each cycle; a converged run keeps its last value."""
    length = max(len(c) for c in curves)
    padded = [list(c) + [c[-1]] * (length - len(c)) for c in curves]
    return np.median(np.array(padded), axis=0)


def new_figure(**options: Any) -> Any:
    """An empty matplotlib figure that needs no display.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'pyscf_deqh[plot]'") from error
    return Figure(**options)


def plot(results: Results, path: Path) -> None:
    """Orbital gradient over time, one line per guess, to an image file.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = new_figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    first, names = results.inits[0], ("deqh", *results.inits)
    rows = [row for row in results.rows if all(_of(row, name)["converged"] for name in names)]
    rows = rows or results.rows
    for name in names:
        runs = [_of(row, name) for row in rows]
        whole = [_of(row, first) for row in rows]
        times = [
            np.array(run["times"]) / (run_of_first["guess_seconds"] + run_of_first["scf_seconds"])
            for run, run_of_first in zip(runs, whole, strict=True)
        ]
        gradients = _median_curve([run["gradient"] for run in runs])
        axes.semilogy(100 * _median_curve(times), gradients, marker="o", markersize=3, label=name)
    axes.set_xlabel(f"time, % of the whole SCF from {first}; a point for each cycle")
    axes.set_ylabel("norm of the orbital gradient / hartree")
    number = len(rows)
    axes.set_title(
        f"{results.method.xc}/{results.method.basis}, "
        + ("one molecule" if number == 1 else f"median of {number} molecules")
    )
    axes.legend()
    with writing(path):
        figure.savefig(path, dpi=150)


def _of(row: dict, name: str) -> dict:
    return row["deqh"] if name == "deqh" else row["baselines"][name]
