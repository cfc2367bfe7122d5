"""Fig. 5: what the overlap matrix and the equilibrium each add, at equal training budget."""

from __future__ import annotations

from .networks import compare_networks
from .options import Options
from .report import Report

_NETWORKS = ("qhnet", "qhnet+s", "deqhnet-s", "deqhnet")
_NOTES = (
    "The paper's figure has no numbers and names no data set; in it, H and ε are best with "
    "DEQHNet, which loses without S, and QHNet gains from S but stays behind DEQHNet.",
)


def run(options: Options) -> Report:
    return compare_networks("fig5", "Fig. 5: ablation", _NETWORKS, _NOTES, options)
