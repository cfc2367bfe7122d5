"""What steps a training's weights: AdamW, or Muon and AdamW together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter

from .config import OptimizerConfig

# Smaller ones are tables of a row for each element, or maps of a few channels.
_SMALLEST = 16


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices of weights, AdamW for all other parameters.

    Muon (Jordan et al., kellerjordan.github.io/posts/muon, 2024) makes the momentum of a matrix
    nearly orthogonal before it steps. Its steps are as long as AdamW's are (Liu et al.,
    arXiv:2502.16982), so that both have the same learning rate and weight decay.

    Args:
        parameters: of the network. Matrices have two axes of 16 or more.
        lr, weight_decay: of both.
        fused: AdamW's.
    """

    def __init__(
        self, parameters: Iterable[Parameter], lr: float, weight_decay: float, fused: bool = False
    ):
        matrices: list[Parameter] = []
        others: list[Parameter] = []
        for parameter in parameters:
            is_matrix = parameter.dim() == 2 and min(parameter.shape) >= _SMALLEST
            (matrices if is_matrix else others).append(parameter)
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                torch.optim.Muon(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        if others:
            self._parts.append(
                torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, fused=fused)
            )
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the two optimizers work on this one's groups and state."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def optimizer_of(
    parameters: Iterable[Parameter], options: OptimizerConfig, fused: bool = True
) -> torch.optim.Optimizer:
    """The optimizer that ``options`` name; ``fused`` is AdamW's, one operation for all parameters
    instead of a dozen for each."""
    kind = MuonAdamW if options.method == "muon" else torch.optim.AdamW
    rate, decay = options.learning_rate, options.weight_decay
    return kind(parameters, lr=rate, weight_decay=decay, fused=fused)
