"""The start from an earlier point of an optimization, a trajectory or a scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pyscf.scf import hf

from ..errors import UnsupportedMoleculeError
from ..fock.orbitals import orthonormal_basis
from ..fock.problem import Problem
from ..fock.shells import Kind, Shells
from ..predict import resolve_device
from . import StartingPoint

if TYPE_CHECKING:
    from pyscf.gto import Mole

# Displacement of an atom beyond which the last point is no neighbour, bohr.
_FAR = 1.0
_KINDS = (Kind.CLOSED, Kind.UNRESTRICTED, Kind.RESTRICTED_OPEN)


@dataclass(frozen=True, eq=False)
class Point:
    """A converged SCF that the next one can start from.

    Attributes:
        positions: (atoms, 3), bohr.
        system: what else says that a molecule is the same: elements, electrons, basis functions.
        kind: what the two spins may do.
        spins: occupied orbitals (nao, k), of closed shells once, else of either spin.
        defect: full Fock matrix less the fitted one, (nao, nao) or (2, nao, nao), hartree; None
            where it is not known.
    """

    positions: np.ndarray
    system: Any
    kind: Kind
    spins: list[np.ndarray]
    defect: np.ndarray | None

    @classmethod
    def of(cls, mf: hf.SCF) -> Point | None:
        """That of a converged SCF object; None if nothing can start from it."""
        kind = Shells.kind_of(mf, mf.mol)
        if not mf.converged or mf.mo_coeff is None or kind not in _KINDS:
            return None
        c, occupation = mf.mo_coeff, mf.mo_occ
        if kind == Kind.RESTRICTED_OPEN:
            spins = [c[:, occupation > 0], c[:, occupation > 1]]
        elif kind == Kind.UNRESTRICTED:
            spins = [c[s][:, occupation[s] > 0] for s in (0, 1)]
        else:
            spins = [c[:, occupation > 0]]
        defect = getattr(mf, "_deqh_defect", None)
        if defect is not None and defect.shape[-1] != mf.mol.nao:
            defect = None
        return cls(mf.mol.atom_coords(), _system(mf.mol), kind, spins, defect)


def _system(mol: Mole) -> Any:
    return mol.atom_charges().tolist(), mol.nelec, mol.cart, mol._basis


@dataclass(frozen=True, eq=False)
class PreviousStart:
    """The orbitals of the last point, orthonormalized in the new overlap.

    Fitted Fock matrices differ from PySCF's by a defect that belongs to the atoms and hardly
    changes with their positions: the last point's corrects those of this one.

    Attributes:
        point: the last one.
        device: of the fitted Fock matrices.
    """

    name = "previous"
    point: Point
    device: str = "auto"

    def place(self, problem: Problem) -> Problem:
        """The SCF's own basis set."""
        point, mol = self.point, problem.mol
        if point.kind != problem.shells.kind or point.system != _system(mol):
            raise UnsupportedMoleculeError("the last point was another molecule")
        moved = np.linalg.norm(mol.atom_coords() - point.positions, axis=1).max()
        if moved > _FAR:
            raise UnsupportedMoleculeError(f"an atom has moved by {moved:.1f} bohr")
        return problem

    def __call__(self, problem: Problem) -> StartingPoint:
        """Raises :class:`~pyscf_deqh.NotEnoughMemoryError` without memory for exact exchange."""
        import torch

        from ..fock.fitted import FittedFock

        point, shells, overlap = self.point, problem.shells, problem.system.overlap
        spins = [c @ orthonormal_basis(c.T @ overlap @ c) for c in point.spins]
        orbitals = shells.of_spins(spins if len(spins) == 2 else spins * 2)
        # The defect is smaller than what single precision leaves of a whole Fock matrix.
        dtype = problem.precision if point.defect is None else torch.float64
        fitted = FittedFock(problem.mol, resolve_device(self.device), dtype, memory=problem.memory)
        fock, _ = fitted(problem.core_hamiltonian, orbitals, problem.functional)
        if point.defect is not None:
            fock = fock + point.defect
        hamiltonian = shells.effective(fock, orbitals, overlap)
        return StartingPoint(hamiltonian, fitted, fitted_builds=1, defect=point.defect)
