"""What engines for independent tasks cost: ``python engines.py {pool,dask,ray,parsl}``.

Seconds until a first task on two workers is done; of a thousand tasks that return 180 kB, a
Hamiltonian of 150 orbitals; and of forty tasks of which one kills its worker each time. For these
the numbers of attempts are printed: of that task, and of all others together beyond one each.
"""

import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

MATRIX = np.zeros((150, 150))
BAD = 7


def give(number):
    return MATRIX


def attempt(number, folder):
    with open(Path(folder) / str(number), "a") as file:
        file.write("x")
    time.sleep(0.02)
    if number == BAD:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def pool():
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    executor = ProcessPoolExecutor(2, get_context("spawn"))
    yield lambda function, tasks: list(executor.map(function, *zip(*tasks, strict=True)))
    executor.shutdown()


def dask():
    import dask
    from distributed import Client, LocalCluster, as_completed

    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    options = {"memory_limit": 0, "dashboard_address": ":0", "silence_logs": 50, "security": True}

    def run(function, tasks):
        """As in pyscf_deqh/tasks.py: one more on its way than there are workers."""
        left = iter(tasks)
        completed = as_completed([submit(function, next(left)) for _ in range(min(3, len(tasks)))])
        for future in completed:
            if future.status == "finished":
                future.result()
            if (following := next(left, None)) is not None:
                completed.add(submit(function, following))

    with LocalCluster(2, threads_per_worker=1, **options) as cluster, Client(cluster) as client:

        def submit(function, task):
            return client.submit(function, *task, pure=False)

        yield run


def ray():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

    def run(function, tasks):
        remote = ray.remote(function).options(max_retries=1)
        for reference in [remote.remote(*task) for task in tasks]:
            with suppress(ray.exceptions.WorkerCrashedError):
                ray.get(reference)

    yield run
    ray.shutdown()


def parsl():
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.high_throughput.errors import WorkerLost

    executor = HighThroughputExecutor(max_workers_per_node=2, address="127.0.0.1")
    folder = tempfile.mkdtemp()
    parsl.load(Config(executors=[executor], retries=1, run_dir=folder))

    def run(function, tasks):
        app = parsl.python_app(function)
        for future in [app(*task) for task in tasks]:
            with suppress(WorkerLost):
                future.result()

    yield run
    parsl.dfk().cleanup()


if __name__ == "__main__":
    started = time.perf_counter()
    for run in {"pool": pool, "dask": dask, "ray": ray, "parsl": parsl}[sys.argv[1]]():
        run(give, [(0,)])
        print(f"start: {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()
        run(give, [(number,) for number in range(1000)])
        print(f"1,000 matrices: {time.perf_counter() - started:.1f} s")
        if sys.argv[1] == "pool":  # it ends with its first dead worker
            continue
        folder = tempfile.mkdtemp()
        started = time.perf_counter()
        run(attempt, [(number, folder) for number in range(40)])
        counts = {int(path.name): len(path.read_text()) for path in Path(folder).iterdir()}
        bad = counts.pop(BAD)
        print(f"a task that kills: {time.perf_counter() - started:.1f} s, {bad} attempts, "
              f"{sum(counts.values()) - len(counts)} more of others")  # fmt: skip
