"""Wigner matrices, block coupling and SO(2) maps against e3nn and PySCF."""

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, make_mol, transformed
from e3nn import o3

from pyscf_deqh.errors import ConfigError
from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.irreps import BlockCoupling, Channels, DegreeLinear, rms_normalize
from pyscf_deqh.nn.so2 import EdgeFrames, EdgeGate, FrameFeatures, SO2Linear, mirror_signs
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
    eye = torch.eye(template.size**2, dtype=torch.float64)
    matrix = BlockCoupling(template, LMAX).couple(eye[:, :, None])[..., 0]
    torch.testing.assert_close(matrix @ matrix.T, eye, atol=1e-13, rtol=0)


def test_uncoupling_is_the_way_back(template):
    coupling = BlockCoupling(template, LMAX)
    blocks = torch.randn(3, template.size**2, 2, dtype=torch.float64, requires_grad=True)
    coupled = coupling.couple(blocks)
    for k in range(2):
        back = coupling.uncouple(coupled[..., k]).flatten(1)
        torch.testing.assert_close(back, blocks[..., k], atol=1e-13, rtol=0)
    # An orthogonal map's gradient goes back by the map's transpose.
    weight = torch.randn_like(coupled)
    (gradient,) = torch.autograd.grad((coupled * weight).sum(), blocks)
    for k in range(2):
        expected = coupling.uncouple(weight[..., k]).flatten(1)
        torch.testing.assert_close(gradient[..., k], expected, atol=1e-13, rtol=0)
    back = coupling.uncouple(coupling.couple(blocks)[..., 0])
    (gradient,) = torch.autograd.grad(back.square().sum(), blocks)
    torch.testing.assert_close(gradient[..., 0], 2 * blocks[..., 0], atol=1e-12, rtol=0)


def test_an_excerpt_is_a_part_of_the_coupling():
    """Blocks of atoms without the shells of heavier ones: components, and the way back."""
    template = template_of("def2-svp", (1, 6, 8, 16, 35))
    coupling = BlockCoupling(template, LMAX)
    for element in (1, 6, 16, 35):
        slots = np.sort(template.slots(element))
        counts = template.counts_in(slots)
        excerpt = coupling.excerpt(counts)
        small = torch.randn(2, len(slots), len(slots), dtype=torch.float64)
        blocks = small.new_zeros(2, template.size, template.size)
        blocks[:, slots[:, None], slots] = small
        torch.testing.assert_close(blocks[:, excerpt.slots][:, :, excerpt.slots], small)
        of_small = excerpt.coupling.couple(small.flatten(1)[..., None])[..., 0]
        whole = coupling.couple(blocks.flatten(1)[..., None])[..., 0]
        torch.testing.assert_close(whole[:, excerpt.components], of_small, atol=1e-13, rtol=0)
        # Nothing is in the other components.
        torch.testing.assert_close(whole.square().sum(), of_small.square().sum())
        torch.testing.assert_close(excerpt.coupling.uncouple(of_small), small, atol=1e-13, rtol=0)
        assert torch.equal(
            coupling.path[excerpt.components],
            torch.arange(coupling.n_paths)[excerpt.paths][excerpt.coupling.path],
        )


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
        blocks = [
            batch.onsite_blocks(batch.overlap),
            batch.blocks(*batch.edge_index, batch.overlap),
        ]
        return coupling.couple(torch.cat(blocks))[..., 0]

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


def pairs(n):
    """Vectors of n couples of pairs."""
    v = torch.randn(n, 3, dtype=torch.float64)
    v[0] = torch.tensor([0.0, 0.0, -1.0])
    return torch.stack([v, -v], dim=1).flatten(0, 1)


def test_edge_frames_are_orthogonal():
    frames = EdgeFrames(pairs(4), LMAX, CHANNELS)
    x = torch.randn(8, 25, CHANNELS.total, dtype=torch.float64)
    back = torch.cat(frames.out_of(frames.into(x)), dim=-1)
    torch.testing.assert_close(back, x, atol=1e-12, rtol=0)


def test_frames_of_opposite_pairs_differ_by_signs():
    """What an atom's features are in a pair's frame follows from the opposite pair's frame."""
    frames = EdgeFrames(pairs(4), LMAX, CHANNELS)
    x = torch.randn(4, 25, CHANNELS.total, dtype=torch.float64).repeat_interleave(2, 0)
    rotated = frames.into(x)
    opposite = frames.opposite(rotated)
    signs = mirror_signs(LMAX, CHANNELS)
    for a, b, sign in zip(rotated.by_order(LMAX), opposite.by_order(LMAX), signs, strict=True):
        torch.testing.assert_close(a, b * sign, atol=1e-12, rtol=0)


def test_rms_normalization_of_pairs():
    frames = EdgeFrames(pairs(4), LMAX, CHANNELS)
    x = torch.randn(8, 25, CHANNELS.total, dtype=torch.float64)
    back = torch.cat(frames.out_of(frames.into(x).rms_normalized()), dim=-1)
    torch.testing.assert_close(back, rms_normalize(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("determinant", [1, -1])
def test_so2_convolution_is_equivariant(rotation, determinant):
    torch.manual_seed(0)
    linear = SO2Linear(LMAX, [CHANNELS] * 2, CHANNELS, mirrored=1).double()
    gate = EdgeGate(LMAX, CHANNELS, 5).double()
    invariants = torch.randn(6, 5, dtype=torch.float64)
    v = pairs(3)
    x = torch.randn(6, 25, CHANNELS.total, dtype=torch.float64)

    def apply(vectors, features):
        frames = EdgeFrames(vectors, LMAX, CHANNELS)
        rotated = frames.into(features)
        both = (part.by_order(LMAX) for part in (rotated, frames.opposite(rotated)))
        out = FrameFeatures.of_orders(gate(linear(*both), invariants))
        return torch.cat(frames.out_of(out), dim=-1)

    matrix = torch.from_numpy(determinant * rotation)
    after = apply(v @ matrix.T, transform(x, matrix))
    torch.testing.assert_close(after, transform(apply(v, x), matrix), atol=1e-11, rtol=0)
    assert np.abs(after.detach().numpy()).max() > 0.1
