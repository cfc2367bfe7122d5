"""An initial guess from beginning to end: problem, start, cycles, density, report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pyscf.scf import hf

from .checkpoint import DEFAULT_MODEL
from .errors import (
    ConfigError,
    NotEnoughMemoryError,
    NumericalError,
    UnsupportedMoleculeError,
    own_errors,
)
from .fock.cost import too_cheap
from .fock.cycles import CONVERGED, CORRECTED, NEAR, CycleSettings, Solution, run_cycles
from .fock.density import density_of
from .fock.diis import accelerate, hand_over, is_corrected, relax
from .fock.problem import Problem
from .fock.shells import breaks_spin_symmetry
from .fock.states import beside_saddle_point, is_far, lowest_state, not_above_minao
from .process import import_torch, pyscf_threads
from .pyscf_api import fills_by_aufbau
from .report import Report, Seconds
from .starts.previous import PreviousStart

if TYPE_CHECKING:
    from pyscf.gto import Mole

    from .fock.fitted import FittedFock
    from .starts import Start, StartingPoint

ON_UNSUPPORTED = ("raise", "minao")
STARTS = ("auto", "network", "atoms")


def starts_of(
    name: str = "auto", model: str | Path = DEFAULT_MODEL, device: str = "auto"
) -> tuple[Start, ...]:
    """Ways to begin, by the name that a user gives them; the first that serves is taken.

    Raises:
        ConfigError: another name.
    """
    if name not in STARTS:
        raise ConfigError(f"start must be one of {STARTS}, not {name!r}")
    from .starts.atoms import AtomsStart
    from .starts.network import NetworkStart

    network, atoms = NetworkStart(model, device), AtomsStart(device)
    return {"auto": (network, atoms), "network": (network,), "atoms": (atoms,)}[name]


def cycles_after(max_cycles: int, accelerated: bool) -> CycleSettings | None:
    """Density-fitted cycles as a user asks for them, with corrected ones in the SCF or without."""
    return CycleSettings(max_cycles, NEAR if accelerated else CONVERGED) if max_cycles else None


@dataclass(frozen=True)
class Options:
    """How a guess is made.

    Attributes:
        starts: where the cycles begin: at the first that can describe the molecule.
        cycles: which cycles follow; None for the start alone.
        accelerate: whether the SCF goes on with corrected cycles.
        on_unsupported: what a failure leads to, an error or minao's density.
        frugal: leave an SCF alone, with minao's density and PySCF's DIIS, where it takes less time
            than a guess.
        lowest: look for the lowest state of the SCF's kind, from several starts.
        every_point: serve all points of a scanner, and not the first one alone.
        device: of what a start from an earlier point computes.
    """

    starts: tuple[Start, ...] = field(default_factory=starts_of)
    cycles: CycleSettings | None = field(default_factory=CycleSettings)
    accelerate: bool = True
    on_unsupported: str = "raise"
    frugal: bool = False
    lowest: bool = False
    every_point: bool = True
    device: str = "auto"


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
    """A density matrix for an SCF object to start from.

    Where the cycles came to nothing it is minao's, and at a later point of a scan that of one step
    from the last orbitals.

    Where another start may lead to another kind of state, the density is PySCF's own: for GHF, for
    singlets whose spin symmetry it breaks, and where the user fills the orbitals by a rule of his
    own. So it is, if options are frugal, where the whole SCF takes no longer than a guess.

    Args:
        mf: any molecular SCF object of PySCF or gpu4pyscf.
        mol: the molecule that it starts from.
        options: how the guess is made.
        overlap: of the orbitals, if it is known already. Then the SCF is taken to come next: its
            corrected cycles get the fitted integrals. gpu4pyscf's does not hand it on.

    Raises:
        UnsupportedMoleculeError: the class, the molecule or its elements are unknown.
        NotEnoughMemoryError: not even for the start.
        NumericalError: linear algebra failed.
        CheckpointError, ConfigError: no such model or device.
    """
    clock = _Clock()
    with own_errors():
        problem = Problem.of(mf, mol, overlap)
        notes: tuple[str, ...] = ()
        reason = _too_cheap(problem, options)
        refused: str | None = None
        if reason is None:
            refused, reason = _accelerate(problem, options), _own_start(problem, options)
        if refused is not None:
            notes = (f"no corrected cycles: {refused}",)
        placed, refusals = _place(_starts(problem, options, reason), problem)
        if placed is None:
            return _left_alone(problem, reason, (*refusals, *notes), clock)
        start, own = placed
        import_torch()
        clock.lap("start")
        accelerated = is_corrected(mf) and mol is mf.mol and refused is None
        if accelerated and problem.scf_follows:  # the molecule may change before another one
            problem.engine.make_integrals(mf)
        clock.lap("integrals")
        point = _started(start, own)
        if isinstance(point, str):  # it was that of an earlier point: as if there were none
            mf._deqh_previous = ()
            guess = make_guess(mf, mol, options, overlap)
            notes = (f"{guess.report.start}, because {point}", *guess.report.notes)
            return replace(guess, report=replace(guess.report, notes=notes))
        clock.lap("start", of_which={"network": point.network_seconds})
        settings = options.cycles
        if settings and options.accelerate and not accelerated:
            settings = replace(settings, tolerance=min(settings.tolerance, CONVERGED))
        solution, fitted = _cycles(problem, own, point, settings)
        if solution.failure and isinstance(start, PreviousStart):
            note = f"one step from the last point's orbitals, because {solution.failure}"
            solution = replace(
                solution, hamiltonian=point.hamiltonian, minimized=False, failure=None,
                notes=(*solution.notes, note),
            )  # fmt: skip
        complete = not solution.notes
        states: tuple[float, ...] = ()
        if options.lowest:
            fitted = fitted or point.fitted.like(mol, point.fitted.device, problem.precision)
            fitted.put_into(problem.cavity)
            solution, fitted, states = lowest_state(problem, solution, fitted)
            if not states and (reason := _own_state(problem)) is not None:
                solution = replace(solution, failure=reason)
        elif _may_be_another_state(start, settings, solution) and fitted:
            if solution.minimized:
                notes = (*notes, "DIIS was lost in the density-fitted cycles: direct minimization")
            if solution.minimized or (point.model and is_far(problem, solution)):
                solution, fitted = not_above_minao(problem, solution, fitted)
            solution, fitted = beside_saddle_point(problem, solution, fitted)
        if solution.failure and fitted:
            fitted.forget()  # the SCF starts elsewhere
        clock.lap("cycles")
        with pyscf_threads:
            if solution.failure:
                density = mf.get_init_guess(mol, key="minao")
            else:
                density = density_of(solution, problem)
        if accelerated and problem.scf_follows and fitted and complete:
            hand_over(mf, fitted)
        problem.engine.give_back()
    clock.lap("density")
    projected = () if own is problem else (f"made in {own.mol.basis} and projected",)
    report = Report(
        start=start.name,
        model=point.model,
        device=str(point.fitted.device),
        iterations=point.iterations,
        residual=point.residual,
        fitted_gradients=solution.fitted_gradients,
        fitted_builds=point.fitted_builds + solution.fitted_builds,
        seconds=clock.seconds,
        notes=(*refusals, *point.notes, *projected, *solution.notes, *notes),
        states=states,
        fallback=solution.failure,
    )
    return Guess(density, point.hamiltonian, solution, report)


class _Clock:
    """Adds up the seconds of stages."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self._stages: dict[str, float] = {}

    def lap(self, stage: str, of_which: Mapping[str, float] | None = None) -> None:
        """What has passed since the last lap belongs to ``stage``, some of it to others."""
        now = time.perf_counter()
        others = dict(of_which or {})
        for name, seconds in {stage: now - self._last - sum(others.values()), **others}.items():
            self._stages[name] = self._stages.get(name, 0.0) + seconds
        self._last = now

    @property
    def seconds(self) -> Seconds:
        return Seconds(**self._stages, total=self._last - self._began)


def _starts(problem: Problem, options: Options, reason: str | None) -> tuple[Start, ...]:
    """Ways to begin: those of the user, if nothing speaks against them, but first of all where the
    last point of a scan has ended."""
    starts = options.starts if reason is None else ()
    previous = problem.mf._deqh_previous
    if previous and problem.mol is problem.mf.mol:
        starts = (PreviousStart(previous, options.device), *starts)
    return starts


def _place(
    starts: Sequence[Start], problem: Problem
) -> tuple[tuple[Start, Problem] | None, tuple[str, ...]]:
    """The first start that serves and the problem in its basis set, and why those before it do not;
    None without a start but that of the last point of a scan, if it does not serve.

    Raises:
        UnsupportedMoleculeError: none serves.
    """
    refusals: list[UnsupportedMoleculeError] = []
    for start in starts:
        try:
            placed = start.place(problem)
        except UnsupportedMoleculeError as error:
            refusals.append(error)
        else:
            return (start, placed), tuple(f"{start.name}, because {error}" for error in refusals)
    if all(isinstance(start, PreviousStart) for start in starts):
        return None, tuple(f"minao, because {error}" for error in refusals)
    raise refusals[-1]


def _started(start: Start, own: Problem) -> StartingPoint | str:
    """Where the cycles begin; why they cannot, where others than an earlier point's can.

    Raises:
        NotEnoughMemoryError, NumericalError: of all other starts.
    """
    try:
        with own_errors(), pyscf_threads:
            return start(own)
    except (NotEnoughMemoryError, NumericalError) as error:
        if not isinstance(start, PreviousStart):
            raise
        return str(error)


def _cycles(
    problem: Problem, own: Problem, point: StartingPoint, settings: CycleSettings | None
) -> tuple[Solution, FittedFock | None]:
    """Density-fitted cycles in the start's basis set, then in the SCF's; and what builds fitted
    Fock matrices in the SCF's."""
    solution, fitted = Solution(own, point.hamiltonian), point.fitted
    if settings:
        if own is problem:
            fitted.put_into(problem.cavity)
        if point.defect is not None:
            settings = replace(settings, tolerance=min(settings.tolerance, CORRECTED))
        solution = run_cycles(solution, own, fitted, settings, point.defect)
    if own is problem:
        return solution, fitted
    fitted.free()
    if settings is None or solution.failure:
        return solution, None
    fitted = fitted.like(problem.mol, fitted.device, problem.precision, problem.own_fit)
    fitted.put_into(problem.cavity)
    return run_cycles(solution, problem, fitted, settings), fitted


def _may_be_another_state(start: Start, settings: CycleSettings | None, solution: Solution) -> bool:
    """Whether cycles have come to an end that does not have to be that of a point before."""
    return bool(settings) and not solution.failure and not isinstance(start, PreviousStart)


def _too_cheap(problem: Problem, options: Options) -> str | None:
    if not options.frugal or problem.mol is not problem.mf.mol:
        return None
    reason = too_cheap(problem.mf)
    if reason is not None:
        relax(problem.mf)
    return reason


def _accelerate(problem: Problem, options: Options) -> str | None:
    """Corrected cycles for the SCF that follows, or why not."""
    if not options.accelerate or problem.mol is not problem.mf.mol:
        return None
    return accelerate(problem.mf)


def _own_start(problem: Problem, options: Options) -> str | None:
    """Why an SCF has to start from PySCF's own density."""
    if not fills_by_aufbau(problem.mf):
        return "the orbitals are not filled by energy"
    return None if options.lowest else _own_state(problem)


def _own_state(problem: Problem) -> str | None:
    """Why PySCF's own density leads to a state that another one may not lead to."""
    if breaks_spin_symmetry(problem.mf, problem.mol):
        return "PySCF breaks the spin symmetry of its own density"
    return None


def _left_alone(
    problem: Problem, reason: str | None, notes: tuple[str, ...], clock: _Clock
) -> Guess:
    """PySCF's own start, and why."""
    hamiltonian = problem.system.core_hamiltonian  # mf.get_hcore() may take long
    density = problem.mf.get_init_guess(problem.mol, key="minao")
    clock.lap("start")
    report = Report("minao", seconds=clock.seconds, notes=notes, fallback=reason)
    return Guess(density, hamiltonian, Solution(problem, hamiltonian, failure=reason), report)
