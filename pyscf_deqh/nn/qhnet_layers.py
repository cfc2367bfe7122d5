"""Layers of QHNet (Yu et al., ICML 2023) and of DEQHNet's TransBlock (Eq. 10, after Equiformer).

Features are lists of one tensor (n, 2l + 1, channels) per degree l, see :mod:`.products`; degrees
that a list does not reach are zero. Weights of e3nn's ``Linear``, ``TensorProduct`` and
``FullyConnectedNet`` have unit variance and are scaled where they are used; that is kept where the
published networks use these classes, so that the published learning rates mean the same here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache

import torch
from e3nn.math import normalize2mom
from e3nn.nn import FullyConnectedNet
from torch import Tensor, nn

from .irreps import BlockCoupling, random_weight
from .products import (
    ChannelProduct,
    Features,
    PairFrames,
    SphericalProduct,
    coupling_paths,
    inner_products,
    pad_rows,
    path_norms,
)
from .steerable import SteerableLayerNorm, SteerableLinear, add, sum_onto, take

# Regularizes norms, whose gradient does not exist at zero.
_TINY = 1e-12


def shifted_softplus(x: Tensor) -> Tensor:
    return nn.functional.softplus(x) - math.log(2.0)


def smooth_leaky_relu(x: Tensor) -> Tensor:
    """Equiformer's smooth LeakyReLU with slope 0.2."""
    return 0.6 * x + 0.4 * x * (2 * torch.sigmoid(x) - 1)


@cache
def _normalized_once(f: Callable[[Tensor], Tensor]) -> normalize2mom:
    # Averages over a million random numbers, always the same ones: some 30 ms, for each of dozens
    # of activations of a network.
    return normalize2mom(f)


def _normalized(f: Callable[[Tensor], Tensor]) -> normalize2mom:
    """e3nn's activation of unit second moment, a module of its own for each network's mode."""
    return deepcopy(_normalized_once(f))


def _fully_connected(*widths: int) -> FullyConnectedNet:
    """e3nn's network with normalized shifted softplus between its layers."""
    net = FullyConnectedNet(widths)
    for layer in list(net)[:-1]:
        layer.act = _normalized(shifted_softplus)
    return net


def _radial_profile(radial: int, hidden: int, outputs: int) -> nn.Sequential:
    """Equiformer's weights of tensor-product paths from radial functions."""
    layers: list[nn.Module] = []
    for width in (radial, hidden):
        layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


class NormGate(nn.Module):
    """Scalars and norms through an MLP: new scalars, and factors for the higher degrees."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.channels = list(channels)
        total = sum(channels)
        self.mlp = _mlp(total, total, total)

    def forward(self, x: Features) -> Features:
        norms = [torch.sqrt(part.square().sum(1) + _TINY) for part in x[1:]]
        scalars, *gates = self.mlp(torch.cat([x[0][:, 0], *norms], dim=-1)).split(
            self.channels, dim=-1
        )
        gated = [part * gate[:, None] for part, gate in zip(x[1:], gates, strict=True)]
        return [scalars[:, None], *gated]


def _pair_invariants(x: Features, i: Tensor, j: Tensor) -> Tensor:
    """Scalars of both atoms and inner products of the higher degrees (Eq. 11), (E, …)."""
    left, right = take(x, i), take(x, j)
    scalars = [left[0][:, 0], right[0][:, 0]]
    products = [inner_products(left, right)] if len(x) > 1 else []
    return torch.cat(scalars + products, dim=-1)


class ConvLayer(nn.Module):
    """Message passing of the structural stream: Eq. 11-13.

    Args:
        inputs: channels of each degree; scalars alone in the first layer, which has no gate.
        outputs: channels of each degree.
        radial: number of radial functions.
        lmax: of the spherical harmonics.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], radial: int, lmax: int):
        super().__init__()
        paths = coupling_paths(len(inputs) - 1, lmax, len(outputs) - 1, natural=True)
        self.product = SphericalProduct(paths, path_norms(paths))
        self.channels = inputs[0]
        width = len(self.product.paths) * inputs[0]
        n_invariants = 2 * inputs[0] + sum(inputs[1:])
        hidden = 32
        self.radial = _fully_connected(radial, hidden, width)
        self.invariants = _fully_connected(n_invariants, hidden, width)
        self.gated = len(inputs) > 1
        if self.gated:
            self.linear_invariants = SteerableLinear(inputs, inputs)
            self.gate = NormGate(inputs)
            self.linear_in = SteerableLinear(inputs, inputs)
        self.linear_out = SteerableLinear(outputs, outputs)

    def forward(self, x: Features, i: Tensor, j: Tensor, radial: Tensor, frames: PairFrames):
        before = x
        if self.gated:
            invariants = _pair_invariants(self.linear_invariants(x), i, j)
            x = self.linear_in(self.gate(x))
        else:
            invariants = _pair_invariants(x, i, j)
        weight = self.radial(radial) * self.invariants(invariants)
        weight = weight.unflatten(-1, (len(self.product.paths), self.channels))
        messages = frames.out_of(self.product(frames.into(take(x, j)), weight))
        sums = sum_onto(messages, i, len(x[0]))
        if not self.gated:
            return self.linear_out(sums)
        return add(before, self.linear_out(add(sums, x)))


def _channel_product(lmax: int) -> ChannelProduct:
    paths = coupling_paths(lmax, lmax, lmax, natural=False)
    return ChannelProduct(paths, path_norms(paths))


class SelfLayer(nn.Module):
    """Features of on-site blocks: the product of an atom's features with themselves."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.product = _channel_product(len(channels) - 1)
        self.weight = random_weight(1, len(self.product.paths), channels[0])
        self.gate_left, self.gate_right = NormGate(channels), NormGate(channels)
        self.linear_left = SteerableLinear(channels, channels)
        self.linear_right = SteerableLinear(channels, channels)
        self.gate_out = NormGate(channels)
        self.linear_out = SteerableLinear(channels, channels)

    def forward(self, x: Features) -> Features:
        left = self.linear_left(self.gate_left(x))
        right = self.linear_right(self.gate_right(x))
        product = add(self.product(left, right, self.weight), x)
        return self.linear_out(self.gate_out(product))


class PairLayer(nn.Module):
    """Features of pair blocks: the product of both atoms' features."""

    def __init__(self, channels: Sequence[int], radial: int):
        super().__init__()
        self.product = _channel_product(len(channels) - 1)
        self.channels = channels[0]
        width = len(self.product.paths) * channels[0]
        self.radial = _fully_connected(radial, channels[0], width)
        self.invariants = _mlp(2 * channels[0] + sum(channels[1:]), channels[0], width)
        self.linear_invariants = SteerableLinear(channels, channels)
        self.gate_in = NormGate(channels)
        self.linear_in = SteerableLinear(channels, channels)
        self.gate_out = NormGate(channels)
        self.linear_out = SteerableLinear(channels, channels)

    def forward(self, x: Features, i: Tensor, j: Tensor, radial: Tensor) -> Features:
        invariants = _pair_invariants(self.linear_invariants(x), i, j)
        weight = self.radial(radial) * self.invariants(invariants)
        weight = weight.unflatten(-1, (len(self.product.paths), self.channels))
        x = self.linear_in(self.gate_in(x))
        product = self.product(take(x, j), take(x, i), weight)
        return self.linear_out(self.gate_out(product))


def segment_softmax(score: Tensor, segment: Tensor, n: int) -> Tensor:
    """Softmax of (E, heads) among the rows of each of n segments."""
    index = segment[:, None].expand_as(score)
    # The shift changes nothing but the range of the exponentials.
    highest = score.detach().new_zeros(n, score.shape[1])
    highest = highest.scatter_reduce(0, index, score.detach(), "amax", include_self=False)
    weight = torch.exp(score - highest[segment])
    total = weight.new_zeros(n, score.shape[1]).index_add(0, segment, weight)
    return weight / total[segment]


class GraphAttention(nn.Module):
    """Eq. 10: a_ij (softmax of scalars) times v_ij, of (linear x_i + linear x_j) ⊗ Y(r_ij)."""

    def __init__(
        self, channels: Sequence[int], heads: int, head: Sequence[int], radial: int, lmax: int
    ):
        super().__init__()
        self.heads, self.scores = heads, head[0]
        self.linear_source = SteerableLinear(channels, channels, unit_weights=False)
        self.linear_target = SteerableLinear(channels, channels, bias=False, unit_weights=False)
        paths = coupling_paths(len(channels) - 1, lmax, len(head) - 1, natural=True)
        self.product = SphericalProduct(paths, path_norms(paths, summed=False))
        self.channels = list(channels)
        widths = dict.fromkeys(range(len(head)), 0)
        for l1, _, l3 in self.product.paths:
            widths[l3] += channels[l1]
        self.radial = _radial_profile(radial, 64, sum(widths.values()))
        values = [heads * h for h in head]
        outputs = [heads * head[0] + values[0], *values[1:]]
        self.mixers = nn.ParameterList(
            random_weight(widths[l3], widths[l3], output) for l3, output in enumerate(outputs)
        )
        self.mixer_bias = nn.Parameter(torch.zeros(outputs[0]))
        self.score = random_weight(self.scores, heads, self.scores)
        self.linear_out = SteerableLinear(values, channels, unit_weights=False)

    def forward(
        self, x: Features, i: Tensor, j: Tensor, weights: list[Tensor], frames: PairFrames
    ) -> Features:
        """``weights`` of the paths do not depend on x: see :meth:`path_weights`."""
        message = add(take(self.linear_source(x), j), take(self.linear_target(x), i))
        mixed = self._mix(frames.into(message), weights)
        scalars = mixed[0][:, 0].unflatten(-1, (self.heads, 2 * self.scores))
        score, value = scalars.split(self.scores, dim=-1)
        score = (smooth_leaky_relu(score) * self.score).sum(-1)
        attention = segment_softmax(score, i, len(x[0]))
        values = [value.flatten(1)[:, None], *mixed[1:]]
        messages = [
            (
                v.unflatten(-1, (self.heads, v.shape[-1] // self.heads))
                * attention[:, None, :, None]
            ).flatten(2)
            for v in values
        ]
        return self.linear_out(sum_onto(frames.out_of(messages), i, len(x[0])))

    def path_weights(self, radial: Tensor) -> list[Tensor]:
        """Of each group of the product's paths, (E, paths channels)."""
        groups = self.product.groups.items()
        widths = [(paths.stop - paths.start) * self.channels[group.l1] for group, paths in groups]
        return list(self.radial(radial).split(widths, dim=-1))

    def _mix(self, x: Features, weights: list[Tensor]) -> Features:
        """Outputs of all paths, mixed: one linear map per degree, in the pairs' frames."""
        sums: list[list[Tensor]] = [[] for _ in self.mixers]
        starts = [0] * len(self.mixers)
        for group, weight in zip(self.product.groups, weights, strict=True):
            l3 = group.l3
            start = starts[l3]
            starts[l3] += weight.shape[-1]
            if group.l1 < len(x):
                rows = self.mixers[l3][start : starts[l3]]
                sums[l3].append(pad_rows(self.product.outputs(group, x, weight) @ rows, l3))
        mixed = [sum(parts[1:], parts[0]) for parts in sums]
        return [mixed[0] + self.mixer_bias, *mixed[1:]]


class FeedForward(nn.Module):
    """Linear, gate, linear; hidden channels 1, 1/2 and 1/4 of the width for degrees 0, 1 and 2."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], width: int):
        super().__init__()
        self.middle = [width >> l for l in range(min(len(inputs), 3))]
        gates = sum(self.middle[1:])
        wide = [self.middle[0] + gates, *self.middle[1:]]
        self.linear_in = SteerableLinear(inputs, wide, unit_weights=False)
        self.linear_out = SteerableLinear(self.middle, outputs, unit_weights=False)
        self.silu = _normalized(nn.functional.silu)
        self.sigmoid = _normalized(torch.sigmoid)

    def forward(self, x: Features) -> Features:
        first, *rest = self.linear_in(x)
        scalars, *gates = first.split(self.middle, dim=-1)
        gated = [part * self.sigmoid(gate) for part, gate in zip(rest, gates, strict=False)]
        return self.linear_out([self.silu(scalars), *gated])


class TransBlock(nn.Module):
    """Pre-normalized attention and feed-forward network of the H and S streams (Fig. 2b)."""

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        heads: int,
        head: Sequence[int],
        radial: int,
        lmax: int,
    ):
        super().__init__()
        self.norm_attention, self.norm_feed = SteerableLayerNorm(inputs), SteerableLayerNorm(inputs)
        self.attention = GraphAttention(inputs, heads, head, radial, lmax)
        self.feed_forward = FeedForward(inputs, outputs, outputs[0])
        self.shortcut = (
            None
            if list(inputs) == list(outputs)
            else SteerableLinear(inputs, outputs, unit_weights=False)
        )

    def forward(
        self, x: Features, i: Tensor, j: Tensor, weights: list[Tensor], frames: PairFrames
    ) -> Features:
        x = add(x, self.attention(self.norm_attention(x), i, j, weights, frames))
        fed = self.feed_forward(self.norm_feed(x))
        x = [part.to(fed[0].dtype) for part in x]  # the first ones are in double precision
        return add(x if self.shortcut is None else self.shortcut(x), fed)


class BlockExpansion(nn.Module):
    """Features -> blocks by Eq. 14, with weights and biases that depend on the elements."""

    def __init__(self, coupling: BlockCoupling, channels: int, embedding: int, hidden: int):
        super().__init__()
        self.coupling, self.channels = coupling, channels
        self.weights = _mlp(embedding, hidden, coupling.n_paths * channels)
        self.biases = _mlp(embedding, hidden, coupling.groups[0].count)
        # e3nn's 3j symbols are smaller than the orthonormal coupling by this factor.
        norms = [1 / math.sqrt(2 * g.degree + 1) for g in coupling.groups for _ in range(g.count)]
        scale = torch.tensor(norms, dtype=torch.float64) / channels
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Features, embedding: Tensor, kind: Tensor) -> Tensor:
        """Blocks (n, T, T).

        Args:
            x: features with ``channels`` channels for each degree.
            embedding: (kinds, …) of each element, or of each pair of elements.
            kind: (n,) which of them each block is.
        """
        weights = self.weights(embedding).view(len(embedding), self.channels, -1)
        weights = weights * self.scale.to(weights)
        biases = self.biases(embedding) / self.channels
        return self.coupling.expand(x, weights, biases, kind)
