"""Layers of PhiSNet (Unke et al., "SE(3)-equivariant prediction of molecular wavefunctions and
electronic densities", NeurIPS 2021), as in its published code.

Features are lists of one tensor (n, 2l + 1, channels) per degree l, see :mod:`.products`. Unlike
QHNet's they are never normalized: products of paths are Wigner's 3j symbols themselves, and what
is added to a residual starts at zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .products import ChannelProduct, Features, PairFrames, SphericalProduct, coupling_paths
from .steerable import SteerableLinear, add, sum_onto, take

_BETA = 1.702  # of Swish at first: x sigmoid(1.702 x) is nearly GELU


class Swish(nn.Module):
    """alpha x sigmoid(beta x) of the scalars, both learned for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.full((channels,), _BETA))

    def forward(self, x: Features) -> Features:
        return [self.alpha * x[0] * torch.sigmoid(self.beta * x[0]), *x[1:]]


class SelfMixing(nn.Module):
    """Features plus their products with each other: those of two degrees l1 < l2."""

    def __init__(self, lmax: int, channels: int):
        super().__init__()
        paths = [p for p in coupling_paths(lmax, lmax, lmax, natural=False) if p[0] < p[1]]
        ends = [l3 for *_, l3 in paths]
        limits = [math.sqrt(3 / (1 + ends.count(l))) for l in range(lmax + 1)]
        self.keep = nn.ParameterList(_uniform(limit, channels) for limit in limits)
        self.mix = nn.Parameter(torch.stack([_uniform(limits[l3], channels) for l3 in ends]))
        self.product = ChannelProduct(paths, [1.0] * len(paths))

    def forward(self, x: Features) -> Features:
        kept = [part * keep for part, keep in zip(x, self.keep, strict=True)]
        return add(kept, self.product(x, x, self.mix))


def _uniform(limit: float, channels: int) -> Tensor:
    return torch.empty(channels).uniform_(-limit, limit)


class MixingLinear(nn.Module):
    """Self-mixing, then a linear map for each degree ("spherical linear layer")."""

    def __init__(self, lmax: int, channels: int, zero: bool = False):
        super().__init__()
        self.mixing = SelfMixing(lmax, channels)
        widths = [channels] * (lmax + 1)
        self.linear = SteerableLinear(widths, widths, unit_weights=False)
        for weight in self.linear.weights:
            nn.init.zeros_(weight) if zero else nn.init.orthogonal_(weight)

    def forward(self, x: Features) -> Features:
        return self.linear(self.mixing(x))


class Residual(nn.Module):
    """Pre-activated residual block, which changes nothing at first."""

    def __init__(self, lmax: int, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            Swish(channels), MixingLinear(lmax, channels),
            Swish(channels), MixingLinear(lmax, channels, zero=True),
        )  # fmt: skip

    def forward(self, x: Features) -> Features:
        return add(x, self.layers(x))


def residuals(blocks: int, lmax: int, channels: int) -> nn.Sequential:
    """Some of them in a row."""
    return nn.Sequential(*(Residual(lmax, channels) for _ in range(blocks)))


class RadialWeights(nn.Module):
    """Linear functions (E, rows, channels) of the radial basis."""

    def __init__(self, radial: int, rows: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, channels, radial))
        for row in self.weight:
            nn.init.orthogonal_(row)

    def forward(self, radial: Tensor) -> Tensor:
        return (radial @ self.weight.flatten(0, 1).T).unflatten(-1, self.weight.shape[:2])


class DirectedMessages(nn.Module):
    """What neighbours add to an atom: their features, mixed with the spherical harmonics of their
    directions by the distance, and their scalars times these harmonics."""

    degrees: Tensor
    scalar_paths: Tensor
    scalar_norms: Tensor

    def __init__(self, lmax: int, channels: int, radial: int):
        super().__init__()
        paths = coupling_paths(lmax, lmax, lmax, natural=False)
        self.product = SphericalProduct(paths, [1.0] * len(paths))
        self.path_weights = RadialWeights(radial, len(paths), channels)
        self.scalar_weights = RadialWeights(radial, lmax + 1, channels)
        # Harmonics of each degree and channel: a linear layer of one input.
        self.harmonics, self.scalar_harmonics = (
            nn.Parameter(torch.stack([_unit(channels) for _ in range(lmax + 1)])) for _ in range(2)
        )
        self.bias, self.scalar_bias = (nn.Parameter(torch.zeros(channels)) for _ in range(2))
        degrees = torch.tensor([l2 for _, l2, _ in self.product.paths])
        self.register_buffer("degrees", degrees, persistent=False)
        # The scalars' way is that of the paths (0, l, l), whose 3j symbols are 1 / sqrt(2l + 1).
        scalar = [self.product.paths.index((0, l, l)) for l in range(lmax + 1)]
        self.register_buffer("scalar_paths", torch.tensor(scalar), persistent=False)
        norms = [math.sqrt(2 * l + 1) for l in range(lmax + 1)]
        double = torch.tensor(norms, dtype=torch.float64)[:, None]
        self.register_buffer("scalar_norms", double, persistent=False)

    def forward(self, x: Features, i: Tensor, j: Tensor, radial: Tensor, frames: PairFrames):
        mixed = self.path_weights(radial) * self._with(self.harmonics, self.bias)[self.degrees]
        scalars = self._with(self.scalar_harmonics, self.scalar_bias)
        scalars = scalars * self.scalar_norms.to(scalars)
        weight = mixed.index_add(1, self.scalar_paths, self.scalar_weights(radial) * scalars)
        messages = self.product(frames.into(take(x, j)), weight)
        return sum_onto(frames.out_of(messages), i, len(x[0]))

    @staticmethod
    def _with(harmonics: Tensor, bias: Tensor) -> Tensor:
        """Factors of the harmonics by degree and channel; that of degree 0 is 1 in itself."""
        return torch.cat([harmonics[:1] + bias, harmonics[1:]])


def _unit(channels: int) -> Tensor:
    """A random vector of unit length: an orthogonal matrix of one column."""
    return nn.functional.normalize(torch.randn(channels), dim=0)


class Interaction(nn.Module):
    """An atom's features and what its neighbours add, through residual blocks on all sides."""

    def __init__(self, lmax: int, channels: int, radial: int, blocks: int):
        super().__init__()

        def branch() -> nn.Sequential:
            return nn.Sequential(
                residuals(blocks, lmax, channels), Swish(channels), MixingLinear(lmax, channels)
            )

        self.own, self.neighbours, self.out = branch(), branch(), branch()
        self.messages = DirectedMessages(lmax, channels, radial)

    def forward(
        self, x: Features, i: Tensor, j: Tensor, radial: Tensor, frames: PairFrames
    ) -> Features:
        summed = self.messages(self.neighbours(x), i, j, radial, frames)
        return add(x, self.out(add(self.own(x), summed)))


class ModularBlock(nn.Module):
    """Refines the features of atoms; the second output is what the block says of the result."""

    def __init__(self, lmax: int, channels: int, radial: int, blocks: int):
        super().__init__()
        self.before, self.after, self.out = (residuals(blocks, lmax, channels) for _ in range(3))
        self.interaction = Interaction(lmax, channels, radial, blocks)

    def forward(
        self, x: Features, i: Tensor, j: Tensor, radial: Tensor, frames: PairFrames
    ) -> tuple[Features, Features]:
        x = self.after(self.interaction(self.before(x), i, j, radial, frames))
        return x, self.out(x)


class WeightedNeighbours(nn.Module):
    """Features of neighbours, weighted by the distance, of each pair."""

    def __init__(self, lmax: int, channels: int, radial: int):
        super().__init__()
        self.weights = RadialWeights(radial, lmax + 1, channels)

    def forward(self, x: Features, j: Tensor, radial: Tensor) -> Features:
        """Of each pair (i, j) that of j; whoever asks sums them onto i."""
        weights = self.weights(radial)
        return [part * weights[:, l, None] for l, part in enumerate(take(x, j))]


class PairMixing(nn.Module):
    """Features of pairs: the products of both atoms' features, weighted by the distance."""

    def __init__(self, lmax: int, channels: int, radial: int):
        super().__init__()
        paths = coupling_paths(lmax, lmax, lmax, natural=False)
        self.product = ChannelProduct(paths, [1.0] * len(paths))
        self.weights = RadialWeights(radial, len(paths), channels)

    def forward(self, x: Features, i: Tensor, j: Tensor, radial: Tensor) -> Features:
        return self.product(take(x, i), take(x, j), self.weights(radial))
