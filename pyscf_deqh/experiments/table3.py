"""Table 3: how far given models shorten SCFs that would start from 1e or minao."""

from __future__ import annotations

import hashlib
from typing import Any

from ..benchmark.acceleration import run_benchmark
from ..benchmark.scf_runs import Method
from ..benchmark.sets import PUBLISHED
from ..checkpoint import DEFAULT_MODEL, weights_hash
from ..data.geometry import Geometry
from .datasets import IN_HOUSE
from .held_out import bundled, data_for_testing
from .options import Options
from .published import TABLE3
from .report import Report
from .trainings import model_name

_INITS = ("1e", "minao")
_RATIOS = {
    "optimal_ratio": "optimal",
    "achieved_ratio": "achieved (less is better)",
    "error_level_ratio": "error level (more is better)",
}
_ERIC = "full_builds_ratio"
_MODELS = {"qhnet": "QHNet", "deqhnet": "DEQHNet"}


def _molecules(model: str, options: Options) -> tuple[list[Geometry], str, str]:
    """Molecules that a model was not trained on, the functional of their SCFs, and whose they
    are."""
    n = options.n or options.size.acceleration_molecules
    if options.size.name == "smoke":
        molecules = options.need(IN_HOUSE)[IN_HOUSE].geometries("test", n)
        return molecules, Method.xc, "those of the smoke run, with 4 or 5 atoms"
    dataset = data_for_testing(model, options)
    if dataset is None:
        return bundled(n), Method.xc, (
            f"from the first {PUBLISHED} of the bundled set of QM9's, with 7-9 heavy atoms, that "
            "no model was trained on; the paper's are 50 others of the test splits of QH9"
        )  # fmt: skip
    return dataset.geometries("test", n), dataset.xc, (
        f"evenly spread over the test split of {dataset.name}; the paper's are 50 of the test "
        "splits of QH9"
    )  # fmt: skip


def run(options: Options) -> Report:
    results: dict[str, Any] = {}
    notes = [
        "SCFs in def2-SVP with PySCF's default settings; mean ± standard deviation over molecules; "
        "cycles are counted from 0. ERIC: full Fock builds over those from the initial guess.",
    ]
    for model in options.models or (DEFAULT_MODEL,):
        molecules, xc, whose = _molecules(model, options)
        name = model_name(model)
        notes.append(f"{name}: {xc}; {len(molecules)} molecules, {whose}.")
        kind = hashlib.sha256(repr([xc, *(g.name for g in molecules)]).encode()).hexdigest()[:8]
        file = f"{name}-{weights_hash(model)[:8]}-{kind}.json"
        path = options.out / "acceleration" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        # As in the paper, the network alone.
        method = Method(xc=xc, model=model, max_cycles=0, accelerate=False, frugal=False)
        found = run_benchmark(molecules, method, _INITS, path, resume=True)
        if found.interrupted:
            raise KeyboardInterrupt
        results[name] = found.to_json()
    rows = [_row(name, init, summary) for name, content in results.items()
            for init, summary in content["summaries"].items()]  # fmt: skip
    for data, inits in TABLE3.items():
        for init, ratios in inits.items():
            for key, label in _MODELS.items():
                cells = ["{:.3f} ± {:.3f}".format(*ratios[ratio][key]) for ratio in _RATIOS]
                rows.append([f"paper: {label}, {data}", init, "50", *cells, "-"])
    for name, content in results.items():
        notes += [f"{name}: {f['name']} failed: {f['reason']}" for f in content["failures"]]
    return Report(
        "table3", "Table 3: acceleration of SCFs",
        (["model", "initial guess", "n", *_RATIOS.values(), "ERIC"], rows),
        results, lambda figure: _draw(figure, results), notes,
    )  # fmt: skip


def _row(name: str, init: str, summary: dict[str, Any]) -> list[str]:
    cells = [f"{summary[r]['mean']:.3f} ± {summary[r]['std']:.3f}" for r in (*_RATIOS, _ERIC)]
    return [name, init, str(summary["n"]), *cells]


def _draw(figure, results: dict[str, Any]) -> None:
    for ax, init in zip(figure.subplots(1, 2, sharey=True), _INITS, strict=True):
        entries = {name: content["summaries"][init] for name, content in results.items()}
        ours = {k: (v["achieved_ratio"]["mean"], v["achieved_ratio"]["std"])
                for k, v in entries.items()}  # fmt: skip
        paper = {f"paper: {label}": TABLE3["stable-id"][init]["achieved_ratio"][key]
                 for key, label in _MODELS.items()}  # fmt: skip
        bars = ours | paper
        means, stds = zip(*bars.values(), strict=True)
        colors = ["C0"] * len(ours) + ["C7"] * len(paper)
        ax.bar(range(len(bars)), means, yerr=stds, color=colors)
        ax.set_xticks(range(len(bars)), list(bars), rotation=30, ha="right", fontsize="small")
        ax.set_title(f"against {init}")
    figure.axes[0].set_ylabel("achieved ratio")
