"""SO2Net's own: symmetries with a reference, the cutoff, scales, precision."""

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import (
    FORMAMIDE,
    WATER,
    ao_transformation,
    make_mol,
    small_model,
    solve,
    transformed,
)

from pyscf_deqh.errors import ConfigError
from pyscf_deqh.graph.basis import shells_of, template_of
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph as make_graph
from pyscf_deqh.nn import so2net
from pyscf_deqh.nn.so2net import SO2NetConfig
from pyscf_deqh.train.loss import hamiltonian_loss

RELATIVE = 1e-10


REFERENCES = {}


def build_graph(mol, reference, hamiltonian=None):
    """With the reference of each molecule made once."""
    if reference == "none":
        return make_graph(mol, reference, hamiltonian)
    key = mol._atm.tobytes(), mol._bas.tobytes(), mol._env.tobytes()
    if key not in REFERENCES:
        REFERENCES[key] = make_graph(mol, reference).reference
    return make_graph(mol, reference, hamiltonian, fock=REFERENCES[key].copy())


def spectrum(hamiltonian, overlap):
    return scipy.linalg.eigh(hamiltonian.numpy(), overlap)[0]


@pytest.mark.parametrize("determinant", [1, -1])
def test_rotation_with_a_reference(template, rotation, determinant):
    """The reference is turned exactly here: PySCF's own grid is not invariant."""
    model = small_model(template, "sad", start="reference")
    matrix = determinant * rotation
    before, after = make_mol(), make_mol(transformed(FORMAMIDE, matrix))
    t = ao_transformation(before, after)(matrix)
    graph, turned = build_graph(before, "sad"), build_graph(after, "sad")
    turned.reference = t @ graph.reference @ t.T
    turned.basis_vectors = t @ graph.basis_vectors
    h, h_after = solve(model, graph)[0].numpy(), solve(model, turned)[0].numpy()
    np.testing.assert_allclose(t @ h @ t.T, h_after, atol=RELATIVE * np.abs(h).max())
    assert np.abs(h - graph.reference).max() > 1e-4


def test_a_damped_state(template):
    """f of the reference stays, and f of other states comes as near to it as they are damped."""
    model = small_model(template, "sad", start="reference")
    graph = collate(
        [build_graph(make_mol(), "sad")], template, model.backbone.cutoff, torch.float64
    )
    other = graph.reference + 1e-3 * torch.randn(graph.reference.shape, dtype=torch.float64)
    other = (other + other.mT) / 2

    def differences():
        with torch.no_grad():
            start, moved = (model.applied_once(graph, h) for h in (graph.reference, other))
        return start, (moved - start).norm().item()

    start, before = differences()
    model.backbone.damp_state(0.01)
    same, after = differences()
    torch.testing.assert_close(same, start, atol=1e-10, rtol=0)
    assert after == pytest.approx(0.01 * before, rel=0.2)


def test_batches_with_a_reference_do_not_mix_molecules(template):
    model = small_model(template, "sad", start="reference")
    graphs = [build_graph(make_mol(atoms), "sad") for atoms in (WATER, FORMAMIDE)]
    together = solve(model, *graphs)
    for graph, h in zip(graphs, together, strict=True):
        n = graph.nao
        alone = solve(model, graph)[0]
        torch.testing.assert_close(h[:n, :n], alone, atol=RELATIVE * alone.abs().max(), rtol=0)


def test_molecules_beside_heavier_ones_are_what_they_are_alone():
    """Alone, their blocks have no room for the shells of chlorine and bromine."""
    model = small_model(template_of("def2-svp", (1, 6, 7, 8, 17, 35)), "sad", start="reference")
    molecules = ("H 0 0 0; H 0 0 .8", FORMAMIDE, "H 0 0 0; Cl 0 0 1.3", "H 0 0 0; Br 0 0 1.4")
    graphs = []
    for atoms in molecules:
        reference = build_graph(make_mol(atoms), "sad").reference
        label = reference + 1e-3 * np.diag(np.arange(len(reference)))
        graphs.append(build_graph(make_mol(atoms), "sad", label))
    batch = collate(graphs, model.backbone.template, model.backbone.cutoff, torch.float64)
    model.backbone.standardize([batch])
    together = solve(model, *graphs)
    for graph, h in zip(graphs, together, strict=True):
        n = graph.nao
        alone = solve(model, graph)[0]
        torch.testing.assert_close(h[:n, :n], alone, atol=RELATIVE * alone.abs().max(), rtol=0)
        assert np.abs(alone.numpy() - graph.reference).max() > 1e-4


def test_shells_of_another_basis_set_do_not_change_molecules_beside_them():
    """6-311G** has more shells of oxygen than def2-SVP, for which bromine's have room."""
    model = small_model(template_of("def2-svp", (1, 8, 35)), "sad", start="reference")
    graphs = []
    for basis in ("def2-svp", "6-311g**"):
        mol = make_mol(WATER, basis=basis)
        reference = build_graph(mol, "sad").reference
        graphs.append(build_graph(mol, "sad", reference + 1e-3 * np.eye(mol.nao)))
    graphs[1].shells = shells_of(mol)
    backbone = model.backbone
    batch = collate(graphs, backbone.template, backbone.cutoff, torch.float64)
    backbone.standardize([batch])
    together = solve(model, *graphs)
    for graph, h in zip(graphs, together, strict=True):
        alone = solve(model, graph)[0]
        n = graph.nao
        torch.testing.assert_close(h[:n, :n], alone, atol=RELATIVE * alone.abs().max(), rtol=0)


def test_excerpts_follow_the_network(template):
    """After a first call in inference mode, in another precision: a training is possible."""
    model = small_model(template, "sad", start="reference", forward_max_iterations=1).float()
    graph = build_graph(make_mol("H 0 0 0; H 0 0 .8"), "sad")
    batch = collate([graph], template, model.backbone.cutoff)
    with torch.inference_mode():
        single = model.eval()(batch).hamiltonian.clone()
    double = model.double().train()(batch.to(dtype=torch.float64)).hamiltonian
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=0)
    double.sum().backward()


def test_hermitian_with_a_reference(template):
    h = solve(small_model(template, "sad"), build_graph(make_mol(), "sad"))[0]
    torch.testing.assert_close(h, h.T, atol=1e-13, rtol=0)


def test_blocks_beyond_the_cutoff_keep_the_reference(template):
    far = [(s, tuple(np.add(r, (0, 0, 30.0)))) for s, r in WATER]
    graph = build_graph(make_mol(WATER + far), "sad")
    model = small_model(template, "sad", start="reference")
    h = solve(model, graph)[0].numpy()
    half = graph.nao // 2
    np.testing.assert_array_equal(h[:half, half:], graph.reference[:half, half:])
    single = solve(model, build_graph(make_mol(WATER), "sad"))[0].numpy()
    change = h - graph.reference
    assert np.abs(change[:half, :half]).max() > 1e-4
    # Far neutral molecules do not feel each other, up to the references' own multipoles.
    reference = build_graph(make_mol(WATER), "sad").reference
    np.testing.assert_allclose(change[:half, :half], single - reference, atol=1e-3)


def test_an_ion_alone_stays_spherical(template):
    graph = build_graph(make_mol("F 0 0 0", charge=-1), "sad")
    graph.reference = 0.1 * graph.overlap  # the grid of a real one is not invariant
    model = small_model(template, "sad", start="reference", forward_max_iterations=1)
    change = solve(model, graph)[0].numpy() - graph.reference
    p = slice(3, 6)
    assert np.abs(change[p, p]).max() > 1e-6
    np.testing.assert_allclose(change[p, p], change[3, 3] * np.eye(3), atol=1e-9)
    np.testing.assert_allclose(change[p, :3], 0, atol=1e-9)


def test_the_reference_as_a_state_needs_no_density_matrix(template, monkeypatch):
    """The shortcut and the eigenproblem that it saves give the same."""
    model = small_model(template, "sad", start="reference").double()
    net = model.backbone
    batch = collate([build_graph(make_mol(), "sad")], template, net.cutoff, torch.float64)
    zero = torch.zeros_like(batch.reference)
    injected = net.injection(batch)
    expected = net.filter(zero.clone().requires_grad_(), injected)
    monkeypatch.setattr(so2net, "density_matrix", None)
    short = net.filter(zero, injected)
    torch.testing.assert_close(short, expected, atol=1e-9 * expected.abs().max().item(), rtol=0)


def test_every_parameter_gets_a_gradient(template):
    model = small_model(template, "sad", start="reference", forward_max_iterations=3).train()
    mol = make_mol()
    label = build_graph(mol, "sad").reference
    noise = np.random.default_rng(0).normal(size=label.shape) * 1e-3
    graph = build_graph(mol, "sad", label + noise + noise.T)
    batch = collate([graph], template, model.backbone.cutoff, torch.float64)
    hamiltonian_loss(model(batch).hamiltonian, batch, 10.0)["loss"].backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not unused


def test_padding_to_few_shapes_changes_nothing(template):
    """Additional atoms and pairs: the same Hamiltonians, loss and gradients."""
    model = small_model(template, "sad", start="reference", forward_max_iterations=1).train()
    graphs = []
    for atoms in (WATER, "N 0 0 0; H 0 0 1; H 0 1 -.3; H .9 -.4 -.3"):
        mol = make_mol(atoms)
        reference = build_graph(mol, "sad").reference
        graphs.append(build_graph(mol, "sad", reference + 1e-3 * np.eye(mol.nao)))
    n = max(graph.nao for graph in graphs)
    results, shapes = [], []
    for few_shapes in (False, True):
        batch = collate(graphs, template, model.backbone.cutoff, torch.float64, few_shapes)
        shapes.append((batch.n_atoms, batch.edge_index.shape[1], batch.overlap.shape[1]))
        model.zero_grad()
        hamiltonian = model(batch).hamiltonian
        loss = hamiltonian_loss(hamiltonian, batch, 10.0)["loss"]
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((hamiltonian[:, :n, :n], loss, gradients))
    assert shapes == [(7, 18, 29), (16, 20, 34)]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_standardization_sets_realistic_scales(template):
    model = small_model(template, "sad")
    mol = make_mol()
    graph = build_graph(mol, "sad")
    error = np.random.default_rng(0).normal(size=graph.reference.shape) * 2e-3
    graph = build_graph(mol, "sad", graph.reference + error + error.T)
    batch = collate([graph], template, model.backbone.cutoff, torch.float64)
    model.backbone.standardize([batch])
    scale = model.backbone.output_pair_scale
    carbon, oxygen = 1, 3
    assert 5e-4 < scale[carbon, oxygen].mean() < 2e-2
    fluorine = 4  # not in the data: like what was met, or it could not be learnt
    assert (scale[fluorine] > 0).all()
    assert 5e-4 < scale[fluorine, oxygen].mean() < 2e-2


def test_scales_are_those_of_atoms_that_have_the_shells():
    """However many hydrogen atoms there are; and as many batches as there are, one after the
    other, give what all at once do."""
    template = template_of("def2-svp", (1, 35))
    molecules = [make_mol("Br 0 0 0; H 0 0 1.41")]
    molecules += [make_mol(f"H 0 0 0; H 0 0 {r}") for r in (0.7, 0.75, 0.8, 0.9)]
    graphs = []
    for mol in molecules:
        graph = build_graph(mol, "sad")
        graphs.append(build_graph(mol, "sad", graph.reference + 0.01 * graph.overlap))
    nets = []
    for parts in ([graphs[:1]], [graphs], [graphs[:2], graphs[2:]]):
        net = small_model(template, "sad").backbone
        net.standardize([collate(p, template, net.cutoff, torch.float64) for p in parts])
        nets.append(net)
    alone, together, in_turn = nets
    # Of s shells hydrogen has the first two.
    heavy = alone.coupling.has_first[1] & ~alone.coupling.has_first[0]
    assert heavy.any()
    for name in ("static_atom_scale", "static_pair_scale", "state_pair_scale"):
        ours, theirs = getattr(together, name)[heavy], getattr(alone, name)[heavy]
        measured = (ours != 1) & (theirs != 1)  # above what counts as rounding
        assert measured.sum() > 5
        torch.testing.assert_close(ours[measured], theirs[measured])
    for name, value in together.named_buffers():
        torch.testing.assert_close(dict(in_turn.named_buffers())[name], value)


def test_rounding_of_constants_is_no_input(template):
    """An atom's overlap with itself is the same in all molecules."""
    model = small_model(template, "sad").float()
    graphs = []
    for mol in (make_mol(FORMAMIDE), make_mol(WATER)):
        graph = build_graph(mol, "sad")
        graphs.append(build_graph(mol, "sad", graph.reference + 0.01 * graph.overlap))
    model.backbone.standardize([collate(graphs, template, model.backbone.cutoff)])
    overlap, reference = model.backbone.static_atom_scale.T[:2]
    assert (overlap == 1).all()
    assert 1e-4 < reference[reference < 1].min() < 1e-1


def test_spectrum_is_the_same_in_float32(template):
    model = small_model(template, forward_tolerance=1e-6)
    graph = build_graph(make_mol(), "none")
    exact = spectrum(solve(model, graph)[0], graph.overlap)
    batch = collate([graph], template, model.backbone.cutoff)
    with torch.no_grad():
        single = model.float()(batch).hamiltonian[0].double()
    np.testing.assert_allclose(spectrum(single, graph.overlap), exact, atol=2e-4)


@pytest.mark.parametrize("options", [{"reference": "dft"}, {"filter_layers": 0}])
def test_config_is_checked(options):
    with pytest.raises(ConfigError):
        SO2NetConfig(**options)
