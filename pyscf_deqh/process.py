"""What a guess or a worker changes in the whole process: threads of the libraries, PyTorch's type.

Guesses may run side by side in several threads of a process. What one of them needs for a while is
changed by the first that comes and put back by the last that leaves.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable

from threadpoolctl import ThreadpoolController


class SharedSetting:
    """A context that changes something for all who are in it, however many they are.

    Args:
        change: changes it, and returns what puts it back.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]):
        self._change = change
        self._lock = threading.Lock()
        self._inside = 0
        self._put_back: Callable[[], None]

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._put_back = self._change()
            self._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._put_back()


@functools.lru_cache(maxsize=1)
def _blas_with_own_threads() -> ThreadpoolController:
    # Libraries that thread by OpenMP (MKL, some builds of OpenBLAS and BLIS) share their threads
    # with PySCF or PyTorch, which need them; Accelerate's do not spin.
    pools = ThreadpoolController()
    own = [
        pool.filepath
        for pool in pools.lib_controllers
        if pool.user_api == "blas" and getattr(pool, "threading_layer", "") == "pthreads"
    ]
    return pools.select(filepath=own)


def _limit_blas() -> Callable[[], None]:
    return _blas_with_own_threads().limit(limits=1).restore_original_limits


def _single_precision() -> Callable[[], None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    return lambda: torch.set_default_dtype(before)


one_blas_thread = SharedSetting(_limit_blas)
"""Limits NumPy's and SciPy's BLAS: after each of the small products of a guess its threads would go
on spinning beside PySCF's and PyTorch's, which made a density-fitted cycle two to three times
slower."""

single_precision = SharedSetting(_single_precision)
"""PyTorch's default type that networks are built with, whatever the process has set for others."""


def use_threads(threads: int) -> None:
    """Limit every library to so many threads for good: for worker processes and commands."""
    import torch
    from pyscf import lib

    # Accelerate has no other switch, and reads it at its first call.
    os.environ["VECLIB_MAXIMUM_THREADS"] = str(threads)
    lib.num_threads(threads)
    torch.set_num_threads(threads)
    ThreadpoolController().limit(limits=threads)
