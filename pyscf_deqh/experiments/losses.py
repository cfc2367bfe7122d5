"""Losses of self-consistency, which the paper argues against, beside its network."""

from __future__ import annotations

from .networks import compare_networks
from .options import Options
from .report import Report

_NETWORKS = ("qhnet", "qhnet-amortized", "qhnet-commutator", "deqhnet")
_NOTES = (
    "Amortized: the difference to the fitted Fock matrix of the prediction's own density (Zhang et "
    "al., ICML 2024), as the labels' loss measures it. Commutator: F D S - S D F of that matrix "
    "(Hazra et al. 2024). Both are added to the labels' loss, with weight one, in milli-hartree; "
    "their Fock matrices are part of the budget.",
)


def run(options: Options) -> Report:
    title = "QHNet with losses of self-consistency, and DEQHNet"
    return compare_networks("losses", title, _NETWORKS, _NOTES, options)
