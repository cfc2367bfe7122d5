"""Several networks on the same data at equal training budget: what Fig. 5 and rivals share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..metrics import UNITS
from .comparison import NOTES, provenance
from .curves import draw_curves
from .options import Options
from .report import Report, with_spread
from .trainings import VARIANTS, try_variants

_METRICS = {"mae": "H", "mae_occupied_energies": "ε", "cosine_similarity": "ψ"}


def compare_networks(
    name: str, title: str, variants: Sequence[str], notes: Sequence[str], options: Options
) -> Report:
    """Train every network on every data set.

    Args:
        name, title: of the report.
        variants: names of the networks.
        notes: that the report ends with.
        options: of the command.
    """
    found = options.need()
    failures: list[str] = []
    for dataset in found.values():
        dataset.check_split("test")
    results: dict[str, Any] = {
        data: try_variants(variants, dataset, options, failures) for data, dataset in found.items()
    }
    rows = [
        [data, VARIANTS[variant].label,
         *(with_spread(ours[metric], UNITS[metric][0], 2) for metric in _METRICS),
         str(ours["steps"]["n"]), with_spread(ours["steps"], 1.0, 0),
         with_spread(ours["seconds"], 1.0, 0), str(ours["parameters"])]
        for data, trained in results.items()
        for variant, ours in trained.items()
    ]  # fmt: skip
    minutes, steps = options.budget
    budget = f"{minutes:g} minutes" if minutes else f"{steps} steps"
    said = [
        *NOTES,
        f"Every training had {budget} on the same machine, whatever its network.",
        *notes,
        *failures,
        *provenance(list(found.values())),
    ]
    header = ["data", "model", *_METRICS.values(), "seeds", "steps", "seconds", "parameters"]
    return Report(
        name, title, (header, rows), results, lambda f: _draw(f, results), said,
        lambda f: draw_curves(f, results),
    )  # fmt: skip


def _draw(figure, results: dict[str, Any]) -> None:
    variants = list(dict.fromkeys(v for trained in results.values() for v in trained))
    if not variants:
        return
    width = 0.8 / len(variants)
    for ax, (metric, symbol) in zip(figure.subplots(1, 3), _METRICS.items(), strict=True):
        factor, unit = UNITS[metric]
        # One minus the similarity, which is close to one.
        complement = metric == "cosine_similarity"
        for v, variant in enumerate(variants):
            places, ours = zip(*(
                (i + width * (v - (len(variants) - 1) / 2), trained[variant][metric])
                for i, trained in enumerate(results.values()) if variant in trained
            ), strict=True)  # fmt: skip
            ax.bar(
                places,
                [factor * (1 - o["mean"] if complement else o["mean"]) for o in ours],
                0.95 * width, yerr=[factor * (o["std"] or 0.0) for o in ours],
                label=VARIANTS[variant].label,
            )  # fmt: skip
        ax.set_xticks(range(len(results)), list(results), fontsize="small")
        ax.set_ylabel(f"1 - {symbol} / {unit}" if complement else f"MAE of {symbol} / {unit}")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize="small")
