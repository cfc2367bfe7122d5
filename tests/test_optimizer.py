"""Muon with AdamW, against singular values and PyTorch's AdamW."""

from copy import deepcopy

import pytest
import torch

from pyscf_deqh.train.config import OptimizerConfig
from pyscf_deqh.train.optimizer import MuonAdamW, optimizer_of

LEARNING_RATE = 1e-2
SHAPES = ((32, 48), (24, 24), (40, 16), (48,), (10, 32), (3, 32, 32))
N_MATRICES = 3


@pytest.fixture
def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def _step(optimizer, parameters, seed):
    torch.manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()


def test_a_matrix_takes_an_orthogonal_step_of_adamws_size(parameters):
    """The first momentum is along the gradient, whose singular vectors the step keeps; all singular
    values become about one, whose root mean square over the elements is brought to 0.2."""
    before = [parameter.detach().clone() for parameter in parameters]
    _step(MuonAdamW(parameters, LEARNING_RATE, 0.0), parameters, 1)
    for old, new in zip(before[:N_MATRICES], parameters[:N_MATRICES], strict=True):
        step = (old - new.detach()) / LEARNING_RATE
        u, _, vh = torch.linalg.svd(new.grad, full_matrices=False)
        in_its_vectors = u.mT @ step @ vh.mT / (0.2 * max(step.shape) ** 0.5)
        values = in_its_vectors.diagonal()
        assert values.min() > 0.5
        assert values.max() < 1.4
        assert (in_its_vectors - values.diag()).abs().max() < 0.05  # bfloat16
        assert step.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


def test_all_else_is_stepped_by_adamw(parameters):
    others = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    ours, theirs = (
        kind(chosen, lr=LEARNING_RATE, weight_decay=0.1)
        for kind, chosen in ((MuonAdamW, parameters), (torch.optim.AdamW, others))
    )
    for seed in range(3):
        _step(ours, parameters, seed)
        _step(theirs, others, seed)
    for k, (one, other) in enumerate(zip(parameters, others, strict=True)):
        assert torch.equal(one, other) == (k >= N_MATRICES)


def test_groups_are_those_of_both(parameters):
    """A schedule sets the learning rate of the groups that an optimizer shows."""
    optimizer = optimizer_of(parameters, OptimizerConfig("muon"))
    before = [parameter.detach().clone() for parameter in parameters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    _step(optimizer, parameters, 0)
    assert all(map(torch.equal, parameters, before))


def test_a_loaded_state_goes_on(parameters):
    optimizer = MuonAdamW(parameters, LEARNING_RATE, 0.1)
    _step(optimizer, parameters, 0)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    resumed = MuonAdamW(copies, 1.0, 0.0)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))  # tensors are taken as they are
    for seed in (1, 2):
        _step(optimizer, parameters, seed)
        _step(resumed, copies, seed)
    assert all(map(torch.equal, parameters, copies))


@pytest.mark.parametrize("shape", [(32, 32), (32,)])
def test_one_kind_alone(shape):
    parameter = torch.nn.Parameter(torch.ones(shape))
    _step(MuonAdamW([parameter], LEARNING_RATE, 0.0), [parameter], 0)
    assert not torch.equal(parameter, torch.ones(shape))
