"""What a guess changes in its process for a while."""

import signal
import threading
import time
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import dft, lib
from threadpoolctl import threadpool_info, threadpool_limits

from pyscf_deqh import predict as predict_module
from pyscf_deqh.guess import Options, make_guess
from pyscf_deqh.process import (
    SharedSetting,
    Together,
    interrupts_wait,
    pyscf_threads,
    side_by_side,
    single_precision,
    use_threads,
)


def state():
    """All that a guess could leave changed."""
    pools = [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]
    return (pools, lib.num_threads(), torch.get_num_threads(), torch.get_default_dtype(),
            torch.is_grad_enabled())  # fmt: skip


def test_the_first_changes_and_the_last_puts_back():
    value = ["before"]

    def change():
        before, value[0] = value[0], "changed"
        return lambda: value.__setitem__(0, before)

    setting = SharedSetting(change)
    with setting:
        assert value == ["changed"]
        with setting:
            assert value == ["changed"]
        assert value == ["changed"]
    assert value == ["before"]
    setting.__enter__()
    second = threading.Thread(target=setting.__enter__)
    second.start()
    second.join()
    setting.__exit__()
    assert value == ["changed"]
    setting.__exit__()
    assert value == ["before"]
    with pytest.raises(ZeroDivisionError), setting:
        raise ZeroDivisionError
    assert value == ["before"]


@pytest.fixture
def interruptible():
    """As in a terminal; what a shell starts in the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("moment", ["change", "put back", "body"])
@pytest.mark.parametrize("kind", ["alone", "first", "last"])
def test_interrupts_wait_for_changes(moment, kind):
    """Ctrl-C in the midst of a change is raised after it, and nothing stays changed."""
    value, seen = ["before"], []

    def interrupt(now):
        if now == moment:
            signal.raise_signal(signal.SIGINT)

    def change():
        interrupt("change")
        value[0] = "changed"
        return put_back

    def put_back():
        interrupt("put back")
        value[0] = "before"

    setting, other = SharedSetting(change), SharedSetting(lambda: others.clear)
    handler, others = signal.getsignal(signal.SIGINT), []
    if kind != "alone":
        setting = Together(*((setting, other) if kind == "first" else (other, setting)))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), setting:  # noqa: PT012
            seen.append(value[0])
            interrupt("body")
            seen.append("not interrupted")
        assert value == ["before"]
        assert signal.getsignal(signal.SIGINT) == handler
        assert getattr(other._now, "inside", 0) == 0
    assert seen == {"change": [], "put back": ["changed", "not interrupted"] * 2,
                    "body": ["changed"] * 2}[moment]  # fmt: skip


def test_interrupts_wait_also_for_a_users_own_handler():
    calls = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            assert not calls
        assert calls == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupts_are_left_alone_in_other_threads():
    """Python handles signals in its main thread, and lets no other change their handlers."""
    handler = signal.getsignal(signal.SIGINT)
    with ThreadPool(1) as pool:
        assert pool.apply(_handler_while_interrupts_wait) is handler


def _handler_while_interrupts_wait():
    with interrupts_wait():
        return signal.getsignal(signal.SIGINT)


def test_blas_with_threads_of_its_own_gets_one():
    with threadpool_limits(2):
        _check_blas()


def _check_blas():
    before = threadpool_info()
    own = {p["filepath"] for p in before if p.get("threading_layer") == "pthreads"}
    with pyscf_threads:
        for pool in threadpool_info():
            (unchanged,) = (p for p in before if p["filepath"] == pool["filepath"])
            expected = 1 if pool["filepath"] in own else unchanged["num_threads"]
            assert pool["num_threads"] == expected
    assert threadpool_info() == before


def test_pytorch_gets_no_more_threads_than_pyscf():
    """Where PyTorch was imported first, both have the same OpenMP; else not."""
    at_first = torch.get_num_threads()
    try:
        for threads, limit in ((2, 1), (1, 2), (2, 2)):
            torch.set_num_threads(threads)
            with lib.with_omp_threads(limit):
                before = torch.get_num_threads()
                with pyscf_threads:
                    assert torch.get_num_threads() == min(before, limit)
                assert (torch.get_num_threads(), lib.num_threads()) == (before, limit)
    finally:
        torch.set_num_threads(at_first)


def test_pytorchs_threads_are_each_threads_own():
    """Whoever leaves last, a thread's number comes back in that thread."""
    at_first = torch.get_num_threads()
    torch.set_num_threads(2)
    with lib.with_omp_threads(1):
        same = torch.get_num_threads() == 1  # OpenMP of both: where PyTorch was imported first

    def check(inside):
        """Go through a context, and do something in it."""
        torch.set_num_threads(2)
        with lib.with_omp_threads(1):
            with pyscf_threads:
                assert torch.get_num_threads() == 1
                inside()
                assert torch.get_num_threads() == 1
            assert lib.num_threads() == 1
            assert torch.get_num_threads() == (1 if same else 2)

    def beside(leaves_first):
        entered, leave = threading.Event(), threading.Event()

        def wait():
            entered.set()
            assert leave.wait(10)

        with ThreadPool(1) as pool:

            def inside():
                other = pool.apply_async(check, (wait,))
                assert entered.wait(10)
                running.append(other)
                if leaves_first:
                    leave.set()
                    other.get()

            running: list = []
            check(inside)
            leave.set()
            running[0].get()

    try:
        beside(leaves_first=True)
        beside(leaves_first=False)
    finally:
        torch.set_num_threads(at_first)


@pytest.fixture
def several_threads():
    """One each would not tell what is put back from what was never changed."""
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2):
        yield
    torch.set_num_threads(torch_threads)


@pytest.mark.usefixtures("several_threads")
def test_nothing_stays_changed():
    mf = dft.RKS(make_mol(WATER), xc="pbe")
    make_guess(mf, mf.mol, Options())
    before = state()
    make_guess(mf, mf.mol, Options())
    assert state() == before


@pytest.mark.usefixtures("several_threads")
def test_nothing_stays_changed_after_an_error(monkeypatch):
    before = state()
    monkeypatch.setattr(predict_module, "_solve", lambda *args: 1 / 0)
    mf = dft.RKS(make_mol(WATER), xc="pbe")
    with pytest.raises(ZeroDivisionError):
        make_guess(mf, mf.mol, Options())
    assert state() == before


def test_guesses_in_several_threads():
    """Each its own molecule; all at once they are what they are one by one."""
    molecules = [make_mol(WATER), make_mol(FORMAMIDE), make_mol(WATER, charge=1, spin=1)]

    def guess(mol):
        mf = dft.KS(mol, xc="b3lyp")
        return np.array(make_guess(mf, mol, Options()).density_matrix)

    alone = [guess(mol) for mol in molecules]
    before = state()
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i, mol=mol: found.__setitem__(i, guess(mol)))
        for i, mol in enumerate(molecules * 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state() == before
    for i, expected in enumerate(alone * 2):
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


@pytest.mark.parametrize(("at_most", "threads"), [(9, 1), (1, 3)])
def test_side_by_side(at_most, threads):
    """Each has one thread of PySCF's, or all of them run in the caller with its threads."""
    read, caller = [], threading.get_ident()

    def arguments():
        for i in range(40):
            read.append(i)
            yield i

    def work(i):
        time.sleep(0.002 * (i % 3))
        return i, lib.num_threads(), threading.get_ident() == caller

    with lib.with_omp_threads(3):
        results = side_by_side(work, arguments(), at_most)
        assert next(results) == (0, threads, at_most == 1)
        assert len(read) < 6  # no more than are needed
        assert [next(results)[0] for _ in range(30)] == list(range(1, 31))
        results.close()
        assert lib.num_threads() == 3


def test_an_error_side_by_side_is_the_callers():
    with lib.with_omp_threads(2), pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda i: 1 / i, range(5, -5, -1), 2))


def test_single_precision_is_for_a_while():
    torch.set_default_dtype(torch.float64)
    try:
        with single_precision:
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_workers_limit_every_library():
    threads = lib.num_threads()
    pools = threadpool_info()
    torch_threads = torch.get_num_threads()
    try:
        use_threads(1)
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
        assert (lib.num_threads(), torch.get_num_threads()) == (1, 1)
    finally:
        use_threads(max(threads, *(pool["num_threads"] for pool in pools)))
        lib.num_threads(threads)
        torch.set_num_threads(torch_threads)
