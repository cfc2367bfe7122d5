"""The start from an earlier point of an optimization, a trajectory or a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import engine_of
from ..errors import UnsupportedMoleculeError
from ..fock.orbitals import orthonormal_basis
from ..fock.problem import Problem
from ..fock.shells import Kind, Shells
from ..predict import resolve_device
from ..pyscf_api import attribute, moved
from . import StartingPoint

if TYPE_CHECKING:
    from pyscf.gto import Mole
    from pyscf.scf import hf

# Displacement of an atom beyond which the last point is no neighbour, bohr.
_FAR = 1.0
# Points whose defects are combined; relative singular value below which a combination of their
# displacements is left out, and the largest weight of one of them.
MAX_POINTS, _DEPENDENT, _FARTHEST = 4, 0.1, 3.0
# Largest element by which occupied orbitals may fail to be orthonormal.
_ORTHONORMAL = 1e-6
_KINDS = (Kind.CLOSED, Kind.UNRESTRICTED, Kind.RESTRICTED_OPEN)


@dataclass(frozen=True, eq=False)
class Point:
    """A converged SCF that the next one can start from.

    Attributes:
        positions: (atoms, 3), bohr.
        system: what else says that molecule and method are the same: elements, electrons, basis
            functions, functional, kind of integrals.
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

    def is_like(self, other: Point) -> bool:
        """Whether both are of one molecule and method."""
        return self.kind == other.kind and self.system == other.system

    def likeness(self, earlier: Point, overlap: np.ndarray) -> float:
        """How much of each occupied orbital was occupied at an earlier point: the smallest singular
        value of the overlap of both spaces, 1 for the same state, 0 for another one.

        Args:
            earlier: of the same molecule; its orbitals are taken to move with the atoms.
            overlap: (nao, nao), of this point.
        """
        least = 1.0
        for before, now in zip(earlier.spins, self.spins, strict=True):
            before = before @ orthonormal_basis(before.T @ overlap @ before)
            if now.size:
                values = np.linalg.svd(before.T @ overlap @ now, compute_uv=False)
                least = min(least, float(values.min()))
        return least

    def fits(self, overlap: np.ndarray) -> bool:
        """Whether the orbitals are orthonormal in an overlap (nao, nao), that of their molecule."""
        return all(
            len(c) == len(overlap)
            and np.allclose(c.T @ overlap @ c, np.eye(c.shape[1]), atol=_ORTHONORMAL)
            for c in self.spins
        )

    def is_near(self, other: Point) -> bool:
        """Whether no atom has moved far between two points of one molecule."""
        return _moved(self, other.positions) <= _FAR

    def is_near_or_of_another(self, mf: hf.SCF, mol: Mole) -> bool:
        """Whether a molecule of ``mf``'s is another one, or this one with its atoms near."""
        return self.system != _system(mf, mol) or _moved(self, mol.atom_coords()) <= _FAR

    @classmethod
    def of(cls, mf: hf.SCF) -> Point | None:
        """That of a converged SCF object; None if nothing can start from it."""
        kind = Shells.of(mf, mf.mol).kind
        if not mf.converged or mf.mo_coeff is None or kind not in _KINDS:
            return None
        defect = mf._deqh_defect
        spins = _occupied(mf, kind)
        if defect is not None:
            elsewhere = isinstance(defect, np.ndarray) != isinstance(spins[0], np.ndarray)  # a GPU
            defect = None if elsewhere or defect.shape[-1] != mf.mol.nao else defect
        return cls(mf.mol.atom_coords(), _system(mf, mf.mol), kind, spins, defect)

    def has_orbitals_of(self, mf: hf.SCF) -> bool:
        """Whether they are those that an object holds, to the last digit."""
        for ours, other in zip(self.spins, _occupied(mf, self.kind), strict=True):
            if ours.shape != other.shape or not (ours == other).all():
                return False
        return True

    def with_orbitals_of(self, mf: hf.SCF) -> Point | None:
        """This point in another state, whose orbitals an object holds, converged or not; None where
        they are of another geometry, molecule or kind."""
        there = moved(mf.mol, self.positions, unit="Bohr")
        other = Shells.of(mf, there).kind != self.kind or self.system != _system(mf, there)
        if other or mf.mo_coeff is None or mf.mo_occ is None:
            return None
        changed = replace(self, spins=_occupied(mf, self.kind))
        same = [c.shape for c in changed.spins] == [c.shape for c in self.spins]
        return changed if same and changed.fits(mf.get_ovlp(there)) else None


def _occupied(mf: hf.SCF, kind: Kind) -> list[np.ndarray]:
    """Occupied orbitals of an SCF object, as a point has them."""
    c, occupation = mf.mo_coeff, mf.mo_occ
    if kind == Kind.RESTRICTED_OPEN:
        return [c[:, occupation > 0], c[:, occupation > 1]]
    if kind == Kind.UNRESTRICTED:
        return [c[s][:, occupation[s] > 0] for s in (0, 1)]
    return [c[:, occupation > 0]]


# What else decides about full Fock matrices, and so about the defect, by the attribute that has it.
_METHOD = {
    "grids": ("level", "atom_grid"), "with_df": ("auxbasis",),
    "with_solvent": ("method", "eps", "solvent"),
}  # fmt: skip


def _system(mf: hf.SCF, mol: Mole) -> Any:
    method = [attribute(mf, name) for name in ("xc", "omega", "nlc")]
    method += [attribute(mf, "with_df") is None, engine_of(mf).has_plain_hcore(mf)]
    parts = [(attribute(mf, name), names) for name, names in _METHOD.items()]
    method += [repr(getattr(part, name, None)) for part, names in parts for name in names]
    electrons = attribute(mf, "nelec", mol.nelec)  # of either spin: PySCF lets users set them
    return mol.atom_charges().tolist(), mol.nelec, electrons, mol.cart, mol._basis, method


def _moved(point: Point, positions: np.ndarray) -> float:
    """Largest displacement of an atom, bohr."""
    return float(np.linalg.norm(positions - point.positions, axis=1).max())


def expected_defect(points: Sequence[Point], positions: np.ndarray) -> np.ndarray | None:
    """The defect at a new geometry, (nao, nao) or (2, nao, nao), hartree; None without any.

    It is taken for linear between the points: the new positions, as far as they are a combination
    of the points', give its coefficients.

    Args:
        points: of one molecule, the last one last.
        positions: (atoms, 3), bohr.
    """
    *earlier, last = points
    if last.defect is None:
        return None
    known = [
        point
        for point in earlier
        if point.defect is not None and _moved(point, last.positions) < _FAR
    ]
    if not known:
        return last.defect
    directions = np.array([(point.positions - last.positions).ravel() for point in known])
    wanted = (positions - last.positions).ravel()
    weights = np.linalg.lstsq(directions.T, wanted, rcond=_DEPENDENT)[0]
    if abs(weights).max() > _FARTHEST:
        return last.defect
    changes = (w * (p.defect - last.defect) for w, p in zip(weights, known, strict=True))
    return last.defect + sum(changes)


@dataclass(frozen=True, eq=False)
class PreviousStart:
    """The orbitals of the last point, orthonormalized in the new overlap.

    Fitted Fock matrices differ from PySCF's by a defect that belongs to the atoms and hardly
    changes with their positions: that of the last points corrects those of this one.

    Attributes:
        points: of one molecule, the last one last.
        device: of the fitted Fock matrices.
    """

    name = "previous"
    points: tuple[Point, ...]
    device: str = "auto"

    def place(self, problem: Problem) -> Problem:
        """The SCF's own basis set."""
        point, mol = self.points[-1], problem.mol
        if point.kind != problem.shells.kind or point.system != _system(problem.mf, mol):
            raise UnsupportedMoleculeError("the last point was of another molecule or method")
        distance = _moved(point, mol.atom_coords())
        if distance > _FAR:
            raise UnsupportedMoleculeError(f"an atom has moved by {distance:.1f} bohr")
        return problem

    def __call__(self, problem: Problem) -> StartingPoint:
        """Raises :class:`~pyscf_deqh.NotEnoughMemoryError` without memory for exact exchange."""
        import torch

        from ..fock.fitted import FittedFock

        point, shells, overlap = self.points[-1], problem.shells, problem.system.overlap
        defect = expected_defect(self.points, problem.mol.atom_coords())
        spins = [c @ orthonormal_basis(c.T @ overlap @ c) for c in point.spins]
        orbitals = shells.of_spins(spins if len(spins) == 2 else spins * 2)
        device = resolve_device(self.device, problem.engine)

        def fitted_in(coulomb: torch.dtype) -> FittedFock:
            return FittedFock(
                problem.mol, device, problem.precision, memory=problem.memory,
                engine=problem.engine, coulomb=coulomb, own=problem.own_fit,
            )  # fmt: skip

        # The defect is smaller than what single precision leaves of a Coulomb matrix.
        fitted = fitted_in(problem.precision if defect is None else torch.float64)
        if defect is not None and not fitted.serves(problem.functional):
            fitted, defect = fitted_in(problem.precision), None
        fitted.put_into(problem.cavity)
        fock, _ = fitted(problem.core_hamiltonian, orbitals, problem.functional)
        if defect is not None:
            fock = fock + defect
        hamiltonian = shells.effective(fock, orbitals, overlap)
        return StartingPoint(hamiltonian, fitted, fitted_builds=1, defect=defect)
