"""What figures were measured with."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyscf import lib

from .. import __version__
from ..fock.cost import Rates, rates
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


def _rates() -> str:
    """Which rates decide what is worth a guess: this machine's, or the default ones."""
    return "default" if rates() == Rates() else "measured"


def environment() -> dict:
    """Hardware, threads, PySCF's memory limit, and versions."""
    import_torch()
    import torch

    return {
        "machine": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": lib.num_threads(),
        "max_memory": lib.param.MAX_MEMORY,
        "rates": _rates(),
        "python": platform.python_version(),
        "pyscf_deqh": __version__,
        "sources": sources(),
        **{name: version(name) for name in ("pyscf", "torch", "numpy")},
    }


def measured_with(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines that say in which states of machine and code rows were made, and how many in each."""
    counts: Counter[str] = Counter()
    for row in rows:
        state = row.get("environment")
        counts[_described(state) if state else "not recorded"] += 1
    return ["", "Measured with:", "", *(f"- {text}: {n} rows" for text, n in counts.items())]


def _described(state: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in state.items() if value is not None)
