"""Table 2: QHNet and DEQHNet on the splits of QH9, and on labels made with this package."""

from __future__ import annotations

from .comparison import compare
from .datasets import IN_HOUSE, QH9
from .options import Options
from .published import TABLE2
from .report import Report

_METRICS = (
    "mae_diagonal",
    "mae_nondiagonal",
    "mae",
    "mae_occupied_energies",
    "cosine_similarity",
)


def run(options: Options) -> Report:
    title = "Table 2: QHNet and DEQHNet on QH9"
    return compare("table2", title, (*QH9, IN_HOUSE), _METRICS, TABLE2, options)
