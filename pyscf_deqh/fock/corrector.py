"""What solves the corrected cycles of one SCF: its own fitted matrices, shells and thresholds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pyscf import lib
from pyscf.lib import logger

from ..pyscf_api import attribute, has_nonlocal_correlation, solve
from .cycles import LOST
from .functional import STAND_IN, Functional
from .nearby import FockNearby
from .orbitals import (
    OrbitalGradient,
    Orbitals,
    by_spin,
    natural_orbitals,
    orthonormal_basis,
    scaled,
    spin_contamination,
)
from .problem import ROUNDING, Problem
from .refine import Refined, refine
from .shells import Kind, Shells

if TYPE_CHECKING:
    from .fitted import FittedFock

# Natural occupations of an open shell's orbitals lie between these.
_OPEN = (0.5, 1.5)


class Corrector:
    """What stays the same in all cycles of one SCF.

    Args:
        mf: PySCF's SCF object.
        overlap: of its orbitals.
        basis: orthonormal, of PySCF's kernel; of either spin in PySCF before 2.13.
        fitted: integrals that the guess has left; None without.

    Attributes:
        tolerance: norm of the orbital gradient below which ``mf`` is converged, hartree.
        lost: above this it is far from its solution.
        rounding: fitted matrices cannot tell such a gradient from none.
        max_fitted: limit of fitted matrices by DIIS.
    """

    max_fitted: ClassVar[int] = 20

    def __init__(self, mf: Any, overlap: np.ndarray, basis: Any, fitted: FittedFock | None):
        from .fitted import FittedFock

        problem = Problem.of(mf, mf.mol, overlap)
        self._engine = problem.engine
        self.tolerance = problem.gradient_tolerance
        self.lost = LOST * problem.gradient_scale
        self._overlap = overlap
        kind = Shells.kind_of(mf, mf.mol)
        self._shells = _OwnShells(problem.shells.electrons, kind, problem.engine, mf, basis)
        if getattr(basis, "ndim", 0) != 2 and basis is not None:
            basis = basis[0]
        symmetry = getattr(basis, "orbsym", None)
        if basis is None:
            basis = orthonormal_basis(self._overlap)
        self._basis, self._root = basis, self._overlap @ basis
        # Elements of matrices that symmetry does not forbid.
        self._allowed = None if symmetry is None else np.equal.outer(symmetry, symmetry)
        self.gradient = OrbitalGradient(basis, self._root, self._allowed)
        if fitted is None:
            fitted = FittedFock(
                mf.mol, dtype=problem.precision, memory=problem.memory, engine=problem.engine,
                own=problem.own_fit,
            )  # fmt: skip
        elif fitted.dtype.itemsize < problem.precision.itemsize:
            fitted.free()
            fitted = fitted.like(mf.mol, fitted.device, problem.precision, problem.own_fit)
        self.rounding = 0.0
        if fitted.dtype.itemsize == 4:
            spinors = 3.0 if kind == Kind.GENERALIZED else 1.0
            self.rounding = spinors * ROUNDING * problem.gradient_scale
        self._core_hamiltonian = problem.core_hamiltonian
        solvent = attribute(mf, "with_solvent")
        responds = solvent is not None and not getattr(solvent, "frozen", False)
        fitted.put_into(problem.engine.solvent_of(mf))
        functional = problem.functional
        self._of_another_kind = not fitted.serves(functional)
        if self._of_another_kind:
            functional = Functional.of(STAND_IN, problem.engine)
            logger.note(mf, "Corrected cycles with the response of %s: there is no memory for "
                        "that of exact exchange.", STAND_IN)  # fmt: skip
        self._model = FockNearby(fitted, functional, self._root)
        self._is_local = not has_nonlocal_correlation(mf)
        self._fitted, self._responds = fitted, responds
        self._known = solvent is None or problem.cavity is not None

    @property
    def response_is_exact(self) -> bool:
        """Whether fitted matrices hold all of the response, up to their fits."""
        return self._is_of_this_kind and self._is_local

    @property
    def _is_of_this_kind(self) -> bool:
        """Whether they are of the functional and the solvent, but for nonlocal correlation."""
        exact = self._fitted.response_is_exact or not self._responds
        return exact and not self._of_another_kind

    def defect(self) -> np.ndarray | None:
        """What full Fock matrices have more than fitted ones, hartree, for the next point of a
        trajectory; None where it is not known, or holds more than errors: exact exchange, or a
        solvent."""
        if not self._known or not self._is_of_this_kind:
            return None
        return self._model.defect(self._core_hamiltonian)

    def forget(self) -> None:
        """Let go of the last fitted matrices, which have led nowhere."""
        self._model.forget()

    def _symmetric(self, matrices: np.ndarray) -> np.ndarray:
        """Fock matrices (nao, nao) or (2, nao, nao) without what PySCF leaves out of them: elements
        between orbitals of different irreducible representations, by which a grid, an open shell
        or a field may break the symmetry that the user has asked for."""
        if self._allowed is None:
            return matrices
        elements = np.where(self._allowed, self._basis.T @ matrices @ self._basis, 0.0)
        projected: np.ndarray = self._root @ elements @ self._root.T
        return projected

    def _build(self, orbitals: Orbitals) -> np.ndarray:
        return self._symmetric(self._model(orbitals))

    def know(self, d: Any, f: Any) -> Orbitals:
        """Take in a density and its full Fock matrix; the density's orbitals."""
        kind, array = self._shells.kind, self._engine.array
        orbitals = _orbitals_of(kind, array(d), f, self._basis, self._root)
        full = np.stack([f.focka, f.fockb]) if kind == Kind.RESTRICTED_OPEN else array(f)
        self._model.know(orbitals, self._symmetric(full))
        return orbitals

    def solve(self, d: Any, f: Any, tolerance: float, descent: int, enough: float) -> Refined:
        """The corrected cycles from a full Fock matrix, arguments as :func:`refine` has them."""
        orbitals = self.know(d, f)
        self._model.be_accurate(tolerance)
        earlier = self._model.remembered(orbitals)
        density = self._engine.array(d)
        if self._allowed is not None:
            tags = dict(
                zip(("focka", "fockb"), map(self._symmetric, parts_of(f)[1:]), strict=False)
            )
            f = self._engine.tagged(self._symmetric(np.asarray(f)), **tags)
        return refine(
            self._build, self._overlap, self._shells, f, self.max_fitted, tolerance, density,
            earlier, descent, enough,
        )  # fmt: skip

    @property
    def gap(self) -> float:
        """Of a closed shell's last orbitals, hartree; 0 where it is not known."""
        return self._shells.gap

    def contamination(self, refined: Refined) -> float:
        """Spin contamination of unrestricted open shells; none of others."""
        electrons = self._shells.electrons
        if self._shells.kind != Kind.UNRESTRICTED or len(set(electrons)) == 1:
            return 0.0
        return spin_contamination(refined.orbitals, self._overlap)

    def hamiltonian(self, refined: Refined, f: Any) -> np.ndarray:
        """What PySCF goes on with in the place of its Fock matrix ``f``."""
        if self._shells.kind == Kind.RESTRICTED_OPEN:
            # PySCF tags what it gets with these two arrays, and fills the orbitals by them.
            for own, part in zip(parts_of(f)[1:], parts_of(refined.hamiltonian)[1:], strict=True):
                own[...] = part
        hamiltonian: np.ndarray = self._engine.array(refined.hamiltonian)
        return hamiltonian


@dataclass(frozen=True, eq=False)
class _OwnShells(Shells):
    """Electrons that fill the orbitals of an SCF object by its own rule, symmetry included.

    Attributes:
        mf: PySCF's SCF object.
        basis: orthonormal, of its kernel.
        levels: energies and occupations of the last orbitals.
    """

    mf: Any = None
    basis: Any = None
    levels: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Of a closed shell's last orbitals, hartree; 0 where it is not known."""
        if self.kind != Kind.CLOSED or not self.levels:
            return 0.0
        energies, filled = self.levels["energies"], self.levels["occupations"] > 0
        if not filled.any() or filled.all():
            return 0.0
        return float(energies[~filled].min() - energies[filled].max())

    def orbitals(
        self, hamiltonian: np.ndarray, overlap: np.ndarray, fock: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        with lib.temporary_env(self.mf, verbose=0):
            hamiltonian = self.tagged(hamiltonian, fock)
            energies, coefficients = solve(self.mf, hamiltonian, overlap, self.basis)
            occupations = self.mf.get_occ(energies, coefficients)
        self.levels.update(energies=energies, occupations=occupations)
        if self.kind == Kind.UNRESTRICTED:
            return list(coefficients), list(occupations)
        return [self.engine.array(coefficients)], [self.engine.array(occupations)]


def parts_of(f: Any) -> list[Any]:
    """A Fock matrix and those of either spin, which restricted open shells have as its tags."""
    return [f, f.focka, f.fockb] if hasattr(f, "focka") else [f]


def _orbitals_of(kind: Kind, d: Any, f: Any, basis: np.ndarray, root: np.ndarray) -> Orbitals:
    """Orbitals of PySCF's density, each scaled by the root of its occupation.

    Args:
        kind: of the SCF's class.
        d: density matrix (nao, nao), for unrestricted orbitals that of either spin.
        f: its Fock matrix, for restricted open shells tagged with ``focka`` and ``fockb``.
        basis, root: orthonormal X and S X.
    """
    if kind != Kind.RESTRICTED_OPEN:
        spins = [scaled(*natural_orbitals(x, basis, root)) for x in by_spin(d)]
        return spins if kind == Kind.UNRESTRICTED else spins[0]
    # PySCF hands on the sum of both spins' densities alone.
    occupation, natural = natural_orbitals(d, basis, root)
    open_shell = (occupation > _OPEN[0]) & (occupation < _OPEN[1])
    if np.allclose(f.focka, f.fockb, rtol=0, atol=1e-9):
        open_shell[:] = False  # a superposition of atoms: both spins are the same
    alpha = np.where(open_shell, occupation, occupation / 2)
    return [scaled(o, natural) for o in (alpha, occupation - alpha)]
