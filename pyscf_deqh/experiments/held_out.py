"""Molecules that a given model was not trained on."""

from __future__ import annotations

import random

from ..benchmark.sets import BUNDLED, PUBLISHED
from ..checkpoint import load_model
from ..data.geometry import Geometry, read_geometries
from ..errors import ConfigError
from .datasets import Dataset
from .options import Options
from .trainings import model_name

_BY_MOLECULE = "qm9-id"  # the rule by which the bundled molecules are for test


def bundled(n: int) -> list[Geometry]:
    """So many of the bundled molecules of QM9."""
    molecules = read_geometries(BUNDLED)[:PUBLISHED]
    return random.Random(0).sample(molecules, min(n, len(molecules)))


def data_for_testing(model: str, options: Options) -> Dataset | None:
    """Data that are split as those were that a model was trained on; None where the bundled
    molecules serve.

    Raises:
        ConfigError: its rule is another one than that of the bundled molecules, and there are no
            data for it.
    """
    spec = load_model(model)[1]
    if (spec.split_rule or _BY_MOLECULE) == _BY_MOLECULE:
        return None
    smoke = options.size.name == "smoke"  # which makes its own
    for dataset in options.found.values() if options.data or smoke else ():
        names = {path.name for path in dataset.databases}
        same = (spec.split_rule, tuple(spec.split_sizes)) == (
            dataset.split_rule, tuple(dataset.split_sizes)
        )  # fmt: skip
        if same and (not spec.split_rows or names & spec.split_rows.keys()):
            return dataset
    sizes = f" with sizes {list(spec.split_sizes)}" if spec.split_sizes else ""
    files = ", ".join(spec.split_rows) or "of the same names"
    raise ConfigError(
        f"{model_name(model)} was trained by the split rule {spec.split_rule}{sizes}, by which "
        f"other molecules may be for training: name its labelled files ({files}) with --data"
    )
