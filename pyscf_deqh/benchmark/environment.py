"""What figures were measured with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from pyscf import lib

from .. import __version__


def _processor() -> str:
    """The processor's name where the system tells one, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict:
    """Hardware, threads and versions."""
    import torch

    return {
        "machine": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": lib.num_threads(),
        "python": platform.python_version(),
        "pyscf_deqh": __version__,
        **{name: version(name) for name in ("pyscf", "torch", "numpy")},
    }
