"""The start from a trained network's Hamiltonian."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint import DEFAULT_MODEL, basis_of
from ..errors import UnsupportedMoleculeError
from ..fock.problem import Problem
from ..graph.basis import check_basis
from ..predict import solve_network
from . import StartingPoint

if TYPE_CHECKING:
    from pyscf.gto import Mole


@dataclass(frozen=True)
class NetworkStart:
    """A model's solved Hamiltonian, in the model's basis set.

    Attributes:
        model: name of a bundled model, or folder of an exported one.
        device: ``'auto'``, ``'cpu'``, ``'cuda'`` …
    """

    name = "network"
    model: str | Path = DEFAULT_MODEL
    device: str = "auto"

    def place(self, problem: Problem) -> Problem:
        """The model's basis set."""
        basis, template = basis_of(self.model)
        return problem.in_basis_of(_in_basis(problem.mol, basis, template.numbers))

    def __call__(self, problem: Problem) -> StartingPoint:
        """Raises as :func:`~pyscf_deqh.predict_hamiltonian` does."""
        prediction, fitted = solve_network(problem.system, self.model, self.device, problem.memory)
        return StartingPoint(
            hamiltonian=prediction.hamiltonian,
            fitted=fitted,
            model=prediction.model,
            iterations=prediction.iterations,
            residual=prediction.residual,
            fitted_builds=prediction.fock_builds,
            network_seconds=prediction.network_seconds,
            notes=prediction.notes,
        )


def _in_basis(mol: Mole, basis: str, numbers: tuple[int, ...]) -> Mole:
    """The molecule itself, or a copy of it, in a model's basis set.

    Raises:
        UnsupportedMoleculeError: other elements than the model's.
    """
    try:
        check_basis(mol, basis, numbers)
    except UnsupportedMoleculeError:
        # The basis set may not even have an element that the model does not know.
        if mol.has_ecp() or not set(mol.atom_charges().tolist()) <= set(numbers):
            raise
        other = mol.copy(deep=False)
        # The atoms as they are now: the input may be the name of a file that has changed since.
        other.atom = [(mol.atom_symbol(i), r) for i, r in enumerate(mol.atom_coords())]
        other.unit, other.symmetry, other.output = "Bohr", False, None
        other.basis, other.cart, other.verbose = basis, False, 0
        other.build(dump_input=False, parse_arg=False)
        check_basis(other, basis, numbers)
        return other
    return mol
