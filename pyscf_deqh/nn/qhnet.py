"""QHNet (Yu et al., ICML 2023) and DEQHNet on it (Wang et al., NeurIPS 2024), with their ablations.

One class with two switches, as in the paper's Fig. 5: ``overlap`` gives the network the overlap
matrix, ``self_consistent`` the Hamiltonian of the previous iteration. Both enter through the
diagonal reduction (Eq. 8-9) alone. So f sees H only through its on-site blocks, and they are the
state of the fixed point; the structural stream, the overlap stream and all radial weights are the
injection; pair blocks, most of the work, are made once, from the solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..graph.batch import GraphBatch, opposite
from ..graph.layout import AUXILIARY_COUNTS, OrbitalTemplate
from .backbones import register
from .deqh import Hyperparameters
from .irreps import BlockCoupling
from .onsite import DiagonalReduction, Environment, OnsiteBackbone, no_overlaps
from .products import Features
from .qhnet_layers import BlockExpansion, ConvLayer, PairLayer, SelfLayer, TransBlock
from .radial import BernsteinRadialBasis
from .steerable import SteerableLayerNorm, SteerableLinear, add

# Self and pair layers follow the layers from this one on, counted from 0.
_FIRST_BLOCK_LAYER = 3
_PAIRS_AT_ONCE = 512  # of the paper's size, some 50 MB in a product


@dataclass(frozen=True)
class QHNetConfig(Hyperparameters):
    """Hyperparameters; the defaults are DEQHNet's of Table 4 and of the published code.

    Attributes:
        self_consistent: DEQHNet (True) or the predictor QHNet (False).
        overlap: whether the overlap matrix is an input. QHNet itself has neither.
        cutoff: in angstrom.
        lmax: of the spherical harmonics and of the features; at least twice the basis set's.
        layers: structural layers and TransBlocks.
        channels, bottleneck_channels: for each degree; the latter before the expansion (Eq. 14).
        radial_functions: exponential Bernstein polynomials.
        heads: of the attention.
        head_channels: of each head, by degree. As published they end at degree 2, and so do the
            features of the H and S streams.
    """

    self_consistent: bool = True
    overlap: bool = True
    cutoff: float = 15.0
    lmax: int = 4
    layers: int = 5
    channels: int = 128
    bottleneck_channels: int = 32
    radial_functions: int = 32
    heads: int = 4
    head_channels: tuple[int, ...] = (32, 16, 8)

    def __post_init__(self):
        # Lists come from YAML and JSON.
        object.__setattr__(self, "head_channels", tuple(self.head_channels))
        if self.layers <= _FIRST_BLOCK_LAYER:
            raise ConfigError(f"QHNet needs at least {_FIRST_BLOCK_LAYER + 1} layers")
        if not 1 <= len(self.head_channels) <= self.lmax + 1:
            raise ConfigError("head_channels: one number for each degree, from 0 to lmax at most")

    @property
    def reference(self) -> str:
        """QHNet predicts the Hamiltonian itself."""
        return "none"

    def to_config(self) -> dict[str, Any]:
        return super().to_config() | {"head_channels": list(self.head_channels)}


@dataclass
class Injected(Environment):
    """What QHNet's filter needs besides H: all that depends on the molecule alone."""

    static: list[Features]  # structural plus overlap stream, by layer
    weights: list[list[Tensor]]  # of the H stream's tensor products, by layer and path


@register("qhnet", QHNetConfig)
class QHNet(OnsiteBackbone):
    """A backbone with QHNet's tensor products.

    Args:
        template: layout of the blocks.
        config: hyperparameters.
        overlaps: (elements, T, T, 60) on-site three-index overlaps of
            :func:`pyscf_deqh.graph.onsite.onsite_overlaps`; zeros if a state dict will bring them.
        counts: auxiliary functions of each degree.
    """

    config: QHNetConfig

    def __init__(
        self,
        template: OrbitalTemplate,
        config: QHNetConfig | None = None,
        overlaps: Tensor | None = None,
        counts: tuple[int, ...] = AUXILIARY_COUNTS,
    ):
        config = config or QHNetConfig()
        super().__init__(template, config)
        n_elements, width = len(template.numbers), config.channels
        hidden = [width] * (config.lmax + 1)
        self.coupling = BlockCoupling(template, config.lmax)
        self.element_embedding = nn.Embedding(n_elements, width)
        self.radial_basis = BernsteinRadialBasis(config.radial_functions, self.cutoff)
        self.convolutions = nn.ModuleList(
            ConvLayer([width] if k == 0 else hidden, hidden, config.radial_functions, config.lmax)
            for k in range(config.layers)
        )
        if overlaps is None:
            overlaps = no_overlaps(template, counts)
        streams = [config.overlap, config.self_consistent]
        if any(streams):
            self.reduction = DiagonalReduction(overlaps, counts)
            self.merge_norm = SteerableLayerNorm(hidden)
        self.overlap_blocks, self.hamiltonian_blocks = (
            nn.ModuleList(
                TransBlock(
                    counts if k == 0 else hidden, hidden, config.heads, config.head_channels,
                    config.radial_functions, config.lmax,
                )
                for k in range(config.layers if present else 0)
            )
            for present in streams
        )  # fmt: skip
        n_block_layers = config.layers - _FIRST_BLOCK_LAYER
        self.self_layers = nn.ModuleList(SelfLayer(hidden) for _ in range(n_block_layers))
        self.pair_layers = nn.ModuleList(
            PairLayer(hidden, config.radial_functions) for _ in range(n_block_layers)
        )
        bottleneck = [config.bottleneck_channels] * (config.lmax + 1)
        self.onsite_linear = SteerableLinear(hidden, bottleneck, bias=False)
        self.pair_linear = SteerableLinear(hidden, bottleneck, bias=False)
        args = (self.coupling, config.bottleneck_channels)
        self.onsite_expansion = BlockExpansion(*args, width, width)
        self.pair_expansion = BlockExpansion(*args, 2 * width, width)

    # The fixed-point problem; the published network has no scales of inputs and outputs.

    def injection(self, graph: GraphBatch) -> Injected:
        i, j = graph.edge_index
        env = Injected(*self.environment(graph), [], [])
        frames, radial = env.frames, env.radial
        x = [self.element_embedding(graph.element)[:, None]]
        s = self._reduce(graph, graph.overlap) if self.config.overlap else []
        for k, convolution in enumerate(self.convolutions):
            x = convolution(x, i, j, radial, frames)
            if self.config.overlap:
                block = self.overlap_blocks[k]
                s = block(s, i, j, block.attention.path_weights(radial), frames)
            env.static.append(add(x, s))
        env.weights = [block.attention.path_weights(radial) for block in self.hamiltonian_blocks]
        return env

    def _reduce(self, graph: GraphBatch, matrix: Tensor) -> Features:
        return self.reduction(graph.onsite_blocks(matrix)[..., 0], graph.element)

    def filter(self, state: Tensor, injected: Injected) -> Tensor:
        onsite = self._onsite(self._merged(state, injected), injected.graph)
        return injected.state.of_blocks(onsite.flatten(1))

    def hamiltonian(self, state: Tensor, injected: Injected) -> Tensor:
        """All of f(state): on-site and pair blocks, Hermitian by construction."""
        graph = injected.graph
        merged = self._merged(state, injected)
        pairs = self._pairs(merged, injected)
        return graph.matrix(self._onsite(merged, graph), pairs + opposite(pairs).mT)

    def _merged(self, state: Tensor, env: Injected) -> list[Features]:
        """Sum of the streams after each layer that block layers follow."""
        graph = env.graph
        i, j = graph.edge_index
        h: Features = []
        merged = []
        if self.config.self_consistent:
            h = self.reduction(env.state.blocks(state), graph.element)
        for k in range(self.config.layers):
            if self.config.self_consistent:
                h = self.hamiltonian_blocks[k](h, i, j, env.weights[k], env.frames)
            if k >= _FIRST_BLOCK_LAYER:
                x = add(env.static[k], h)
                streams = self.config.overlap or self.config.self_consistent
                merged.append(self.merge_norm(x) if streams else x)
        return merged

    def _onsite(self, merged: list[Features], graph: GraphBatch) -> Tensor:
        onsite: Features = []
        for layer, x in zip(self.self_layers, merged, strict=True):
            onsite = add(onsite, layer(x))
        blocks = self.onsite_expansion(
            self.onsite_linear(onsite), self.element_embedding.weight, graph.element
        )
        return blocks + blocks.mT

    def _pairs(self, merged: list[Features], env: Injected) -> Tensor:
        graph, embedding = env.graph, self.element_embedding.weight
        n = len(embedding)
        kinds = torch.cat([embedding.repeat_interleave(n, dim=0), embedding.repeat(n, 1)], dim=-1)
        blocks = []
        for part in graph.pair_slices(_PAIRS_AT_ONCE):
            i, j = graph.edge_index[:, part]
            pairs: Features = []
            for layer, x in zip(self.pair_layers, merged, strict=True):
                pairs = add(pairs, layer(x, i, j, env.radial[part]))
            kind = graph.element[i] * n + graph.element[j]
            blocks.append(self.pair_expansion(self.pair_linear(pairs), kinds, kind))
        return torch.cat(blocks)
