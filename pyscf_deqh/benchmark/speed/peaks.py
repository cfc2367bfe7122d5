"""What this machine can do at best, and what a network asks of it: its floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from .timing import measure

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


@dataclass(frozen=True)
class Peaks:
    """Measured rates: single-precision matrix products (FLOP/s), memory (bytes/s, both ways)."""

    flops: float
    bandwidth: float


def machine_peaks(order: int, n_bytes: int, repeats: int = 5) -> Peaks:
    """Best rates of a product of square matrices, and of a copy.

    Args:
        order: of the matrices.
        n_bytes: size of what is copied.
    """
    a, b = torch.randn(order, order), torch.randn(order, order)
    product = min(measure(lambda: a @ b, repeats, 2).values)
    source = torch.zeros(n_bytes // 4)
    target = torch.zeros_like(source)
    copy = min(measure(lambda: target.copy_(source), repeats, 1).values)
    return Peaks(2 * order**3 / product, 2 * 4 * len(source) / copy)


class _ProductBytes(TorchDispatchMode):
    """Adds up the bytes that matrix products read and write."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _PRODUCTS:
            tensors = [t for t in tree_iter((args, out)) if isinstance(t, torch.Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return out


@dataclass(frozen=True)
class Work:
    """FLOPs of a call's matrix products, and the bytes that these read and write."""

    flops: int
    bytes: int

    def seconds(self, peaks: Peaks) -> tuple[float, float]:
        """Times at the machine's peak rates: of the arithmetic, and of the traffic."""
        return self.flops / peaks.flops, self.bytes / peaks.bandwidth


def count_work(function: Callable[[], object]) -> Work:
    """Work of the matrix products of one call; eigenproblems and pointwise work are not in it."""
    with FlopCounterMode(display=False) as flops:
        function()
    with _ProductBytes() as traffic:
        function()
    return Work(flops.get_total_flops(), traffic.total)
