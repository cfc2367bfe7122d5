"""Tasks in this process, on this machine, by a scheduler's address and by a batch system."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter, deque

import pytest
from conftest import file_size_limit
from distributed import Client, LocalCluster
from worker_functions import attempt, threads

from pyscf_deqh import ConfigError, tasks
from pyscf_deqh.tasks import Failure, outcomes

pytestmark = pytest.mark.usefixtures("quick_workers")


def squares(folder, n=12, faults=None):
    return deque((number, (folder, number, faults)) for number in range(n))


def attempts(folder):
    return {int(path.name): len(path.read_text().split()) for path in folder.iterdir()}


def test_in_this_process(tmp_path):
    found = dict(outcomes(attempt, squares(tmp_path, 3), workers=0))
    assert found == {0: 0, 1: 1, 2: 4}
    assert {path.read_text().strip() for path in tmp_path.iterdir()} == {str(os.getpid())}


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_are_outcomes(workers, tmp_path):
    fails = {1: ValueError("no such basis"), 2: MemoryError("1 TiB"), 3: OSError("stale handle")}
    tasks = squares(tmp_path, 5, fails)
    found = dict(outcomes(attempt, tasks, workers))
    assert {k: v for k, v in found.items() if k not in fails} == {0: 0, 4: 16}
    assert found[1] == Failure("ValueError: no such basis")
    assert "MemoryError: 1 TiB" in found[2].reason
    assert "OSError: stale handle" in found[3].reason
    # What may be the machine's fault gets another chance where others may have caused it.
    again = 2 if workers else 1
    assert attempts(tmp_path) == {0: 1, 1: 1, 2: again, 3: again, 4: 1}


def test_a_dying_worker_costs_its_own_task_alone(tmp_path):
    """Content equals that of one process; what dies for good is listed."""
    dies = {3: "once", 7: "always", 11: "once"}
    found = dict(outcomes(attempt, squares(tmp_path, 20, dies), workers=2))
    failed = found.pop(7)
    assert found == {number: number**2 for number in range(20) if number != 7}
    assert failed.reason == (
        "the worker process died (out of memory?); the same in a second attempt, alone"
    )
    counted = attempts(tmp_path)
    assert {number for number, n in counted.items() if n == 2} >= set(dies)
    # A worker has at most one task beside the one that killed it.
    assert sum(counted.values()) <= 20 + 2 * 4


def test_no_worker_is_being_started_when_all_are_closed(tmp_path, monkeypatch):
    """Dask fails to close such a cluster: the last death must not fail the work that is done."""
    there = []
    close = LocalCluster.close

    def counted(self, *arguments, **options):
        there.append(len(self.scheduler.workers))
        return close(self, *arguments, **options)

    monkeypatch.setattr(LocalCluster, "close", counted)
    monkeypatch.setattr(tasks, "_PATIENCE", 300)  # a busy machine
    found = dict(outcomes(attempt, squares(tmp_path, 3, {2: "always"}), workers=2))
    assert found[2].reason.startswith("the worker process died")
    assert there[0] == 2


def test_own_workers_are_closed_to_others():
    """Whoever else is on the machine could run code through an open scheduler."""
    with tasks._this_machine(1) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://127.0.0.1:")
        for asked in (address, address.replace("tls", "tcp")):
            with pytest.raises((OSError, TypeError)):
                Client(asked, timeout=2, set_as_default=False)


def test_workers_that_are_killed_from_outside(tmp_path):
    """Each outcome once, whatever dies while the work goes on."""
    found, killed = Counter(), set()
    tasks = squares(tmp_path, 60)
    for number, result in outcomes(attempt, tasks, workers=2):
        assert result == number**2
        found[number] += 1
        worker = int((tmp_path / f"{number}").read_text().split()[-1])
        if sum(found.values()) % 15 == 0 and worker not in killed:
            killed.add(worker)
            os.kill(worker, signal.SIGKILL)
    assert found == Counter(range(60))
    assert len(killed) >= 2


def test_more_tasks_while_outcomes_are_taken(tmp_path):
    tasks, found = squares(tmp_path, 2), {}
    for number, result in outcomes(attempt, tasks, workers=1):
        found[number] = result
        if number < 6:
            tasks.append((number + 2, (tmp_path, number + 2)))
    assert found == {number: number**2 for number in range(8)}


def test_workers_have_one_thread_each(spawned_workers, monkeypatch):
    """And this process has its own, and its children theirs, as before."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = dict(os.environ)
    ((_, found),) = outcomes(threads, deque([("", ())]), workers=1)
    assert found == (1, {1})
    assert dict(os.environ) == before


def test_what_is_asked_for_has_to_make_sense(tmp_path):
    with pytest.raises(ConfigError, match="give one of the two"):
        next(outcomes(attempt, squares(tmp_path), 2, "tcp://127.0.0.1:1"))
    with pytest.raises(ConfigError, match="-1 workers"):
        next(outcomes(attempt, squares(tmp_path), -1))
    with pytest.raises(ConfigError, match="no Dask scheduler answers at nowhere"):
        next(outcomes(attempt, squares(tmp_path), scheduler="nowhere"))
    assert list(outcomes(attempt, deque(), scheduler="nowhere")) == []


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("slurm: {cores: 1}", "describes no cluster .*jobs"),
        ("moon: {jobs: 1}", "describes no cluster .*moon.*slurm"),
        ("- 3", "describes no cluster"),
        ("{", "describes no cluster"),
        ("slurm: {jobs: 1, colour: red}", "colour"),
    ],
)
def test_files_that_describe_no_cluster(text, match, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=match):
        next(outcomes(attempt, squares(tmp_path), scheduler=str(file)))


@pytest.mark.parametrize("text", [None, "{", "[]", '{"id": 1}'])
def test_scheduler_files_without_an_address(text, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_PATIENCE", 0)
    file = tmp_path / "scheduler.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="names no Dask scheduler"):
        next(outcomes(attempt, squares(tmp_path), scheduler=str(file)))


def test_a_machine_without_room_for_workers(tmp_path):
    with (
        file_size_limit(100),
        pytest.raises(ConfigError, match=r"cannot start 2 workers.*--workers"),
    ):
        next(outcomes(attempt, squares(tmp_path), workers=2))


def command(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_by_a_batch_system(tmp_path, monkeypatch):
    """Slurm's commands are played: a job is a process of this machine."""
    bin, work = tmp_path / "bin", tmp_path / "work"
    bin.mkdir()
    work.mkdir()
    job = tmp_path / "job"
    command(bin / "sbatch", f'cp "$1" {job}; setsid sh {job} > {tmp_path}/log 2>&1 & '
            'echo "Submitted batch job $!"')  # fmt: skip
    command(bin / "scancel", 'kill -- "-$1"')
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    file = tmp_path / "cluster.yaml"
    file.write_text("slurm: {jobs: 1, cores: 2, processes: 2, memory: 2GB, walltime: '01:00:00'}")
    found = dict(outcomes(attempt, squares(work, 6), scheduler=str(file)))
    assert found == {number: number**2 for number in range(6)}
    assert "#SBATCH --cpus-per-task=2" in (tmp_path / "job").read_text()
    assert "#SBATCH -t 01:00:00" in (tmp_path / "job").read_text()


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler and a worker from Dask's command line, as on a cluster."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    file, processes = tmp_path / "scheduler.json", []
    for arguments in (
        ["scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1"],
        ["worker", "--nthreads", "1", "--no-dashboard", "--no-nanny"],
    ):
        processes.append(subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments, "--scheduler-file", str(file)],
            env=environment, stderr=subprocess.DEVNULL,
        ))  # fmt: skip
    yield file, processes
    for process in processes:
        process.terminate()
        process.wait()


def test_by_a_scheduler(scheduler, tmp_path):
    file, (process, _) = scheduler
    work = tmp_path / "work"
    work.mkdir()
    while not file.exists():
        time.sleep(0.05)
        assert process.poll() is None
    found = dict(outcomes(attempt, squares(work, 6), scheduler=str(file)))
    assert found == {number: number**2 for number in range(6)}
    # A scheduler that goes away is an error, and no endless wait.
    running = outcomes(attempt, squares(work, 10_000), scheduler=str(file))
    next(running)
    process.kill()
    with pytest.raises(ConfigError, match="the workers cannot do the work"):
        dict(running)
