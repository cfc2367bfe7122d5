"""Gradients by replay of CUDA graphs: small kernels without the wait for the host between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.batch import GraphBatch

# Eager passes before a capture, in which libraries allocate what they keep.
_WARM_UP = 2

# Loss parts by name; ``loss`` is differentiated.
Parts = dict[str, Tensor]


@dataclass
class _Capture:
    graph: torch.cuda.CUDAGraph
    batch: GraphBatch
    parts: Parts


class CapturedGradients:
    """Loss and gradients of batches, captured once for each shape of batch and then replayed.

    All calls fill the same gradients, which need not be zeroed between them. What ``loss`` does
    must not depend on values on the device. Each shape keeps a copy of its batch.

    Args:
        loss: parts of the loss of a batch.
        parameters: to differentiate by, on a CUDA device.
    """

    def __init__(self, loss: Callable[[GraphBatch], Parts], parameters: Iterable[nn.Parameter]):
        self._loss = loss
        self._parameters = [p for p in parameters if p.requires_grad]
        self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._captures: dict[tuple[Any, ...], _Capture] = {}
        # One capture's temporary memory serves all, which run one after the other.
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, batch: GraphBatch) -> Parts:
        """Fill the parameters' ``.grad``; the parts of the loss are valid until the next call."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # whatever has set it to None since, a validation for one
        sizes = batch.max_occupied, batch.shell_counts
        shape = (*sizes, *(tensor.shape for tensor in batch.tensors.values()))
        if shape not in self._captures:
            self._captures[shape] = self._capture(batch)
        capture = self._captures[shape]
        for static, value in zip(
            capture.batch.tensors.values(), batch.tensors.values(), strict=True
        ):
            static.copy_(value)
        capture.graph.replay()
        return capture.parts

    def _differentiate(self, batch: GraphBatch) -> Parts:
        torch._foreach_zero_(self._gradients)
        parts = self._loss(batch)
        parts["loss"].backward()
        return {name: part.detach() for name, part in parts.items()}

    def _capture(self, batch: GraphBatch) -> _Capture:
        static = batch.map(Tensor.clone)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                self._differentiate(static)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are checked: that which pins batches goes on beside it.
        with torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
            parts = self._differentiate(static)
        return _Capture(graph, static, parts)
