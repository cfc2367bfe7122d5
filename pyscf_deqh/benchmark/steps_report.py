"""Table and plot of ``python -m pyscf_deqh.benchmark steps``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pyscf import lib

from ..files import writing
from .ratios import spread
from .report import markdown_table, new_figure
from .trajectories import TIME_STEP

# Every point from PySCF's own start, and from the guess.
SIDES = ("minao", "deqh")


def _ratio(rows: Sequence[dict[str, Any]], key: str) -> str:
    return spread((row["deqh"][key] / row["minao"][key] for row in rows), ".3f", ".3f")


def _of_sums(rows: Sequence[dict[str, Any]], key: str) -> str:
    plain, deqh = (sum(row[name][key] for row in rows) for name in SIDES)
    return f"{deqh / plain:.3f}"


def _displacement(row: dict[str, Any]) -> float:
    """Largest difference of two distances between atoms, in angstrom."""
    last = [np.array(row[name]["positions"]) for name in SIDES]
    distances = [np.linalg.norm(p[:, None] - p, axis=-1) for p in last]
    return float(abs(distances[0] - distances[1]).max()) * lib.param.BOHR


def _frequencies(row: dict[str, Any]) -> float:
    """Largest difference of two harmonic frequencies, in 1/cm."""
    found = [np.array(row[name]["frequencies"]) for name in SIDES]
    return float(abs(found[0] - found[1]).max())


def _measures(rows: Sequence[dict[str, Any]]) -> str:
    """Other results than time, of either run."""
    cells = [
        [row["name"], quantity, *(f"{row[name]['measures'][quantity]:.2e}" for name in SIDES)]
        for row in rows
        if all("error" not in row[name] for name in SIDES)
        for quantity in row["deqh"].get("measures", ())
    ]
    return "\n".join(["", *markdown_table(["molecule", "", *SIDES], cells)]) if cells else ""


def _open_ends(row: dict[str, Any]) -> str:
    """What did not converge in either run, for behind the molecule's name."""
    open_ends = [name for name in SIDES if not row[name]["converged"]]
    open_ends += [
        f"{n} SCFs, {name}" for name in SIDES if (n := row[name].get("scfs_not_converged"))
    ]
    return f" (not converged: {', '.join(open_ends)})" if open_ends else ""


def is_worse(row: dict[str, Any]) -> bool:
    """Whether the run with the guess failed, or left more unconverged than that without."""
    plain, deqh = row["minao"], row["deqh"]
    lost = plain["converged"] and not deqh["converged"]
    more = deqh.get("scfs_not_converged", 0) > plain.get("scfs_not_converged", 0)
    return "error" in deqh or lost or ("error" not in plain and more)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Each molecule, and the means of all whose two runs came to their end."""
    cells, difference, quantity = [], _displacement, "distances, angstrom"
    if any("frequencies" in row["deqh"] for row in rows):
        difference, quantity = _frequencies, "frequencies, 1/cm"
    ended = [row for row in rows if all(row[name]["converged"] for name in SIDES)]
    for row in rows:
        plain, deqh = row["minao"], row["deqh"]
        name = row["name"] + _open_ends(row)
        if "error" in plain or "error" in deqh:
            cells.append([name, f"{row['nao']}", *["-"] * 8])
            continue
        cells.append([
            name, f"{row['nao']}", f"{len(plain['builds'])}", f"{len(deqh['builds'])}",
            f"{np.mean(plain['builds']):.1f}", f"{np.mean(deqh['builds']):.1f}",
            _ratio([row], "seconds").split()[0], _ratio([row], "scf_seconds").split()[0],
            f"{1e6 * (deqh['energy'] - plain['energy']):.2f}", f"{difference(row):.4f}",
        ])  # fmt: skip
    if ended:
        means = [np.mean([np.mean(r[name]["builds"]) for r in ended]) for name in SIDES]
        cells.append([
            f"mean of {len(ended)}", "", "", "", *(f"{mean:.1f}" for mean in means),
            _ratio(ended, "seconds"), _ratio(ended, "scf_seconds"), "", "",
        ])  # fmt: skip
        cells.append([
            "all time over all time", *[""] * 5,
            _of_sums(ended, "seconds"), _of_sums(ended, "scf_seconds"), "", "",
        ])  # fmt: skip
    columns = ["molecule", "orbitals", "points, minao", "points, DEQH", "builds a point, minao",
               "builds a point, DEQH", "wall time", "SCF time", "energy, 1e-6 hartree",
               quantity]  # fmt: skip
    return "\n".join(markdown_table(columns, cells)) + _measures(rows)


def _series(run: dict[str, Any]) -> tuple[np.ndarray, str]:
    """What a trajectory shows of each of its frames, in 1e-6 hartree, and its name."""
    if "energies" in run:
        return 1e6 * (np.array(run["energies"]) - run["energies"][0]), "change of the total energy"
    return 1e6 * np.array(run.get("energy_errors", [])), "error of the energy"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Ratios of time by the molecules' size, and what trajectories show of each frame, to an image
    file; molecules whose two runs came to their end.

    Raises:
        ConfigError: Matplotlib is missing.
    """
    ended = [row for row in rows if all(row[side]["converged"] for side in SIDES)]
    moved = [row for row in ended if len(_series(row["deqh"])[0])]
    figure = new_figure(figsize=(10 if moved else 5, 4), layout="constrained")
    by_size, *by_frame = np.ravel(figure.subplots(1, 1 + bool(moved)))
    for key, label in (("seconds", "whole run"), ("scf_seconds", "SCFs")):
        values = [row["deqh"][key] / row["minao"][key] for row in ended]
        by_size.plot([row["nao"] for row in ended], values, "o", label=label)
    by_size.axhline(1.0, color="grey", linewidth=0.8)
    by_size.set_ylim(bottom=0)
    by_size.set_xlabel("orbitals")
    by_size.set_ylabel("time over that from minao")
    by_size.legend()
    for axes in by_frame:
        for k, row in enumerate(moved):
            for side, style in zip(SIDES, ("--", "-"), strict=True):
                series, quantity = _series(row[side])
                times = TIME_STEP * np.arange(len(series))
                axes.plot(times, series, style, color=f"C{k}", label=f"{row['name']}, {side}")
                axes.set_ylabel(f"{quantity} / 1e-6 hartree")
        axes.set_xlabel("time / fs")
        axes.legend(fontsize="small")
    with writing(path):
        figure.savefig(path, dpi=150)
