"""The fixed-point framework on a backbone whose solution is known."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_mol, small_model, small_qhnet
from torch import nn
from torchdeq.solver import anderson_solver

from pyscf_deqh.errors import ConfigError
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.deqh import DEQH, SOLVERS, Backbone, SolverSettings

N = 4


class LinearBackbone(Backbone):
    """f(H) = a A H A^T + b C, solved exactly by a linear system."""

    self_consistent = True

    def __init__(self, onsite_only=False):
        super().__init__(None, SimpleNamespace(reference="sad"))
        g = torch.Generator().manual_seed(0)
        a = torch.randn(N, N, dtype=torch.float64, generator=g)
        c = torch.randn(2, N, N, dtype=torch.float64, generator=g)
        self.a = nn.Parameter(0.6 * a / torch.linalg.matrix_norm(a, 2))
        self.scale = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.c = c + c.mT
        self.injections = self.filters = self.readouts = 0
        self.onsite_only = onsite_only

    def injection(self, graph):
        self.injections += 1
        return self.c

    def state(self, hamiltonian, injected):
        return hamiltonian[:, :2, :2] if self.onsite_only else hamiltonian

    def filter(self, state, injected):
        self.filters += 1
        if self.onsite_only:
            b = self.a[:2, :2]
            return self.scale * b @ state @ b.T + injected[:, :2, :2]
        return self.scale * self.a @ state @ self.a.T + injected

    def hamiltonian(self, state, injected):
        self.readouts += 1
        if self.onsite_only:
            out = injected.clone()
            out[:, :2, :2] = state
            return out
        return state

    def exact(self):
        kron = self.scale * torch.kron(self.a, self.a)
        eye = torch.eye(N * N, dtype=torch.float64)
        return torch.linalg.solve(eye - kron, self.c.reshape(2, -1, 1)).reshape(2, N, N)


GRAPH = SimpleNamespace(
    reference=torch.zeros(2, N, N, dtype=torch.float64),
    overlap=torch.eye(N, dtype=torch.float64).expand(2, N, N),
    orbital_mask=torch.ones(2, N, dtype=torch.bool),
)


def settings(**options):
    base = {"forward_max_iterations": 60, "forward_tolerance": 1e-12, "backward_max_iterations": 60,
            "backward_tolerance": 1e-12, "start": "identity"}  # fmt: skip
    return SolverSettings(**(base | options))


def test_andersons_iteration_is_hardly_regularized_forward_and_backward():
    deq = DEQH(LinearBackbone(), settings(forward="anderson", backward="anderson"))._deq
    for find in (deq.f_solver, deq.b_solver):
        assert find.func is anderson_solver
        assert find.keywords == {"lam": 1e-8}


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_find_the_fixed_point(solver):
    backbone = LinearBackbone()
    solution = DEQH(backbone, settings(forward=solver)).eval()(GRAPH)
    torch.testing.assert_close(solution.hamiltonian, backbone.exact(), atol=1e-7, rtol=0)
    assert (solution.residual < 1e-7).all()
    assert (solution.iterations > 1).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_implicit_gradient_equals_the_exact_one(solver):
    backbone = LinearBackbone()
    weight = torch.randn(2, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    model = DEQH(backbone, settings(backward=solver)).train()
    (model(GRAPH).hamiltonian * weight).sum().backward()
    solved = {name: p.grad.clone() for name, p in backbone.named_parameters()}
    backbone.zero_grad()
    (backbone.exact() * weight).sum().backward()
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(solved[name], parameter.grad, atol=1e-6, rtol=1e-6)


def test_injection_and_readout_are_computed_once():
    backbone = LinearBackbone(onsite_only=True)
    solution = DEQH(backbone, settings()).eval()(GRAPH)
    assert (backbone.injections, backbone.readouts) == (1, 1)
    assert backbone.filters > 3
    b = backbone.a[:2, :2]
    exact = solution.hamiltonian[:, :2, :2]
    torch.testing.assert_close(exact, backbone.scale * b @ exact @ b.T + backbone.c[:, :2, :2])


def test_a_predictor_is_evaluated_once():
    backbone = LinearBackbone()
    backbone.self_consistent = False
    solution = DEQH(backbone, settings()).train()(GRAPH)
    assert (backbone.injections, backbone.filters, backbone.readouts) == (1, 0, 1)
    assert (solution.iterations == 1).all()
    assert (solution.residual == 0).all()


def test_start_and_iteration_limit():
    backbone = LinearBackbone()
    model = DEQH(backbone, settings(forward_max_iterations=1)).eval()
    eye = torch.eye(N, dtype=torch.float64)
    once = backbone.scale * backbone.a @ eye @ backbone.a.T + backbone.c
    torch.testing.assert_close(model(GRAPH).hamiltonian, once)
    given = backbone.exact().detach()
    torch.testing.assert_close(model(GRAPH, initial=given).hamiltonian, given)
    model.configure(settings(forward_max_iterations=1, start="reference"))
    torch.testing.assert_close(model(GRAPH).hamiltonian, backbone.c)
    # Without a reference there is none to start from.
    backbone.config.reference = "none"
    torch.testing.assert_close(model(GRAPH).hamiltonian, once)


def test_norm_of_the_jacobian():
    """That of f(H) = a A H A^T + b is a A x A."""
    net = LinearBackbone()
    model = DEQH(net)
    jacobian = net.scale * torch.kron(net.a, net.a)
    torch.manual_seed(1)
    vectors = torch.randn(2, N, N).double().flatten(1)
    torch.manual_seed(1)
    found = model.jacobian_norm(GRAPH, GRAPH.reference)
    torch.testing.assert_close(found, (vectors @ jacobian).square().sum() / vectors.numel())
    (by_scale,) = torch.autograd.grad(found, net.scale)
    torch.testing.assert_close(by_scale, 2 * found.detach() / net.scale.detach())
    draws = [model.jacobian_norm(GRAPH, GRAPH.reference).item() for _ in range(500)]
    assert sum(draws) / 500 == pytest.approx(jacobian.square().sum().item() / N**2, rel=0.1)


@pytest.mark.parametrize("make", [small_model, small_qhnet])
def test_norm_of_a_networks_jacobian_by_finite_differences(template, make):
    model = make(template, "sad") if make is small_model else make(template)
    graph = build_graph(make_mol("O 0 0 0; H 0 .76 .59; H 0 -.76 .59"), "sad")
    batch = collate([graph], template, model.backbone.cutoff, torch.float64)
    weights = [p for p in model.parameters() if p.requires_grad]
    step = [torch.randn_like(p) for p in weights]

    def norm():
        torch.manual_seed(0)
        return model.jacobian_norm(batch, batch.reference)

    gradients = torch.autograd.grad(norm(), weights, allow_unused=True)
    found = sum((g * s).sum() for g, s in zip(gradients, step, strict=True) if g is not None)
    values = []
    for sign in (1, -2, 1):
        with torch.no_grad():
            for p, s in zip(weights, step, strict=True):
                p += sign * 1e-6 * s
        values.append(norm().item())
    assert norm().item() > 1e-8
    assert found.item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"forward": "newton"},
        {"backward": "none"},
        {"start": "minao"},
        {"forward_max_iterations": 0},
        {"forward": "anderson", "forward_max_iterations": 2},
        {"backward": "anderson", "backward_max_iterations": 1},
    ],
)
def test_settings_are_checked(options):
    with pytest.raises(ConfigError):
        SolverSettings(**options)
