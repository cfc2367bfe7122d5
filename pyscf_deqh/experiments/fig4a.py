"""Fig. 4a: iterations that DEQHNet needs to its fixed point, as its training goes on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback

from ..benchmark.scf_runs import Method, run_classical
from ..data.dataset import GraphStore, HamiltonianDataset
from ..data.geometry import Geometry
from ..files import write_json
from ..graph.batch import collate
from .cache import ResultCache
from .comparison import provenance
from .datasets import MD17, Dataset
from .iteration import count_iterations, relative_changes
from .options import Options
from .published import FIG4A
from .report import Report, spread, with_spread
from .trainings import Training, run_training

LIMIT = 40
# Of the relative change: torchdeq's default and a tight one.
TOLERANCES = (1e-3, 1e-5)
_BATCH = 10


def is_recorded(step: int) -> bool:
    """Whether iterations are counted after this step: 0, 1, 2, 5, 10, 20, 50, 100 …"""
    digits = str(step)
    return digits[0] in "0125" and set(digits[1:]) <= {"0"}


class CountIterations(Callback):
    """Counts iterations on fixed geometries at growing steps, into a JSON file by step."""

    def __init__(self, graphs: list, path: Path):
        self.graphs, self.path = graphs, path

    def on_train_start(self, trainer, pl_module) -> None:
        if trainer.global_step == 0:
            self._record(0, pl_module.model)

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        if is_recorded(trainer.global_step):
            self._record(trainer.global_step, pl_module.model)

    def on_train_end(self, trainer, pl_module) -> None:
        self._record(trainer.global_step, pl_module.model)

    def _record(self, step: int, network) -> None:
        network.eval()
        backbone = network.backbone
        device = next(network.parameters()).device
        counts: dict[str, list[int]] = {f"{tolerance:g}": [] for tolerance in TOLERANCES}
        with torch.no_grad():
            for i in range(0, len(self.graphs), _BATCH):
                graphs = self.graphs[i : i + _BATCH]
                batch = collate(graphs, backbone.template, backbone.cutoff).to(device)
                changes = relative_changes(network, batch, LIMIT, min(TOLERANCES))
                for tolerance in TOLERANCES:
                    counts[f"{tolerance:g}"] += count_iterations(changes, tolerance, LIMIT)
        network.train()
        found = read_counts(self.path) | {step: counts}
        write_json(self.path, dict(sorted(found.items())))


def read_counts(path: Path) -> dict[int, dict[str, Any]]:
    """What :class:`CountIterations` wrote, by step."""
    if not path.is_file():
        return {}
    return {int(step): row for step, row in json.loads(path.read_text()).items()}


def _scf_cycles(dataset: Dataset, options: Options) -> list[int]:
    """Cycles of PySCF's SCF from minao, as PySCF counts them, at the labels' level of theory."""
    method = Method(xc=dataset.xc)
    n = options.size.scf_geometries
    cache = ResultCache(options.out / "scf" / f"{dataset.name}.json", {"xc": method.xc, "n": n})
    geometries = dataset.geometries("test", n)

    def cycles(geometry: Geometry) -> int:
        return run_classical(method.molecule(geometry), method, "minao").cycles

    return [cache(str(i), partial(cycles, g)) for i, g in enumerate(geometries)]


def run(options: Options) -> Report:
    found = options.need()
    # The paper's molecule where there are data for it.
    name = min(found, key=lambda n: (n != "uracil", n not in MD17))
    dataset, n = found[name], options.size.counted_geometries
    cycles = _scf_cycles(dataset, options)
    counts = {
        str(seed): _counts(Training("deqhnet", dataset, seed, LIMIT), options)
        for seed in options.seeds
    }
    (first, *_) = counts.values()
    rows = []
    for step, row in first.items():
        cells = [f"{with_spread(spread(values))}, {max(values)}" for values in row.values()]
        rows.append([str(step), *cells])
    rows.append(["PySCF, from minao", f"{with_spread(spread(cycles))}, {max(cycles)}", "-"])
    rows.append(["paper: DEQHNet, late", FIG4A["deqhnet_iterations"], "-"])
    rows.append(["paper: PySCF", FIG4A["pyscf_cycles"], "-"])
    notes = [
        "Iterations from the identity until the on-site blocks change by less than the given "
        f"number, relatively, at most {LIMIT}: mean ± standard deviation, largest, of at most {n} "
        f"test geometries; weights not averaged; seed {options.seeds[0]}, others in the JSON file.",
        f"PySCF: {len(cycles)} of the geometries, default settings and PySCF's own count.",
        *provenance([dataset]),
    ]
    results = {"dataset": name, "iterations": counts, "pyscf_cycles": cycles}
    return Report(
        "fig4a", f"Fig. 4a: DEQ iterations during training ({name})",
        (["step", *(f"to {tolerance:g}" for tolerance in TOLERANCES)], rows),
        results, lambda figure: _draw(figure, counts, cycles), notes,
    )  # fmt: skip


def _counts(training: Training, options: Options) -> dict[int, dict[str, Any]]:
    config, dataset = training.config(options), training.dataset
    store = GraphStore(config.data.cache, config.model.reference, config.data.basis)
    test = HamiltonianDataset(
        dataset.databases, "test", store, options.size.counted_geometries,
        split_rule=dataset.split_rule, split_sizes=dataset.split_sizes,
    )  # fmt: skip
    path = training.folder(options) / "iterations.json"
    run_training(training, options, [CountIterations([test[i] for i in range(len(test))], path)])
    return read_counts(path)


def _draw(figure, counts: dict[str, dict[int, dict[str, Any]]], cycles: list[int]) -> None:
    ax = figure.subplots()
    for seed, rows in counts.items():
        values = [spread(row[f"{TOLERANCES[0]:g}"]) for row in rows.values()]
        means = [v["mean"] for v in values]
        ax.errorbar([step + 1 for step in rows], means, [v["std"] or 0.0 for v in values],
                    marker="o", markersize=3, capsize=2, label=f"DEQHNet, seed {seed}")  # fmt: skip
    ax.axhline(sum(cycles) / len(cycles), color="k", linestyle="--", label="PySCF cycles, minao")
    ax.set_xscale("log")
    ax.set_xlabel("training step + 1")
    ax.set_ylabel(f"iterations to a relative change of {TOLERANCES[0]:g}")
    ax.legend()
