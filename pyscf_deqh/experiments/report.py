"""What an experiment leaves: numbers as JSON, a Markdown table, a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..benchmark.environment import environment
from ..benchmark.report import markdown_table, new_figure
from ..files import write_json, write_text, writing
from ..metrics import sample_deviation


@dataclass
class Report:
    """The outcome of one experiment.

    Attributes:
        name: of the files.
        title: first line of the Markdown file.
        table: header and rows, as text.
        results: all numbers, in JSON's types.
        draw: draws the plot on an empty matplotlib figure.
        curves: draws learning curves, where there are trainings.
        notes: what a reader has to know beside the table, one sentence each.
    """

    name: str
    title: str
    table: tuple[Sequence[str], Sequence[Sequence[str]]]
    results: dict[str, Any]
    draw: Callable[[Any], None]
    notes: list[str] = field(default_factory=list)
    curves: Callable[[Any], None] | None = None

    def write(self, folder: Path, settings: dict[str, Any]) -> None:
        """Write ``NAME.json``, ``NAME.md``, ``NAME.png`` and perhaps ``NAME-curves.png``.

        Raises:
            ConfigError: matplotlib is not installed; the first two files are written before.
        """
        hardware = describe_environment()
        content = {"experiment": self.name, "title": self.title, "settings": settings,
                   "environment": hardware, "notes": self.notes,
                   "results": self.results}  # fmt: skip
        write_json(folder / f"{self.name}.json", content)
        write_text(folder / f"{self.name}.md", self.markdown(settings, hardware))
        for suffix, draw in (("", self.draw), ("-curves", self.curves)):
            if draw is None:
                continue
            figure = new_figure(figsize=(7, 4.5), layout="constrained")
            draw(figure)
            path = folder / f"{self.name}{suffix}.png"
            with writing(path):
                figure.savefig(path, dpi=150)

    def markdown(self, settings: dict[str, Any], hardware: dict[str, Any]) -> str:
        def listed(items: dict[str, Any]) -> str:
            return ", ".join(f"{k} {v}" for k, v in items.items() if v not in (None, [], {}))

        lines = [f"# {self.title}", "", *markdown_table(*self.table), ""]
        lines += [f"- {note}" for note in self.notes]
        lines += ["", f"Settings: {listed(settings | {'preset': None})}."]
        lines += ["", f"Measured with: {listed(hardware)}."]
        return "\n".join(lines) + "\n"


def describe_environment() -> dict[str, Any]:
    """Hardware and versions."""
    found = environment()
    for name in ("e3nn", "torchdeq", "lightning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (None for a single value), with the number of values."""
    array = np.asarray(list(values), dtype=float)
    std = sample_deviation(array) if len(array) > 1 else None
    return {"mean": float(array.mean()), "std": std, "n": len(array)}


def with_spread(value: dict[str, Any], factor: float = 1.0, digits: int = 1) -> str:
    """``mean ± standard deviation``, multiplied by ``factor``."""
    text = f"{factor * value['mean']:.{digits}f}"
    return text if value["std"] is None else f"{text} ± {factor * value['std']:.{digits}f}"
