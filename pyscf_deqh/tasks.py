"""Work that falls into independent tasks: in this process, on this machine's cores, on a cluster.

Dask distributed carries the tasks (docs/scaling.md says why). A worker that dies takes its own task
along and no other. Such a task, and one that ran out of memory, is tried once more when all others
are done, alone on whatever there is; if that fails too, it is reported as failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from .errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client, Future

Key = TypeVar("Key", bound=Hashable)
Task: TypeAlias = tuple[Key, tuple[Any, ...]]
"""What a task is known by, and the arguments of its function."""

# Kinds of clusters in a file: the names of dask-jobqueue's classes.
_QUEUES = {
    "htcondor": "HTCondorCluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "slurm": "SLURMCluster",
}
_PATIENCE = 30  # seconds until a scheduler has to answer
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_REFRESH = 1.0  # seconds between looks at how many workers there are
_AGAIN = (MemoryError, OSError)  # what may have been the machine's fault
_UNSOUND = "CUDA error"


@dataclass(frozen=True)
class Failure:
    """A task without a result.

    Attributes:
        reason: type and text of the error, or that the worker died.
        again: whether the machine may have been at fault.
    """

    reason: str
    again: bool = False


def outcomes(
    function: Callable[..., Any],
    tasks: deque[Task[Key]],
    workers: int | None = None,
    scheduler: str | None = None,
) -> Iterator[tuple[Key, Any | Failure]]:
    """Key and result of every task, as soon as there is one.

    Args:
        function: of a module that workers can import; it and its arguments are pickled.
        tasks: is emptied from the left; more may be appended while outcomes are taken.
        workers: processes on this machine, one thread each; all cores by default. With 0 the tasks
            run in this process, one after the other.
        scheduler: where to run instead: the address of a Dask scheduler, its scheduler file
            (``.json``), or a file (``.yaml``) that describes a cluster (docs/scaling.md).

    Raises:
        ConfigError: no such scheduler, a file that describes none, or workers without this package.
        ModuleNotFoundError: Dask is not installed.
    """
    if scheduler is not None and workers is not None:
        raise ConfigError("workers are those of the scheduler: give one of the two")
    if workers is not None and workers < 0:
        raise ConfigError(f"{workers} workers: give a positive number, or 0 for none but this one")
    if not tasks:
        return
    if workers == 0:
        while tasks:
            key, arguments = tasks.popleft()
            yield key, _attempt(function, arguments)
        return
    doubtful: deque[tuple[Task[Key], str]] = deque()
    with _client(workers, scheduler) as client:
        while tasks or doubtful:
            for task, result in _run(client, function, tasks):
                if isinstance(result, Failure) and result.again:
                    doubtful.append((task, result.reason))
                else:
                    yield task[0], result
            if doubtful:
                (key, arguments), reason = doubtful.popleft()
                ((_, result),) = _run(client, function, deque([(key, arguments)]))
                if isinstance(result, Failure) and result.again:
                    result = Failure(f"{reason}; the same in a second attempt, alone")
                yield key, result


def _run(
    client: Client, function: Callable[..., Any], tasks: deque[Task[Key]]
) -> Iterator[tuple[Task[Key], Any | Failure]]:
    """One more task than workers is on its way, so that none waits and few die with another's."""
    from distributed import as_completed

    running: dict[Future[Any], Task[Key]] = {}
    completed = as_completed(loop=client.loop)
    looked, slots = -_REFRESH, 0
    while tasks or running:
        if time.monotonic() > looked + _REFRESH:
            looked, slots = time.monotonic(), _threads(client) + 1
        while tasks and len(running) < slots:
            task = tasks.popleft()
            future = client.submit(_attempt_in_worker, function, task[1], pure=False)
            running[future] = task
            completed.add(future)
        future = next(completed)
        task = running.pop(future)
        yield task, _result(future)


def _threads(client: Client) -> int:
    try:
        return sum(client.nthreads().values())
    except Exception as error:
        raise _no_work(error) from error


def _result(future: Future[Any]) -> Any | Failure:
    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        return Failure("the worker process died (out of memory?)", again=True)
    # An error of a task is its result: this one is of the way there or back.
    except Exception as error:
        raise _no_work(error) from error


def _no_work(error: Exception) -> ConfigError:
    return ConfigError(
        f"the workers cannot do the work: {type(error).__name__}: {error}. All of them need "
        "this package in the same version as here; the same command goes on"
    )


def _attempt(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any | Failure:
    # Errors travel as text: exceptions of libraries do not always survive pickling.
    try:
        return function(*arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
        return Failure(reason, isinstance(error, _AGAIN))


def _attempt_in_worker(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any | Failure:
    found = _attempt(function, arguments)
    if isinstance(found, Failure) and _UNSOUND in found.reason:
        # No task of this process will find the GPU sound again: let a new one take the next.
        os._exit(1)
    return found


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator[Client]:
    from dask.system import CPU_COUNT  # those that this process may use
    from distributed import Client

    with ExitStack() as stack:
        options: dict[str, Any] = {"timeout": _PATIENCE, "set_as_default": False}
        if scheduler is None:
            options["address"] = stack.enter_context(_this_machine(workers or CPU_COUNT))
        elif scheduler.endswith((".yaml", ".yml")):
            options["address"] = stack.enter_context(_queue(Path(scheduler)))
        elif scheduler.endswith(".json"):
            options["address"] = _address_in(Path(scheduler))
        else:
            options["address"] = scheduler
        try:
            client = stack.enter_context(Client(**options))
        except (OSError, ValueError) as error:
            raise ConfigError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        if not _threads(client):
            print("waiting for the first worker", file=sys.stderr)
            client.wait_for_workers(1)
        try:
            yield client
        finally:
            if scheduler is None:
                _all_restarted(client, workers or CPU_COUNT)


def _all_restarted(client: Client, workers: int) -> None:
    """Wait for those that died last: a cluster fails to close while it starts a process anew."""
    from distributed import TimeoutError as DaskTimeoutError

    with suppress(DaskTimeoutError, OSError):
        client.wait_for_workers(workers, timeout=_PATIENCE)


def _address_in(file: Path) -> str:
    """The address in a scheduler's file, which it may still have to write.

    Raises:
        ConfigError: there is none.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return str(json.loads(file.read_text())["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if time.monotonic() > until:
                raise ConfigError(f"{file} names no Dask scheduler: {error!r}") from error
        time.sleep(0.1)


@contextmanager
def _same_environment() -> Iterator[None]:
    """Take back what Dask sets for its workers in this process too: numbers of threads, say, of
    which it would leave them those that the user has set."""
    before = dict(os.environ)
    for name in _THREADS:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _this_machine(workers: int) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    # One death is enough to try a task alone. Connections are encrypted and have certificates of
    # their own: whoever else is on the machine could run code through open ones.
    with _same_environment(), dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",
                security=True,
                silence_logs=logging.CRITICAL,
            )
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"cannot start {workers} workers here: {error}. With --workers 0 there are none"
            ) from error
        with cluster:
            yield cluster


@contextmanager
def _queue(file: Path) -> Iterator[Any]:
    """A cluster of jobs of a batch system, from a file with one section, named like the system."""
    import yaml

    try:
        ((system, options),) = yaml.safe_load(file.read_text()).items()
        jobs = options.pop("jobs")
        kind = _QUEUES[system]
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file} describes no cluster ({error!r}): it needs one section, {', '.join(_QUEUES)}, "
            "with jobs (how many) and options of dask-jobqueue's class for it"
        ) from error
    module = importlib.import_module("dask_jobqueue")
    try:
        cluster = getattr(module, kind)(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from error
    with cluster:
        cluster.scale(jobs=jobs)
        yield cluster


def add_options(parser: argparse.ArgumentParser, default: str = "all cores") -> None:
    """``--workers`` and ``--scheduler``."""
    parser.add_argument("--workers", type=int, metavar="N",
                        help=f"processes, one thread each (default: {default}); 0: none but this "
                        "one, with all its threads")  # fmt: skip
    parser.add_argument("--scheduler", metavar="ADDRESS",
                        help="run on the workers of this Dask scheduler: its address or its "
                        ".json file, or a .yaml file that describes a cluster")  # fmt: skip


def one_process(options: argparse.Namespace) -> int | None:
    """Workers for a command that measures: none where the user names neither them nor a cluster."""
    chosen: int | None = options.workers
    return 0 if chosen is None and options.scheduler is None else chosen
