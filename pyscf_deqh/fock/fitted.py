"""Cheap Fock matrices of one molecule: fitted integrals and a coarse grid, all of it kept.

The orbital products are fitted to an auxiliary basis (density fitting, Whitten, J. Chem. Phys. 58,
4496, 1973) and the functional is integrated on a grid that is coarser than an SCF's. The fitted
three-index integrals and the orbitals' values on the grid are made once, so that each Fock matrix
is a few matrix products, in single precision and on a GPU where there is one. Converged, such
Fock matrices differ from PySCF's by some micro-hartree on average.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import starmap
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..engine import HOST, Engine
from ..errors import DEQHError, NotEnoughMemoryError, own_errors
from ..pyscf_api import Cavity
from .auxiliary import auxiliary_molecule
from .blocks import BlockIntegrals, OrbitalGroups
from .cavity import CavityResponse, response_bytes
from .differences import FittedDifferences
from .functional import Functional
from .grid import GRID
from .integrals import Integrals, PackedIntegrals, PairIntegrals, n_orbital_pairs
from .orbital_values import GridBlock, OrbitalValues, density_on_grid, half_potential
from .orbitals import Orbitals, by_spin, in_form_of, total_density
from .potentials import Potentials

if TYPE_CHECKING:
    from pyscf.dft.gen_grid import Grids
    from pyscf.gto import Mole

# What PySCF's own working arrays are left of the memory.
_SHARE = 0.75


class FittedFock:
    """Fock and Kohn-Sham matrices of closed shells, and unrestricted ones of open shells.

    Args:
        mol: the molecule.
        device, dtype: where and how the products are computed; by default where the engine is.
        auxbasis, grid: the auxiliary basis set, None for one for each element (see
            :mod:`~pyscf_deqh.fock.auxiliary`); radial shells and largest angular grid.
        memory: megabytes of which three quarters may be held at once; ``mol.max_memory`` if it is
            None, or all that the GPU of an engine has free. Where the integrals do not fit, there
            are Coulomb matrices (by the engine's objects, which make them each time), but no
            exchange. Values on the grid that do not fit are made anew for each matrix.
        engine: makes integrals and grid; matrices are its arrays.
        coulomb: dtype of the Coulomb part, by far the largest of a matrix; that of the rest if it
            is None.
        own: the density fitting of the SCF itself (:meth:`Engine.own_fit`), whose integrals are
            used in the place of others; None for others.

    Attributes:
        potentials: what its matrices hold beside Coulomb's part, of the last densities.
    """

    def __init__(
        self,
        mol: Mole,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        auxbasis: str | None = None,
        grid: tuple[int, int] = GRID,
        memory: float | None = None,
        engine: Engine = HOST,
        coulomb: torch.dtype | None = None,
        own: Any = None,
    ):
        self.mol, self.engine, self._own = mol, engine, own
        self.device, self.dtype = torch.device(device or engine.device), dtype
        self.coulomb_dtype = torch.float64 if own is not None else coulomb or dtype
        self.auxbasis, self.grid = auxbasis, grid
        if memory is None:
            memory = float("inf") if engine.fixed else mol.max_memory
        self._memory = memory
        self._limit = self._left = 1e6 * _SHARE * self._memory
        if self.device.type == "cuda":
            on_device = _SHARE * engine.free_bytes(self.device)
            self._limit = self._left = min(self._limit, on_device)
        self._long_range: dict[float, Integrals] = {}
        self.potentials = Potentials(self)
        self._solvent: Cavity | Callable[[np.ndarray], np.ndarray] | None = None
        self._surface: CavityResponse | None = None
        self._surface_bytes = 0
        self._of_nuclei: Tensor | None = None
        self._energy_of_nuclei = 0.0
        self._response: Callable[[np.ndarray], np.ndarray] | None = None

    def like(
        self, mol: Mole, device: torch.device | str, dtype: torch.dtype, own: Any = None
    ) -> FittedFock:
        """The same for another molecule, device or precision; in the same solvent, if it is the
        same molecule."""
        coulomb = max(dtype, self.coulomb_dtype, key=lambda known: known.itemsize)
        other = FittedFock(
            mol, device, dtype, self.auxbasis, self.grid, self._memory, self.engine, coulomb, own
        )
        if mol is self.mol:
            other.put_into(self._solvent)
        return other

    @cached_property
    def _auxiliary(self) -> Mole:
        if self._own is not None:
            return self._own.auxmol
        return auxiliary_molecule(self.mol, self.auxbasis)

    @property
    def _in_pairs(self) -> bool:
        """Whether the integrals stay in the form that the engine makes."""
        return self.engine.keeps_pairs and self.coulomb_dtype == torch.float64

    @cached_property
    def _groups(self) -> OrbitalGroups:
        return OrbitalGroups.of(self.mol)

    # Bytes of the fitted integrals, and of what makes exchange faster.

    @cached_property
    def _integral_bytes(self) -> int:
        in_blocks = self.engine.in_blocks
        pairs = self._groups.n_pairs() if in_blocks else n_orbital_pairs(self.mol)
        return self.coulomb_dtype.itemsize * self._auxiliary.nao * pairs

    @cached_property
    def _twice_bytes(self) -> int:
        pairs = self.mol.nao**2
        if self.engine.in_blocks:
            pairs = self._groups.n_pairs(beyond=True)
            if self.coulomb_dtype != self.dtype:
                pairs += self._groups.n_pairs()
        return self.dtype.itemsize * self._auxiliary.nao * pairs

    def _reserve(self, n_bytes: float) -> bool:
        """Whether there is room for something that is kept, which it has from then on."""
        fits = n_bytes <= self._left
        self._left -= n_bytes if fits else 0
        return fits

    # Each is asked when it is needed, but the integrals first of all.

    @cached_property
    def _keeps_integrals(self) -> bool:
        if self._own is not None:
            return True
        peak = 0.0
        if not self._in_pairs:
            peak = self.engine.peak * self._integral_bytes * 8 / self.coulomb_dtype.itemsize
        return peak + self._integral_bytes <= self._left and self._reserve(self._integral_bytes)

    @cached_property
    def _keeps_twice(self) -> bool:
        if self._in_pairs or not self._keeps_integrals:
            return False
        return self._reserve(self._twice_bytes)

    def _make_room(self, n_bytes: float) -> bool:
        """Reserve, if need be in the place of what is worth less."""
        while not self._reserve(n_bytes):
            if self.__dict__.get("_keeps_twice"):
                self._forgo_twice()
            elif self.orbital_values.nbytes:
                self._left += self.orbital_values.release()
            elif self._surface is not None and isinstance(self._solvent, Cavity):
                self._left += self._surface_bytes
                self._surface, self._surface_bytes = None, 0
                self._fit_surface(self._solvent)
            else:
                return False
        return True

    def _too_large(self, what: str) -> NotEnoughMemoryError:
        return NotEnoughMemoryError(
            f"the {what} of {self.mol.nao} orbitals do not fit into {self._limit / 1e6:.0f} MB, "
            f"{_SHARE:.0%} of what max_memory leaves"
        )

    def _fit(self, omega: float = 0.0) -> Integrals:
        if self._in_pairs:
            own = None if omega else self._own
            pairs = self.engine.pair_integrals(self.mol, self._auxiliary, omega, own)
            if pairs is not None:
                return PairIntegrals(*pairs, self.mol.nao, self.engine.block_bytes)
        if self.engine.in_blocks:
            return BlockIntegrals(
                self.mol, self._auxiliary, self._groups, self.device, self.coulomb_dtype, omega,
                self.engine, self.dtype,
            )  # fmt: skip
        packed = self.engine.packed_integrals(
            self.mol, self._auxiliary, self.device, self.coulomb_dtype, omega
        )
        return PackedIntegrals(
            packed, self.mol.nao, self.engine.block_bytes, self.dtype, self.engine.empty
        )

    @cached_property
    def integrals(self) -> Integrals:
        """Those of the Coulomb operator.

        Raises:
            NotEnoughMemoryError: they do not fit.
        """
        if not self._keeps_integrals:
            raise self._too_large("fitted integrals")
        return self._fit()

    def put_into(self, solvent: Cavity | Callable[[np.ndarray], np.ndarray] | None) -> None:
        """Let Fock matrices hold a solvent, where the integrals are kept.

        Args:
            solvent: from the engine: its cavity, or its potential of a density, without that of the
                nuclei, so that differences alone are right.
        """
        known = self._solvent
        if isinstance(known, Cavity) and isinstance(solvent, Cavity) and known.k is solvent.k:
            return
        self._leave_solvent()
        if not isinstance(solvent, Cavity):
            self._solvent = self._response = solvent
        elif self._keeps_integrals:
            for enter in (self._enter, self._fit_surface):
                try:
                    with own_errors():
                        return enter(solvent)
                except DEQHError:  # without a solvent they are of use, too
                    self._leave_solvent()

    def _enter(self, cavity: Cavity) -> None:
        n_bytes = response_bytes(cavity, self._groups, self.coulomb_dtype)
        if self._clear(n_bytes):
            self._solvent, self._surface_bytes = cavity, n_bytes
            self._surface = CavityResponse(
                self.mol, cavity, self._groups, self.device, self.coulomb_dtype, self.engine
            )
            self._of_nuclei = self._surface.of_nuclei
            self._energy_of_nuclei = self._surface.energy_of_nuclei
        else:
            self._fit_surface(cavity)

    def _fit_surface(self, cavity: Cavity) -> None:
        """Let the potential on a surface be that of the fitted density."""
        self._solvent = cavity
        if isinstance(self.integrals, BlockIntegrals):
            made = self.integrals.put_into(cavity)
            assert made is not None
            self._of_nuclei, self._energy_of_nuclei = made

    def _leave_solvent(self) -> None:
        self._left += self._surface_bytes
        self._surface_bytes = 0
        self._solvent = self._surface = self._response = self._of_nuclei = None
        self._energy_of_nuclei = 0.0
        made = self.__dict__.get("integrals")
        if isinstance(made, BlockIntegrals):
            made.put_into(None)

    def _clear(self, n_bytes: float) -> bool:
        """Reserve, if need be in the place of what is kept but can be made anew."""
        twice = self._twice_bytes if self.__dict__.get("_keeps_twice") else 0
        values = self.__dict__.get("orbital_values")
        if n_bytes > self._left + twice + (values.nbytes if values is not None else 0):
            return False
        if n_bytes > self._left and twice:
            self._forgo_twice()
        if n_bytes > self._left and values is not None:
            self._left += values.nbytes
            del self.orbital_values  # which take what room there is next time
        return self._reserve(n_bytes)

    def _forgo_twice(self) -> None:
        self.integrals.keep_twice(False)
        self._keeps_twice = False
        self._left += self._twice_bytes

    @property
    def response_is_exact(self) -> bool:
        """Whether the response of the solvent is no fit."""
        known = self._response is not None and self._keeps_integrals
        return known or self._surface is not None

    def _long_range_integrals(self, omega: float) -> Integrals:
        if omega not in self._long_range:
            if not self._make_room(self._integral_bytes):
                raise self._too_large("fitted integrals of both ranges")
            integrals = self._long_range[omega] = self._fit(omega)
            integrals.keep_twice(not self._in_pairs and self._reserve(self._twice_bytes))
        return self._long_range[omega]

    @cached_property
    def _without_tensor(self) -> Callable[[np.ndarray], np.ndarray]:
        """The engine's own fitted Coulomb matrices, for which it makes the integrals each time."""
        return self.engine.fitted_coulomb(self.mol, self._auxiliary, self._memory)

    @cached_property
    def grids(self) -> Grids:
        return self.engine.grids(self.mol, self.grid)

    @cached_property
    def orbital_values(self) -> OrbitalValues:
        """Orbitals and their gradients on the grid."""
        _ = self._keeps_integrals  # their room comes first

        # No circle: what is kept goes when nobody holds this object any more.
        fitted = weakref.proxy(self)

        def make(first: int) -> Iterator[GridBlock]:
            arguments = fitted.mol, fitted.grids, fitted.device, fitted.dtype, first
            return starmap(GridBlock, fitted.engine.orbital_values(*arguments))

        return OrbitalValues(make, lambda n_bytes: fitted._reserve(n_bytes))

    @property
    def nbytes(self) -> int:
        """Of integrals and values on the grid that are kept."""
        made = [self.__dict__.get(name) for name in ("integrals", "orbital_values")]
        kept = [*made, self._surface, *self._long_range.values()]
        return sum(x.nbytes for x in kept if x is not None)

    def serves(self, functional: Functional) -> bool:
        """Whether the integrals for a functional's exact exchange fit into memory."""
        return not functional.exchange or (
            self._keeps_integrals
            and all(
                omega in self._long_range or 2 * self._integral_bytes <= self._limit
                for omega in functional.exchange
                if omega
            )
        )

    def free(self) -> None:
        """Let go of all that is kept: this object makes no more Fock matrices."""
        for name in ("integrals", "_without_tensor", "orbital_values"):
            self.__dict__.pop(name, None)
        self._long_range.clear()
        self._surface = self._of_nuclei = None
        self.forget()

    def __call__(
        self, hcore: np.ndarray, orbitals: Orbitals, xc: str | Functional
    ) -> tuple[np.ndarray, float]:
        """Fock matrix, float64, and energy of the electrons and of a solvent, both in hartree.

        Args:
            hcore: (nao, nao) one-electron Hamiltonian, hartree.
            orbitals: (nao, k), each scaled by the root of its occupation, for a matrix (nao, nao);
                two such arrays, of either spin, for (2, nao, nao).
            xc: functional, or its name in PySCF's notation, or ``hf``.

        Raises:
            NotEnoughMemoryError: exact exchange is asked for and does not fit into memory.
        """
        made = self.potentials.of(orbitals, Functional.of(xc, self.engine))
        coulomb = self.coulomb(total_density(by_spin(orbitals)))
        hcore = self.in_solvent(hcore)
        energy, focks = made.energy + self._energy_of_nuclei, []
        for c, k, v in zip(by_spin(orbitals), made.exchange, made.semilocal, strict=True):
            potential = self.array(k + coulomb)
            energy += float(np.vdot(c @ c.T, hcore + 0.5 * potential))
            focks.append(hcore + potential + self.array(v))
        return in_form_of(orbitals, focks), energy

    def in_solvent(self, hcore: np.ndarray) -> np.ndarray:
        """With the potential of the charges that the nuclei induce."""
        if self._of_nuclei is None:
            return hcore
        return hcore + self.array(self._of_nuclei.double())

    @cached_property
    def overlap(self) -> Any:
        """Of the orbitals, (nao, nao)."""
        return self.engine.overlap(self.mol)

    def differences(
        self,
        orbitals: Orbitals,
        xc: str | Functional,
        earlier: FittedDifferences | None = None,
    ) -> FittedDifferences:
        """Differences from the Fock matrix of a density; arguments as of a call, and its errors.

        Args:
            orbitals, xc: see :meth:`__call__`.
            earlier: those from another density, which will be compared with these.
        """
        return FittedDifferences(self, orbitals, Functional.of(xc, self.engine), earlier)

    def tensor(self, array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
        """An engine's array where the products are computed."""
        return self.engine.tensor(array, self.device, dtype or self.dtype)

    def array(self, tensor: Tensor) -> np.ndarray:
        """A tensor as the engine's array, float64."""
        return self.engine.of_tensor(tensor)

    def tensors(self, orbitals: Orbitals) -> list[Tensor]:
        """Orbitals by spin."""
        return [self.tensor(c) for c in by_spin(orbitals)]

    def remembered(self, functional: Functional, accuracy: float = 0.0) -> list[Orbitals]:
        """Those of the last Fock matrices in a functional, in their order. If they, and not equal
        ones, are asked for again, only the Coulomb part is made anew. None where that is not
        cheap.

        Args:
            functional: of the matrices.
            accuracy: see :class:`FittedDifferences`; but for exact ones, those are left out that
                are not so accurate.
        """
        if not self._keeps_integrals or self._response is not None:
            return []
        return [
            made.orbitals
            for made in self.potentials
            if made.functional.same_as(functional) and made.error <= accuracy
        ]

    def forget(self) -> None:
        """Let go of what is remembered."""
        self.potentials.forget()

    def exchange(self, functional: Functional, c: Tensor, d: Tensor | None = None) -> Tensor:
        """What of the functional is exact exchange, of the density C D^T or C C^T."""
        matrix = c.new_zeros(len(c), len(c))
        for omega, share in functional.exchange.items():
            if omega:
                integrals = self._long_range_integrals(omega)
            else:
                integrals = self.integrals
                integrals.keep_twice(self._keeps_twice)
            matrix -= share * integrals.exchange(c, d)
        return matrix

    def coulomb(self, density: np.ndarray) -> Tensor:
        """Coulomb matrix (nao, nao) of a density matrix, with a solvent's response."""
        dtype = self.coulomb_dtype
        try:
            coulomb = self.integrals.coulomb(self.tensor(density, dtype))
        except NotEnoughMemoryError:
            return self.tensor(self._without_tensor(density), dtype)
        if self._surface is not None:
            coulomb = coulomb + self._surface(self.tensor(density, dtype)).to(dtype)
        if self._response is not None:
            coulomb = coulomb + self.tensor(self._response(density), dtype)
        return coulomb

    def semilocal(self, spins: list[Tensor], functional: Functional) -> tuple[list[Tensor], float]:
        """Matrices (nao, nao) by spin and energy of what the functional says on the grid."""
        ni, xc, kind = functional.numint, functional.name, functional.kind
        if kind == "HF":
            return [c.new_zeros(len(c), len(c)) for c in spins], 0.0
        densities = [c @ c.T for c in spins]
        halves, energy = [torch.zeros_like(density) for density in densities], 0.0
        for blocks in self.orbital_values.batches(self.engine.block_bytes):
            rho = np.stack([
                self.array(torch.cat([density_on_grid(b, c, density, kind) for b in blocks], -1))
                for c, density in zip(spins, densities, strict=True)
            ])  # fmt: skip
            of_spins = rho if len(spins) == 2 else rho[0]
            per_electron, derivative = ni.eval_xc_eff(xc, of_spins, 1, xctype=kind)[:2]
            weights = self.grids.weights[blocks[0].points.start : blocks[-1].points.stop]
            energy += float(np.dot(per_electron * rho[:, 0].sum(0), weights))
            weighted = (derivative * weights).reshape(len(spins), -1, len(weights))
            for half, of_spin in zip(halves, weighted, strict=True):
                parts = self.tensor(of_spin).split([b.values.shape[2] for b in blocks], -1)
                for block, part in zip(blocks, parts, strict=True):
                    block.add_to(half, half_potential(block, part))
        return [half + half.T for half in halves], energy
