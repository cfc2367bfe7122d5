"""What an SCF has to solve, as its guess sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import Engine, engine_of
from ..errors import UnsupportedMoleculeError
from ..pyscf_api import Cavity
from .functional import Functional
from .shells import Kind, Shells
from .system import System, check_molecule

if TYPE_CHECKING:
    import torch
    from pyscf.gto import Mole
    from pyscf.scf import hf

_DEPENDENT = 1e-4  # eigenvalue of the overlap
# Of each spin: eight densities with their defects and what they are told apart by (nearby.py).
_KEPT_MATRICES = 24
# Threshold of PySCF (norm of the gradient, hartree) below which single precision is too little.
_SINGLE = 1e-5
# What single precision leaves of the gradient, hartree per root of an electron pair.
ROUNDING = 7e-7


def check_method(mf: hf.SCF) -> Functional:
    """Refuse SCF objects that a guess would serve half; the functional of others.

    Raises:
        UnsupportedMoleculeError: spinors, classes that are neither PySCF's nor gpu4pyscf's,
            functionals that these do not evaluate.
    """
    engine = engine_of(mf)
    if engine.class_of(mf) is None:
        kind = f"{type(mf).__module__}.{type(mf).__name__}"
        known = ", ".join(c.__name__ for c in engine.classes().values())
        raise UnsupportedMoleculeError(
            f"no guess for {kind}, which is none of the molecular classes {known}"
        )
    return Functional.of_scf(mf)


@dataclass(frozen=True, eq=False)
class Problem:
    """Molecule, method, and who occupies what; checked when it is made.

    Attributes:
        mf: the SCF object, for its one-electron Hamiltonian and its own Fock matrices.
        system: the molecule.
        shells: the electrons of ``mf``.
        functional: of ``mf``.
        scf_follows: whether ``mf``'s SCF comes next, which can use what is made of it.
    """

    mf: hf.SCF
    system: System
    shells: Shells
    functional: Functional
    scf_follows: bool = False

    @classmethod
    def of(cls, mf: hf.SCF, mol: Mole, overlap: np.ndarray | None = None) -> Problem:
        """``mf``'s own problem, or that of its class for another molecule.

        Args:
            mf: any molecular SCF object of PySCF or gpu4pyscf.
            mol: the molecule that it starts from.
            overlap: as PySCF's kernel hands it on; of spin orbitals or of another shape it is
                made anew.

        Raises:
            UnsupportedMoleculeError: see :func:`check_method` and :func:`check_molecule`; fewer
                orbitals than electrons of one spin.
        """
        functional = check_method(mf)
        check_molecule(mol)
        follows = overlap is not None or engine_of(mf).fixed
        if overlap is None:
            overlap = mf.get_ovlp(mol)
        spatial = overlap.shape == (mol.nao, mol.nao)
        system = System(mol, overlap if spatial else None, engine_of(mf))
        shells = Shells.of(mf, mol)
        if max(shells.electrons) > mol.nao:
            raise UnsupportedMoleculeError(
                f"{max(shells.electrons)} electrons of one spin do not fit into {mol.nao} orbitals"
            )
        return cls(mf, system, shells, functional, follows)

    def in_basis_of(self, mol: Mole) -> Problem:
        """The same for a copy of the molecule in another basis set."""
        if mol is self.system.mol:
            return self
        return replace(self, system=System(mol, engine=self.engine))

    @property
    def mol(self) -> Mole:
        return self.system.mol

    @property
    def engine(self) -> Engine:
        """Of ``mf``."""
        return self.system.engine

    @cached_property
    def core_hamiltonian(self) -> np.ndarray:
        """``mf``'s one-electron Hamiltonian (nao, nao), hartree; of one of spin orbitals what is
        the same for both spins."""
        if self.engine.has_plain_hcore(self.mf):
            return self.system.core_hamiltonian
        if self.mol is not self.mf.mol and "get_hcore" in vars(self.mf):
            return self.system.core_hamiltonian  # a user's function may know one molecule only
        own = self.engine.array(self.mf.get_hcore(self.mol))
        n = self.mol.nao
        if own.shape == (2 * n, 2 * n):
            own = (own[:n, :n] + own[n:, n:]).real / 2
        spatial = own.shape == (n, n) and own.dtype.kind != "c"
        return own if spatial else self.system.core_hamiltonian

    @cached_property
    def cavity(self) -> Cavity | None:
        """Of the SCF's solvent around its own molecule; None without one, or of kinds that Fock
        matrices alone know."""
        if self.mol is not self.mf.mol:
            return None
        found = self.engine.solvent_of(self.mf, build=True, keep=self.scf_follows)
        return found if isinstance(found, Cavity) else None

    @cached_property
    def nearly_dependent(self) -> bool:
        """Whether basis functions are so nearly dependent, as diffuse ones are, that they amplify
        the rounding of single precision to gradients of 1e-4 hartree."""
        return bool(np.linalg.eigvalsh(self.system.overlap)[0] < _DEPENDENT)

    @property
    def precision(self) -> torch.dtype:
        """Of fitted Fock matrices: single, unless basis or threshold ask for more."""
        import torch

        least = max(_SINGLE, ROUNDING * self.gradient_scale)
        double = self.nearly_dependent or self.gradient_tolerance < least
        return torch.float64 if double else torch.float32

    @property
    def gradient_tolerance(self) -> float:
        """Norm of the orbital gradient below which ``mf`` takes itself for converged, hartree."""
        return self.mf.conv_tol_grad or float(np.sqrt(self.mf.conv_tol))

    @property
    def gradient_scale(self) -> float:
        """What makes norms of the orbital gradient of small and large molecules comparable."""
        return float(np.sqrt(max(self.mol.nelectron // 2, 1)))

    @property
    def own_fit(self) -> Any:
        """``mf``'s own density fitting, if its integrals are there and serve the engine."""
        return self.engine.own_fit(self.mf) if self.mol is self.mf.mol else None

    @property
    def memory(self) -> float:
        """Megabytes that are left for the guess beside the two-electron integrals that ``mf``
        holds, and the matrices that corrected cycles keep: of ``mf.max_memory``, or of its GPU."""
        of_spins = {Kind.CLOSED: 1, Kind.GENERALIZED: 4}.get(Shells.kind_of(self.mf, self.mol), 2)
        kept = _KEPT_MATRICES * of_spins * self.mol.nao**2 * 8 / 1e6
        return max(self.engine.memory(self.mf) - kept, 0.0)
