"""Fig. 6: error of orbital energies that random noise on H causes (A.10)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from ..benchmark.acceleration import WATER
from ..benchmark.scf_runs import Method, run_classical
from ..benchmark.sets import BUNDLED
from ..data.geometry import Geometry, read_geometries
from ..fock.orbitals import solve_roothaan
from .cache import ResultCache
from .options import Options
from .published import error_pairs
from .report import Report

# Standard deviations of the noise, hartree.
LEVELS = np.logspace(-7, -2, 11)
# Ratios are of levels below this: the change is of first order, and published errors are in range.
_FIRST_ORDER = 1e-3
_MICRO = 1e6
_MODELS = {"qhnet": "QHNet", "deqhnet": "DEQHNet"}


def hermitian_noise(n: int, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Symmetric (n, n), each element Gaussian with this standard deviation."""
    upper = np.triu(rng.normal(scale=deviation, size=(n, n)))
    return upper + np.triu(upper, 1).T


def first_order_ratio(orbitals: np.ndarray) -> float:
    """Expected MAE of the energies over that of H for :func:`hermitian_noise`, to first order.

    The shift of a level is c^T N c with the variance s^2 (2 (sum c^2)^2 - sum c^4), and the mean
    of a Gaussian's absolute value is proportional to its standard deviation, as it is for N.

    Args:
        orbitals: (nao, n) coefficients, C^T S C = 1.
    """
    squares = orbitals**2
    return float(np.sqrt(2 * squares.sum(0) ** 2 - (squares**2).sum(0)).mean())


def noise_errors(
    hamiltonian: np.ndarray,
    overlap: np.ndarray,
    n_occupied: int,
    draws: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """For each level: its noise, and MAEs (hartree) of H and of energies per draw."""
    exact, _ = solve_roothaan(hamiltonian, overlap)
    rows = []
    for level in tqdm(LEVELS, desc="noise levels"):
        row: dict[str, Any] = {"noise": float(level), "mae": [], "occupied": [], "all": []}
        for _ in range(draws):
            noise = hermitian_noise(len(hamiltonian), level, rng)
            error = np.abs(solve_roothaan(hamiltonian + noise, overlap)[0] - exact)
            row["mae"].append(float(np.abs(noise).mean()))
            row["occupied"].append(float(error[:n_occupied].mean()))
            row["all"].append(float(error.mean()))
        rows.append(row)
    return rows


def _one_molecule(geometry: Geometry, method: Method, draws: int) -> dict[str, Any]:
    mol = method.molecule(geometry)
    scf = run_classical(mol, method, "minao")
    if not scf.converged:
        raise RuntimeError(f"{geometry.name}: the SCF did not converge")
    overlap, n = mol.intor_symmetric("int1e_ovlp"), mol.nelectron // 2
    rows = noise_errors(scf.hamiltonian, overlap, n, draws, np.random.default_rng(0))
    _, orbitals = solve_roothaan(scf.hamiltonian, overlap)
    small = [row for row in rows if row["noise"] < _FIRST_ORDER]
    means = np.array([[np.mean(r["mae"]), np.mean(r["occupied"])] for r in small])
    ratios = {}
    for name, chosen in (("occupied", orbitals[:, :n]), ("all", orbitals)):
        found = np.concatenate([np.divide(r[name], r["mae"]) for r in small])
        ratios[name] = {
            "mean": float(found.mean()),
            "min": float(found.min()),
            "max": float(found.max()),
            "first_order": first_order_ratio(chosen),
        }
    return {
        "molecule": geometry.name,
        "n_occupied": n,
        "nao": int(mol.nao),
        "levels": rows,
        "slope": float(np.polyfit(np.log(means[:, 0]), np.log(means[:, 1]), 1)[0]),
        "ratio": ratios,
        # H + a S moves every level by a.
        "shift_ratio": float(1 / np.abs(overlap).mean()),
    }


def run(options: Options) -> Report:
    geometries = [WATER]
    if options.size.name != "smoke":
        geometries.append(read_geometries(BUNDLED)[0])
    method, draws = Method(), options.size.noise_draws
    cache = ResultCache(options.out / "noise" / "molecules.json", {"xc": method.xc, "draws": draws})
    molecules = [cache(g.name, partial(_one_molecule, g, method, draws)) for g in geometries]
    rows = []
    for m in molecules:
        for name, ratio in m["ratio"].items():
            drawn = f"{ratio['min']:.2f} - {ratio['max']:.2f}"
            rows.append([f"noise on {m['molecule']}, {name} levels", "-", "-",
                         f"{ratio['mean']:.2f}", drawn])  # fmt: skip
        rows.append([f"H + a S of {m['molecule']}", "-", "-", f"{m['shift_ratio']:.2f}", "-"])
    pairs = error_pairs()
    for dataset, models in pairs.items():
        for model, (mae, energies) in models.items():
            rows.append([f"paper: {_MODELS[model]}, {dataset}", f"{mae:.2f}", f"{energies:.2f}",
                         f"{energies / mae:.2f}", "-"])  # fmt: skip
    largest = max(m["ratio"]["occupied"]["max"] for m in molecules)
    outside = [f"{_MODELS[model]} on {dataset} ({energies / mae:.0f})"
               for dataset, models in pairs.items()
               for model, (mae, energies) in models.items()
               if energies / mae > largest]  # fmt: skip
    notes = [
        f"Symmetric Gaussian noise of {LEVELS[0]:.0e} to {LEVELS[-1]:.0e} hartree on the "
        f"converged matrix, {draws} draws at each of {len(LEVELS)} levels, "
        f"{method.xc}/{method.basis}; ε are the occupied energies; ratios are of draws below "
        f"{_FIRST_ORDER:.0e} hartree.",
        *(f"{m['molecule']}: slope of log ε over log H {m['slope']:.3f} (first order: 1), mean "
          f"ratio {m['ratio']['occupied']['mean']:.2f} (first-order perturbation theory: "
          f"{m['ratio']['occupied']['first_order']:.2f})." for m in molecules),
        f"Published pairs whose ratio is larger than that of any draw ({largest:.1f}): "
        f"{', '.join(outside) or 'none'}. Errors of networks are not random noise: the same "
        "constant in all of the potential (H + a S) gives the ratio in the table.",
    ]  # fmt: skip
    header = ["source", "H / micro-Eh", "ε / micro-Eh", "ε / H", "range over draws"]
    return Report(
        "fig6", "Fig. 6: error of orbital energies against error of H", (header, rows),
        {"molecules": molecules, "published": pairs, "larger_than_noise": outside},
        lambda figure: _draw(figure, molecules, pairs), notes,
    )  # fmt: skip


def _draw(figure, molecules: list[dict[str, Any]], pairs) -> None:
    ax = figure.subplots()
    for i, molecule in enumerate(molecules):
        x = [_MICRO * np.mean(r["mae"]) for r in molecule["levels"]]
        low, middle, high = np.transpose(
            [_MICRO * np.percentile(r["occupied"], [0, 50, 100]) for r in molecule["levels"]]
        )
        ax.loglog(x, middle, f"C{i}-", label=f"noise, {molecule['molecule']}")
        ax.fill_between(x, low, high, color=f"C{i}", alpha=0.25)
    for model, marker in (("qhnet", "ks"), ("deqhnet", "r^")):
        points = [models[model] for models in pairs.values()]
        ax.loglog(*zip(*points, strict=True), marker, label=f"paper: {_MODELS[model]}")
    ax.set_xlabel("MAE of H / micro-Eh")
    ax.set_ylabel("MAE of occupied energies / micro-Eh")
    ax.legend()
