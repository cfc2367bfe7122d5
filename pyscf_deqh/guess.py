"""An initial guess from beginning to end: problem, start, cycles, density, report."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from pyscf.scf import hf

from .errors import own_errors
from .fock.cycles import CycleSettings, Solution, run_cycles
from .fock.density import density_of
from .fock.problem import Problem
from .process import one_blas_thread
from .pyscf_api import make_integrals
from .report import Report, Seconds

if TYPE_CHECKING:
    from pyscf.gto import Mole

    from .starts import Start

ON_UNSUPPORTED = ("raise", "minao")


def _network() -> Start:
    from .starts.network import NetworkStart

    return NetworkStart()


def cycles_after(max_cycles: int, full_build: bool) -> CycleSettings | None:
    """Cycles as a user asks for them: without density-fitted ones there are none at all."""
    return CycleSettings(max_cycles, full_build) if max_cycles else None


@dataclass(frozen=True)
class Options:
    """How a guess is made.

    Attributes:
        start: where the cycles begin.
        cycles: which cycles follow; None for the start alone.
        on_unsupported: what a failure leads to, an error or minao's density.
    """

    start: Start = field(default_factory=_network)
    cycles: CycleSettings | None = field(default_factory=CycleSettings)
    on_unsupported: str = "raise"


@dataclass(frozen=True, eq=False)
class Guess:
    """An initial guess and how it came about.

    Attributes:
        density_matrix: in the form that the SCF's class starts from.
        start_hamiltonian: (nao, nao) in the start's basis set, hartree.
        solution: where the cycles ended.
        report: what happened.
    """

    density_matrix: np.ndarray
    start_hamiltonian: np.ndarray
    solution: Solution
    report: Report


def make_guess(mf: hf.SCF, mol: Mole, options: Options, overlap: np.ndarray | None = None) -> Guess:
    """A density matrix for an SCF object to start from; minao's where the cycles came to nothing.

    Args:
        mf: any molecular SCF object of PySCF.
        mol: the molecule that it starts from.
        options: how the guess is made.
        overlap: of the orbitals, if it is known already.

    Raises:
        UnsupportedMoleculeError: the class, the molecule or its elements are unknown.
        NotEnoughMemoryError: not even for the start.
        NumericalError: linear algebra failed.
        CheckpointError, ConfigError: no such model or device.
    """
    started = time.perf_counter()
    with own_errors():
        problem = Problem.of(mf, mol, overlap)
        own, settings = options.start.place(problem), options.cycles
        prepared = time.perf_counter()
        if settings and settings.full_build and problem.has_fock_matrices:
            make_integrals(mf)
        began = time.perf_counter()
        with one_blas_thread:
            point = options.start(own)
        reached = time.perf_counter()
        solution = Solution(own, point.hamiltonian)
        if settings:
            solution = run_cycles(problem, own, point.hamiltonian, point.fitted, settings)
        ended = time.perf_counter()
        with one_blas_thread:
            if solution.failure:
                density = mf.get_init_guess(mol, key="minao")
            else:
                density = density_of(solution, problem)
    now = time.perf_counter()
    projected = () if own is problem else (f"made in {own.mol.basis} and projected",)
    report = Report(
        start=options.start.name,
        model=point.model,
        device=str(point.fitted.device),
        iterations=point.iterations,
        residual=point.residual,
        fitted_gradients=solution.fitted_gradients,
        corrected_gradients=solution.corrected_gradients,
        fitted_builds=point.fitted_builds + solution.fitted_builds,
        full_builds=solution.full_builds,
        seconds=Seconds(
            start=reached - began - point.network_seconds + prepared - started,
            network=point.network_seconds,
            cycles=ended - reached - solution.full_build_seconds,
            full_build=solution.full_build_seconds + began - prepared,
            density=now - ended,
            total=now - started,
        ),
        notes=(*point.notes, *projected, *solution.notes),
        fallback=solution.failure,
    )
    return Guess(density, point.hamiltonian, solution, report)
