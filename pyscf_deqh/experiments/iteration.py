"""DEQHNet's fixed-point iteration, step by step (Sec. 5.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..graph.batch import GraphBatch
from ..nn.deqh import DEQH
from ..nn.qhnet import QHNet


def relative_changes(network: DEQH, graph: GraphBatch, limit: int, tolerance: float) -> Tensor:
    """||f(x) - x|| / ||f(x)|| (k, B) of each iteration from the network's own start.

    Goes on until all molecules were below the tolerance, at most ``limit`` times.
    """
    backbone: Any = network.backbone
    injected = backbone.injection(graph)
    state = backbone.state(network.initial_hamiltonian(graph), injected)
    changes: list[Tensor] = []
    reached = torch.zeros(graph.n_molecules, dtype=torch.bool, device=state.device)
    while len(changes) < limit and not reached.all():
        new = backbone.filter(state, injected)
        changes.append((new - state).flatten(1).norm(dim=1) / new.flatten(1).norm(dim=1))
        reached |= changes[-1] < tolerance
        state = new
    return torch.stack(changes)


def count_iterations(changes: Tensor, tolerance: float, limit: int) -> list[int]:
    """Iterations until each molecule's change (k, B) is below the tolerance, else the limit."""
    below = changes < tolerance
    first = torch.where(below.any(0), below.int().argmax(0) + 1, limit)
    return first.tolist()


def iterates(network: DEQH, graph: GraphBatch, initial: Tensor) -> Iterator[Tensor]:
    """H^1, H^2, … (B, n, n) in hartree of H^(k+1) = f(H^k) from H^0 = ``initial`` (B, n, n).

    Raises:
        ConfigError: the network is not a self-consistent QHNet.
    """
    backbone = network.backbone
    if not (isinstance(backbone, QHNet) and backbone.self_consistent):
        raise ConfigError("iterations are counted for DEQHNet alone: name such a model")
    injected = backbone.injection(graph)
    state = backbone.state(initial, injected)
    while True:
        # All blocks of f(state); its on-site blocks are the next state.
        yield backbone.hamiltonian(state, injected)
        state = backbone.filter(state, injected)
