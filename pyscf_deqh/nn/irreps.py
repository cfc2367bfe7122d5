"""Equivariant features: layout, per-degree linear maps, normalization, and the coupling of blocks.

A feature tensor has shape (n, (lmax + 1)^2, C), components in the order of e3nn's spherical
harmonics. The last ``pseudo`` of its C channels have unnatural parity: under inversion a component
of degree l gains (-1)^(l+1), the others gain (-1)^l. Natural and pseudo channels never mix in a
linear map, which makes every network built from these parts equivariant to reflections as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..graph.layout import OrbitalTemplate
from .angular import wigner_3j


@dataclass(frozen=True)
class Channels:
    """Number of channels of natural and of unnatural parity."""

    natural: int
    pseudo: int

    @property
    def total(self) -> int:
        return self.natural + self.pseudo


def random_weight(fan_in: int, *shape: int) -> nn.Parameter:
    """Normal weights with variance 1 / fan_in."""
    return nn.Parameter(torch.randn(*shape) / math.sqrt(max(fan_in, 1)))


class DegreeLinear(nn.Module):
    """One linear map per degree l and parity, the same for all components m; bias on l = 0."""

    def __init__(self, lmax: int, inputs: Channels, outputs: Channels):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.register_buffer(
            "degree",
            torch.tensor([l for l in range(lmax + 1) for _ in range(2 * l + 1)]),
            persistent=False,
        )
        self.natural = random_weight(inputs.natural, lmax + 1, inputs.natural, outputs.natural)
        self.pseudo = random_weight(inputs.pseudo, lmax + 1, inputs.pseudo, outputs.pseudo)
        self.bias = nn.Parameter(torch.zeros(outputs.natural))

    def forward(self, x: Tensor) -> Tensor:
        """(n, (lmax + 1)^2, inputs.total) -> (n, (lmax + 1)^2, outputs.total)."""
        parities = x.transpose(0, 1).split([self.inputs.natural, self.inputs.pseudo], dim=-1)
        bias = nn.functional.pad(self.bias[None, None], (0, 0, 0, 0, 0, len(self.degree) - 1))
        natural_weight = self.natural.index_select(0, self.degree)
        pseudo_weight = self.pseudo.index_select(0, self.degree)
        natural = torch.baddbmm(bias, parities[0], natural_weight)
        pseudo = torch.bmm(parities[1], pseudo_weight)
        return torch.cat([natural, pseudo], dim=-1).transpose(0, 1)


def rms_normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide each row's features by their root mean square over all components and channels."""
    square = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).square()
    return x * torch.rsqrt(square / x.shape[1:].numel() + eps)


def add_scalars(x: Tensor, scalars: Tensor) -> Tensor:
    """Add scalars (n, natural channels) to the natural l = 0 components of features."""
    return x + nn.functional.pad(
        scalars[:, None], (0, x.shape[-1] - scalars.shape[-1], 0, x.shape[1] - 1)
    )


class NodeNonlinearity(nn.Module):
    """Linear, gate, linear: everything, scalars too, is multiplied by gates made from the
    scalars."""

    def __init__(self, lmax: int, channels: Channels):
        super().__init__()
        self.lmax, self.channels = lmax, channels
        self.linear_in = DegreeLinear(lmax, channels, channels)
        self.gates = nn.Linear(channels.natural, (lmax + 1) * channels.total)
        self.linear_out = DegreeLinear(lmax, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear_in(rms_normalize(x))
        gates = torch.sigmoid(self.gates(y[:, 0, : self.channels.natural]))
        gates = gates.view(-1, self.lmax + 1, self.channels.total)
        return self.linear_out(y * gates.index_select(1, self.linear_in.degree))


@dataclass(frozen=True)
class _Group:
    """Coupled components of one degree and parity: ``count`` paths of 2l + 1 components each."""

    degree: int
    pseudo: bool
    count: int
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.count * (2 * self.degree + 1)


class _Permuted(torch.autograd.Function):
    """Rows of dimension 1 in another order: the gradient is a selection too, and no sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Permuted.apply(gradient, inverse, order), None, None


class BlockCoupling(nn.Module):
    """Orthogonal change of basis between template blocks (T, T) and irreducible components.

    The product of shells l1 and l2 couples to degrees L = |l1 - l2| … l1 + l2 with Clebsch-Gordan
    coefficients (Eq. 14 is the way back). Components are grouped by (L, parity), m outermost. Only
    what belongs to the same two shells is multiplied: between two selections there is one small
    product for each (l1, l2).

    Args:
        template: of the orbitals of all elements.
        lmax: largest degree.
        counts: shells of each angular momentum that blocks have; the template's by default.

    Attributes:
        path: (T T,) which path, a pair of shells and a degree, each component belongs to.
        has_first, has_second: (elements, paths) whether an element has the path's shells.

    Raises:
        ConfigError: ``lmax`` is below twice the largest angular momentum of the basis set.
    """

    path: Tensor
    has_first: Tensor
    has_second: Tensor

    def __init__(self, template: OrbitalTemplate, lmax: int, counts: Sequence[int] = ()):
        super().__init__()
        self._template, self._lmax, self._counts = template, lmax, counts or template.counts
        shells = [l for l, count in enumerate(self._counts) for _ in range(count)]
        size = sum(2 * l + 1 for l in shells)
        if lmax < 2 * max(shells):
            raise ConfigError(
                f"lmax = {lmax} cannot represent blocks of shells up to l = {max(shells)}; "
                f"use lmax >= {2 * max(shells)}"
            )
        starts = self._starts = [sum(2 * k + 1 for k in shells[:i]) for i in range(len(shells))]
        # Paths of each degree and parity: the two shells.
        paths: dict[tuple[int, bool], list[tuple[int, int]]] = {}
        for a, l1 in enumerate(shells):
            for b, l2 in enumerate(shells):
                for degree in range(abs(l1 - l2), l1 + l2 + 1):
                    paths.setdefault((degree, bool((l1 + l2 + degree) % 2)), []).append((a, b))
        self.size = size
        self._paths = dict(sorted(paths.items()))
        self.groups: list[_Group] = []
        place: dict[tuple[int, int, int], tuple[int, int]] = {}  # of m = -L, and the step of m
        at = 0
        for (degree, pseudo), members in self._paths.items():
            self.groups.append(_Group(degree, pseudo, len(members), at))
            for k, (a, b) in enumerate(members):
                place[a, b, degree] = at + k, len(members)
            at = self.groups[-1].stop
        # By (l1, l2): where their products stand in a block, where their components do.
        self._types: list[tuple[int, int]] = []  # pairs of shells, size of a product
        elements: list[int] = []
        components: list[int] = []
        for l1 in sorted(set(shells)):
            for l2 in sorted(set(shells)):
                pairs = [(a, b) for a, k in enumerate(shells) if k == l1
                         for b, l in enumerate(shells) if l == l2]  # fmt: skip
                degrees = range(abs(l1 - l2), l1 + l2 + 1)
                columns = [
                    wigner_3j(l1, l2, d).flatten(0, 1) * math.sqrt(2 * d + 1) for d in degrees
                ]
                # In float64 whatever the network's precision; it is cast where it is used.
                name = f"matrix_{len(self._types)}"
                self.register_buffer(name, torch.cat(columns, 1), persistent=False)
                self._types.append((len(pairs), (2 * l1 + 1) * (2 * l2 + 1)))
                for a, b in pairs:
                    elements += [(starts[a] + i) * size + starts[b] + j
                                 for i in range(2 * l1 + 1) for j in range(2 * l2 + 1)]  # fmt: skip
                    for degree in degrees:
                        first, step = place[a, b, degree]
                        components += [first + m * step for m in range(2 * degree + 1)]
        for name, order in (("elements", elements), ("components", components)):
            there = torch.tensor(order)
            self.register_buffer(name, there, persistent=False)
            self.register_buffer(f"{name}_inverse", torch.argsort(there), persistent=False)
        path_of = torch.cat(
            [
                torch.arange(g.count).repeat(2 * g.degree + 1) + offset
                for g, offset in zip(self.groups, self._path_offsets(), strict=True)
            ]
        )
        self.register_buffer("path", path_of, persistent=False)
        # Of each element, whether its blocks have a path's two shells.
        has = torch.tensor(
            [
                [k < ls.count(l) for l, count in enumerate(self._counts) for k in range(count)]
                for ls in (template.shells[number] for number in template.numbers)
            ]
        )
        first, second = torch.tensor([p for members in self._paths.values() for p in members]).T
        self.register_buffer("has_first", has[:, first], persistent=False)
        self.register_buffer("has_second", has[:, second], persistent=False)

    def _path_offsets(self) -> list[int]:
        return [sum(g.count for g in self.groups[:i]) for i in range(len(self.groups))]

    @property
    def n_paths(self) -> int:
        return sum(g.count for g in self.groups)

    @property
    def is_scalar(self) -> Tensor:
        """(T T,), True for components of degree 0."""
        scalar = torch.zeros(len(self.path), dtype=torch.bool)
        scalar[: self.groups[0].stop] = True  # groups are sorted, degree 0 comes first
        return scalar

    def excerpt(self, counts: tuple[int, ...]) -> Excerpt:
        """What is left of it for atoms that have so many shells of each angular momentum."""
        if counts == tuple(self._counts):
            everything = slice(None)
            groups = [(group, everything) for group in self.groups]
            return Excerpt(self, everything, everything, everything, groups)
        small = BlockCoupling(self._template, self._lmax, counts).to(self.path.device)
        # Shells of one angular momentum are the first ones of the template's.
        shells = [sum(self._counts[:l]) + k for l, n in enumerate(counts) for k in range(n)]
        degrees = [l for l, n in enumerate(counts) for _ in range(n)]
        slots = np.concatenate([
            np.arange(2 * l + 1) + self._starts[shell]
            for l, shell in zip(degrees, shells, strict=True)
        ])  # fmt: skip
        groups: list[tuple[_Group, Tensor | slice] | None] = []
        components, paths = [], []
        their = dict(zip(small._paths, small.groups, strict=True))
        for group, offset, (kind, members) in zip(
            self.groups, self._path_offsets(), self._paths.items(), strict=True
        ):
            if kind not in their:
                groups.append(None)
                continue
            place = {pair: at for at, pair in enumerate(members)}
            kept = np.array([place[shells[a], shells[b]] for a, b in small._paths[kind]])
            rows = group.start + group.count * np.arange(2 * group.degree + 1)
            components.append((rows[:, None] + kept).ravel())
            paths.append(offset + kept)
            groups.append((their[kind], self._index(kept)))
        return Excerpt(
            small, self._index(slots), self._index(np.concatenate(components)),
            self._index(np.concatenate(paths)), groups,
        )  # fmt: skip

    def _index(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(positions).to(self.path.device)

    def couple(self, blocks: Tensor) -> Tensor:
        """(n, T T, K) -> (n, T T coupled components, K)."""
        n, area, k = blocks.shape
        # Each matrix a row of its own.
        rows = blocks.transpose(1, 2).reshape(n * k, area)
        coupled = self._multiplied(
            _Permuted.apply(rows, self.elements, self.elements_inverse), transposed=False
        )
        found = coupled.view(n, k, area).transpose(1, 2)
        return _Permuted.apply(found, self.components_inverse, self.components)

    def uncouple(self, components: Tensor) -> Tensor:
        """(n, T T coupled components) -> (n, T, T)."""
        products = self._multiplied(
            _Permuted.apply(components, self.components, self.components_inverse), transposed=True
        )
        blocks = _Permuted.apply(products, self.elements_inverse, self.elements)
        return blocks.view(-1, self.size, self.size)

    def _multiplied(self, rows: Tensor, transposed: bool) -> Tensor:
        """Rows (n, T T), sorted by (l1, l2), times the coefficients, or back."""
        parts = rows.split([pairs * width for pairs, width in self._types], dim=1)
        products = []
        for t, ((pairs, width), part) in enumerate(zip(self._types, parts, strict=True)):
            matrix = getattr(self, f"matrix_{t}").to(rows)
            product = part.reshape(len(part) * pairs, width) @ (matrix.T if transposed else matrix)
            products.append(product.view_as(part))
        return torch.cat(products, dim=1)

    def expand(self, x: Sequence[Tensor], weights: Tensor, biases: Tensor, kind: Tensor) -> Tensor:
        """Features of any parity -> blocks (n, T, T) by Eq. 14, with coefficients by kind.

        Args:
            x: of each degree, (n, 2l + 1, C).
            weights: (kinds, C, paths), in the order of the groups.
            biases: (kinds, paths of degree 0).
            kind: (n,) of each block.
        """
        bias = biases[kind][:, None]
        parts = []
        tables = weights.split([group.count for group in self.groups], dim=-1)
        for group, table in zip(self.groups, tables, strict=True):
            part = x[group.degree] @ table[kind]
            parts.append((part if group.degree else part + bias).flatten(1))
        return self.uncouple(torch.cat(parts, dim=-1))


@dataclass(frozen=True)
class Excerpt:
    """A coupling for atoms that have fewer shells than the template, and where it lies in the whole
    one, whose weights, shifts and scales it shares.

    Attributes:
        coupling: of the smaller blocks.
        slots: their functions among the template's.
        components, paths: those of ``coupling`` among all.
        groups: for each group of the whole one ``coupling``'s, and its paths among the group's;
            None where it has none.
    """

    coupling: BlockCoupling
    slots: Tensor | slice
    components: Tensor | slice
    paths: Tensor | slice
    groups: Sequence[tuple[_Group, Tensor | slice] | None]


def _pairs(
    excerpt: Excerpt, weights: Iterable[Tensor]
) -> Iterator[tuple[tuple[_Group, Tensor | slice], Tensor]]:
    """The excerpt's groups with the whole groups' weights."""
    pairs = zip(excerpt.groups, weights, strict=True)
    return ((group, weight) for group, weight in pairs if group is not None)


class BlockEmbedding(nn.Module):
    """Coupled components of K matrices -> features: one linear map per degree and parity."""

    def __init__(self, coupling: BlockCoupling, lmax: int, n_matrices: int, channels: Channels):
        super().__init__()
        self.n_matrices, self.lmax, self.channels = n_matrices, lmax, channels
        self.weights = nn.ParameterList(
            random_weight(
                n_matrices * g.count,
                n_matrices * g.count,
                channels.pseudo if g.pseudo else channels.natural,
            )
            for g in coupling.groups
        )

    def forward(self, components: Tensor, excerpt: Excerpt) -> Tensor:
        """(n, T T, K) of the excerpt -> (n, (lmax + 1)^2, channels.total)."""
        n, k = len(components), self.n_matrices
        # Concatenated, not written into one tensor: the gradient of each slice would be that large.
        parities = []
        present = [
            (group, weight.unflatten(0, (-1, k))[paths].flatten(0, 1))
            for (group, paths), weight in _pairs(excerpt, self.weights)
        ]
        for pseudo, width in ((False, self.channels.natural), (True, self.channels.pseudo)):
            found = {
                group.degree: components[:, group.start : group.stop].reshape(
                    n, 2 * group.degree + 1, group.count * k
                )
                @ weight
                for group, weight in present
                if group.pseudo == pseudo
            }
            rows = [
                found[l] if l in found else components.new_zeros(n, 2 * l + 1, width)
                for l in range(self.lmax + 1)
            ]
            parities.append(torch.cat(rows, dim=1))
        return torch.cat(parities, dim=-1)


class BlockReadout(nn.Module):
    """Features -> coupled components: the way back of :class:`BlockEmbedding`.

    Starts small, so that an untrained network predicts almost no change and its fixed-point
    iteration contracts.
    """

    def __init__(self, coupling: BlockCoupling, lmax: int, channels: Channels):
        super().__init__()
        self.sizes = [2 * l + 1 for l in range(lmax + 1)]
        self.weights = nn.ParameterList(
            random_weight(
                100 * (c := channels.pseudo if g.pseudo else channels.natural),
                c,
                g.count,
            )
            for g in coupling.groups
        )

    def forward(self, natural: Tensor, pseudo: Tensor, excerpt: Excerpt) -> Tensor:
        """(n, (lmax + 1)^2, channels) of both parities -> (n, T T) of the excerpt."""
        degrees = [natural.split(self.sizes, dim=1), pseudo.split(self.sizes, dim=1)]
        parts = [
            (degrees[group.pseudo][group.degree] @ weight[:, paths]).flatten(1)
            for (group, paths), weight in _pairs(excerpt, self.weights)
        ]
        return torch.cat(parts, dim=1)
