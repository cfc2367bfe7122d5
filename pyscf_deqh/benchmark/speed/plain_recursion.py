"""QHNet's recursion as it is written in the paper, to compare the solver with.

The same weights, with full tensor products of e3nn instead of :mod:`pyscf_deqh.nn.products`: they
multiply with the spherical harmonics of each pair in the molecule's frame, component by component.
And nothing is kept between iterations: each computes the injection and the pair blocks anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from e3nn import o3
from torch import Tensor, nn

from ...graph.batch import GraphBatch
from ...nn import onsite, qhnet
from ...nn.products import ChannelProduct, Features, Path, SphericalProduct, path_weight
from ...nn.qhnet_layers import GraphAttention


class _Directed(list):
    """Features of pairs together with the spherical harmonics of their directions."""

    harmonics: Tensor


class _MoleculeFrame:
    """Takes the place of :class:`~pyscf_deqh.nn.products.PairFrames`; rotates nothing."""

    def __init__(self, edge_vector: Tensor, lmax: int):
        # e3nn's vectors are (y, z, x) of the physical ones.
        self._harmonics = o3.spherical_harmonics(
            list(range(lmax + 1)), edge_vector[:, [1, 2, 0]], True, "component"
        )

    def into(self, x: Features) -> Features:
        directed = _Directed(x)
        directed.harmonics = self._harmonics
        return directed

    def out_of(self, x: Features) -> Features:
        return x


def _flat(x: Features) -> Tensor:
    """(n, 2l + 1, C) of each degree -> e3nn's layout (n, sum of C (2l + 1))."""
    return torch.cat([part.transpose(1, 2).flatten(1) for part in x], dim=-1)


def _unflat(x: Tensor, irreps: list[tuple[int, int]]) -> Features:
    """The way back: one tensor for each (channels, degree)."""
    parts = x.split([c * (2 * l + 1) for c, l in irreps], dim=-1)
    return [
        part.unflatten(-1, (c, 2 * l + 1)).transpose(1, 2)
        for part, (c, l) in zip(parts, irreps, strict=True)
    ]


def _irreps(parts: list[tuple[int, int]], natural: bool = True) -> o3.Irreps:
    return o3.Irreps([(c, (l, (-1) ** l if natural else 1)) for c, l in parts])


def _tensor_product(
    first: o3.Irreps, second: o3.Irreps, out: o3.Irreps, instructions: list[tuple]
) -> o3.TensorProduct:
    return o3.TensorProduct(
        first, second, out, instructions, shared_weights=False, internal_weights=False
    )


class _FullSphericalProduct(nn.Module):
    """:class:`SphericalProduct`, summed over the paths of each degree."""

    def __init__(self, fast: SphericalProduct, channels: int, lmax: int):
        super().__init__()
        self.paths = fast.paths
        degrees_in = max(l1 for l1, _, _ in fast.paths)
        self._out = [(channels, l) for l in range(fast.degrees_out + 1)]
        self.product = _tensor_product(
            _irreps([(channels, l) for l in range(degrees_in + 1)]),
            _irreps([(1, l) for l in range(lmax + 1)]),
            _irreps(self._out),
            _weighted(self.paths, "uvu"),
        )

    def forward(self, x: _Directed, weight: Tensor) -> Features:
        return _unflat(self.product(_flat(x), x.harmonics, weight.flatten(1)), self._out)


class _FullChannelProduct(nn.Module):
    """:class:`ChannelProduct`."""

    def __init__(self, fast: ChannelProduct, channels: int):
        super().__init__()
        self.paths = fast.paths
        self._parts = [(channels, l) for l in range(fast.degrees_out + 1)]
        irreps = _irreps(self._parts, natural=False)
        self.product = _tensor_product(irreps, irreps, irreps, _weighted(fast.paths, "uuu"))

    def forward(self, x: Features, y: Features, weight: Tensor) -> Features:
        weight = weight.flatten(-2).expand(len(x[0]), -1)
        return _unflat(self.product(_flat(x), _flat(y), weight), self._parts)


def _weighted(paths: list[Path], mode: str) -> list[tuple]:
    return [(*path, mode, True, path_weight(path[2], len(paths))) for path in paths]


class _FullAttention(GraphAttention):
    """:class:`GraphAttention`, which mixes the outputs of its paths, with a full product."""

    inputs: list[tuple[int, int]]  # channels and degree, as in ends
    ends: list[tuple[int, int]]
    mixers: nn.ParameterList
    full_product: nn.Module

    @classmethod
    def adopt(cls, attention: Any, lmax: int) -> None:
        """Change an attention into this class; its weights stay."""
        attention.__class__ = cls
        paths, channels = attention.product.paths, attention.channels
        attention.inputs = [(c, l) for l, c in enumerate(channels)]
        attention.ends = [(channels[l1], l3) for l1, _, l3 in paths]
        attention.full_product = _tensor_product(
            _irreps(attention.inputs),
            _irreps([(1, l) for l in range(lmax + 1)]),
            _irreps(attention.ends),
            [(l1, l2, p, "uvu", True) for p, (l1, l2, _) in enumerate(paths)],
        )

    def _mix(self, x: Any, weights: list[Tensor]) -> Features:
        # Degrees that a list does not reach are zero.
        n = len(x[0])
        parts = [x[l] if l < len(x) else x[0].new_zeros(n, 2 * l + 1, c) for c, l in self.inputs]
        product = self.full_product(_flat(parts), x.harmonics, torch.cat(weights, dim=-1))
        mixed = []
        for degree, mixer in enumerate(self.mixers):
            outputs = zip(_unflat(product, self.ends), self.ends, strict=True)
            mixed.append(torch.cat([o for o, (_, l3) in outputs if l3 == degree], dim=-1) @ mixer)
        return [mixed[0] + self.mixer_bias, *mixed[1:]]


def with_full_products(network: qhnet.QHNet) -> qhnet.QHNet:
    """A copy with the same weights; it works inside :func:`molecule_frame` alone."""
    network = copy.deepcopy(network)
    lmax, channels = network.config.lmax, network.config.channels
    for module in list(network.modules()):
        product: Any = getattr(module, "product", None)
        if isinstance(module, GraphAttention):
            _FullAttention.adopt(module, lmax)
        elif isinstance(product, SphericalProduct):
            module.product = _FullSphericalProduct(product, channels, lmax)
        elif isinstance(product, ChannelProduct):
            module.product = _FullChannelProduct(product, channels)
    return network


@contextmanager
def molecule_frame() -> Iterator[None]:
    """Pairs keep the molecule's frame, and carry their spherical harmonics."""
    with patch.object(onsite, "PairFrames", _MoleculeFrame):
        yield


def plain_recursion(
    network: qhnet.QHNet, start: Tensor, batch: GraphBatch, applications: int
) -> Tensor:
    """H (B, n, n) after so many applications of f to ``start``, each computed from nothing."""
    hamiltonian = start
    for _ in range(applications):
        injected = network.injection(batch)
        hamiltonian = network.hamiltonian(network.state(hamiltonian, injected), injected)
    return hamiltonian
