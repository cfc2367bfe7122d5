"""Layers of QHNet and DEQHNet against formulas written out."""

import math

import pytest
import torch
from e3nn import o3
from scipy import stats

from pyscf_deqh.nn.irreps import BlockCoupling
from pyscf_deqh.nn.qhnet_layers import BlockExpansion, NormGate, segment_softmax
from pyscf_deqh.nn.radial import BernsteinRadialBasis
from pyscf_deqh.nn.steerable import SteerableLayerNorm, SteerableLinear
from pyscf_deqh.nn.wigner import wigner_d

F64 = torch.float64


def features(*channels, n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 2 * l + 1, c, dtype=F64, generator=g) for l, c in enumerate(channels)]


def rotated(x, direction=(0.3, -0.7, 0.5)):
    vector = torch.tensor([direction], dtype=F64)
    return [wigner_d(l, vector)[0] @ part for l, part in enumerate(x)]


def test_radial_basis_is_a_binomial_distribution():
    """Bernstein polynomials of exp(-alpha r): binomial probabilities, times the cutoff function."""
    n, cutoff = 12, 20.0
    basis = BernsteinRadialBasis(n, cutoff).double()
    r = torch.tensor([0.8, 2.0, 5.0, 15.0], dtype=F64)
    alpha = 0.5
    for row, distance in zip(basis(r), r.tolist(), strict=True):
        probability = stats.binom.pmf(range(n), n - 1, 1 - math.exp(-alpha * distance))
        envelope = math.exp(-(distance**2) / (cutoff**2 - distance**2))
        # alpha and the binomial coefficients are kept in single precision.
        torch.testing.assert_close(
            row, torch.from_numpy(envelope * probability), atol=1e-7, rtol=1e-5
        )
    assert basis(torch.tensor([20.0, 30.0], dtype=F64)).abs().max() < 1e-12


def test_segment_softmax():
    score = torch.randn(7, 2, dtype=F64) * 30
    segment = torch.tensor([0, 0, 2, 2, 2, 3, 0])
    weight = segment_softmax(score, segment, 5)
    for s in (0, 2, 3):
        chosen = segment == s
        torch.testing.assert_close(weight[chosen], torch.softmax(score[chosen], dim=0))


@pytest.mark.parametrize("layer", [NormGate, SteerableLayerNorm])
def test_layers_turn_with_their_input(layer):
    channels = (5, 3, 2)
    torch.manual_seed(0)
    module = layer(channels).double()
    x = features(*channels)
    for a, b in zip(module(rotated(x)), rotated(module(x)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_layer_norm_has_unit_size():
    x = [1e3 * part for part in features(8, 8, 8)]
    for part in SteerableLayerNorm((8, 8, 8)).double()(x):
        size = part.square().mean((1, 2)).sqrt()
        torch.testing.assert_close(size, torch.ones_like(size), atol=1e-6, rtol=0)


def test_linear_without_higher_degrees():
    """A list that ends early stands for zeros: the result is that of zeros, left out."""
    linear = SteerableLinear((4, 4, 4), (3, 3, 3)).double()
    x = features(4, 4, 4)
    padded = linear([*x[:1], torch.zeros_like(x[1]), torch.zeros_like(x[2])])
    short = linear(x[:1])
    assert len(short) == 1
    torch.testing.assert_close(short[0], padded[0])
    assert not padded[1].any()


def test_expansion_is_equation_14(template):
    """Blocks from 3j symbols, shell by shell: sum over channels of w h_l3 C(l1 l2 l3)."""
    channels, lmax, n = 3, 4, 5
    coupling = BlockCoupling(template, lmax)
    torch.manual_seed(0)
    expansion = BlockExpansion(coupling, channels, 6, 6).double()
    x = features(*[channels] * (lmax + 1), n=n)
    embedding = torch.randn(2, 6, dtype=F64)
    kind = torch.tensor([0, 1, 1, 0, 1])
    blocks = expansion(x, embedding, kind)
    weights = expansion.weights(embedding).view(2, channels, -1)[kind]
    biases = expansion.biases(embedding)[kind]
    shells = template.template_shells
    starts = [sum(2 * l + 1 for l in shells[:i]) for i in range(len(shells))]
    # Paths in the order of the coupling: by degree and parity, then by pair of shells.
    paths = sorted(
        ((l3, (l1 + l2 + l3) % 2), a, b)
        for a, l1 in enumerate(shells)
        for b, l2 in enumerate(shells)
        for l3 in range(abs(l1 - l2), l1 + l2 + 1)
    )
    expected = torch.zeros_like(blocks)
    for p, ((l3, _), a, b) in enumerate(paths):
        l1, l2 = shells[a], shells[b]
        h = torch.einsum("nmc,nc->nm", x[l3], weights[:, :, p])
        if l3 == 0:
            h = h + biases[:, p, None]
        symbols = o3.wigner_3j(l1, l2, l3, dtype=F64)
        part = torch.einsum("ijm,nm->nij", symbols, h) / channels
        rows, columns = starts[a], starts[b]
        expected[:, rows : rows + 2 * l1 + 1, columns : columns + 2 * l2 + 1] += part
    torch.testing.assert_close(blocks, expected, atol=1e-12, rtol=0)
