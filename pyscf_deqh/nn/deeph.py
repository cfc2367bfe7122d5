"""DeepH (Li et al., Nat. Comput. Sci. 2, 367, 2022): an invariant network and local coordinates.

All features are invariants: distances and elements, and, in the last layer, the directions of an
atom's neighbours as seen from the frame of each pair. In this frame the network predicts the pair's
block, which is then turned into the molecule's. The frame of a pair (i, j) has its polar axis along
the pair and its x axis in the plane of the nearest neighbour of i that does not lie on that axis;
that of an on-site block is the frame of the pair with the nearest neighbour. Matrices jump where
another neighbour becomes the nearest, which is the price of frames of this kind.

Layers and widths are those of the published code's defaults. Molecules need more than crystals:
where there is no second direction (linear molecules) blocks are made axially symmetric, where there
is none at all (atoms) isotropic. Each pair of elements, and each element's on-site blocks, have
output weights of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from ..errors import ConfigError
from ..graph.batch import BOHR, GraphBatch, opposite
from ..graph.layout import OrbitalTemplate
from .backbones import register
from .deqh import Hyperparameters, Predictor, check_reference
from .irreps import BlockCoupling
from .wigner import wigner_frames

_RANGE = 3.0  # angstrom, over which messages fade: exp(-r^2 / 2 range^2)
_HIDDEN = 128
# Sine of the angle to a pair's axis below which a neighbour says nothing about the plane.
_PARALLEL = 1e-3
# How many directions a pair's frame has.
_ISOTROPIC, _AXIAL, _WHOLE = 0, 1, 2


@dataclass(frozen=True)
class DeepHConfig(Hyperparameters):
    """Hyperparameters; the defaults are those of the published code, but for the cutoff.

    Attributes:
        reference: ``none`` (learn all of H, as published) or ``sad`` (the difference to it).
        cutoff: in angstrom.
        lmax: of the blocks; at least twice the basis set's.
        atom_features, pair_features: widths.
        harmonics: largest degree of those of the neighbours' directions.
        gaussian_stop: largest centre of the Gaussians of the distance, angstrom.
    """

    reference: str = "none"
    cutoff: float = 8.0
    lmax: int = 4
    atom_features: int = 64
    pair_features: int = 128
    harmonics: int = 4
    gaussian_stop: float = 6.0

    def __post_init__(self):
        check_reference(self.reference)
        if self.pair_features <= (self.harmonics + 1) ** 2:
            raise ConfigError("pair_features: more than there are spherical harmonics")


class Pairs(NamedTuple):
    """All pairs of atoms, and after them each atom with itself: P in all.

    Attributes:
        atoms: (2, P).
        vector: (P, 3), zero for an atom with itself; angstrom.
        distance: (P,).
        direction, side: (P, 3), of the local frame.
        freedom: (P,), how many directions the frame has.
        triple_pair, triple_edge: (T,), of each pair and each neighbour of its first atom: the
            pair, and the pair of that atom and the neighbour.
    """

    atoms: Tensor
    vector: Tensor
    distance: Tensor
    direction: Tensor
    side: Tensor
    freedom: Tensor
    triple_pair: Tensor
    triple_edge: Tensor


def local_pairs(graph: GraphBatch) -> Pairs:
    """Pairs of a batch with their local frames."""
    atoms = torch.cat([graph.edge_index, graph.atoms.expand(2, -1)], dim=1)
    vector = torch.cat([graph.edge_vector, graph.edge_vector.new_zeros(graph.n_atoms, 3)]) * BOHR
    distance = vector.norm(dim=-1)
    triple_pair, triple_edge = _triples(atoms[0], graph.n_atoms)
    is_self = distance == 0
    # The axis of an on-site frame points to the nearest neighbour.
    far = torch.where(is_self, math.inf, distance)
    nearest = _smallest(far[triple_edge], triple_pair, len(distance))
    has_neighbour = nearest >= 0
    towards = vector[triple_edge[nearest.clamp(min=0)]]
    pole = torch.zeros_like(vector)
    pole[:, 2] = 1.0
    axis = torch.where(is_self[:, None], torch.where(has_neighbour[:, None], towards, pole), vector)
    direction = nn.functional.normalize(axis, dim=-1)
    # The plane is that of the nearest neighbour beside the axis.
    other = vector[triple_edge]
    along = (other * direction[triple_pair]).sum(-1, keepdim=True) * direction[triple_pair]
    sine = (other - along).norm(dim=-1) / distance[triple_edge].clamp(min=1e-12)
    length = torch.where(sine > _PARALLEL, far[triple_edge], math.inf)
    beside = _smallest(length, triple_pair, len(distance))
    has_plane = beside >= 0
    side = vector[triple_edge[beside.clamp(min=0)]]
    side = torch.where(has_plane[:, None], side, _perpendicular(direction))
    freedom = torch.where(has_plane, _WHOLE, torch.where(has_neighbour, _AXIAL, _ISOTROPIC))
    return Pairs(atoms, vector, distance, direction, side, freedom, triple_pair, triple_edge)


def _triples(first: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
    """For all pairs by their first atoms (P,): pair and pair with a neighbour, (T,) each."""
    order = torch.argsort(first, stable=True)
    counts = torch.bincount(first, minlength=n_atoms)
    starts = counts.cumsum(0) - counts
    of_pair = counts[first]
    pair = torch.repeat_interleave(torch.arange(len(first), device=first.device), of_pair)
    begin = torch.repeat_interleave(of_pair.cumsum(0) - of_pair, of_pair)
    place = torch.arange(len(pair), device=first.device) - begin
    return pair, order[starts[first[pair]] + place]


def _smallest(values: Tensor, group: Tensor, n: int) -> Tensor:
    """(n,) place of the smallest of each group's values; -1 where all are infinite."""
    least = values.new_full((n,), math.inf).scatter_reduce(0, group, values, "amin")
    is_least = (values == least[group]) & values.isfinite()
    places = torch.where(is_least, torch.arange(len(values), device=values.device), len(values))
    found = torch.full((n,), len(values), device=values.device)
    found = found.scatter_reduce(0, group, places, "amin")
    return torch.where(found == len(values), -1, found)


def _perpendicular(direction: Tensor) -> Tensor:
    """Some vector across each direction (P, 3)."""
    axis = nn.functional.one_hot(direction.abs().argmin(dim=-1), 3).to(direction)
    return torch.linalg.cross(direction, axis)


class GatedLinear(nn.Module):
    """sigmoid(linear) softplus(linear): messages of CGCNN."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.gate, self.value = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(z)) * nn.functional.softplus(self.value(z))


class MessagePassing(nn.Module):
    """Gated sums over neighbours (CGCNN), normalized over each molecule; then new pair features."""

    def __init__(self, atom: int, pair: int, pair_out: int):
        super().__init__()
        self.message = GatedLinear(2 * atom + pair, atom)
        self.scale, self.shift = nn.Parameter(torch.ones(atom)), nn.Parameter(torch.zeros(atom))
        self.pair_net = nn.Sequential(
            nn.Linear(2 * atom + pair, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, pair_out), nn.SiLU()
        )

    def forward(
        self, x: Tensor, e: Tensor, pairs: Pairs, fading: Tensor, graph: GraphBatch
    ) -> tuple[Tensor, Tensor]:
        i, j = pairs.atoms
        message = self.message(torch.cat([x[i], x[j], e], dim=-1))
        summed = torch.zeros_like(x).index_add(0, i, message * fading[:, None])
        x = x + _normalized(summed, graph) * self.scale + self.shift
        return x, self.pair_net(torch.cat([x[i], x[j], e], dim=-1))


def _normalized(x: Tensor, graph: GraphBatch) -> Tensor:
    """Features (N, C) less their mean over a molecule, over their standard deviation."""
    n, molecule = graph.n_molecules, graph.molecule
    count = torch.bincount(molecule, minlength=n).to(x) * x.shape[1]

    def mean(values: Tensor) -> Tensor:
        return (values.new_zeros(n).index_add(0, molecule, values.sum(-1)) / count)[molecule, None]

    x = x - mean(x)
    return x / torch.sqrt(mean(x.square()) + 1e-5)


class LocalCoordinates(nn.Module):
    """The last layer: what both atoms of a pair see of their neighbours, in the pair's frame."""

    _axial: Tensor

    def __init__(self, atom: int, pair: int, harmonics: int):
        super().__init__()
        width = 2 * atom + pair + (harmonics + 1) ** 2
        self.degrees = list(range(harmonics + 1))
        axial = [m == 0 for degree in self.degrees for m in range(-degree, degree + 1)]
        self.register_buffer("_axial", torch.tensor(axial), persistent=False)
        self.message = GatedLinear(width, atom)
        self.out = nn.Sequential(nn.Linear(2 * atom + pair, _HIDDEN), nn.SiLU())

    def forward(self, x: Tensor, e: Tensor, pairs: Pairs, fading: Tensor, turn: Tensor) -> Tensor:
        """(P, 128), for the turns (P, 3, 3) of vectors into the molecule's frame."""
        own = self._seen(x, e, pairs, fading, turn, pairs.triple_pair)
        # Neighbours of the second atom are those of the first one of the pair the other way.
        n = len(e) - len(x)
        other = torch.arange(len(e), device=e.device)
        other[:n] = opposite(other[:n])
        their = self._seen(x, e, pairs, fading, turn, other[pairs.triple_pair])
        return self.out(torch.cat([own, their, e], dim=-1))

    def _seen(
        self, x: Tensor, e: Tensor, pairs: Pairs, fading: Tensor, turn: Tensor, pair: Tensor
    ) -> Tensor:
        """Messages (P, C) along the second pairs of all triples, in the frames of ``pair``."""
        edge = pairs.triple_edge
        i, k = pairs.atoms[:, edge]
        harmonics = self._harmonics(pairs, turn[pair], edge)
        # What turns about an axis without a plane is arbitrary.
        whole = pairs.freedom[pair, None] == _WHOLE
        harmonics = torch.where(whole | self._axial, harmonics, 0.0)
        message = self.message(torch.cat([x[i], x[k], e[edge], harmonics], dim=-1))
        onto = x.new_zeros(len(e), message.shape[1])
        return onto.index_add(0, pair, message * fading[edge, None])

    def _harmonics(self, pairs: Pairs, turn: Tensor, edge: Tensor) -> Tensor:
        """Of the directions of edges in turned frames; of none, that of degree 0 alone."""
        local = (turn.mT @ pairs.vector[edge][:, [1, 2, 0], None])[..., 0]
        found = o3.spherical_harmonics(self.degrees, local, normalize=True)
        exists = (pairs.distance[edge] > 0)[:, None]
        return torch.cat([found[:, :1], torch.where(exists, found[:, 1:], 0.0)], dim=-1)


@register("deeph", DeepHConfig)
class DeepH(Predictor):
    """A backbone of invariants in local frames: a predictor, H = f(Z, R)."""

    config: DeepHConfig
    centres: Tensor
    masks: Tensor

    def __init__(self, template: OrbitalTemplate, config: DeepHConfig | None = None):
        config = config or DeepHConfig()
        super().__init__(template, config)
        atom, pair = config.atom_features, config.pair_features
        last = pair - (config.harmonics + 1) ** 2
        kinds = len(template.numbers) ** 2
        self.coupling = BlockCoupling(template, config.lmax)
        self.element_embedding = nn.Embedding(len(template.numbers), atom)
        centres = torch.linspace(0.0, config.gaussian_stop, pair)
        self.register_buffer("centres", centres, persistent=False)
        self.layers = nn.ModuleList(
            MessagePassing(atom, pair, last if k == 4 else pair) for k in range(5)
        )
        self.local = LocalCoordinates(atom, last, config.harmonics)
        self.outputs, self.onsite_outputs = (
            nn.ModuleList(nn.Linear(_HIDDEN, template.size**2) for _ in range(n))
            for n in (kinds, len(template.numbers))
        )
        # Components that stay where a frame has no plane, and where it has no axis either.
        masks = torch.zeros(3, template.size**2)
        masks[_WHOLE] = 1.0
        for group in self.coupling.groups:
            if not group.pseudo:
                middle = group.start + group.degree * group.count
                masks[_AXIAL, middle : middle + group.count] = 1.0
        masks[_ISOTROPIC, self.coupling.is_scalar] = 1.0
        self.register_buffer("masks", masks, persistent=False)

    def hamiltonian(self, state: Tensor, injected: GraphBatch) -> Tensor:
        graph, pairs = injected, local_pairs(injected)
        n = graph.edge_index.shape[1]
        turns = wigner_frames(max(self.config.lmax, 1), pairs.direction, pairs.side)
        blocks = self._turned(self._components(pairs, graph, turns[1]), turns)
        onsite, between = blocks[n:], blocks[:n]
        onsite = (onsite + onsite.mT) / 2
        between = (between + opposite(between).mT) / 2
        return graph.reference + graph.matrix(onsite, between)

    def _components(self, pairs: Pairs, graph: GraphBatch, turn: Tensor) -> Tensor:
        """Coupled components (P, T T) in the local frames."""
        spacing = self.centres[1] - self.centres[0]
        e = torch.exp(-0.5 * ((pairs.distance[:, None] - self.centres) / spacing) ** 2)
        fading = torch.exp(-0.5 * (pairs.distance / _RANGE) ** 2)
        x = self.element_embedding(graph.element)
        for first, second in (self.layers[:2], self.layers[2:4]):
            changed = second(*first(x, e, pairs, fading, graph), pairs, fading, graph)
            x, e = x + changed[0], e + changed[1]
        x, e = self.layers[4](x, e, pairs, fading, graph)
        features = self.local(x, e, pairs, fading, turn)
        n = graph.edge_index.shape[1]
        elements = graph.element[graph.edge_index]
        kinds = elements[0] * len(self.template.numbers) + elements[1]
        made = [
            _by_kind(self.outputs, features[:n], kinds),
            _by_kind(self.onsite_outputs, features[n:], graph.element),
        ]
        return torch.cat(made) * self.masks[pairs.freedom]

    def _turned(self, components: Tensor, turns: list[Tensor]) -> Tensor:
        """Blocks (P, T, T) in the molecule's frame."""
        parts = [
            turns[group.degree]
            @ components[:, group.start : group.stop].unflatten(
                1, (2 * group.degree + 1, group.count)
            )
            for group in self.coupling.groups
        ]
        return self.coupling.uncouple(torch.cat([part.flatten(1) for part in parts], dim=1))


def _by_kind(networks: nn.ModuleList, x: Tensor, kind: Tensor) -> Tensor:
    """Outputs (n, …) of the network of each row's kind."""
    places = [(kind == k).nonzero()[:, 0] for k in range(len(networks))]
    made = [net(x[rows]) for net, rows in zip(networks, places, strict=True)]
    order = torch.cat(places)
    return torch.cat(made).index_select(0, torch.argsort(order))
