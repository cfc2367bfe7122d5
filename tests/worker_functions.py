"""Stand-ins for the work of label workers, in a module that a worker imports in no time."""

import os
import signal

import numpy as np

from pyscf_deqh.data.formats.qh9 import Record


def made_up(row_id, geometry, settings, device):
    return Record(row_id, geometry.numbers, geometry.positions, np.eye(2), {})


def die_on_two(row_id, geometry, settings, device):
    if row_id == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return made_up(row_id, geometry, settings, device)
