"""Seconds and megabytes of the parts of a fitted Fock matrix.

    python docs/results/fitted_matrix.py raffinose
    python docs/results/fitted_matrix.py aspirin

takes a molecule of ``large_test.xyz`` or ``larger_test.xyz``, B3LYP/def2-SVP.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyscf import lib

from pyscf_deqh.benchmark.scf_runs import Method
from pyscf_deqh.benchmark.sets import SUITE
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.functional import Functional
from pyscf_deqh.fock.system import System
from pyscf_deqh.process import pyscf_threads

REPEATS = 3


def timed(name: str, function: Callable[[], Any], repeats: int = REPEATS) -> None:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    print(f"{name:48s} {np.median(seconds):8.3f} s", flush=True)


def main(name: str) -> None:
    known = [g for suite_set in ("large", "larger") for g in SUITE[suite_set].geometries()]
    mol = Method().molecule(next(g for g in known if g.info["name"] == name))
    system, functional = System(mol), Functional.of(Method.xc)
    fitted = FittedFock(mol, memory=1e5)
    overlap = system.overlap
    hamiltonian = system.core_hamiltonian + mol.intor("int1e_kin")
    c = system.engine.eigh(hamiltonian, overlap)[1][:, : mol.nelectron // 2] * np.sqrt(2)
    spins, density = fitted.tensors(c), c @ c.T
    n = mol.nao
    print(f"{name}: {mol.natm} atoms, {n} orbitals, {fitted._auxiliary.nao} fitting functions, "
          f"{len(fitted.grids.weights)} points, {lib.num_threads()} threads")  # fmt: skip
    for word, beyond in (("once", False), ("a second time", True)):
        print(f"pairs of orbitals, {word}: {fitted._groups.n_pairs(beyond) / n**2:.2f} of all")
    timed("superposed atomic densities", lambda: system.engine.atomic_density(mol, overlap))
    timed("fitted integrals", lambda: fitted.integrals, 1)

    def semilocal() -> None:
        fitted.semilocal(spins, functional)

    timed("semilocal matrix, and values on the grid", semilocal, 1)
    timed("semilocal matrix", semilocal)
    values = fitted.orbital_values.nbytes / 16 / len(fitted.grids.weights) / n
    print(f"values on the grid: {values:.2f} of all")
    timed("Coulomb matrix", lambda: fitted.coulomb(density))
    timed("pairs a second time", lambda: fitted.integrals.keep_twice(True), 1)
    timed("exchange matrix", lambda: fitted.integrals.exchange(spins[0]))
    fitted.integrals.keep_twice(False)
    timed("exchange matrix, each pair once", lambda: fitted.integrals.exchange(spins[0]))
    fitted.orbital_values.release()
    timed("semilocal matrix, no values kept", semilocal)


if __name__ == "__main__":
    with pyscf_threads, torch.no_grad():
        main(sys.argv[1])
