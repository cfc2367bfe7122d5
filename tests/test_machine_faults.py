"""What surrounds a guess: read-only folders, no home, no network, forks, Ctrl-C, and thousands of
guesses in one process. Each in processes of its own, with real signals and mounts."""

import os
import shutil
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import scf
from test_full_disk import can_mount
from test_killed import label, train
from test_process import state

import pyscf_deqh
from pyscf_deqh import deqh_guess
from pyscf_deqh.checkpoint import models_folder

SCF = """
import sys
from pyscf import gto
from pyscf.scf import RHF
from pyscf_deqh import deqh_guess

def scf():
    atom = "O 0 0 .119; H 0 .763 -.477; H 0 -.763 -.477"
    mol = gto.M(atom=atom, basis="def2-svp", verbose=0)
    return RHF(mol).apply(deqh_guess, start="network")
"""


# Beside other tests threads that spin would take minutes.
TWO_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


def run(arguments, folder, before=(), **environment):
    """A process of this Python; what it prints, without an error."""
    done = subprocess.run(
        [*before, sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
        check=False, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# Read-only folders, no home, no network

# In every process from its first line: to write outside of the folder for temporary files and the
# current one, or to talk to anyone, is an error. Python's own bytecode is none of ours.
WATCH = """
import os, sys, tempfile
allowed = tuple(map(os.path.realpath, (os.getcwd(), tempfile.gettempdir(), os.devnull)))

def watch(event, arguments):
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or isinstance(path, int):
            return
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.truncate"):
        path = arguments[0]
    elif event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"):
        raise RuntimeError(f"{event} {arguments}")
    else:
        return
    path = os.path.realpath(os.fsdecode(path))
    if not path.startswith(allowed) and "__pycache__" not in path:
        raise RuntimeError(f"{event} {path}")

sys.addaudithook(watch)
"""

# A user without a name, a home and a network, for whom all but the folder $1 is read-only.
ALONE = """
mount --bind "$1" "$1" && mount --bind "$2" "$2" && mount -o remount,bind,ro "$2" || exit 99
mount -o remount,bind,ro / && cd "$1" && shift 2 || exit 99
exec unshare --user --map-user=54321 --map-group=54321 \\
    env -u HOME -u USER -u LOGNAME -u TMPDIR -u XDG_CACHE_HOME -u TORCHINDUCTOR_CACHE_DIR "$@"
"""
GUESS = """
mf = scf()
assert mf.kernel() and mf.converged and mf.cycles == 2, mf.cycles
assert mf.deqh_report.start == "network" and not mf.deqh_report.notes, mf.deqh_report
"""


@pytest.fixture
def guarded(tmp_path):
    """Runs a command with a copy of the package, in a folder of its own."""
    package, here, watch = (tmp_path / name for name in ("package", "here", "watch"))
    source = Path(pyscf_deqh.__file__).parent
    no_bytecode = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, package / "pyscf_deqh", ignore=no_bytecode)
    shutil.copytree(models_folder(), package / "models", ignore=no_bytecode)
    here.mkdir()
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    before = ()
    if can_mount():
        before = ("unshare", "--map-root-user", "--mount", "--net", "sh", "-c", ALONE, "sh",
                  str(here), str(package))  # fmt: skip
    path = os.pathsep.join(map(str, (watch, package)))

    def run_guarded(arguments):
        missing = {"HOME": str(tmp_path / "none")}
        run(arguments, here, before, PYTHONPATH=path, **missing)
        assert not list(package.rglob("__pycache__")) or not before

    return here, run_guarded


def test_a_guess_where_nothing_can_be_written(guarded):
    here, run_guarded = guarded
    check = "import pyscf_deqh; assert '/package/' in pyscf_deqh.__file__"
    run_guarded(["-W", "error::ResourceWarning", "-c", "\n".join((SCF, check, GUESS))])
    assert not list(here.iterdir())


@pytest.mark.slow
def test_labels_and_trainings_in_their_folders_alone(guarded):
    here, run_guarded = guarded
    (here.parent / "labels").mkdir()
    arguments = label(here.parent / "labels")
    run(["-m", *arguments], here.parent / "labels")
    run_guarded(["-m", *label(here)])
    run_guarded(["-m", *train(here)])


# Forks and threads

CHILDREN = """
import multiprocessing
from pyscf import lib

def work(results):
    if "one" in sys.argv:
        lib.num_threads(1)  # PySCF's own threads do not outlive a fork
    mf = scf()
    results.put((float(mf.kernel()), mf.cycles))

def threads():
    import torch
    return lib.num_threads(), torch.get_num_threads()

def child():
    context = multiprocessing.get_context(sys.argv[1])
    results = context.Queue()
    process = context.Process(target=work, args=(results,))
    process.start()
    process.join(100)
    if process.is_alive():
        process.kill()
        sys.exit("a child hangs")
    return results.get()

if __name__ == "__main__":
    expected = None
    for place in sys.argv[3:]:
        if place == "child":
            found = child()
        else:
            mf = scf()
            found = float(mf.kernel()), mf.cycles
            assert threads() == (2, 2), threads()
        expected = expected or found
        assert abs(found[0] - expected[0]) < 1e-8 and found[1] == expected[1] == 2, found
"""


@pytest.mark.parametrize(
    ("method", "threads", "places"),
    [
        ("fork", "one", ["parent", "child", "parent", "child"]),
        pytest.param("fork", "all", ["child"], marks=pytest.mark.slow),
        pytest.param("spawn", "all", ["child", "parent", "child"], marks=pytest.mark.slow),
        pytest.param("forkserver", "all", ["parent", "child"], marks=pytest.mark.slow),
    ],
)
def test_children(method, threads, places, tmp_path):
    """A guess in the parent leaves no threads behind that its children would wait for."""
    path = tmp_path / "children.py"
    path.write_text(SCF + CHILDREN)
    run([str(path), method, threads, *places], tmp_path, **TWO_THREADS)


def test_whole_scfs_in_two_threads():
    def work(atoms):
        mf = scf.RHF(make_mol(atoms)).apply(deqh_guess)
        return mf.kernel(), mf.cycles, mf.make_rdm1()

    molecules = WATER, FORMAMIDE
    alone = [work(atoms) for atoms in molecules]
    before = state()
    with ThreadPool(2) as pool:
        together = pool.map(work, molecules)
    assert state() == before
    for found, expected in zip(together, alone, strict=True):
        assert found[0] == pytest.approx(expected[0], abs=1e-8)
        assert found[1] == expected[1]
        np.testing.assert_allclose(found[2], expected[2], atol=1e-5)


# Ctrl-C

INTERRUPTS = """
import os, random, signal, threading, time, traceback
from pyscf import lib

def interrupted(mf, delay):
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        mf.kernel()
        timer.join()
        time.sleep(0.1)
    except KeyboardInterrupt:
        timer.join()
        return not mf.converged
    return False

def state():
    import torch
    from threadpoolctl import threadpool_info
    pools = [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]
    return (pools, lib.num_threads(), torch.get_num_threads(), torch.get_default_dtype(),
            torch.is_grad_enabled(), signal.getsignal(signal.SIGINT))

def check(mf):
    assert abs(mf.kernel() - ENERGY) < 1e-8, mf.e_tot
    assert mf.cycles == 2 and mf.deqh_report.fallback is None, (mf.cycles, mf.deqh_report)

ENERGY = -75.96020202
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores them
first = scf()
assert "torch" not in sys.modules
assert interrupted(first, 0.3)  # PyTorch is being imported
check(first)
started = time.perf_counter()
check(scf())
seconds, before = time.perf_counter() - started, state()
rng, hits, wanted = random.Random(0), 1, int(sys.argv[1])
for _ in range(100 * wanted):
    if hits == wanted:
        break
    mf = scf()
    if interrupted(mf, rng.uniform(0, seconds)):
        hits += 1
        assert state() == before
        check(mf)
        check(scf())
        assert state() == before
assert hits == wanted
"""


@pytest.mark.parametrize("times", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_interrupts_at_random_moments(times, tmp_path):
    """After each of them the same SCF and a new one are what they would have been."""
    run(["-c", SCF + INTERRUPTS, str(times)], tmp_path, **TWO_THREADS)


# Many guesses

MANY = """
import gc, os

n = int(sys.argv[1])
settled = min(n // 2, 1000)

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

def held():
    gc.collect()
    own = sum(str(type(x).__module__).startswith("pyscf_deqh") for x in gc.get_objects())
    return own, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

for i in range(n):
    mol = gto.M(atom="H 0 0 0; H 0 0 .74", basis="sto-3g", verbose=0)
    mf = RHF(mol).apply(deqh_guess, start="network")
    mf.kernel() if i % 10 == 0 else mf.get_init_guess(key="deqh")
    assert mf.deqh_report.fallback is None
    if i == settled:
        del mf
        before, memory = held(), megabytes()
del mf
assert held() == before, (held(), before)
grown = megabytes() - memory
print(f"{n} guesses: {grown:.1f} MB more than after {settled} of them")
assert grown < 10 or n < 1000  # allocators and caches still grow
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("n", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_guesses(n, tmp_path):
    """No growth of live objects, of open files or of threads; of memory, after a thousand."""
    print(run(["-c", SCF + MANY, str(n)], tmp_path))
