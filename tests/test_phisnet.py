"""PhiSNet: size, layers, what it depends on. The symmetries are in test_backbones.py."""

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol
from e3nn import o3
from test_products import C, features, flat

from pyscf_deqh.errors import ConfigError
from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.phisnet import PhiSNet, PhiSNetConfig
from pyscf_deqh.nn.phisnet_layers import DirectedMessages, RadialWeights, Residual, SelfMixing
from pyscf_deqh.nn.products import PairFrames
from pyscf_deqh.testing import predicted, untrained
from pyscf_deqh.train.config import TrainConfig
from pyscf_deqh.train.loss import hamiltonian_loss

SMALL = {"channels": 6, "radial_functions": 8, "modules": 2}
# Of the published code for water in def2-SVP, without the branches of the core Hamiltonian and of
# the overlap; of these, of the embeddings of 87 elements, and of the linear maps of the outputs.
PUBLISHED, EMBEDDINGS, OUTPUTS = 14_840_244, 13_184, 32_691


def shaken(**options):
    """A network in which nothing is zero because it is at first."""
    model = untrained("phisnet", **SMALL, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def test_size_of_the_paper():
    net = PhiSNet(template_of("def2-svp", (1, 8)), PhiSNetConfig())
    assert net.cutoff == pytest.approx(15.0)
    other = [net.element_embedding.weight]
    for output in (net.atom_output, net.pair_output):
        other += [output.weights, output.biases]
    rest = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in other)
    assert rest == PUBLISHED - EMBEDDINGS - OUTPUTS


def test_messages_are_those_of_the_full_tensor_product():
    """In the molecule's frame, term by term, by e3nn's symbols and harmonics."""
    lmax, radial_functions = 2, 4
    torch.manual_seed(0)
    layer = DirectedMessages(lmax, C, radial_functions).double()
    with torch.no_grad():
        layer.bias.normal_()
        layer.scalar_bias.normal_()
    x = features(lmax)
    direction = torch.randn(4, 3, dtype=torch.float64)
    i, j = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 0, 4, 3])
    radial = torch.rand(4, radial_functions, dtype=torch.float64)
    harmonics = [
        o3.spherical_harmonics(l, direction[:, [1, 2, 0]], True, "component")[:, :, None]
        for l in range(lmax + 1)
    ]

    def linear(factors, bias):
        return [h * factors[l] + (bias if l == 0 else 0) for l, h in enumerate(harmonics)]

    mixed = linear(layer.harmonics, layer.bias)
    scalar = linear(layer.scalar_harmonics, layer.scalar_bias)
    expected = [torch.zeros_like(part) for part in x]
    for path, weight in zip(layer.product.paths, layer.path_weights.weight, strict=True):
        symbols = o3.wigner_3j(*path, dtype=torch.float64)
        term = torch.einsum("abc,nak,nbk->nck", symbols, x[path[0]][j], mixed[path[1]])
        expected[path[2]].index_add_(0, i, term * (radial @ weight.T)[:, None])
    for l, weight in enumerate(layer.scalar_weights.weight):
        term = x[0][j] * scalar[l] * (radial @ weight.T)[:, None]
        expected[l].index_add_(0, i, term)
    found = layer(x, i, j, radial, PairFrames(direction, lmax))
    # e3nn's harmonics carry single-precision constants in places.
    torch.testing.assert_close(flat(found), flat(expected), atol=1e-6, rtol=1e-6)


def test_self_mixing_multiplies_each_two_degrees_once():
    mixing, x = SelfMixing(2, C).double(), features(2)
    expected = [part * keep for part, keep in zip(x, mixing.keep, strict=True)]
    paths = [(0, 1, 1), (0, 2, 2), (1, 2, 1), (1, 2, 2)]
    assert sorted(mixing.product.paths) == paths
    for path, weight in zip(mixing.product.paths, mixing.mix, strict=True):
        symbols = o3.wigner_3j(*path, dtype=torch.float64)
        product = torch.einsum("abc,nak,nbk->nck", symbols, x[path[0]], x[path[1]])
        expected[path[2]] = expected[path[2]] + weight * product
    torch.testing.assert_close(flat(mixing(x)), flat(expected), atol=1e-12, rtol=0)


def test_residual_blocks_and_outputs_begin_at_zero():
    x = features(2)
    for found, expected in zip(Residual(2, C).double()(x), x, strict=True):
        assert torch.equal(found, expected)
    assert not predicted(untrained("phisnet", **SMALL), WATER).any()


def test_radial_weights_are_orthogonal():
    weight = RadialWeights(6, 3, 4).weight
    eye = torch.eye(4).expand(3, -1, -1)
    torch.testing.assert_close(weight @ weight.mT, eye, atol=1e-6, rtol=0)


def test_reference_is_added():
    """An untrained network predicts it, or nothing."""
    model = untrained("phisnet", **SMALL, reference="sad")
    mol = make_mol(WATER)
    expected = mol.intor("int1e_kin") + mol.intor("int1e_nuc")
    np.testing.assert_allclose(predicted(model, WATER)[0], expected, atol=1e-12)


def test_hamiltonian_enters_the_self_consistent_one_alone():
    for consistent in (True, False):
        model = shaken(self_consistent=consistent)
        graph = build_graph(make_mol(FORMAMIDE), "none")
        batch = collate([graph], model.backbone.template, model.backbone.cutoff, torch.float64)
        noise = torch.randn_like(batch.overlap)
        with torch.no_grad():
            one, other = model(batch), model(batch, initial=noise + noise.mT)
        assert torch.equal(one.hamiltonian, other.hamiltonian) is not consistent
        assert (one.iterations > 1).item() is consistent


def test_savings_are_exact():
    """The on-site fixed point gives what the recursion over the whole matrix gives."""
    model = shaken(self_consistent=True)
    net = model.backbone
    graphs = [build_graph(make_mol(atoms), "none") for atoms in (WATER, FORMAMIDE)]
    batch = collate(graphs, net.template, net.cutoff, torch.float64)
    with torch.no_grad():
        solution = model(batch)
        injected = net.injection(batch)
        recursion = [model.initial_hamiltonian(batch)]
        for _ in range(5):
            recursion.append(net.hamiltonian(net.state(recursion[-1], injected), injected))
    for b, steps in enumerate(solution.iterations.tolist()):
        expected = recursion[steps + 1][b]
        torch.testing.assert_close(solution.hamiltonian[b], expected, atol=1e-10, rtol=0)


# In the first module there is nothing but scalars before atoms have seen their neighbours.
IDLE = (
    "modular_blocks.0.before", "modular_blocks.0.interaction.own",
    "modular_blocks.0.interaction.neighbours",
)  # fmt: skip


@pytest.mark.parametrize("consistent", [True, False])
def test_every_parameter_gets_a_gradient(consistent):
    model = shaken(self_consistent=consistent).train()
    mol = make_mol()
    label = mol.intor("int1e_kin") + mol.intor("int1e_nuc")
    graphs = [build_graph(mol, "none", label)]
    batch = collate(graphs, model.backbone.template, model.backbone.cutoff, torch.float64)
    hamiltonian_loss(model(batch).hamiltonian, batch, 0.0)["loss"].backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name in unused if not name.removeprefix("backbone.").startswith(IDLE)} == set()


def test_options():
    config = TrainConfig(backbone="phisnet", options=SMALL)
    assert config.model == PhiSNetConfig(**SMALL)
    with pytest.raises(ConfigError, match="not one of none, sad"):
        PhiSNetConfig(reference="minao")
    with pytest.raises(ConfigError, match="lmax of 2 or more"):
        PhiSNetConfig(lmax=1)
    with pytest.raises(ConfigError, match="at least one modular block"):
        PhiSNetConfig(modules=0)
