"""Where the cycles of a guess begin: one strategy in each file, behind one interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..fock.problem import Problem

if TYPE_CHECKING:
    from ..fock.fitted import FittedFock


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """What the cycles go on from, and how it came about.

    Attributes:
        hamiltonian: (nao, nao) in the start's basis set, hartree.
        fitted: builds further Fock matrices from the start's integrals.
        defect: what full Fock matrices are expected to have more than fitted ones, hartree, in the
            form of these; None without an expectation.
        model, iterations, residual: of a network; see :class:`~pyscf_deqh.Report`.
        fitted_builds: Fock matrices built so far.
        network_seconds: of the network alone.
        notes: what was done differently from what was asked, one sentence each.
    """

    hamiltonian: np.ndarray
    fitted: FittedFock
    defect: np.ndarray | None = None
    model: str | None = None
    iterations: int = 0
    residual: float = float("nan")
    fitted_builds: int = 0
    network_seconds: float = 0.0
    notes: tuple[str, ...] = ()


class Start(Protocol):
    """A way to begin."""

    name: str
    """In the report."""

    def place(self, problem: Problem) -> Problem:
        """The problem in the basis set in which the start is made; before any integrals.

        Raises:
            UnsupportedMoleculeError: not with this molecule.
        """

    def __call__(self, problem: Problem) -> StartingPoint:
        """Begin.

        Args:
            problem: of :meth:`place`.

        Raises:
            NotEnoughMemoryError, NumericalError: it did not succeed.
        """
