"""QHNet and DEQHNet: size, exact savings, ablations."""

import re

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol, small_qhnet, solve

from pyscf_deqh.checkpoint import ModelSpec, load_model, save_model
from pyscf_deqh.errors import ConfigError
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.onsite import DiagonalReduction
from pyscf_deqh.nn.qhnet import QHNet, QHNetConfig
from pyscf_deqh.train.loss import hamiltonian_loss

PUBLISHED = 26.25e6  # parameters of the published code, QH9 configuration


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_size_of_the_paper(template):
    """Table 4's hyperparameters are the defaults."""
    config = QHNetConfig()
    assert (config.cutoff, config.lmax, config.layers, config.channels) == (15.0, 4, 5, 128)
    assert parameters(QHNet(template, config)) == pytest.approx(PUBLISHED, rel=0.05)


def batch_of(model, *molecules):
    graphs = [build_graph(make_mol(atoms), "none") for atoms in molecules]
    return collate(graphs, model.backbone.template, model.backbone.cutoff, torch.float64)


@pytest.mark.parametrize("overlap", [True, False])
def test_savings_are_exact(template, overlap):
    """The on-site fixed point gives what the recursion over the whole matrix gives."""
    limit = 3
    model = small_qhnet(
        template, config={"overlap": overlap}, forward_max_iterations=limit,
        forward_tolerance=1e-30,
    )  # fmt: skip
    net = model.backbone
    batch = batch_of(model, WATER, FORMAMIDE)
    with torch.no_grad():
        solution = model(batch)
        recursion = [model.initial_hamiltonian(batch)]
        for _ in range(limit + 1):
            injected = net.injection(batch)
            recursion.append(net.hamiltonian(net.state(recursion[-1], injected), injected))
    # torchdeq keeps the iterate of the lowest residual; the readout is one more application.
    for b, steps in enumerate(solution.iterations.tolist()):
        expected = recursion[steps + 1][b]
        torch.testing.assert_close(solution.hamiltonian[b], expected, atol=1e-10, rtol=0)


def test_hamiltonian_enters_deqhnet_alone(template):
    batch = batch_of(small_qhnet(template), FORMAMIDE)
    noise = torch.randn_like(batch.overlap)
    for consistent in (True, False):
        model = small_qhnet(
            template, config={"self_consistent": consistent}, forward_max_iterations=1
        )
        with torch.no_grad():
            one, other = model(batch), model(batch, initial=noise + noise.mT)
        assert torch.equal(one.hamiltonian, other.hamiltonian) is not consistent


@pytest.mark.parametrize("consistent", [True, False])
def test_overlap_is_an_input_only_where_asked(template, consistent):
    for overlap in (True, False):
        model = small_qhnet(template, config={"overlap": overlap, "self_consistent": consistent})
        batch = batch_of(model, FORMAMIDE)
        with torch.no_grad():
            one = model(batch).hamiltonian
            batch.overlap = batch.overlap * torch.linspace(0.5, 1.5, batch.overlap.shape[-1])
            other = model(batch).hamiltonian
        assert torch.equal(one, other) is not overlap


def test_overlap_is_a_constant_of_the_element(template):
    """On-site blocks of S do not know the molecule, and the diagonal reduction reads no others."""
    model = small_qhnet(template)
    batch = batch_of(model, WATER, FORMAMIDE)
    features = model.backbone._reduce(batch, batch.overlap)
    for z in batch.element.unique():
        for f in features:
            same = f[batch.element == z]
            torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-12, rtol=0)


def test_reduction_features_are_unit_vectors(template):
    from pyscf_deqh.graph.onsite import onsite_overlaps

    overlaps = torch.from_numpy(onsite_overlaps("def2-svp", template))
    reduction = DiagonalReduction(overlaps, (16, 8, 4))
    blocks = 100 * torch.randn(2, template.size**2, dtype=torch.float64)
    features = reduction(blocks, torch.tensor([3, 3]))
    assert [f.shape for f in features] == [(2, 1, 16), (2, 3, 8), (2, 5, 4)]
    for f in features:
        torch.testing.assert_close(f.norm(dim=1), torch.ones_like(f[:, 0]), atol=1e-3, rtol=0)
    # The identity has no vectors: symmetry makes them vanish instead of dividing zero by zero.
    eye = torch.eye(template.size, dtype=torch.float64).flatten()[None]
    _, vectors, tensors = reduction(eye, torch.tensor([3]))
    assert vectors.abs().max() < 1e-6
    assert tensors.abs().max() < 1e-6


# The published heads end at degree 2, so that nothing of a higher degree arises in the H and S
# streams, and on-site overlaps have no vectors: these weights exist and act on zeros.
IDLE = re.compile(
    r".*_blocks\.\d\..*\.(weights|factors)\.[34]"
    r"|.*overlap_blocks\.0\.attention\.linear_(source|target)\.weights\.[12]"
    r"|.*overlap_blocks\.0\.norm_attention\.factors\.[12]"
)


@pytest.mark.parametrize("config", [{}, {"overlap": False, "self_consistent": False}])
def test_every_parameter_gets_a_gradient(template, config):
    model = small_qhnet(template, config=config).train()
    mol = make_mol()
    label = mol.intor("int1e_kin") + mol.intor("int1e_nuc")
    batch = collate(
        [build_graph(mol, "none", label)], template, model.backbone.cutoff, torch.float64
    )
    hamiltonian_loss(model(batch).hamiltonian, batch, 0.0)["loss"].backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name in unused if not IDLE.fullmatch(name)} == set()


def test_single_atoms(template):
    model = small_qhnet(template)
    h = solve(model, build_graph(make_mol([("O", (0, 0, 0))], spin=2), "none"))[0]
    assert torch.isfinite(h).all()
    # An atom alone is a sphere: s and p functions do not mix.
    np.testing.assert_allclose(h[:3, 3:9], 0, atol=1e-8)


def test_saved_and_loaded(template, tmp_path):
    model = small_qhnet(template).float()
    spec = ModelSpec("def2-svp", template, model.backbone.config, model.settings)
    save_model(model, spec, tmp_path / "m")
    loaded, loaded_spec = load_model(tmp_path / "m")
    assert loaded_spec == spec
    graph = build_graph(make_mol(), "none")
    # In double precision: in single, QHNet's own rounding is as large as the tolerance.
    batch = collate([graph], template, model.backbone.cutoff, torch.float64)
    with torch.no_grad():
        found, expected = (network.double()(batch).hamiltonian for network in (loaded, model))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{"layers": 3}, {"head_channels": ()}, {"lmax": 2}])
def test_config_is_checked(template, options):
    with pytest.raises(ConfigError):
        QHNet(template, QHNetConfig(**options))


def test_single_precision_is_enough(template):
    """Scalars of the reduction are equal but for some millionths, which a layer norm enlarges."""
    model = small_qhnet(template)
    graph = build_graph(make_mol(FORMAMIDE), "none")
    exact = solve(model, graph)[0]
    batch = collate([graph], template, model.backbone.cutoff)
    overlaps = model.backbone.reduction.overlaps
    model.float().backbone.reduction.overlaps = overlaps  # a model that was loaded has them so
    with torch.no_grad():
        single = model(batch).hamiltonian[0]
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
