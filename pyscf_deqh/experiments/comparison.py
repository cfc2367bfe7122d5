"""QHNet against DEQHNet on several data sets: what Tables 1 and 2 have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..metrics import UNITS
from .curves import draw_curves
from .datasets import Dataset
from .options import Options
from .report import Report, with_spread
from .trainings import VARIANTS, try_variants

MODELS = ("qhnet", "deqhnet")
_SYMBOLS = {
    "mae_diagonal": "H diagonal",
    "mae_nondiagonal": "H non-diagonal",
    "mae": "H",
    "mae_occupied_energies": "ε",
    "cosine_similarity": "ψ",
}
NOTES = [
    "H and ε in micro-hartree, ψ in 10^-2; mean ± standard deviation (n - 1) over seeds of the "
    "mean over test molecules.",
    "Cosine learning-rate schedule and our choice of training length; the published code has a "
    "polynomial decay, and the paper does not give the number of steps.",
]


def compare(
    name: str,
    title: str,
    names: Sequence[str],
    metrics: Sequence[str],
    published: dict[str, dict[str, tuple[float, ...]]],
    options: Options,
) -> Report:
    """Train both networks on each data set that there are labels for.

    Args:
        name, title: of the report.
        names: data sets of the table; those without data get a row that says so.
        metrics: columns.
        published: the paper's row by data set and model, in the order of ``metrics``.
        options: of the command.
    """
    found = options.need(*names)
    failures: list[str] = []
    for data in found.values():
        data.check_split("test")
    results: dict[str, Any] = {
        dataset: try_variants(MODELS, found[dataset], options, failures)
        for dataset in names
        if dataset in found
    }
    header = ["data", "model"]
    for metric in metrics:
        header += [_SYMBOLS[metric], f"{_SYMBOLS[metric]}, paper"]
    header += ["seeds", "steps", "test geometries"]
    rows = []
    for dataset in names:
        for model in MODELS:
            ours = results.get(dataset, {}).get(model)
            theirs = published.get(dataset, {}).get(model, ())
            row = [dataset, VARIANTS[model].label]
            absent = "failed" if dataset in found else "no data"
            for i, metric in enumerate(metrics):
                row += _cells(ours, theirs, i, metric, absent)
            rows.append(row + _effort(ours))
    missing = [dataset for dataset in names if dataset not in found]
    notes = [*NOTES, *failures]
    if missing:
        notes.append(f"No data were given for {', '.join(missing)}.")
    notes += provenance(list(found.values()))

    def draw(figure) -> None:
        axes = figure.subplots(1, 2)
        for ax, metric in zip(axes, ("mae", "mae_occupied_energies"), strict=True):
            _bars(ax, results, published, metric, list(metrics).index(metric))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)

    mae = {d: {m: row[list(metrics).index("mae")] for m, row in of_data.items()}
           for d, of_data in published.items()}  # fmt: skip
    return Report(
        name, title, (header, rows), results, draw, notes,
        lambda figure: draw_curves(figure, results, mae),
    )  # fmt: skip


def _cells(
    ours: dict[str, Any] | None, theirs: tuple[float, ...], i: int, metric: str, absent: str
) -> list[str]:
    paper = f"{theirs[i]:.2f}" if theirs else "-"
    return [absent if ours is None else with_spread(ours[metric], UNITS[metric][0], 2), paper]


def _effort(ours: dict[str, Any] | None) -> list[str]:
    if ours is None:
        return ["-", "-", "-"]
    steps = ours["steps"]
    return [str(steps["n"]), with_spread(steps, 1.0, 0), str(ours["test_molecules"])]


def provenance(datasets: Sequence[Dataset]) -> list[str]:
    """Where the labels are from, one sentence for each data set."""
    return [
        f"{d.name}: {', '.join(path.name for path in d.databases)} ({d.xc}), split rule "
        f"{d.split_rule}{f' with sizes {list(d.split_sizes)}' if d.split_sizes else ''}."
        for d in datasets
    ]


def _bars(ax, results, published, metric: str, column: int) -> None:
    factor, unit = UNITS[metric]
    for m, model in enumerate(MODELS):
        positions = [i + 0.4 * (m - 0.5) for i in range(len(results))]
        positions = [x for x, r in zip(positions, results.values(), strict=True) if model in r]
        ours = [r[model][metric] for r in results.values() if model in r]
        ax.bar(
            positions, [factor * v["mean"] for v in ours], 0.38, color=f"C{m}",
            yerr=[factor * (v["std"] or 0.0) for v in ours], label=VARIANTS[model].label,
        )  # fmt: skip
        with_model = [d for d, r in results.items() if model in r]
        paper = [(x, published[d][model][column])
                 for x, d in zip(positions, with_model, strict=True) if d in published]  # fmt: skip
        if paper:
            ax.plot(*zip(*paper, strict=True), "k_", markersize=14,
                    label="paper" if m == 0 else None)  # fmt: skip
    ax.set_yscale("log")
    ax.set_xticks(range(len(results)), list(results))
    ax.set_ylabel(f"MAE of {_SYMBOLS[metric]} / {unit}")
