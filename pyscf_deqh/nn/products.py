"""Tensor products of steerable features, channel by channel.

Features here are lists: one tensor (n, 2l + 1, channels) for each degree l, components in e3nn's
order. Paths l1 x l2 -> l3 are normalized as in ``e3nn.o3.TensorProduct`` ("component"); where QHNet
sums them, with the path weights of its published code: without these its features, which multiply
each other without a norm between, grow beyond all bounds.
"""

from __future__ import annotations

import math
from functools import cached_property

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


def _path_norms(paths: list[Path], summed: bool = True) -> list[float]:
    """sqrt(2 l3 + 1); where paths are summed, over the root of their number and path-weighted."""
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


class SphericalProduct(nn.Module):
    """Features times the spherical harmonics of their pair's direction ("uvu" with one harmonic).

    Evaluated in the pair's frame, where only the m = 0 harmonics are not zero: a path multiplies
    the components |m| <= min(l1, l3) by numbers. The same result as the full tensor product
    (Passaro & Zitnick, ICML 2023) for a fraction of its work.

    Args:
        degrees_in, degrees_out: largest degree of the features and of the result.
        lmax: of the spherical harmonics.
        summed: normalize for the sum over the paths of each degree, instead of path by path.
    """

    def __init__(self, degrees_in: int, lmax: int, degrees_out: int, summed: bool):
        super().__init__()
        self.degrees_out = degrees_out
        self.paths = coupling_paths(degrees_in, lmax, degrees_out, natural=True)
        norms = _path_norms(self.paths, summed)
        # Paths that differ in l2 alone are neighbours: their factors are the columns of one matrix.
        self.groups: dict[tuple[int, int], slice] = {}
        for l3 in range(degrees_out + 1):
            for l1 in range(degrees_in + 1):
                members = [p for p, path in enumerate(self.paths) if path[::2] == (l1, l3)]
                if members:
                    self.groups[l1, l3] = slice(members[0], members[-1] + 1)
                    columns = [self._factors(self.paths[p], norms[p]) for p in members]
                    self.register_buffer(
                        f"factors_{l1}_{l3}", torch.stack(columns, dim=-1), persistent=False
                    )

    @staticmethod
    def _factors(path: Path, norm: float) -> Tensor:
        """What a path multiplies each component -min(l1, l3) … min(l1, l3) by."""
        l1, l2, l3 = path
        inner = min(l1, l3)
        m = torch.arange(-inner, inner + 1)
        tensor = wigner_3j(l1, l2, l3)[:, l2] * norm
        # Component-normalized harmonics of the polar axis are sqrt(2 l2 + 1) for m = 0.
        return tensor[l1 + m, l3 + m] * math.sqrt(2 * l2 + 1)

    @staticmethod
    def _inner(l1: int, l3: int, x: Features) -> Tensor:
        """The components of x that a group multiplies: there are no others of its outputs."""
        inner = min(l1, l3)
        return x[l1][:, l1 - inner : l1 + inner + 1]

    def outputs(self, group: tuple[int, int], x: Features, weight: Tensor) -> Tensor:
        """Outputs of a group's paths side by side, for ``weight`` (E, paths C).

        Returns:
            (E, 2 min(l1, l3) + 1, paths C), the components that are not zero.
        """
        factors = getattr(self, "factors_{}_{}".format(*group)).to(weight)
        paths = factors.shape[1]
        weight = weight.unflatten(-1, (paths, weight.shape[-1] // paths))
        kernel = factors[:, :, None] * weight[:, None]
        return (self._inner(*group, x)[:, :, None] * kernel).flatten(2)

    def forward(self, x: Features, weight: Tensor) -> Features:
        """Sums over the paths of each degree, in the pairs' frames; ``weight`` (E, paths, C)."""
        sums: list[list[Tensor]] = [[] for _ in range(self.degrees_out + 1)]
        for (l1, l3), members in self.groups.items():
            kernel = getattr(self, f"factors_{l1}_{l3}").to(weight) @ weight[:, members]
            sums[l3].append(pad_rows(self._inner(l1, l3, x) * kernel, l3))
        return [sum(parts[1:], parts[0]) for parts in sums]


class ChannelProduct(nn.Module):
    """Product of two features, channel by channel ("uuu"), over the paths of both parities."""

    def __init__(self, lmax: int):
        super().__init__()
        self.lmax = lmax
        self.paths = coupling_paths(lmax, lmax, lmax, natural=False)
        self.position = {path: p for p, path in enumerate(self.paths)}
        norm = dict(zip(self.paths, _path_norms(self.paths), strict=True))
        # One matrix for each (l1, l2): the outer product becomes the components of all l3 at once.
        self.pairs: list[tuple[int, int, list[int]]] = []
        for l1 in range(lmax + 1):
            for l2 in range(lmax + 1):
                ends = [p[2] for p in self.paths if p[:2] == (l1, l2)]
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
        return [sums[l3] for l3 in range(self.lmax + 1)]


def inner_products(x: Features, y: Features) -> Tensor:
    """Mean over the components of x * y for every channel of the degrees l > 0 (Eq. 11)."""
    return torch.cat([(a * b).mean(1) for a, b in zip(x[1:], y[1:], strict=True)], dim=-1)
