"""Examples in public docstrings."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ("checkpoint", "plugin", "predict", "single_build", "fock.diis")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"pyscf_deqh.{name}"))
    assert results.attempted
    assert not results.failed
