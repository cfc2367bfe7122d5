"""Networks that see of a Hamiltonian its on-site blocks: the state of their fixed point, and the
diagonal reduction through which they read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.batch import GraphBatch
from ..graph.layout import AUXILIARY_COUNTS, OrbitalTemplate
from .deqh import Backbone
from .products import Features, PairFrames

# On-site features below this (hartree) count as zero: symmetry makes many vanish up to rounding,
# and a unit vector made of rounding errors has no business in an equivariant network. Typical
# vectors of H are 0.002-0.2.
_REDUCTION_FLOOR = 1e-3


@dataclass(frozen=True)
class OnsiteState:
    """On-site blocks of a batch as the state of a fixed point: (B, largest number of atoms, T T),
    zero padded.

    Attributes:
        n_molecules: B.
        longest: atoms of the largest molecule.
        row: (N,) of each atom.
    """

    n_molecules: int
    longest: int
    row: Tensor

    @classmethod
    def of(cls, graph: GraphBatch) -> OnsiteState:
        """That of a batch."""
        counts = torch.bincount(graph.molecule, minlength=graph.n_molecules)
        longest = int(counts.max())
        first = counts.cumsum(0) - counts
        position = torch.arange(graph.n_atoms, device=first.device) - first[graph.molecule]
        return cls(graph.n_molecules, longest, graph.molecule * longest + position)

    def of_blocks(self, blocks: Tensor) -> Tensor:
        """The state of blocks (N, T T)."""
        out = blocks.new_zeros(self.n_molecules * self.longest, blocks.shape[-1])
        return out.index_copy(0, self.row, blocks).view(self.n_molecules, self.longest, -1)

    def blocks(self, state: Tensor) -> Tensor:
        """The blocks (N, T T) of a state."""
        return state.flatten(0, 1).index_select(0, self.row)


@dataclass
class Environment:
    """What such a network's filter needs besides H, at least.

    Attributes:
        graph: the batch.
        frames: of its pairs.
        radial: (E, functions) of their distances.
        state: how on-site blocks are the state.
    """

    graph: GraphBatch
    frames: PairFrames
    radial: Tensor
    state: OnsiteState


class OnsiteBackbone(Backbone):
    """A backbone that sees H through its on-site blocks, or, if ``config.self_consistent`` is
    false, not at all."""

    wants_onsite_overlaps = True
    config: Any
    radial_basis: nn.Module

    @property
    def self_consistent(self) -> bool:
        consistent: bool = self.config.self_consistent
        return consistent

    def environment(self, graph: GraphBatch) -> tuple[GraphBatch, PairFrames, Tensor, OnsiteState]:
        """Fields of an :class:`Environment`."""
        frames = PairFrames(graph.edge_vector, self.config.lmax)
        radial = self.radial_basis(graph.edge_vector.norm(dim=-1))
        return graph, frames, radial, OnsiteState.of(graph)

    def state(self, hamiltonian: Tensor, injected: Environment) -> Tensor:
        """See :class:`OnsiteState`."""
        return injected.state.of_blocks(injected.graph.onsite_blocks(hamiltonian)[..., 0])


def no_overlaps(template: OrbitalTemplate, counts: tuple[int, ...] = AUXILIARY_COUNTS) -> Tensor:
    """Zeros in the place of on-site overlaps that a state dict will bring."""
    width = sum(n * (2 * l + 1) for l, n in enumerate(counts))
    return torch.zeros(len(template.numbers), template.size, template.size, width)


class DiagonalReduction(nn.Module):
    """On-site blocks -> features, Eq. 8 with the coefficients of Eq. 9.

    Every irreducible feature is divided by its own norm, as in the published code: directions of
    vectors and signs of scalars remain. Scalars are 1 less some millionth. The first layer norm
    centres them, and their differences are what it passes on: they stay in double precision.
    """

    overlaps: Tensor

    def __init__(self, overlaps: Tensor, counts: tuple[int, ...]):
        super().__init__()
        self.counts = counts
        # Kept with the weights, so that a model needs no integrals to be loaded.
        self.register_buffer("overlaps", overlaps.double())

    def forward(self, blocks: Tensor, element: Tensor) -> Features:
        """Blocks (N, T T) of atoms, indices of their elements (N,); scalars are float64."""
        # In double precision: what cancels exactly, as in the overlap's on-site blocks, stays zero.
        overlaps = self.overlaps.double().flatten(1, 2)[element]
        reduced = torch.einsum("np,npk->nk", blocks.double(), overlaps)
        widths = [n * (2 * l + 1) for l, n in enumerate(self.counts)]
        features = []
        for l, part in enumerate(reduced.split(widths, dim=-1)):
            part = part.view(len(part), -1, 2 * l + 1)
            norm = torch.sqrt(part.square().sum(-1, keepdim=True) + _REDUCTION_FLOOR**2)
            features.append((part / norm).transpose(1, 2))
        return [features[0], *(feature.to(blocks) for feature in features[1:])]
