"""Fig. 5: what the overlap matrix and the equilibrium each add, at equal training budget."""

from __future__ import annotations

from typing import Any

from ..metrics import UNITS
from .comparison import NOTES, provenance
from .options import Options
from .report import Report, with_spread
from .trainings import LABELS, VARIANTS, train_variant

_METRICS = {"mae": "H", "mae_occupied_energies": "ε", "cosine_similarity": "ψ"}


def run(options: Options) -> Report:
    found = options.need()
    results: dict[str, Any] = {
        name: {variant: train_variant(variant, dataset, options) for variant in VARIANTS}
        for name, dataset in found.items()
    }
    rows = [
        [name, LABELS[variant],
         *(with_spread(ours[metric], UNITS[metric][0], 2) for metric in _METRICS),
         str(ours["steps"]["n"]), with_spread(ours["steps"], 1.0, 0),
         with_spread(ours["seconds"], 1.0, 0), str(ours["parameters"])]
        for name, variants in results.items()
        for variant, ours in variants.items()
    ]  # fmt: skip
    minutes, steps = options.budget
    budget = f"{minutes:g} minutes" if minutes else f"{steps} steps"
    notes = [
        *NOTES,
        f"Every training had {budget} on the same machine, whatever its network.",
        "The paper's figure has no numbers and names no data set; in it, H and ε are best with "
        "DEQHNet, which loses without S, and QHNet gains from S but stays behind DEQHNet.",
        *provenance(list(found.values())),
    ]
    header = ["data", "model", *_METRICS.values(), "seeds", "steps", "seconds", "parameters"]
    return Report("fig5", "Fig. 5: ablation", (header, rows), results,
                  lambda figure: _draw(figure, results), notes)  # fmt: skip


def _draw(figure, results: dict[str, Any]) -> None:
    for ax, (metric, symbol) in zip(figure.subplots(1, 3), _METRICS.items(), strict=True):
        factor, unit = UNITS[metric]
        # One minus the similarity, which is close to one.
        complement = metric == "cosine_similarity"
        for v, variant in enumerate(VARIANTS):
            ours = [variants[variant][metric] for variants in results.values()]
            ax.bar(
                [i + 0.2 * (v - 1.5) for i in range(len(results))],
                [factor * (1 - o["mean"] if complement else o["mean"]) for o in ours],
                0.19, yerr=[factor * (o["std"] or 0.0) for o in ours], label=LABELS[variant],
            )  # fmt: skip
        ax.set_xticks(range(len(results)), list(results), fontsize="small")
        ax.set_ylabel(f"1 - {symbol} / {unit}" if complement else f"MAE of {symbol} / {unit}")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize="small")
