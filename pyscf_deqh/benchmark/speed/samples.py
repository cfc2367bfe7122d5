"""Labelled graphs and untrained networks to time: real molecules, made-up labels.

Labels are the reference plus a small symmetric perturbation. Times do not depend on them, and no
figure here says how good a network is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyscf import gto

from ...data.geometry import Geometry, read_geometries
from ...fock.orbitals import orthonormal_basis
from ...graph.basis import template_of
from ...graph.batch import GraphBatch, MolecularGraph, collate
from ...graph.build import build_graph
from ...graph.onsite import onsite_overlaps
from ...nn.backbones import build_backbone, config_from
from ...nn.deqh import DEQH, SolverSettings
from ..sets import BUNDLED
from .geometries import polyethylene

BASIS = "def2-svp"
ELEMENTS = (1, 6, 7, 8, 9)
_PERTURBATION = 1e-3  # hartree

# As in the examples' configuration files.
SOLVERS = {
    "so2net": SolverSettings(
        forward_max_iterations=3, forward_tolerance=2e-3, gradient="random-depth"
    ),
    "qhnet": SolverSettings(
        forward_max_iterations=3, backward_max_iterations=3, start="identity", gradient="implicit"
    ),
}


def molecule(geometry: Geometry) -> gto.Mole:
    return gto.M(atom=geometry.atom(), basis=BASIS, verbose=0)


def geometries_of(n_atoms: int) -> list[Geometry]:
    """The benchmark's molecules of that many atoms; an alkane where there is none so small.

    The alkane is bent a little: unit vectors, as QHNet makes of its input, are those of rounding
    errors where symmetry lets the input vanish.
    """
    found = [g for g in read_geometries(BUNDLED) if len(g.numbers) == n_atoms]
    if found:
        return found
    alkane = polyethylene(max((n_atoms - 2) // 3, 1))
    shift = np.random.default_rng(0).normal(scale=0.05, size=alkane.positions.shape)
    return [replace(alkane, positions=alkane.positions + shift)]


def labelled_graphs(geometries: Sequence[Geometry]) -> list[MolecularGraph]:
    """Graphs with the reference ``sad`` and labels near it."""
    generator = np.random.default_rng(0)
    graphs = []
    for geometry in geometries:
        mol = molecule(geometry)
        fock = build_graph(mol, "sad").reference
        noise = _PERTURBATION * generator.normal(size=fock.shape)
        graphs.append(build_graph(mol, "sad", fock + noise + noise.T))
    return graphs


def without_reference(graph: MolecularGraph) -> MolecularGraph:
    """The same molecule and label for a network that has no reference."""
    zero = np.zeros_like(graph.overlap)
    return replace(
        graph, reference=zero, atomic_density=zero, basis_vectors=orthonormal_basis(graph.overlap)
    )


def untrained(kind: str, options: dict, device: str = "cpu", seed: int = 0) -> DEQH:
    """A network of random weights, in evaluation mode.

    Args:
        kind: ``so2net`` or ``qhnet``.
        options: of its configuration.
    """
    torch.manual_seed(seed)
    template = template_of(BASIS, ELEMENTS)
    config = config_from(kind, options)
    backbone = build_backbone(template, config, lambda: onsite_overlaps(BASIS, template))
    return DEQH(backbone, SOLVERS[kind]).to(device).eval()


def batch_of(
    model: DEQH,
    graphs: Sequence[MolecularGraph],
    n: int | None = None,
    dtype: torch.dtype = torch.float32,
    few_shapes: bool = False,
) -> GraphBatch:
    """A batch of ``n`` molecules, the graphs in turn (all of them once by default).

    ``few_shapes`` pads it as for CUDA graphs.
    """
    backbone: Any = model.backbone
    if backbone.config.reference == "none":
        graphs = [without_reference(g) for g in graphs]
    chosen = [graphs[i % len(graphs)] for i in range(len(graphs) if n is None else n)]
    return collate(chosen, backbone.template, backbone.cutoff, dtype, few_shapes)
