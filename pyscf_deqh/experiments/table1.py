"""Table 1: QHNet and DEQHNet on MD17's water, ethanol, malondialdehyde and uracil."""

from __future__ import annotations

from .comparison import compare
from .datasets import MD17
from .options import Options
from .published import TABLE1
from .report import Report

_METRICS = ("mae", "mae_occupied_energies", "cosine_similarity")


def run(options: Options) -> Report:
    title = "Table 1: QHNet and DEQHNet on MD17"
    return compare("table1", title, MD17, _METRICS, TABLE1, options)
