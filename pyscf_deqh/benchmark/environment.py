"""What figures were measured with."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from pyscf import lib

from .. import __version__
from ..process import import_torch

_PACKAGE = Path(__file__).parents[1]


def _processor() -> str:
    """The processor's name where the system tells one, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def sources() -> str:
    """A name for the state of the package's code."""
    found = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def environment() -> dict:
    """Hardware, threads and versions."""
    import_torch()
    import torch

    return {
        "machine": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": lib.num_threads(),
        "python": platform.python_version(),
        "pyscf_deqh": __version__,
        "sources": sources(),
        **{name: version(name) for name in ("pyscf", "torch", "numpy")},
    }
