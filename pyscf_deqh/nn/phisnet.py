"""PhiSNet (Unke et al., NeurIPS 2021) for molecules of any elements and sizes.

The published network has index lists of one molecule; here pairs are those of a batch of any
molecules, and every element and every pair of elements has output weights of its own. Otherwise
layers, widths and first weights are those of its code, without the branches for the core
Hamiltonian and the overlap, which share nothing but the embedding with the Hamiltonian's, and with
embeddings of elements alone, without those of electron configurations.

PhiSNet is a predictor, H = f(Z, R). With ``self_consistent`` it is put into the framework of
DEQHNet: the on-site blocks of H, through the diagonal reduction (Wang et al., Eq. 8-9), are added
to the embeddings. Those of the overlap would say the element alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..graph.batch import BOHR, GraphBatch, opposite
from ..graph.layout import AUXILIARY_COUNTS, OrbitalTemplate
from .backbones import register
from .deqh import Hyperparameters, check_reference
from .irreps import BlockCoupling
from .onsite import DiagonalReduction, Environment, OnsiteBackbone, no_overlaps
from .phisnet_layers import (
    ModularBlock,
    PairMixing,
    SelfMixing,
    Swish,
    WeightedNeighbours,
    residuals,
)
from .products import Features
from .radial import BernsteinRadialBasis
from .steerable import SteerableLayerNorm, SteerableLinear, add, sum_onto

_PAIRS_AT_ONCE = 64  # of the paper's size, some 20 MB in a product


@dataclass(frozen=True)
class PhiSNetConfig(Hyperparameters):
    """Hyperparameters; the defaults are those of the published code for water.

    Attributes:
        reference: ``none`` (learn all of H, as published) or ``sad`` (the difference to it).
        self_consistent: whether the on-site blocks of H are an input.
        cutoff: in angstrom.
        lmax: of the spherical harmonics and of the features; at least twice the basis set's.
        channels: for each degree.
        radial_functions: exponential Bernstein polynomials.
        modules: modular blocks.
        residual_blocks: in each place of a modular block, and before pairs and blocks.
        output_blocks: residual blocks before the output.
    """

    reference: str = "none"
    self_consistent: bool = False
    cutoff: float = 15.0 * BOHR
    lmax: int = 4
    channels: int = 128
    radial_functions: int = 128
    modules: int = 5
    residual_blocks: int = 1
    output_blocks: int = 2

    def __post_init__(self):
        check_reference(self.reference)
        if self.modules < 1:
            raise ConfigError("PhiSNet needs at least one modular block")
        if self.lmax < 2:
            raise ConfigError("PhiSNet: lmax of 2 or more, also for s functions alone")


class BlockOutput(nn.Module):
    """Residual blocks, and blocks (n, T, T) of what they make; by kind of atom or pair."""

    def __init__(self, coupling: BlockCoupling, config: PhiSNetConfig, kinds: int):
        super().__init__()
        lmax, channels = config.lmax, config.channels
        self.coupling = coupling
        self.layers = nn.Sequential(
            residuals(config.residual_blocks + config.output_blocks, lmax, channels),
            Swish(channels), SelfMixing(lmax, channels),
        )  # fmt: skip
        self.weights = nn.Parameter(torch.zeros(kinds, channels, coupling.n_paths))
        self.biases = nn.Parameter(torch.zeros(kinds, coupling.groups[0].count))

    def forward(self, x: Features, kind: Tensor) -> Tensor:
        return self.coupling.expand(self.layers(x), self.weights, self.biases, kind)


@dataclass
class Injected(Environment):
    """What PhiSNet's filter needs besides H."""

    embedding: Tensor


@register("phisnet", PhiSNetConfig)
class PhiSNet(OnsiteBackbone):
    """A backbone with PhiSNet's layers.

    Args:
        template: layout of the blocks.
        config: hyperparameters.
        overlaps: on-site three-index overlaps of :func:`pyscf_deqh.graph.onsite.onsite_overlaps`,
            which a self-consistent one needs; zeros if a state dict will bring them.
    """

    config: PhiSNetConfig

    def __init__(
        self,
        template: OrbitalTemplate,
        config: PhiSNetConfig | None = None,
        overlaps: Tensor | None = None,
    ):
        config = config or PhiSNetConfig()
        super().__init__(template, config)
        n_elements, width, radial = len(template.numbers), config.channels, config.radial_functions
        args = (config.lmax, width)
        self.coupling = BlockCoupling(template, config.lmax)
        self.element_embedding = nn.Embedding(n_elements, width)
        nn.init.uniform_(self.element_embedding.weight, -math.sqrt(3), math.sqrt(3))
        self.radial_basis = BernsteinRadialBasis(radial, self.cutoff)
        self.modular_blocks = nn.ModuleList(
            ModularBlock(*args, radial, config.residual_blocks) for _ in range(config.modules)
        )
        self.central, self.neighbours = (residuals(config.residual_blocks, *args) for _ in range(2))
        self.atom_sum, self.pair_sum = (WeightedNeighbours(*args, radial) for _ in range(2))
        self.pair_mixing = PairMixing(*args, radial)
        self.atom_output = BlockOutput(self.coupling, config, n_elements)
        self.pair_output = BlockOutput(self.coupling, config, n_elements**2)
        if config.self_consistent:
            overlaps = no_overlaps(template) if overlaps is None else overlaps
            self.reduction = DiagonalReduction(overlaps, AUXILIARY_COUNTS)
            self.reduction_norm = SteerableLayerNorm(AUXILIARY_COUNTS)
            widths = [width] * len(AUXILIARY_COUNTS)
            self.reduction_linear = SteerableLinear(AUXILIARY_COUNTS, widths, unit_weights=False)

    def injection(self, graph: GraphBatch) -> Injected:
        embedding = self.element_embedding(graph.element)[:, None]
        return Injected(*self.environment(graph), embedding)

    def filter(self, state: Tensor, injected: Injected) -> Tensor:
        graph = injected.graph
        onsite = self._onsite(*self._atoms(state, injected), injected)
        reference = graph.onsite_blocks(graph.reference)[..., 0]
        return injected.state.of_blocks(reference + onsite.flatten(1))

    def hamiltonian(self, state: Tensor, injected: Injected) -> Tensor:
        """All of f(state): on-site and pair blocks, Hermitian by construction."""
        graph = injected.graph
        central, neighbours = self._atoms(state, injected)
        onsite = self._onsite(central, neighbours, injected)
        pairs = self._pairs(central, neighbours, injected)
        return graph.reference + graph.matrix(onsite, pairs + opposite(pairs).mT)

    def _atoms(self, state: Tensor, env: Injected) -> tuple[Features, Features]:
        """Features of the atoms in the centre of a block, and of those around it."""
        graph = env.graph
        i, j = graph.edge_index
        x = [env.embedding] + [
            env.embedding.new_zeros(graph.n_atoms, 2 * l + 1, self.config.channels)
            for l in range(1, self.config.lmax + 1)
        ]
        if self.config.self_consistent:
            reduced = self.reduction(env.state.blocks(state), graph.element)
            x = add(x, self.reduction_linear(self.reduction_norm(reduced)))
        total: Features = []
        for block in self.modular_blocks:
            x, output = block(x, i, j, env.radial, env.frames)
            total = add(total, output)
        return self.central(total), self.neighbours(total)

    def _onsite(self, central: Features, neighbours: Features, env: Injected) -> Tensor:
        graph = env.graph
        i, j = graph.edge_index
        around = sum_onto(self.atom_sum(neighbours, j, env.radial), i, graph.n_atoms)
        blocks = self.atom_output(add(central, around), graph.element)
        return blocks + blocks.mT

    def _pairs(self, central: Features, neighbours: Features, env: Injected) -> Tensor:
        graph, n = env.graph, len(self.template.numbers)
        i, j = graph.edge_index
        around = sum_onto(self.pair_sum(neighbours, j, env.radial), i, graph.n_atoms)
        blocks = []
        for part in graph.pair_slices(_PAIRS_AT_ONCE):
            i, j = graph.edge_index[:, part]
            radial = env.radial[part]
            # A pair sees the neighbours of its first atom but the second.
            second = self.pair_sum(neighbours, j, radial)
            others = [
                whole.index_select(0, i) - own for whole, own in zip(around, second, strict=True)
            ]
            pairs = add(self.pair_mixing(central, i, j, radial), others)
            blocks.append(self.pair_output(pairs, graph.element[i] * n + graph.element[j]))
        return torch.cat(blocks)
