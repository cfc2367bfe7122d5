"""Which orbitals the electrons of either spin occupy in PySCF's different SCF classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import HOST, Engine, engine_of
from ..pyscf_api import attribute
from .orbitals import Orbitals, by_spin, density_matrix, solve_roothaan

if TYPE_CHECKING:
    from pyscf.gto import Mole
    from pyscf.scf import hf


class Kind(Enum):
    """What an SCF class allows the two spins.

    ``AVERAGED``: the Fock matrix of their mean density is all that the guess has to offer.
    """

    CLOSED = auto()
    UNRESTRICTED = auto()
    RESTRICTED_OPEN = auto()
    GENERALIZED = auto()
    AVERAGED = auto()


def _electrons(mf: hf.SCF, mol: Mole) -> tuple[int, int]:
    # Some classes let their user choose.
    return attribute(mf, "nelec", mol.nelec) if mol is mf.mol else mol.nelec


def breaks_spin_symmetry(mf: hf.SCF, mol: Mole) -> bool:
    """Whether PySCF breaks the spin symmetry of every guess of ``mf``: of UHF's singlets, and of
    GHF, where it mixes both spins."""
    name, (up, down) = engine_of(mf).class_of(mf), _electrons(mf, mol)
    singlet = mol.spin == 0 and up == down
    return name == "ghf" or (name == "uhf" and singlet and bool(mf.init_guess_breaksym))


def _kind(mf: hf.SCF, mol: Mole) -> Kind:
    # Irreducible representations that the user filled may be no aufbau state.
    # Of generalized orbitals there is no guess.
    kind = Shells.kind_of(mf, mol)
    averaged = attribute(mf, "irrep_nelec") or kind == Kind.GENERALIZED
    return Kind.AVERAGED if averaged else kind


@dataclass(frozen=True)
class Shells:
    """The electrons of an SCF object.

    Attributes:
        electrons: of either spin.
        kind: what the two spins may do.
        engine: of all arrays.
    """

    electrons: tuple[int, int]
    kind: Kind
    engine: Engine = HOST

    @classmethod
    def of(cls, mf: hf.SCF, mol: Mole) -> Shells:
        """Those of ``mf``, or of ``mf``'s class for another molecule."""
        return cls(_electrons(mf, mol), _kind(mf, mol), engine_of(mf))

    @staticmethod
    def kind_of(mf: hf.SCF, mol: Mole) -> Kind:
        """What ``mf``'s class allows the two spins, whatever its guess may know of them."""
        name, (up, down) = engine_of(mf).class_of(mf), _electrons(mf, mol)
        if name == "ghf":
            return Kind.GENERALIZED
        if name == "uhf":
            return Kind.UNRESTRICTED
        if name == "rohf":
            return Kind.RESTRICTED_OPEN if up >= down else Kind.AVERAGED
        return Kind.CLOSED if name == "rhf" and up == down else Kind.AVERAGED

    @classmethod
    def closed(cls, n_electrons: int) -> Shells:
        """Those of a closed shell."""
        return cls((n_electrons // 2, n_electrons // 2), Kind.CLOSED)

    def fill(
        self, fock: np.ndarray, energies: Sequence[np.ndarray], coefficients: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Occupation (n,) of the orbitals, for each spin if they are unrestricted.

        Restricted open shells are filled as PySCF fills them: the doubly occupied orbitals by
        Roothaan's energies, then the others by the energies of the spin with more electrons.

        Args:
            fock: the last Fock matrix, tagged with ``focka`` for restricted open shells.
            energies: of the orbitals, ascending, in an array for each spin.
            coefficients: (nao, n) the same of the orbitals.
        """
        up, down = sorted(self.electrons, reverse=True)
        if self.kind == Kind.UNRESTRICTED:
            occupations = [np.zeros_like(e) for e in energies]
            for occupation, count in zip(occupations, self.electrons, strict=True):
                occupation[:count] = 1.0
            return occupations
        occupation = np.zeros_like(energies[0])
        occupation[:down] = 2.0
        alpha = getattr(fock, "focka", None)
        if alpha is None:
            occupation[down:up] = 1.0
        else:
            c = coefficients[0][:, down:]
            alpha_energies = np.einsum("pi,pi->i", c, alpha @ c)
            occupation[down + np.argsort(alpha_energies)[: up - down]] = 1.0
        return [occupation]

    def orbitals(
        self, hamiltonian: np.ndarray, overlap: np.ndarray, fock: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Orbitals (nao, n) of a Hamiltonian and their occupation (n,), in a list by spin.

        Args:
            hamiltonian: (nao, nao) of both spins, or (2, nao, nao) of either.
            overlap: (nao, nao).
            fock: see :meth:`fill`.
        """
        solved = [solve_roothaan(h, overlap, self.engine) for h in by_spin(hamiltonian)]
        if self.kind == Kind.UNRESTRICTED and len(solved) == 1:
            solved *= 2
        energies, coefficients = zip(*solved, strict=True)
        return list(coefficients), self.fill(fock, energies, coefficients)

    def filled(
        self, coefficients: Sequence[np.ndarray], occupations: Sequence[np.ndarray]
    ) -> Orbitals:
        """Occupied orbitals that a Fock matrix is built of; arguments as :meth:`orbitals` returns.

        For restricted open shells those of either spin, whose fuller one comes first.
        """
        pairs = list(zip(coefficients, occupations, strict=True))
        if self.kind == Kind.RESTRICTED_OPEN:
            ((c, o),) = pairs
            return [c[:, o > 0], c[:, o > 1]]
        spins = [c[:, o > 0] * np.sqrt(o[o > 0]) for c, o in pairs]
        return spins if len(spins) == 2 else spins[0]

    def of_spins(self, spins: Sequence[np.ndarray]) -> Orbitals:
        """What a Fock matrix is built of, as :meth:`filled` returns it.

        Args:
            spins: occupied orbitals (nao, k) of either spin, as :meth:`occupied` returns them.
        """
        if self.kind in (Kind.UNRESTRICTED, Kind.RESTRICTED_OPEN):
            return list(spins)
        return np.sqrt(2) * spins[0] if self.kind == Kind.CLOSED else np.hstack(spins)

    def occupied(self, hamiltonian: np.ndarray, overlap: np.ndarray) -> list[np.ndarray]:
        """Occupied orbitals (nao, k) of either spin, orthonormal; arguments as of
        :meth:`orbitals`."""
        coefficients, occupations = self.orbitals(hamiltonian, overlap, hamiltonian)
        if self.kind == Kind.UNRESTRICTED:
            return [c[:, o > 0] for c, o in zip(coefficients, occupations, strict=True)]
        (c,), (o,) = coefficients, occupations
        spins = [c[:, o > 0], c[:, o > 1]]
        return spins if self.electrons[0] >= self.electrons[1] else spins[::-1]

    def effective(self, fock: np.ndarray, orbitals: Orbitals, overlap: np.ndarray) -> np.ndarray:
        """The Fock matrix that determines the orbitals.

        For restricted open shells that is Roothaan's (Rev. Mod. Phys. 32, 179, 1960) of those of
        either spin, in PySCF's form and with its tags ``focka`` and ``fockb``.

        Args:
            fock: that of ``orbitals``.
            orbitals: of :meth:`filled`.
            overlap: (nao, nao).
        """
        if self.kind != Kind.RESTRICTED_OPEN:
            return fock
        return self.engine.roothaan(fock, density_matrix(orbitals), overlap)

    def tagged(self, hamiltonian: np.ndarray, fock: Any) -> np.ndarray:
        """The Hamiltonian, for restricted open shells with the tags of ``fock``, which PySCF needs
        to fill its orbitals."""
        if self.kind != Kind.RESTRICTED_OPEN:
            return hamiltonian
        return self.engine.tagged(hamiltonian, focka=fock.focka, fockb=fock.fockb)
