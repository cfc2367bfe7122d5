"""What a guess or a worker changes in the whole process: threads of the libraries, PyTorch's type.

Guesses may run side by side in several threads of a process. What one of them needs for a while is
changed by the first that comes and put back by the last that leaves; threads of PyTorch, which each
thread of Python's has a number of, in each by itself. Interrupts wait for changes, and for the
import of PyTorch, which leave nothing sound behind if they are cut off. Threads of OpenMP end
before the process is forked. Many short calls of PySCF are made in threads of Python's.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

from pyscf import lib
from threadpoolctl import ThreadpoolController

_PAUSE_HARD = 2  # OpenMP's omp_pause_hard

_torch_memory = 0.0  # MB

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """An interrupt (Ctrl-C) that comes meanwhile is handled at the end.

    Python handles interrupts in its main thread alone, and those of a handler that is none of its
    own not at all.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    waiting: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            signal.raise_signal(signal.SIGINT)


def import_torch() -> None:
    """Import PyTorch, which takes seconds, as a whole.

    After an import that was cut off in the midst another one fails or ends the process.
    """
    global _torch_memory
    if "torch" not in sys.modules:
        before = lib.current_memory()[0]
        with interrupts_wait():
            import torch  # noqa: F401
        _torch_memory = max(lib.current_memory()[0] - before, 0.0)


def memory_of_torch() -> float:
    """MB that :func:`import_torch` has made the process grow by."""
    return _torch_memory


class SharedSetting:
    """A context that changes something for all who are in it, however many they are.

    Args:
        change: changes it, and returns what puts it back.
        of_thread: it is a setting of the calling thread alone.
    """

    def __init__(self, change: Callable[[], Callable[[], None]], of_thread: bool = False):
        self._change = change
        self._lock = threading.Lock()
        self._now: Any = threading.local() if of_thread else SimpleNamespace()

    def __enter__(self) -> None:
        entered = False
        try:
            with interrupts_wait(), self._lock:
                inside = getattr(self._now, "inside", 0)
                if not inside:
                    self._now.put_back = self._change()
                self._now.inside = inside + 1
                entered = True
        except BaseException:
            if entered:  # an interrupt that waited; no exit follows
                self.__exit__()
            raise

    def __exit__(self, *exc_info: object) -> None:
        with interrupts_wait(), self._lock:
            self._now.inside -= 1
            if not self._now.inside:
                self._now.put_back()


class Together:
    """Several settings as one context."""

    def __init__(self, *settings: SharedSetting):
        self._settings = settings

    def __enter__(self) -> None:
        entered: list[SharedSetting] = []
        try:
            with interrupts_wait():
                for setting in self._settings:
                    setting.__enter__()
                    entered.append(setting)
        except BaseException:
            _leave(entered)
            raise

    def __exit__(self, *exc_info: object) -> None:
        with interrupts_wait():
            _leave(self._settings)


def _leave(settings: Sequence[SharedSetting]) -> None:
    with ExitStack() as stack:
        for setting in settings:
            stack.push(setting)


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
    restore: Callable[[], None] = _blas_with_own_threads().limit(limits=1).restore_original_limits
    return restore


def _limit_torch() -> Callable[[], None]:
    if "torch" in sys.modules:
        import torch

        limit = lib.num_threads()
        # PyTorch's first call in a thread sets its number, where both have the same OpenMP PySCF's.
        torch.get_num_threads()
        if lib.num_threads() != limit:
            lib.num_threads(limit)
        before = torch.get_num_threads()
        if before > limit:
            torch.set_num_threads(limit)
            return lambda: torch.set_num_threads(before)
    return lambda: None


def _single_precision() -> Callable[[], None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    return lambda: torch.set_default_dtype(before)


pyscf_threads = Together(SharedSetting(_limit_blas), SharedSetting(_limit_torch, of_thread=True))
"""Limits PyTorch to PySCF's number of threads (``lib.num_threads``), which its own OpenMP does not
know of, and NumPy's and SciPy's BLAS to one: after each of the small products of a guess its
threads would go on spinning beside PySCF's and PyTorch's, which made a density-fitted cycle two to
three times slower. What is computed in it has PyTorch loaded before. PyTorch has a number of
threads for each of Python's, which a new one takes from the last that was set: one that first uses
PyTorch meanwhile keeps the limit."""

single_precision = SharedSetting(_single_precision)
"""PyTorch's default type that networks are built with, whatever the process has set for others."""


def _end_openmp_threads() -> None:
    """End the threads that GNU's OpenMP keeps for the next parallel loop.

    A forked child has none of them, but would wait for them for ever. Its runtime has had a call
    for that since GCC 9: PyTorch's has it, PySCF's own in its wheels is older.
    """
    if "torch" not in sys.modules:
        return
    for pool in ThreadpoolController().lib_controllers:
        end = getattr(pool.dynlib, "omp_pause_resource_all", None)
        if pool.prefix == "libgomp" and end is not None:
            end(_PAUSE_HARD)


os.register_at_fork(before=_end_openmp_threads)


def side_by_side(
    function: Callable[[_Argument], _Result], arguments: Iterable[_Argument], at_most: int
) -> Iterator[_Result]:
    """Results of a function of PySCF's in their order, made by as many threads as PySCF has.

    Its own, which the others share, would go on spinning for milliseconds after each of many short
    loops, in the way of PyTorch's.

    Args:
        function: may run in several threads at once.
        arguments: read as they are needed.
        at_most: threads; with one of them the caller makes all.
    """
    from pyscf import lib

    threads = lib.num_threads()
    n = min(threads, at_most)
    if n <= 1:
        yield from map(function, arguments)
        return
    with ThreadPoolExecutor(n, initializer=lib.num_threads, initargs=(threads // n,)) as pool:
        running: deque[Future[_Result]] = deque()
        for argument in arguments:
            try:
                running.append(pool.submit(function, argument))
            except RuntimeError:  # no further threads, or the interpreter ends
                running.append(Future())
                running[-1].set_result(function(argument))
            if len(running) > n:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def trim_memory() -> None:
    """Give memory that is not in use back to the system: PySCF decides by what a process holds
    whether two-electron integrals fit beside it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)


def use_threads(threads: int) -> None:
    """Limit every library to so many threads for good: for worker processes and commands."""
    import torch

    # Accelerate has no other switch, and reads it at its first call.
    os.environ["VECLIB_MAXIMUM_THREADS"] = str(threads)
    lib.num_threads(threads)
    torch.set_num_threads(threads)
    ThreadpoolController().limit(limits=threads)
