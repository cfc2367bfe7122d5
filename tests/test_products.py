"""Tensor products against e3nn's."""

import pytest
import torch
from e3nn import o3

from pyscf_deqh.nn.products import (
    ChannelProduct,
    PairFrames,
    SphericalProduct,
    coupling_paths,
    inner_products,
    path_norms,
    path_weight,
)

C, N = 3, 5


def features(lmax, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(N, 2 * l + 1, C, dtype=torch.float64, generator=g) for l in range(lmax + 1)]


def flat(x):
    """e3nn's layout: channels outermost."""
    return torch.cat([part.transpose(1, 2).flatten(1) for part in x], dim=-1)


def irreps(lmax, channels, parity):
    return o3.Irreps([(channels, (l, parity(l))) for l in range(lmax + 1)])


def instructions(paths, mode):
    return [(*path, mode, True, path_weight(path[2], len(paths))) for path in paths]


def natural(l):
    return (-1) ** l


def even(l):
    return 1


def seeded():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("parity", [natural, even])
@pytest.mark.parametrize(("lin", "lmax", "lout"), [(4, 4, 4), (0, 4, 4), (2, 4, 2), (3, 2, 1)])
def test_spherical_product_equals_the_full_tensor_product(lin, lmax, lout, parity):
    """Also over the paths of which one that knows parity has none."""
    paths = coupling_paths(lin, lmax, lout, natural=parity is natural)
    ours = SphericalProduct(paths, path_norms(paths))
    assert sorted(ours.paths) == sorted(paths)
    directions = torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    x = features(lin)
    weight = torch.randn(N, len(ours.paths), C, dtype=torch.float64, generator=seeded())
    frames = PairFrames(directions, max(lin, lout))
    result = frames.out_of(ours(frames.into(x), weight))
    full = o3.TensorProduct(
        irreps(lin, C, parity), irreps(lmax, 1, parity), irreps(lout, C, parity),
        instructions(ours.paths, "uvu"),
        shared_weights=False, internal_weights=False,
    ).double()  # fmt: skip
    harmonics = o3.spherical_harmonics(
        list(range(lmax + 1)), directions[:, [1, 2, 0]], True, "component"
    )
    expected = full(flat(x), harmonics, weight.flatten(1))
    # e3nn's couplings and harmonics carry single-precision constants in places.
    torch.testing.assert_close(flat(result), expected, atol=1e-6, rtol=1e-6)


def test_channel_product_equals_the_full_tensor_product():
    lmax = 3
    paths = coupling_paths(lmax, lmax, lmax, natural=False)
    ours = ChannelProduct(paths, path_norms(paths)).double()
    x, y = features(lmax, 1), features(lmax, 2)
    weight = torch.randn(N, len(ours.paths), C, dtype=torch.float64, generator=seeded())
    parts = irreps(lmax, C, even)
    full = o3.TensorProduct(
        parts, parts, parts, instructions(ours.paths, "uuu"),
        shared_weights=False, internal_weights=False,
    ).double()  # fmt: skip
    expected = full(flat(x), flat(y), weight.flatten(1))
    torch.testing.assert_close(flat(ours(x, y, weight)), expected, atol=1e-6, rtol=1e-6)
    shared = full(flat(x), flat(y), weight[:1].expand_as(weight).flatten(1))
    torch.testing.assert_close(flat(ours(x, y, weight[0])), shared, atol=1e-6, rtol=1e-6)


def test_inner_products_are_invariant():
    x, y = features(4, 3), features(4, 4)
    alpha, beta, gamma = o3.rand_angles(dtype=torch.float64)
    turn = [o3.wigner_D(l, alpha, beta, gamma) for l in range(5)]
    turned = [[d @ part for d, part in zip(turn, f, strict=True)] for f in (x, y)]
    torch.testing.assert_close(inner_products(*turned), inner_products(x, y), atol=1e-6, rtol=1e-6)
    assert inner_products(x, y).shape == (N, 4 * C)
