"""What networks of steerable features have in common: sums, linear maps, a layer norm.

Features are lists of one tensor (n, 2l + 1, channels) per degree l, see :mod:`.products`; degrees
that a list does not reach are zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from .irreps import random_weight
from .products import Features


def add(*features: Features) -> Features:
    """Sum of feature lists of any length."""
    present = ([part for part in parts if part is not None] for parts in zip_longest(*features))
    return [sum(parts[1:], parts[0]) for parts in present]


def take(x: Features, index: Tensor) -> Features:
    return [part.index_select(0, index) for part in x]


def sum_onto(x: Features, index: Tensor, n: int) -> Features:
    """Sum rows (E, …) onto n atoms."""
    return [part.new_zeros(n, *part.shape[1:]).index_add(0, index, part) for part in x]


class SteerableLinear(nn.Module):
    """One linear map per degree, the same for all m.

    Args:
        inputs, outputs: channels of each degree.
        bias: on the scalars.
        unit_weights: weights of unit variance, scaled in forward (e3nn's ``Linear``), instead of
            weights of variance 1 / fan-in (Equiformer's ``LinearRS``).
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        bias: bool = True,
        unit_weights: bool = True,
    ):
        super().__init__()
        shapes = list(zip(inputs, outputs, strict=False))
        self.weights = nn.ParameterList(
            random_weight(1 if unit_weights else i, i, o) for i, o in shapes
        )
        self.scales = [1 / math.sqrt(i) if unit_weights else 1.0 for i, _ in shapes]
        self.bias = nn.Parameter(torch.zeros(outputs[0])) if bias else None

    def forward(self, x: Features) -> Features:
        parts = zip(x, self.weights, self.scales, strict=False)
        out = [part @ (weight if scale == 1.0 else weight * scale) for part, weight, scale in parts]
        return out if self.bias is None else [out[0] + self.bias, *out[1:]]


class SteerableLayerNorm(nn.Module):
    """Equiformer's layer norm: each degree divided by its root mean square over m and channels,
    scalars centred before, in their own precision; learned factors, and shifts of the scalars."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.factors = nn.ParameterList(nn.Parameter(torch.ones(c)) for c in channels)
        self.shift = nn.Parameter(torch.zeros(channels[0]))

    def forward(self, x: Features) -> Features:
        centred = x[0] - x[0].mean(-1, keepdim=True)
        x = [centred.to(self.shift.dtype), *x[1:]]
        out = [
            part * torch.rsqrt(part.square().mean((1, 2), keepdim=True) + 1e-5) * factor
            for part, factor in zip(x, self.factors, strict=False)
        ]
        return [out[0] + self.shift, *out[1:]]
