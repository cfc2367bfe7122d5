"""Ways to make f a step of a solver, at equal training budget: whose start is nearest to the end?

The measure is the orbital gradient at the start, in fitted Fock matrices of the SCF's functional:
not the mean error of the Hamiltonian, most of which does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..benchmark.scf_runs import Method
from ..benchmark.starts import start_gradient
from ..checkpoint import weights_hash
from ..data.formats import open_labels
from ..data.geometry import Geometry
from ..errors import ConfigError, NumericalError
from ..metrics import UNITS
from ..starts import Start
from ..starts.atoms import AtomsStart
from ..starts.network import NetworkStart
from ..train.config import StepsConfig
from .cache import ResultCache
from .comparison import provenance
from .curves import draw_curves
from .datasets import IN_HOUSE, Dataset
from .options import Options
from .report import Report, spread, with_spread
from .samples import make_steps
from .trainings import VARIANTS, Training, train_variant

_WAYS = (
    "once", "depth", "implicit", "anderson", "jacobian", "solution", "next", "fock", "commutator",
    "alignment",
)  # fmt: skip
_NOTES = (
    "SO2Net with layers and optimizer of the bundled models. Steps are the first ones of the "
    "labels' SCFs, from label stores that keep them: f of a step's Hamiltonian shall be the label "
    "(at random depths), the Hamiltonian that the SCF went on with, or the Fock matrix of its "
    "density (both solved by Anderson's iteration). Commutator: the gradient of one fitted Fock "
    "matrix as a loss. Alignment: the error in the true orbitals in the place of the orbital "
    "rotation.",
    "gradient: norm of the orbital gradient of the predicted Hamiltonian's density, by the root of "
    "an electron pair, milli-hartree; of superposed atoms in the first row.",
)


def start_gradients(start: Start, geometries: Sequence[Geometry], xc: str) -> list[float]:
    """:func:`start_gradient` of each molecule, hartree."""
    method = Method(xc)
    return [start_gradient(start, method.scf(method.molecule(g))) for g in geometries]


def run(options: Options) -> Report:
    dataset = _dataset(options)
    geometries = dataset.geometries("test", options.size.acceleration_molecules)
    atoms = start_gradients(AtomsStart(), geometries, dataset.xc)
    results: dict[str, Any] = {"atoms": {"gradient": spread([float(np.mean(atoms))])}}
    gradient = with_spread(results["atoms"]["gradient"], 1e3, 2)
    rows = [["superposed atoms", "-", gradient, *["-"] * 5]]
    for way in _WAYS:
        label = VARIANTS[way].label
        try:
            ours = results[way] = _way(way, dataset, geometries, options)
        except NumericalError as error:  # the others may not diverge
            rows.append([label, f"failed: {error}", *["-"] * 6])
            continue
        rows.append([
            label, with_spread(ours["mae"], UNITS["mae"][0], 1),
            with_spread(ours["gradient"], 1e3, 2), with_spread(ours["iterations"], 1.0, 1),
            with_spread(ours["residual"], 1.0, 4), with_spread(ours["steps"], 1.0, 0),
            with_spread(ours["seconds"], 1.0, 0), str(ours["steps"]["n"]),
        ])  # fmt: skip
    trained = {way: results[way] for way in _WAYS if way in results}
    header = ["f", "H", "gradient", "iterations", "residual", "steps", "seconds", "seeds"]
    return Report(
        "solver", "f as a step of a solver", (header, rows), results,
        lambda figure: _draw(figure, results), [*_NOTES, *provenance([dataset])],
        lambda figure: draw_curves(figure, {dataset.name: trained}),
    )  # fmt: skip


def _way(
    way: str, dataset: Dataset, geometries: Sequence[Geometry], options: Options
) -> dict[str, Any]:
    trained = train_variant(way, dataset, options)
    values = [_gradients(Training(way, dataset, seed), geometries, options)
              for seed in options.seeds]  # fmt: skip
    return trained | {"gradient": spread(sum(v) / len(v) for v in values)}


def _dataset(options: Options) -> Dataset:
    if not options.data and options.size.name == "smoke":
        file = make_steps(options.out / "samples-steps")
        return Dataset(IN_HOUSE, (file,), "qm9-id")
    dataset, wanted = options.need(IN_HOUSE)[IN_HOUSE], StepsConfig().n
    for path in dataset.databases:
        with open_labels(path) as file:
            if file.steps < wanted:
                raise ConfigError(
                    f"{path} has {file.steps} steps of each SCF, and {wanted} are needed: a label "
                    f"store by 'python -m pyscf_deqh.data label … --steps {wanted}', or 'make data'"
                )
    dataset.check_split("test")
    return dataset


def _gradients(training: Training, geometries: Sequence[Geometry], options: Options) -> list[float]:
    folder: Path = training.folder(options)
    cache = ResultCache(folder / "gradients.json", training.settings(options))
    start = NetworkStart(folder / "model")
    found: list[float] = cache(
        f"{len(geometries)} molecules, {weights_hash(folder / 'model')}",
        lambda: start_gradients(start, geometries, training.dataset.xc),
    )
    return found


def _draw(figure: Any, results: dict[str, Any]) -> None:
    ax = figure.subplots()
    ways = list(results)
    values = [results[way]["gradient"] for way in ways]
    ax.bar(
        range(len(ways)), [1e3 * v["mean"] for v in values],
        yerr=[1e3 * (v["std"] or 0.0) for v in values],
    )  # fmt: skip
    labels = ["atoms" if way == "atoms" else VARIANTS[way].label for way in ways]
    ax.set_xticks(range(len(ways)), labels, rotation=30, ha="right", fontsize="small")
    ax.set_yscale("log")
    ax.set_ylabel("orbital gradient of the start / milli-hartree")
