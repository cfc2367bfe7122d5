"""Learning curves: errors on validation molecules as a training went on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..metrics import UNITS
from .trainings import VARIANTS


def draw_curves(
    figure: Any,
    results: Mapping[str, Mapping[str, Any]],
    published: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """MAE of H of every training, over its steps above and over its time below.

    Args:
        figure: empty, of matplotlib.
        results: by data set and variant, as :func:`.trainings.try_variants` has them.
        published: the paper's MAE of H, in the unit of tables.
    """
    factor, unit = UNITS["mae"]
    variants = list(dict.fromkeys(v for trained in results.values() for v in trained))
    axes = figure.subplots(2, max(len(results), 1), squeeze=False, sharey="col")
    for column, (data, trained) in zip(axes.T, results.items(), strict=False):
        for variant, ours in trained.items():
            color = f"C{variants.index(variant)}"
            for run in ours["runs"].values():
                curve = run.get("curve")  # earlier versions kept none
                if not curve or not curve["step"]:
                    continue
                minutes = run["seconds"] / 60 / run["steps"]
                values = [factor * value for value in curve["mae"]]
                for ax, scale in zip(column, (1, minutes), strict=True):
                    ax.plot([scale * step for step in curve["step"]], values, color=color,
                            marker=".", linewidth=1, markersize=2,
                            label=VARIANTS[variant].label)  # fmt: skip
            theirs = (published or {}).get(data, {}).get(variant)
            if theirs:
                for ax in column:
                    ax.axhline(theirs, color=color, linestyle="--", linewidth=0.8)
        column[0].set_title(data, fontsize="small")
        for ax, name in zip(column, ("steps", "minutes"), strict=True):
            ax.set_xlabel(name)
            ax.set_yscale("log")
    for ax in axes[:, 0]:
        ax.set_ylabel(f"MAE of H / {unit}")
    lines = {
        label: handle
        for ax in figure.axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if lines:
        figure.legend(list(lines.values()), list(lines), loc="outside upper center", ncols=4,
                      fontsize="small")  # fmt: skip
