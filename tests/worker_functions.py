"""Work for worker processes, in a module that they can import."""

import os
import signal
import time
from types import SimpleNamespace

import numpy as np

from pyscf_deqh.data.formats.qh9 import Record


def made_up(row_id, geometry, settings, device, steps=0):
    return Record(row_id, geometry.numbers, geometry.positions, np.eye(2), {})


def die_on_two(row_id, geometry, settings, device, steps=0):
    if row_id == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return made_up(row_id, geometry, settings, device)


def attempt(folder, number, faults=None):
    """A number's square, after a note in ``folder`` that it was asked for.

    ``faults`` by number: an error to be raised, or when to die, ``once`` or ``always``.
    """
    path = folder / f"{number}"
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.01)
    fault = (faults or {}).get(number)
    first = len(path.read_text().splitlines()) == 1
    if fault == "always" or (first and fault == "once"):
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(fault, Exception):
        raise fault
    return number**2


def threads():
    from pyscf import lib
    from threadpoolctl import threadpool_info

    return lib.num_threads(), {pool["num_threads"] for pool in threadpool_info()}


def train_on(rank, config, happens):
    """One of two processes of a training, as torchrun would start it; the second is disturbed."""
    import lightning as L

    from pyscf_deqh.train import module
    from pyscf_deqh.train.run import train

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                   "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": "29518"}  # fmt: skip

    class Fail(L.Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 3:
                raise RuntimeError("the second process fails")

    disturbed = rank == 1
    if disturbed and happens == "clocks":
        module.time = SimpleNamespace(monotonic=lambda: 0.0)
    train(config, callbacks=[Fail()] if disturbed and happens == "one-fails" else [])
