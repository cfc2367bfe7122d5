"""Other networks for Hamiltonians beside the paper's, at equal training budget."""

from __future__ import annotations

from .networks import compare_networks
from .options import Options
from .report import Report

_NETWORKS = ("qhnet", "deqhnet", "phisnet", "deq-phisnet", "deeph", "schnorb", "so2net")
_NOTES = (
    "PhiSNet: Unke et al., NeurIPS 2021; with H: its on-site blocks are an input, and the fixed "
    "point is solved as DEQHNet's is. DeepH: Li et al., Nat. Comput. Sci. 2, 367, 2022. SchNOrb: "
    "Schütt et al., Nat. Commun. 10, 5024, 2019; it learns rotations from turned copies. SO2Net is "
    "the network of the bundled models, here without a reference Hamiltonian, as the others.",
    "SO2Net and SchNOrb begin at shifts and scales that are measured on labels, the others at "
    "zero: in short trainings that counts.",
)


def run(options: Options) -> Report:
    return compare_networks("rivals", "Networks for Hamiltonians", _NETWORKS, _NOTES, options)
