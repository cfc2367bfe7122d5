"""The start without a network, for every element: superposed atomic densities."""

from __future__ import annotations

from dataclasses import dataclass

from ..fock.problem import Problem
from ..fock.reference import sad_reference
from ..predict import resolve_device
from . import StartingPoint


@dataclass(frozen=True)
class AtomsStart:
    """The Kohn-Sham matrix of minao's density, in the SCF's own basis set and fields.

    Attributes:
        device: of the fitted Fock matrices; ``'auto'``, ``'cpu'``, ``'cuda'`` …
        auxbasis, grid: see :class:`~pyscf_deqh.fock.fitted.FittedFock`.
    """

    name = "atoms"
    device: str = "auto"
    auxbasis: str | None = None
    grid: tuple[int, int] | None = None

    def place(self, problem: Problem) -> Problem:
        """The SCF's own basis set."""
        return problem

    def __call__(self, problem: Problem) -> StartingPoint:
        """Raises :class:`~pyscf_deqh.NotEnoughMemoryError` without memory for it."""
        from ..fock.fitted import FittedFock
        from ..fock.grid import GRID

        fitted = FittedFock(
            problem.mol, resolve_device(self.device, problem.engine), problem.precision,
            self.auxbasis, self.grid or GRID, problem.memory, problem.engine,
        )  # fmt: skip
        hamiltonian = sad_reference(problem.system, fitted, problem.core_hamiltonian)
        return StartingPoint(hamiltonian, fitted, fitted_builds=1)
