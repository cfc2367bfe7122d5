"""Tensor products of steerable features, channel by channel.

Features here are lists: one tensor (n, 2l + 1, channels) for each degree l, components in e3nn's
order. Paths l1 x l2 -> l3 are Wigner's 3j symbols, each times a factor of the network's own. QHNet
has e3nn's ("component"); where it sums paths, with the path weights of its published code: without
these its features, which multiply each other without a norm between, grow beyond all bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .angular import wigner_3j
from .wigner import wigner_d

Features = list[Tensor]
Path = tuple[int, int, int]


def coupling_paths(first: int, second: int, third: int, natural: bool) -> list[Path]:
    """All (l1, l2, l3) up to the given degrees that couple, ordered by l3.

    ``natural`` keeps those with l1 + l2 + l3 even, which products of true tensors allow.
    """
    return [
        (l1, l2, l3)
        for l3 in range(third + 1)
        for l1 in range(first + 1)
        for l2 in range(second + 1)
        if abs(l1 - l2) <= l3 <= l1 + l2 and not (natural and (l1 + l2 + l3) % 2)
    ]


def path_weight(degree: int, n_paths: int) -> float:
    """QHNet's weight of a path that ends in ``degree``, of ``n_paths`` paths to all degrees."""
    return math.sqrt((2 * degree + 1) / n_paths)


def path_norms(paths: Sequence[Path], summed: bool = True) -> list[float]:
    """QHNet's factors of paths: sqrt(2 l3 + 1); where paths are summed, over the root of their
    number and path-weighted."""
    ends = [l3 for *_, l3 in paths]
    if not summed:
        return [math.sqrt(2 * l3 + 1) for l3 in ends]
    weights = [path_weight(l3, len(paths)) for l3 in ends]
    return [
        math.sqrt((2 * l3 + 1) / ends.count(l3) * weight)
        for l3, weight in zip(ends, weights, strict=True)
    ]


def pad_rows(x: Tensor, degree: int) -> Tensor:
    """Components (n, …, C) about m = 0 with zeros for the others of a degree (n, 2l + 1, C)."""
    zeros = degree - x.shape[1] // 2
    # PyTorch's own copies even where there are none to add.
    return nn.functional.pad(x, (0, 0, zeros, zeros)) if zeros else x


class PairFrames:
    """Rotations (E, 2l + 1, 2l + 1) into frames whose polar axis points along each pair."""

    def __init__(self, edge_vector: Tensor, lmax: int):
        self._edge_vector, self._lmax = edge_vector, lmax

    @cached_property
    def _rotations(self) -> list[Tensor]:
        return [wigner_d(l, self._edge_vector) for l in range(1, self._lmax + 1)]

    def into(self, x: Features) -> Features:
        return x[:1] + [d.mT @ part for d, part in zip(self._rotations, x[1:], strict=False)]

    def out_of(self, x: Features) -> Features:
        return x[:1] + [d @ part for d, part in zip(self._rotations, x[1:], strict=False)]


class PathGroup(NamedTuple):
    """Paths that differ in the degree l2 of the spherical harmonics alone.

    Attributes:
        l1, l3: degrees of their inputs and outputs.
        odd: whether l1 + l2 + l3 is.
    """

    l1: int
    l3: int
    odd: bool

    @property
    def inner(self) -> int:
        """Largest order m that such a path does not make zero."""
        return min(self.l1, self.l3)


class SphericalProduct(nn.Module):
    """Features times the spherical harmonics of their pair's direction ("uvu" with one harmonic).

    Evaluated in the pair's frame, where only the m = 0 harmonics are not zero: a path multiplies
    the components |m| <= min(l1, l3) by numbers, and exchanges m and -m if l1 + l2 + l3 is odd. The
    same result as the full tensor product (Passaro & Zitnick, ICML 2023) for a fraction of its
    work.

    Args:
        paths: (l1, l2, l3).
        norms: factor of each.

    Attributes:
        paths: the same, in the order of their weights.
    """

    def __init__(self, paths: Sequence[Path], norms: Sequence[float]):
        super().__init__()
        self.degrees_out = max(l3 for *_, l3 in paths)
        members: dict[PathGroup, list[tuple[Path, float]]] = {}
        for path, norm in sorted(zip(paths, norms, strict=True)):
            group = PathGroup(path[0], path[2], bool(sum(path) % 2))
            members.setdefault(group, []).append((path, norm))
        # Those of a group are neighbours: their factors are the columns of one matrix.
        self.paths: list[Path] = []
        self.groups: dict[PathGroup, slice] = {}
        for group in sorted(members, key=lambda group: (group.l3, group.l1, group.odd)):
            begin = len(self.paths)
            self.paths += [path for path, _ in members[group]]
            self.groups[group] = slice(begin, len(self.paths))
            factors = [self._factors(path, norm) for path, norm in members[group]]
            self.register_buffer(self._name(group), torch.stack(factors, -1), persistent=False)

    @staticmethod
    def _name(group: PathGroup) -> str:
        return f"factors_{group.l1}_{group.l3}" + "_odd" * group.odd

    @staticmethod
    def _factors(path: Path, norm: float) -> Tensor:
        """What a path multiplies each component -min(l1, l3) … min(l1, l3) by."""
        l1, l2, l3 = path
        inner = min(l1, l3)
        m = torch.arange(-inner, inner + 1)
        tensor = wigner_3j(l1, l2, l3)[:, l2] * norm
        # Component-normalized harmonics of the polar axis are sqrt(2 l2 + 1) for m = 0.
        return tensor[l1 + m, l3 + (-m if sum(path) % 2 else m)] * math.sqrt(2 * l2 + 1)

    @staticmethod
    def _times(group: PathGroup, x: Features, kernel: Tensor) -> Tensor:
        """Components that a group makes, of those of x that it multiplies by (E, m, …)."""
        inner = x[group.l1][:, group.l1 - group.inner : group.l1 + group.inner + 1]
        product = (inner if kernel.dim() == 3 else inner[:, :, None]) * kernel
        return product.flip(1) if group.odd else product

    def outputs(self, group: PathGroup, x: Features, weight: Tensor) -> Tensor:
        """Outputs of a group's paths side by side, for ``weight`` (E, paths C).

        Returns:
            (E, 2 min(l1, l3) + 1, paths C), the components that are not zero.
        """
        factors = getattr(self, self._name(group)).to(weight)
        paths = factors.shape[1]
        weight = weight.unflatten(-1, (paths, weight.shape[-1] // paths))
        kernel = factors[:, :, None] * weight[:, None]
        return self._times(group, x, kernel).flatten(2)

    def forward(self, x: Features, weight: Tensor) -> Features:
        """Sums over the paths of each degree, in the pairs' frames; ``weight`` (E, paths, C)."""
        sums: list[list[Tensor]] = [[] for _ in range(self.degrees_out + 1)]
        for group, members in self.groups.items():
            kernel = getattr(self, self._name(group)).to(weight) @ weight[:, members]
            sums[group.l3].append(pad_rows(self._times(group, x, kernel), group.l3))
        return [sum(parts[1:], parts[0]) for parts in sums]


class ChannelProduct(nn.Module):
    """Product of two features, channel by channel ("uuu").

    Args:
        paths: (l1, l2, l3); all of them couple.
        norms: factor of each.
    """

    def __init__(self, paths: Sequence[Path], norms: Sequence[float]):
        super().__init__()
        self.paths = list(paths)
        self.degrees_out = max(l3 for *_, l3 in paths)
        self.position = {path: p for p, path in enumerate(paths)}
        norm = dict(zip(paths, norms, strict=True))
        # One matrix for each (l1, l2): the outer product becomes the components of all l3 at once.
        self.pairs: list[tuple[int, int, list[int]]] = []
        for l1, l2 in sorted({path[:2] for path in paths}):
            ends = [path[2] for path in paths if path[:2] == (l1, l2)]
            tensors = [wigner_3j(l1, l2, l3) * norm[l1, l2, l3] for l3 in ends]
            matrix = torch.cat(tensors, dim=-1).flatten(0, 1).T.contiguous()
            self.register_buffer(f"matrix_{l1}_{l2}", matrix, persistent=False)
            self.pairs.append((l1, l2, ends))

    def forward(self, x: Features, y: Features, weight: Tensor) -> Features:
        """``weight`` is (n, paths, C), or (paths, C) where all rows share it."""
        sums: dict[int, Tensor] = {}
        for l1, l2, ends in self.pairs:
            outer = (x[l1][:, :, None] * y[l2][:, None]).flatten(1, 2)
            coupled = getattr(self, f"matrix_{l1}_{l2}").to(outer) @ outer
            parts = coupled.split([2 * l3 + 1 for l3 in ends], dim=1)
            for l3, part in zip(ends, parts, strict=True):
                factor = weight[..., self.position[l1, l2, l3], None, :]
                before = sums.get(l3)
                sums[l3] = part * factor if before is None else before.addcmul(part, factor)
        return [
            sums[l] if l in sums else x[0].new_zeros(len(x[0]), 2 * l + 1, 1)
            for l in range(self.degrees_out + 1)
        ]


def inner_products(x: Features, y: Features) -> Tensor:
    """Mean over the components of x * y for every channel of the degrees l > 0 (Eq. 11)."""
    return torch.cat([(a * b).mean(1) for a, b in zip(x[1:], y[1:], strict=True)], dim=-1)
