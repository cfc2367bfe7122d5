"""Symmetries that every backbone has to keep, in float64."""

import numpy as np
import pytest
import torch
from conftest import (
    FORMAMIDE,
    WATER,
    ao_transformation,
    make_mol,
    small_model,
    small_qhnet,
    solve,
    transformed,
)

from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn import qhnet, so2net

RELATIVE = 1e-10
MODELS = {
    "so2net": small_model,
    "deqhnet": small_qhnet,
    "deqhnet-without-overlap": lambda t: small_qhnet(t, config={"overlap": False}),
    "qhnet": lambda t: small_qhnet(t, config={"overlap": False, "self_consistent": False}),
    "qhnet-with-overlap": lambda t: small_qhnet(t, config={"self_consistent": False}),
}


@pytest.fixture(params=MODELS)
def model(request, template):
    return MODELS[request.param](template)


def turned(model, matrix):
    """Prediction after turning the molecule, and the turned prediction."""
    before, after = make_mol(), make_mol(transformed(FORMAMIDE, matrix))
    h = solve(model, build_graph(before, "none"))[0].numpy()
    h_after = solve(model, build_graph(after, "none"))[0].numpy()
    assert np.abs(h - h_after).max() > 1e-3
    t = ao_transformation(before, after)(matrix)
    return h_after, t @ h @ t.T


def test_rotation(model, rotation):
    after, expected = turned(model, rotation)
    # The diagonal reduction divides vectors that symmetry makes zero by 1e-3, and the layer norm
    # after it by another 3e-3.
    reduced = hasattr(model.backbone, "reduction")
    tolerance = 1e-7 if reduced else RELATIVE
    np.testing.assert_allclose(after, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def test_an_atom_alone(model):
    """There are no pairs at all."""
    h = solve(model, build_graph(make_mol("F 0 0 0", charge=-1), "none"))[0]
    assert h.isfinite().all()
    assert h.any()
    torch.testing.assert_close(h, h.T, atol=1e-13, rtol=0)


def test_pairs_a_few_at_a_time_give_the_same(model, monkeypatch):
    graphs = [build_graph(make_mol(atoms), "none") for atoms in (WATER, FORMAMIDE)]
    together = solve(model, *graphs)
    for module in (so2net, qhnet):
        monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 8)
    torch.testing.assert_close(solve(model, *graphs), together, atol=1e-9, rtol=0)


def test_reflection(template, rotation):
    """QHNet has no parity: its products of pseudovectors and vectors mix. SO2Net has."""
    after, expected = turned(small_model(template), -rotation)
    np.testing.assert_allclose(after, expected, atol=RELATIVE * np.abs(expected).max(), rtol=0)


def test_translation_and_permutation(model):
    order = [3, 0, 5, 2, 1, 4]
    before = make_mol()
    after = make_mol(transformed(FORMAMIDE, shift=(3.0, -2.0, 1.0), order=order))
    h = solve(model, build_graph(before, "none"))[0].numpy()
    h_after = solve(model, build_graph(after, "none"))[0].numpy()
    slices = before.aoslice_by_atom()[:, 2:]
    aos = np.concatenate([np.arange(*slices[i]) for i in order])
    np.testing.assert_allclose(
        h[np.ix_(aos, aos)], h_after, atol=RELATIVE * np.abs(h).max(), rtol=0
    )


def test_hermitian(model):
    h = solve(model, build_graph(make_mol(), "none"))[0]
    torch.testing.assert_close(h, h.T, atol=1e-13, rtol=0)


def test_batches_do_not_mix_molecules(model):
    graphs = [build_graph(make_mol(atoms), "none") for atoms in (WATER, FORMAMIDE)]
    together = solve(model, *graphs)
    for graph, h in zip(graphs, together, strict=True):
        n = graph.nao
        alone = solve(model, graph)[0]
        torch.testing.assert_close(h[:n, :n], alone, atol=RELATIVE * alone.abs().max(), rtol=0)
