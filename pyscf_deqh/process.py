"""How many threads the libraries beside PySCF and PyTorch may take."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


@functools.lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


def one_blas_thread() -> AbstractContextManager:
    """Limits NumPy's and SciPy's threads: after each of the small products of a guess they would go
    on spinning beside PySCF's and PyTorch's, which made a cheap cycle two to three times slower."""
    return _blas().limit(limits=1)
