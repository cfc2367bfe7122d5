"""Wigner matrices, block coupling and SO(2) maps against e3nn and PySCF."""

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, make_mol, transformed
from e3nn import o3

from pyscf_deqh.data.graph import build_graph
from pyscf_deqh.errors import ConfigError
from pyscf_deqh.graph import collate
from pyscf_deqh.nn.irreps import BlockCoupling, Channels, DegreeLinear
from pyscf_deqh.nn.so2 import EdgeFrames, EdgeGate, SO2Linear
from pyscf_deqh.nn.wigner import wigner_d

LMAX = 4
CHANNELS = Channels(3, 2)


def harmonics(l, vectors):
    return o3.spherical_harmonics(l, vectors[:, [1, 2, 0]], normalize=True)


def representation(l, matrix):
    """The matrix of a rotation or reflection on natural components, fitted on e3nn's harmonics."""
    points = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.linalg.lstsq(harmonics(l, points), harmonics(l, points @ matrix.T)).solution.T


def feature_matrix(matrix):
    """Its action on a whole feature tensor: natural and pseudo components."""
    natural = torch.block_diag(*[representation(l, matrix) for l in range(LMAX + 1)])
    return natural, natural * torch.linalg.det(matrix)


def transform(x, matrix, cut=CHANNELS.natural):
    natural, pseudo = feature_matrix(matrix)
    return torch.cat(
        [
            torch.einsum("ab,nbc->nac", natural, x[..., :cut]),
            torch.einsum("ab,nbc->nac", pseudo, x[..., cut:]),
        ],
        dim=-1,
    )


@pytest.mark.parametrize("l", range(5))
def test_wigner_takes_the_polar_axis_onto_the_direction(l):
    v = torch.tensor([[0, 0, 1], [0, 0, -2.0], [1, 0, 0], [0.3, -1.2, 0.7]], dtype=torch.float64)
    d = wigner_d(l, v)
    pole = harmonics(l, torch.tensor([[0, 0, 1.0]], dtype=torch.float64))[0]
    torch.testing.assert_close(d @ pole, harmonics(l, v), atol=1e-13, rtol=0)
    identity = torch.eye(2 * l + 1, dtype=torch.float64).expand_as(d)
    torch.testing.assert_close(d @ d.mT, identity, atol=1e-13, rtol=0)


def test_coupling_is_orthogonal(template):
    matrix = BlockCoupling(template, LMAX).matrix
    identity = torch.eye(template.size**2, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, atol=1e-13, rtol=0)


def test_coupling_needs_high_enough_degrees(template):
    with pytest.raises(ConfigError, match="lmax >= 4"):
        BlockCoupling(template, 3)


@pytest.mark.parametrize("determinant", [1, -1])
def test_coupled_overlap_turns_as_its_irreps_say(template, rotation, determinant):
    """PySCF's overlap of the turned (or mirrored) molecule against turned components."""
    matrix = determinant * rotation
    coupling = BlockCoupling(template, LMAX)

    def components(atoms):
        batch = collate([build_graph(make_mol(atoms), "none")], template, 50.0, torch.float64)
        onsite, pair = batch.blocks(batch.overlap)
        return coupling.couple(torch.cat([onsite, pair]))[..., 0]

    before, after = components(FORMAMIDE), components(transformed(FORMAMIDE, matrix))
    matrix = torch.from_numpy(matrix)
    for group in coupling.groups:
        d = representation(group.degree, matrix)
        if group.pseudo:
            d = d * determinant
        shape = (-1, 2 * group.degree + 1, group.count)
        a = before[:, group.start : group.stop].reshape(shape)
        b = after[:, group.start : group.stop].reshape(shape)
        torch.testing.assert_close(torch.einsum("ij,njk->nik", d, a), b, atol=1e-12, rtol=0)


def test_degree_linear_commutes_with_rotations_and_reflections(rotation):
    torch.manual_seed(0)
    layer = DegreeLinear(LMAX, CHANNELS, CHANNELS).double()
    x = torch.randn(4, 25, CHANNELS.total, dtype=torch.float64)
    for matrix in (torch.from_numpy(rotation), -torch.from_numpy(rotation)):
        torch.testing.assert_close(
            layer(transform(x, matrix)), transform(layer(x), matrix), atol=1e-11, rtol=0
        )


def test_edge_frames_are_orthogonal():
    v = torch.randn(7, 3, dtype=torch.float64)
    frames = EdgeFrames(v, LMAX, CHANNELS)
    x = torch.randn(7, 25, CHANNELS.total, dtype=torch.float64)
    torch.testing.assert_close(frames.out_of(frames.into(x)), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("determinant", [1, -1])
def test_so2_convolution_is_equivariant(rotation, determinant):
    torch.manual_seed(0)
    linear = SO2Linear(LMAX, [CHANNELS], CHANNELS).double()
    gate = EdgeGate(LMAX, CHANNELS, 5).double()
    invariants = torch.randn(6, 5, dtype=torch.float64)
    v = torch.randn(6, 3, dtype=torch.float64)
    v[0] = torch.tensor([0.0, 0.0, -1.0])
    x = torch.randn(6, 25, CHANNELS.total, dtype=torch.float64)

    def apply(vectors, features):
        frames = EdgeFrames(vectors, LMAX, CHANNELS)
        return frames.out_of(gate(linear(frames.into(features)), invariants))

    matrix = torch.from_numpy(determinant * rotation)
    after = apply(v @ matrix.T, transform(x, matrix))
    torch.testing.assert_close(after, transform(apply(v, x), matrix), atol=1e-11, rtol=0)
    assert np.abs(after.detach().numpy()).max() > 0.1
