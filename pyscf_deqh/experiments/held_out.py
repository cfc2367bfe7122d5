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
    rule = load_model(model)[1].split_rule or _BY_MOLECULE
    if rule == _BY_MOLECULE:
        return None
    found = options.found.values() if options.data else ()
    for dataset in found:
        if dataset.split_rule == rule:
            return dataset
    raise ConfigError(
        f"{model_name(model)} was trained by the split rule {rule}, by which some of the bundled "
        "molecules may be for training: name its labelled files with --data"
    )
