"""One inference, one training step: what rates are measured of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ...graph.batch import GraphBatch
from ...nn.deqh import DEQH
from ...train.config import OptimizerConfig
from ...train.loss import hamiltonian_loss
from ...train.optimizer import optimizer_of


def inference(model: DEQH, batch: GraphBatch) -> Callable[[], torch.Tensor]:
    """A call that solves for the Hamiltonians of a batch."""
    model.eval()

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model(batch).hamiltonian

    return run


class TrainingSteps:
    """Forward, backward, clipping and the optimizer, as a training does them.

    With random depths a step's time depends on the depth that is drawn. One call here makes
    ``per_call`` steps, one of each depth, so that calls take the same time.
    """

    def __init__(self, model: DEQH, batch: GraphBatch, options: OptimizerConfig | None = None):
        self.model, self.batch = model.train(), batch
        self.options = options or OptimizerConfig()
        small = replace(self.options, learning_rate=1e-6)
        self.optimizer = optimizer_of(model.parameters(), small)
        settings = model.settings
        depths = settings.forward_max_iterations if settings.gradient == "random-depth" else 1
        self.seeds = [_seed_that_draws(depth, depths) for depth in range(depths)]

    @property
    def per_call(self) -> int:
        return len(self.seeds)

    def __call__(self) -> None:
        for seed in self.seeds:
            torch.manual_seed(seed)
            self.loss().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def loss(self) -> torch.Tensor:
        solution = self.model(self.batch)
        weight = self.options.rotation_weight
        return hamiltonian_loss(solution.hamiltonian, self.batch, weight)["loss"]


def _seed_that_draws(depth: int, depths: int) -> int:
    seed = 0
    while int(torch.randint(depths, (), generator=torch.Generator().manual_seed(seed))) != depth:
        seed += 1
    return seed
