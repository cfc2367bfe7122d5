"""DEQHNet's fixed-point iteration, step by step (Sec. 5.3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import ConfigError
from ..graph import GraphBatch
from ..nn.deqh import DEQH
from ..nn.qhnet import QHNet


def iterations_to_tolerance(network: DEQH, graph: GraphBatch) -> tuple[Tensor, Tensor]:
    """Iterations (B,) of each molecule until its state changes by less than the tolerance.

    The change is relative, as in the solver. Molecules that do not get there count as the limit.

    Returns:
        The numbers, and whether the tolerance was reached (B,).
    """
    settings, backbone = network.settings, network.backbone
    injected = backbone.injection(graph)
    state = backbone.state(network.initial_hamiltonian(graph), injected)
    limit = settings.forward_max_iterations
    steps = torch.full((graph.n_molecules,), limit, device=state.device)
    converged = torch.zeros_like(steps, dtype=torch.bool)
    for k in range(1, limit + 1):
        new = backbone.filter(state, injected)
        change = (new - state).flatten(1).norm(dim=1) / new.flatten(1).norm(dim=1)
        state = new
        reached = (change < settings.forward_tolerance) & ~converged
        steps[reached] = k
        converged |= reached
        if converged.all():
            break
    return steps, converged


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
