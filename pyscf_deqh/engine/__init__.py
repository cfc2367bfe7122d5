"""What runs an SCF: PySCF, or gpu4pyscf with all arrays on a GPU.

The cheap SCF is written once, in functions of NumPy that arrays of CuPy answer as well
(``__array_function__``, NEP 18). What these do not cover is asked of an engine.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from ..errors import UnsupportedMoleculeError
from .host import HOST, Engine

__all__ = ["HOST", "Engine", "engine_of", "gpu_engine"]


@functools.lru_cache(maxsize=1)
def gpu_engine() -> Engine:
    """That of gpu4pyscf's objects; raises as :func:`engine_of` does."""
    try:
        from .gpu import GPU4PySCF
    except Exception as error:  # of libraries that are not there or do not load, whatever it is
        raise UnsupportedMoleculeError(f"no guess for gpu4pyscf's objects: {error}") from error
    return GPU4PySCF()


def engine_of(mf: Any) -> Engine:
    """The engine of an SCF object.

    Raises:
        UnsupportedMoleculeError: of gpu4pyscf, which is too old, or without CuPy, with several
            GPUs, or without one for PyTorch.
    """
    base = getattr(sys.modules.get("gpu4pyscf.scf.hf"), "SCF", ())
    if isinstance(mf, base):
        return gpu_engine()
    return HOST
