"""The fixed-point framework on a backbone whose solution is known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyscf_deqh.errors import ConfigError
from pyscf_deqh.nn.deqh import DEQH, SOLVERS, Backbone, SolverSettings

N = 4


class LinearBackbone(Backbone):
    """f(H) = a A H A^T + b C, solved exactly by a linear system."""

    self_consistent = True

    def __init__(self, onsite_only=False):
        super().__init__(None, None)
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


@pytest.mark.parametrize(
    "options",
    [
        {"forward": "newton"},
        {"backward": "none"},
        {"start": "minao"},
        {"forward_max_iterations": 0},
    ],
)
def test_settings_are_checked(options):
    with pytest.raises(ConfigError):
        SolverSettings(**options)
