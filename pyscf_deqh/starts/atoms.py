"""The start without a network: the reference Hamiltonian of superposed atomic densities."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..fock.fitted import AUXBASIS, FittedFock
from ..fock.grid import GRID
from ..fock.problem import Problem
from ..fock.reference import sad_reference
from . import StartingPoint


@dataclass(frozen=True)
class AtomsStart:
    """The Kohn-Sham matrix of minao's density, in the SCF's own basis set.

    Attributes:
        device: of the fitted Fock matrices.
        auxbasis, grid: see :class:`~pyscf_deqh.fock.fitted.FittedFock`.
    """

    name = "atoms"
    device: torch.device | str = "cpu"
    auxbasis: str = AUXBASIS
    grid: tuple[int, int] = GRID

    def place(self, problem: Problem) -> Problem:
        """The SCF's own basis set."""
        return problem

    def __call__(self, problem: Problem) -> StartingPoint:
        """Raises :class:`~pyscf_deqh.NotEnoughMemoryError` without memory for it."""
        fitted = FittedFock(
            problem.mol, self.device, auxbasis=self.auxbasis, grid=self.grid, memory=problem.memory
        )
        hamiltonian = sad_reference(problem.system, fitted)
        return StartingPoint(hamiltonian, fitted, fitted_builds=1)
