"""Coupling coefficients and representations against e3nn."""

import pytest
import torch
from e3nn import o3

from pyscf_deqh.nn.angular import representation, wigner_3j

TRIPLES = [
    (a, b, c) for a in range(5) for b in range(5) for c in range(7) if abs(a - b) <= c <= a + b
]


@pytest.mark.parametrize(("l1", "l2", "l3"), TRIPLES)
def test_same_symbols_as_e3nn(l1, l2, l3):
    expected = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
    torch.testing.assert_close(wigner_3j(l1, l2, l3), expected, atol=1e-14, rtol=0)


def test_degrees_have_to_couple():
    with pytest.raises(ValueError, match="do not couple"):
        wigner_3j(1, 1, 3)


@pytest.mark.parametrize("l", range(6))
def test_representation_turns_spherical_harmonics(l):
    generator = torch.Generator().manual_seed(l)
    vectors, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    vectors *= torch.linalg.det(vectors)
    points = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    before = o3.spherical_harmonics(l, points, normalize=True)
    after = o3.spherical_harmonics(l, points @ vectors.T, normalize=True)
    torch.testing.assert_close(before @ representation(l, vectors).T, after, atol=1e-12, rtol=0)
