"""Cheap Fock matrices of one molecule: fitted integrals and a coarse grid, all of it kept.

The orbital products are fitted to an auxiliary basis (density fitting, Whitten, J. Chem. Phys. 58,
4496, 1973) and the functional is integrated on a grid that is coarser than an SCF's. The fitted
three-index integrals and the orbitals' values on the grid are made once, so that each Fock matrix
is a few matrix products, in single precision and on a GPU where there is one. Converged, such
Fock matrices differ from PySCF's by some micro-hartree on average.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..engine import HOST, Engine
from ..errors import DEQHError, NotEnoughMemoryError, own_errors
from ..pyscf_api import Cavity
from .auxiliary import auxiliary_molecule
from .blocks import BlockIntegrals, OrbitalGroups
from .cavity import CavityResponse, response_bytes
from .functional import Functional
from .grid import GRID
from .integrals import Integrals, PackedIntegrals, PairIntegrals, n_orbital_pairs
from .orbital_values import GridBlock, OrbitalValues, density_on_grid, half_potential
from .orbitals import Orbitals, by_spin, nearest_combination

if TYPE_CHECKING:
    from pyscf.dft.gen_grid import Grids
    from pyscf.gto import Mole

# What PySCF's own working arrays are left of the memory.
_SHARE = 0.75
# Densities whose Fock matrices are remembered.
_REMEMBERED = 6
# What single precision leaves of exact exchange, norm of the gradient in hartree for the root of an
# orbital; up to which change of the orbitals, in an orthonormal basis, a difference is better.
_ROUNDING, _NEAR = 2e-6, 0.3


@dataclass(frozen=True, eq=False)
class _Made:
    """What was made of orbitals: all of their Fock matrix but Coulomb's part.

    Attributes:
        orbitals: as they were handed over.
        functional: of the matrices.
        exchange, semilocal: matrices (nao, nao) by spin, hartree.
        energy: of the semilocal part, hartree.
        error: of the exchange, norm of the matrices, hartree, by estimate.
    """

    orbitals: Orbitals
    functional: Functional
    exchange: list[Tensor]
    semilocal: list[Tensor]
    energy: float
    error: float = 0.0


class _Near(NamedTuple):
    """A density near those to come.

    Attributes:
        made: of it.
        accuracy: norm of a matrix, hartree: where rounding in single precision is no smaller,
            exchange is that of this density and of the change.
    """

    made: _Made
    accuracy: float


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
        self._made: deque[_Made] = deque(maxlen=_REMEMBERED)
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
        return PackedIntegrals(packed, self.mol.nao, self.engine.block_bytes, self.dtype)

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

        def make(first: int) -> Iterator[GridBlock]:
            arguments = self.mol, self.grids, self.device, self.dtype, first
            yield from starmap(GridBlock, self.engine.orbital_values(*arguments))

        return OrbitalValues(make, self._reserve)

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
        made = self._make(orbitals, Functional.of(xc, self.engine))
        coulomb = self._coulomb(_total_density(by_spin(orbitals)))
        hcore = self._in_solvent(hcore)
        energy, focks = made.energy + self._energy_of_nuclei, []
        for c, k, v in zip(by_spin(orbitals), made.exchange, made.semilocal, strict=True):
            potential = self._array(k + coulomb)
            energy += float(np.vdot(c @ c.T, hcore + 0.5 * potential))
            focks.append(hcore + potential + self._array(v))
        return _like(orbitals, focks), energy

    def _in_solvent(self, hcore: np.ndarray) -> np.ndarray:
        """With the potential of the charges that the nuclei induce."""
        if self._of_nuclei is None:
            return hcore
        return hcore + self._array(self._of_nuclei.double())

    @cached_property
    def _overlap(self) -> Any:
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

    def _tensor(self, array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
        return self.engine.tensor(array, self.device, dtype or self.dtype)

    def _array(self, tensor: Tensor) -> np.ndarray:
        return self.engine.of_tensor(tensor)

    def _tensors(self, orbitals: Orbitals) -> list[Tensor]:
        return [self._tensor(c) for c in by_spin(orbitals)]

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
            for made in self._made
            if made.functional.same_as(functional) and made.error <= accuracy
        ]

    def forget(self) -> None:
        """Let go of what is remembered."""
        self._made.clear()

    def _make(
        self,
        orbitals: Orbitals,
        functional: Functional,
        accuracy: float = 0.0,
        near: _Near | None = None,
    ) -> _Made:
        for made in self._made:
            if made.orbitals is orbitals and made.functional.same_as(functional):
                if made.error <= accuracy:
                    return made
                self._made.remove(made)
                break
        spins = self._tensors(orbitals)
        made = self._exchange_correlation(orbitals, spins, functional, accuracy, near)
        self._made.append(made)
        return made

    def _exchange_correlation(
        self,
        orbitals: Orbitals,
        spins: list[Tensor],
        functional: Functional,
        accuracy: float = 0.0,
        near: _Near | None = None,
    ) -> _Made:
        semilocal, energy = self._semilocal(spins, functional)
        # Electrons exchange with those of their own spin: half of a closed shell's density.
        share = 0.5 if len(spins) == 1 else 1.0
        combined = self._combined(orbitals, functional, share, accuracy) if accuracy else None
        if combined is not None:
            return _Made(orbitals, functional, combined[0], semilocal, energy, combined[1])
        exchange = None
        if near is not None and self._is_rounding(functional, spins, near.accuracy):
            exchange = self._exchange_near(orbitals, near.made, share)
        if exchange is None:
            exchange = [share * self._exchange(functional, c) for c in spins]
        return _Made(orbitals, functional, exchange, semilocal, energy)

    def _is_rounding(self, functional: Functional, spins: list[Tensor], accuracy: float) -> bool:
        """Whether what single precision leaves of exchange is no less than half of an accuracy."""
        if not functional.exchange or not self.integrals.is_single:
            return False
        share = sum(map(abs, functional.exchange.values()))
        n_orbitals = sum(c.shape[1] for c in spins) / len(spins)
        return _ROUNDING * share * n_orbitals**0.5 > 0.5 * accuracy

    def _exchange_near(
        self, orbitals: Orbitals, origin: _Made, share: float
    ) -> list[Tensor] | None:
        """Exchange, float64, of an origin plus that of the difference; None where both are far
        from each other.

        With orbitals A of the origin, turned among each other to be as near as possible to C
        (Procrustes), 2 (C C^T - A A^T) is (C - A)(C + A)^T and its transpose.
        """
        matrices = []
        overlap = self._tensor(self._overlap, torch.float64)
        spins = zip(by_spin(origin.orbitals), by_spin(orbitals), origin.exchange, strict=True)
        for before, after, known in spins:
            if before.shape != after.shape:
                return None
            a, c = (self._tensor(x, torch.float64) for x in (before, after))
            left, values, right = torch.linalg.svd(a.T @ overlap @ c)
            squared = (a * (overlap @ a)).sum() + (c * (overlap @ c)).sum() - 2 * values.sum()
            if float(squared) > _NEAR**2:
                return None
            a = a @ (left @ right)
            half = self._exchange(
                origin.functional, (c - a).to(self.dtype), (c + a).to(self.dtype)
            ).double()
            matrices.append(known.double() + 0.5 * share * (half + half.T))
        return matrices

    def _combined(
        self, orbitals: Orbitals, functional: Functional, share: float, accuracy: float
    ) -> tuple[list[Tensor], float] | None:
        """Exchange, which is linear in the density, of one that is nearly a combination of those
        whose exchange is known, and its error; None where that is too large."""
        exact = [m for m in self._made if not m.error and m.functional.same_as(functional)]
        if not exact or not functional.exchange:
            return None
        share *= sum(map(abs, functional.exchange.values()))
        matrices, left = [], 0.0
        for spin, c in enumerate(by_spin(orbitals)):
            known = [by_spin(made.orbitals)[spin] for made in exact]
            weights, rest = nearest_combination(c, known, self._overlap, self.engine)
            left = float(np.hypot(left, rest))
            # Exchange matrices of a density are at most as large as this itself, more or less.
            if share * left > accuracy:
                return None
            total = torch.zeros_like(exact[0].exchange[spin], dtype=torch.float64)
            for weight, made in zip(weights, exact, strict=True):
                total += float(weight) * made.exchange[spin].double()
            matrices.append(total)
        return matrices, share * left

    def _exchange(self, functional: Functional, c: Tensor, d: Tensor | None = None) -> Tensor:
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

    def _coulomb(self, density: np.ndarray) -> Tensor:
        dtype = self.coulomb_dtype
        try:
            coulomb = self.integrals.coulomb(self._tensor(density, dtype))
        except NotEnoughMemoryError:
            return self._tensor(self._without_tensor(density), dtype)
        if self._surface is not None:
            coulomb = coulomb + self._surface(self._tensor(density, dtype)).to(dtype)
        if self._response is not None:
            coulomb = coulomb + self._tensor(self._response(density), dtype)
        return coulomb

    def _semilocal(self, spins: list[Tensor], functional: Functional) -> tuple[list[Tensor], float]:
        """Matrices (nao, nao) by spin and energy of what the functional says on the grid."""
        ni, xc, kind = functional.numint, functional.name, functional.kind
        if kind == "HF":
            return [c.new_zeros(len(c), len(c)) for c in spins], 0.0
        densities = [c @ c.T for c in spins]
        halves, energy = [torch.zeros_like(density) for density in densities], 0.0
        for blocks in self.orbital_values.batches(self.engine.block_bytes):
            rho = np.stack([
                self._array(torch.cat([density_on_grid(b, c, density, kind) for b in blocks], -1))
                for c, density in zip(spins, densities, strict=True)
            ])  # fmt: skip
            of_spins = rho if len(spins) == 2 else rho[0]
            per_electron, derivative = ni.eval_xc_eff(xc, of_spins, 1, xctype=kind)[:2]
            weights = self.grids.weights[blocks[0].points.start : blocks[-1].points.stop]
            energy += float(np.dot(per_electron * rho[:, 0].sum(0), weights))
            weighted = (derivative * weights).reshape(len(spins), -1, len(weights))
            for half, of_spin in zip(halves, weighted, strict=True):
                parts = self._tensor(of_spin).split([b.values.shape[2] for b in blocks], -1)
                for block, part in zip(blocks, parts, strict=True):
                    block.add_to(half, half_potential(block, part))
        return [half + half.T for half in halves], energy


class FittedDifferences:
    """Differences F(D) - F(D0) of fitted Fock matrices, for all densities D near one D0.

    Added to a better Fock matrix of D0 they give a good approximation of that of D: the error of
    fitting and grid hardly changes between similar densities (the defect correction of multigrid
    methods; Brandt, Math. Comput. 31, 333, 1977). Single precision serves down to gradients of
    1e-5 hartree, because the Coulomb matrix, by far the largest part, is made of the difference of
    the densities, and where there is much exact exchange, this of the change of the orbitals.

    Args:
        fitted: makes the matrices.
        orbitals: those of D0, (nao, k) each scaled by the root of its occupation; two such arrays,
            of either spin; or generalized ones, (2 nao, k).
        functional: of the matrices.
        earlier: differences from another density, whose exchange is that of the origin here and of
            the change, so that what rounding leaves is the same in both.

    Attributes:
        accuracy: error of exchange, norm of a matrix in hartree, that saves making it where a
            density is nearly a combination of the last ones; 0 for none.

    Raises:
        NotEnoughMemoryError: exact exchange is asked for and does not fit into memory.
    """

    accuracy = 0.0

    def __init__(
        self,
        fitted: FittedFock,
        orbitals: Orbitals,
        functional: Functional,
        earlier: FittedDifferences | None = None,
    ):
        self._fitted, self._functional = fitted, functional
        near = None if earlier is None else earlier._near
        self._density, self._known, self._origin = self._parts(orbitals, 0.0, near)

    @property
    def _near(self) -> _Near | None:
        """The origin, for what will be compared with it; None for generalized orbitals."""
        return None if self._origin is None else _Near(self._origin, self.accuracy)

    def _parts(
        self, orbitals: Orbitals, accuracy: float, near: _Near | None
    ) -> tuple[np.ndarray, list[Tensor], _Made | None]:
        """Density of all electrons, what is not Coulomb's in the matrices, by spin, and all that
        was made."""
        fitted, nao = self._fitted, self._fitted.mol.nao
        halves = by_spin(orbitals)
        generalized = len(halves[0]) == 2 * nao
        if generalized:
            halves = [halves[0][:nao], halves[0][nao:]]
            spins = fitted._tensors(halves)
            made = fitted._exchange_correlation(halves, spins, self._functional)
        else:
            made = fitted._make(orbitals, self._functional, accuracy, near)
        parts = zip(made.exchange, made.semilocal, strict=True)
        known = [k.double() + v.double() for k, v in parts]
        if generalized:
            mixed = fitted._exchange(self._functional, *spins).double()
            above, below = (known[0], mixed), (mixed.T, known[1])
            known = [torch.cat([torch.cat(above, 1), torch.cat(below, 1)])]
        return _total_density(halves), known, None if generalized else made

    def _minus(
        self, density: np.ndarray, known: list[Tensor], origin: FittedDifferences
    ) -> list[np.ndarray]:
        coulomb = self._fitted._coulomb(density - origin._density).double()
        if len(known[0]) == 2 * len(coulomb):
            coulomb = torch.block_diag(coulomb, coulomb)
        return [
            self._fitted._array(coulomb + after - before)
            for after, before in zip(known, origin._known, strict=True)
        ]

    def __call__(self, orbitals: Orbitals) -> np.ndarray:
        """F(D) - F(D0), float64, hartree: (nao, nao), (2, nao, nao), or (2 nao, 2 nao).

        Args:
            orbitals: those of D, in the form of those of D0.
        """
        density, known, _ = self._parts(orbitals, self.accuracy, self._near)
        return _like(orbitals, self._minus(density, known, self))

    def fitted_matrix(self, hcore: np.ndarray) -> np.ndarray:
        """F(D0) itself in fitted matrices, (1 or 2, nao, nao), hartree.

        Args:
            hcore: (nao, nao) one-electron Hamiltonian, hartree.
        """
        coulomb = self._fitted._coulomb(self._density).double()
        array, hcore = self._fitted._array, self._fitted._in_solvent(hcore)
        return np.stack([hcore + array(coulomb + known) for known in self._known])

    def since(self, earlier: FittedDifferences) -> np.ndarray:
        """F(D0) - F(D) of an earlier origin D of the same form, (1 or 2, nao, nao), hartree."""
        return np.stack(self._minus(self._density, self._known, earlier))


def _total_density(spins: Sequence[np.ndarray]) -> np.ndarray:
    """Density matrix (nao, nao) of the electrons of all spins."""
    total = spins[0] @ spins[0].T
    for c in spins[1:]:
        total = total + c @ c.T
    return total


def _like(orbitals: Orbitals, matrices: list[np.ndarray]) -> np.ndarray:
    """One matrix where the orbitals are one array, else a stack of them."""
    return matrices[0] if hasattr(orbitals, "ndim") else np.stack(matrices)
