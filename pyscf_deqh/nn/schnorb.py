"""SchNOrb (Schütt et al., Nat. Commun. 10, 5024, 2019): products of direction cosines.

An invariant network (SchNet) describes the atoms. Further layers give each pair of atoms features
that are linear in the direction cosines of this pair and of those of both atoms with all others.
Products of the first l + 1 layers, polynomials of degree l in the cosines, are what blocks are
linear in. Layers and widths are those of the published code, whose branches for the overlap and the
energy, and what only these read, are left out.

Weights for the directions are learnt one by one, so that no symmetry is built in but that of
permutations and translations. As in the paper, turned copies of the molecules teach it the others:
in training each molecule of a batch is turned at random, and its predicted blocks are turned back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..graph.batch import BOHR, GraphBatch, opposite
from ..graph.layout import OrbitalTemplate
from .backbones import register
from .deqh import Hyperparameters, Predictor, check_reference
from .wigner import wigner_frames


@dataclass(frozen=True)
class SchNOrbConfig(Hyperparameters):
    """Hyperparameters; the defaults are those of the published code.

    Attributes:
        reference: ``none`` (learn all of H, as published) or ``sad`` (the difference to it).
        cutoff: in angstrom.
        lmax: half the degree of the polynomials; the basis set's.
        features: of atoms, and of pairs for each direction.
        factors: inside the layers.
        directions: that three direction cosines are mapped to.
        interactions: layers of SchNet.
        gaussians: of the distance, from zero to the cutoff.
    """

    reference: str = "none"
    cutoff: float = 10.0
    lmax: int = 2
    features: int = 1000
    factors: int = 1000
    directions: int = 12
    interactions: int = 3
    gaussians: int = 50

    def __post_init__(self):
        check_reference(self.reference)
        if self.gaussians < 2:
            raise ConfigError("gaussians: two or more")


@dataclass
class Pairs:
    """Pairs of atoms in the frames in which they are predicted.

    Attributes:
        i, j: (E,) their atoms.
        cosines: (E, 3) of the direction from i to j.
        gaussians: (E, G) of the distance.
        fading: (E, 1), of the filters: zero at the cutoff. Biases after them are not.
    """

    i: Tensor
    j: Tensor
    cosines: Tensor
    gaussians: Tensor
    fading: Tensor

    def sum(self, values: Tensor, n_atoms: int) -> Tensor:
        """Sums (N, …) over the pairs of each first atom, of values (E, …)."""
        return values.new_zeros(n_atoms, *values.shape[1:]).index_add(0, self.i, values)


class ShiftedSoftplus(nn.Module):
    """ln(1 + exp x) - ln 2."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x) - math.log(2)


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_linear(inputs, hidden), ShiftedSoftplus(), _linear(hidden, outputs))


class Convolution(nn.Module):
    """One interaction of SchNet: sums over neighbours, weighted by filters of the distance."""

    def __init__(self, config: SchNOrbConfig):
        super().__init__()
        features, factors = config.features, config.factors
        self.filter = _network(config.gaussians, factors, factors)
        self.into = _linear(features, factors, bias=False)
        self.out = nn.Sequential(
            _linear(factors, features), ShiftedSoftplus(), _linear(features, features)
        )

    def forward(self, x: Tensor, pairs: Pairs) -> Tensor:
        weights = self.filter(pairs.gaussians) * pairs.fading
        out: Tensor = self.out(pairs.sum(self.into(x)[pairs.j] * weights, len(x)))
        return out


class DirectedInteraction(nn.Module):
    """What changes the atoms, and features of pairs that are linear in direction cosines.

    Args:
        config: widths.
        place: among such layers. The first one uses no cosines and has one direction; after the
            last one nobody reads the atoms.
    """

    def __init__(self, config: SchNOrbConfig, place: int):
        super().__init__()
        features, factors = config.features, config.factors
        self.filter = _network(config.gaussians, factors, factors)
        self.into = _linear(features, factors)
        self.out = nn.Sequential(_linear(factors, factors), ShiftedSoftplus())
        self.pair, self.environment = (_network(factors, factors, features) for _ in range(2))
        last, directed = place == 2 * config.lmax, place > 0
        self.atom = None if last else _network(factors, factors, features)
        self.pair_directions, self.own_directions, self.other_directions = (
            _linear(3, config.directions) if directed else nn.Identity() for _ in range(3)
        )
        self.directed = directed

    def forward(self, x: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """New features (N, F) of atoms, and those (E, F, D) of pairs."""
        weights, factors = self.filter(pairs.gaussians) * pairs.fading, self.into(x)
        v = self.out(factors[pairs.i] * weights * factors[pairs.j])
        cosines = pairs.cosines if self.directed else torch.ones_like(pairs.fading)
        own = self.pair(v)[..., None] * cosines[:, None]
        around = pairs.sum(self.environment(v)[..., None] * cosines[:, None], len(x))
        i, j = self.own_directions(around)[pairs.i], self.other_directions(around)[pairs.j]
        features = self.pair_directions(own) + i + j
        return x if self.atom is None else x + self.atom(pairs.sum(v, len(x))), features


@register("schnorb", SchNOrbConfig)
class SchNOrb(Predictor):
    """A backbone of polynomials in direction cosines: a predictor, H = f(Z, R)."""

    config: SchNOrbConfig
    centres: Tensor

    def __init__(self, template: OrbitalTemplate, config: SchNOrbConfig | None = None):
        config = config or SchNOrbConfig()
        super().__init__(template, config)
        if config.lmax < len(template.counts) - 1:
            raise ConfigError(f"SchNOrb: lmax of {len(template.counts) - 1} for this basis set")
        n_elements, layers = len(template.numbers), 2 * config.lmax + 1
        self.element_embedding = nn.Embedding(n_elements, config.features)
        centres = torch.linspace(0.0, config.cutoff, config.gaussians)
        self.register_buffer("centres", centres, persistent=False)
        self.convolutions = nn.ModuleList(Convolution(config) for _ in range(config.interactions))
        self.interactions = nn.ModuleList(DirectedInteraction(config, k) for k in range(layers))
        width = config.features * config.directions * layers
        self.output, self.onsite_output = (_linear(width, template.size**2) for _ in range(2))
        # The published code takes those of single atoms, and learns them too.
        self.levels = nn.Parameter(torch.zeros(n_elements, template.size))

    @torch.no_grad()
    def standardize(self, batches: Iterable[GraphBatch]) -> None:
        """Start the levels of each element at the means of its on-site blocks' diagonals, alike
        within a shell."""
        total, count = torch.zeros_like(self.levels), self.levels.new_zeros(len(self.levels))
        for batch in batches:
            hamiltonian = batch.labels[0] - batch.reference
            blocks = batch.onsite_blocks(hamiltonian)[..., 0].unflatten(1, (self._size, -1))
            total.index_add_(0, batch.element, blocks.diagonal(dim1=1, dim2=2).to(total))
            count += torch.bincount(batch.element, minlength=len(count)).to(count)
        levels = (total / count.clamp(min=1)[:, None]).split(self._shell_sizes, dim=1)
        self.levels.copy_(torch.cat([x.mean(1, keepdim=True).expand_as(x) for x in levels], dim=1))

    @property
    def _shell_sizes(self) -> list[int]:
        return [2 * l + 1 for l in self.template.template_shells]

    @property
    def _size(self) -> int:
        return self.template.size

    def hamiltonian(self, state: Tensor, injected: GraphBatch) -> Tensor:
        graph = injected
        turns = self._random_turns(graph) if self.training else None
        onsite, between = self._blocks(self._pairs(graph, turns), graph)
        onsite = onsite + torch.diag_embed(self.levels[graph.element])
        if turns is not None:
            of_orbitals = self._of_orbitals(turns)
            onsite, between = (
                of_orbitals[molecule].mT @ blocks @ of_orbitals[molecule]
                for molecule, blocks in (
                    (graph.molecule, onsite),
                    (graph.molecule[graph.edge_index[0]], between),
                )
            )
        onsite = (onsite + onsite.mT) / 2
        between = (between + opposite(between).mT) / 2
        return graph.reference + graph.matrix(onsite, between)

    def _random_turns(self, graph: GraphBatch) -> list[Tensor]:
        """Representations (B, 2l+1, 2l+1) of a random rotation of each molecule."""
        axes = torch.randn(
            2, graph.n_molecules, 3, dtype=self.levels.dtype, device=self.levels.device
        )
        return wigner_frames(max(len(self.template.counts) - 1, 1), *axes)

    def _of_orbitals(self, turns: list[Tensor]) -> Tensor:
        """The same for all orbitals of a template, (B, T, T)."""
        out = turns[0].new_zeros(len(turns[0]), self._size, self._size)
        start = 0
        for l in self.template.template_shells:
            stop = start + 2 * l + 1
            out[:, start:stop, start:stop] = turns[l]
            start = stop
        return out

    def _pairs(self, graph: GraphBatch, turns: list[Tensor] | None) -> Pairs:
        i, j = graph.edge_index
        vectors = graph.edge_vector * BOHR
        if turns is not None:  # of vectors as (y, z, x)
            turned = turns[1][graph.molecule[i]] @ vectors[:, [1, 2, 0], None]
            vectors = turned[:, [2, 0, 1], 0]
        distance = vectors.norm(dim=-1, keepdim=True)
        spacing = self.centres[1] - self.centres[0]
        gaussians = torch.exp(-0.5 * ((distance - self.centres) / spacing) ** 2)
        fading = 0.5 * (torch.cos(math.pi * distance / self.config.cutoff) + 1)
        return Pairs(i, j, vectors / distance, gaussians, fading)

    def _blocks(self, pairs: Pairs, graph: GraphBatch) -> tuple[Tensor, Tensor]:
        """On-site blocks (N, T, T) and pair blocks (E, T, T), before they are made symmetric."""
        x = self.element_embedding(graph.element)
        for convolution in self.convolutions:
            x = x + convolution(x, pairs)
        products: list[Tensor] = []
        for interaction in self.interactions:
            x, features = interaction(x, pairs)
            products.append(products[-1] * features if products else features)
        products[0] = products[0].expand(-1, -1, self.config.directions)
        polynomials = torch.cat([p.flatten(1) for p in products], dim=1)
        neighbours = torch.bincount(pairs.i, minlength=graph.n_atoms).clamp(min=1)
        onsite = pairs.sum(self.onsite_output(polynomials), graph.n_atoms) / neighbours[:, None]
        square = (self._size, self._size)
        return onsite.unflatten(1, square), self.output(polynomials).unflatten(1, square)
