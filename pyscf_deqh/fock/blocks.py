"""Fitted integrals in blocks of neighbouring atoms, without pairs of orbitals that do not overlap.

Where there is room, each pair is kept twice, as mn and as nm: exchange, which takes most of the
time, is made of large matrix products alone then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from pyscf import gto
from torch import Tensor

from ..engine import HOST, Engine
from ..pyscf_api import Cavity
from .integrals import Integrals

if TYPE_CHECKING:
    from pyscf.gto import Mole

# Orbitals of a group of atoms, at most where it has several; and the largest overlap of two groups'
# orbitals whose products are left out: Coulomb matrices change by less than by rounding.
_GROUP, _NEGLIGIBLE = 32, 1e-6
# Pairs of orbitals that are fitted at a time, which stay in the caches; stripes in which a product
# with a triangular matrix is made.
_CHUNK, _STRIPES = 2048, 4


@dataclass(frozen=True, eq=False)
class OrbitalGroups:
    """The orbitals of a molecule in groups, each of neighbouring atoms.

    Attributes:
        shells, orbitals: PySCF's numbers of them, in the order of the groups.
        first_shell, first: where each group begins in this order, and where the last one ends.
        near: (groups, groups), whether orbitals of both overlap.
    """

    shells: np.ndarray
    orbitals: np.ndarray
    first_shell: np.ndarray
    first: np.ndarray
    near: np.ndarray

    @classmethod
    def of(cls, mol: Mole) -> OrbitalGroups:
        """Those of a molecule."""
        atoms = mol.aoslice_by_atom()
        sizes = atoms[:, 3] - atoms[:, 2]
        groups = _bisect(mol.atom_coords(), sizes, sizes.nonzero()[0])
        shells, orbitals = (
            [np.concatenate([np.arange(*atoms[atom, part]) for atom in group]) for group in groups]
            for part in (slice(0, 2), slice(2, 4))
        )
        order = np.concatenate(orbitals)
        first_shell, first = (np.cumsum([0, *map(len, parts)]) for parts in (shells, orbitals))
        overlap = np.abs(mol.intor_symmetric("int1e_ovlp"))[order[:, None], order]
        for axis in (0, 1):
            overlap = np.maximum.reduceat(overlap, first[:-1], axis)
        return cls(np.concatenate(shells), order, first_shell, first, overlap > _NEGLIGIBLE)

    def n_pairs(self, beyond: bool = False) -> int:
        """Pairs of orbitals of groups that overlap: of each with groups up to itself, or beyond."""
        sizes = np.diff(self.first)
        return int(sizes @ (np.triu(self.near, 1) if beyond else np.tril(self.near)) @ sizes)

    def members(self, chosen: np.ndarray) -> np.ndarray:
        """Orbitals of chosen groups (groups,), by their place in the order."""
        return np.repeat(chosen, np.diff(self.first)).nonzero()[0]

    def runs(self, chosen: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
        """First group and end of consecutive chosen ones of at most ``limit`` orbitals together (or
        one group)."""
        groups = chosen.nonzero()[0].tolist()
        begin = groups[0]
        for group, after in zip(groups, [*groups[1:], -1], strict=True):
            if after != group + 1 or self.first[after + 1] - self.first[begin] > limit:
                yield begin, group + 1
                begin = after

    def shells_of(self, begin: int, end: int) -> tuple[int, int]:
        """First shell and end of some groups."""
        return int(self.first_shell[begin]), int(self.first_shell[end])

    def sorted(self, mol: Mole) -> Mole:
        """The molecule with its shells in the order of the groups."""
        other = mol.copy(deep=False)
        other._bas = mol._bas[self.shells]
        return other


def _bisect(positions: np.ndarray, sizes: np.ndarray, atoms: np.ndarray) -> list[np.ndarray]:
    """Groups of atoms, halved across their largest extent until they are small."""
    if len(atoms) == 1 or sizes[atoms].sum() <= _GROUP:
        return [atoms]
    axis = np.ptp(positions[atoms], axis=0).argmax()
    atoms = atoms[np.argsort(positions[atoms, axis], kind="stable")]
    total = np.cumsum(sizes[atoms])
    half = min(max(int(np.searchsorted(total, total[-1] / 2)), 1), len(atoms) - 1)
    return _bisect(positions, sizes, atoms[:half]) + _bisect(positions, sizes, atoms[half:])


def _batches(
    groups: OrbitalGroups, n_functions: int, n_bytes: int
) -> Iterator[list[tuple[int, tuple[int, int]]]]:
    """Each group with runs of those up to it that are near, so many together that their integrals
    with all functions take at most so many bytes in double precision (or one group's). PySCF's
    threads, which make them, and PyTorch's stand in each other's way if they take turns often."""
    batch: list[tuple[int, tuple[int, int]]] = []
    held = 0
    for a, near in enumerate(groups.near):
        of_one = 8 * n_functions * int(groups.first[a + 1] - groups.first[a])
        for begin, end in groups.runs(near[: a + 1], n_bytes // of_one):
            size = of_one * int(groups.first[end] - groups.first[begin])
            if batch and held + size > n_bytes:
                yield batch
                batch, held = [], 0
            batch.append((a, (begin, end)))
            held += size
    yield batch


class OrbitalBlocks:
    """Integrals of pairs of near orbitals with functions, in a block for each group of orbitals.

    Args:
        mol: the molecule.
        functions: a molecule of them.
        groups: the molecule's orbitals.
        device, dtype: of the integrals and of their products.
        omega: range-separation parameter in 1/bohr: integrals of erf(omega r) / r, the long range.
        engine: makes them.
        width: of what is kept of each pair; as many as there are functions if it is None.
    """

    def __init__(
        self,
        mol: Mole,
        functions: Mole,
        groups: OrbitalGroups,
        device: torch.device | str,
        dtype: torch.dtype,
        omega: float = 0.0,
        engine: Engine = HOST,
        width: int | None = None,
    ):
        self._block_bytes = engine.block_bytes
        self._order = torch.from_numpy(groups.orbitals).to(device)
        self._rows = [slice(*groups.first[a : a + 2]) for a in range(len(groups.near))]
        # Of each group the orbitals that are near: up to its own, and beyond.
        members = [groups.members(chosen) for chosen in np.tril(groups.near)]
        self._columns = [torch.from_numpy(m).to(device) for m in members]
        self._beyond = [
            torch.from_numpy(groups.members(chosen)).to(device)
            for chosen in np.triu(groups.near, 1)
        ]
        # (orbitals of the group, of those that are near, functions)
        self._blocks = [
            torch.empty(
                (r.stop - r.start, len(m), width or functions.nao), dtype=dtype, device=device
            )
            for r, m in zip(self._rows, members, strict=True)
        ]
        molecule, column = groups.sorted(mol), [0] * len(self._blocks)
        for batch in _batches(groups, functions.nao, engine.block_bytes):
            made = [
                engine.three_index(
                    molecule, functions, groups.shells_of(*run), groups.shells_of(a, a + 1), omega
                )
                for a, run in batch
            ]
            for (a, _), raw in zip(batch, made, strict=True):
                begin, column[a] = column[a], column[a] + raw.shape[2]
                self._put(torch.from_numpy(raw), self._blocks[a][:, begin : column[a]])

    def _put(self, integrals: Tensor, block: Tensor) -> None:
        """Integrals (functions, n, m), float64, into part of a block (n, m, functions)."""
        block.copy_(integrals.to(block).permute(1, 2, 0))

    def _triples(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Of each group its orbitals, those up to them that are near, and the integrals."""
        return zip(self._rows, self._columns, self._blocks, strict=True)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self._blocks)

    def with_density(self, density: Tensor) -> Tensor:
        """Integrals (functions,) with a symmetric density matrix (nao, nao)."""
        density = density.to(self._blocks[0])[self._order[:, None], self._order]
        found = density.new_zeros(self._blocks[0].shape[-1])
        for rows, columns, block in self._triples():
            weighted = 2 * density[rows, columns]
            weighted[:, rows.start - rows.stop :] /= 2  # the group's own pairs are there twice
            found += (weighted[:, None] @ block).sum((0, 1))  # a batch, which makes use of threads
        return found

    def matrix(self, weights: Tensor | np.ndarray) -> Tensor:
        """Matrix (nao, nao) of integrals with all functions, of weights (functions,)."""
        weights = torch.as_tensor(weights).to(self._blocks[0])
        made = weights.new_zeros(len(self._order), len(self._order))
        for rows, columns, block in self._triples():
            potential = weights.expand(len(block), 1, -1) @ block.transpose(1, 2)
            made[rows, columns] = potential[:, 0]
        lower = made.tril()
        return self._unsorted(lower + lower.tril(-1).T)

    def _unsorted(self, matrix: Tensor) -> Tensor:
        """A matrix of orbitals in PySCF's order."""
        unsorted = torch.empty_like(matrix)
        unsorted[self._order[:, None], self._order] = matrix
        return unsorted


class BlockIntegrals(OrbitalBlocks, Integrals):
    """Orbital products fitted in the Coulomb metric: (mn|rs) = sum_P B_P,mn B_P,rs.

    Args:
        mol: the molecule.
        auxiliary: its auxiliary basis set, as a molecule.
        groups, device, dtype, omega, engine: as of :class:`OrbitalBlocks`.
        exchange: dtype of exchange matrices; the same if it is None.
    """

    def __init__(
        self,
        mol: Mole,
        auxiliary: Mole,
        groups: OrbitalGroups,
        device: torch.device | str,
        dtype: torch.dtype,
        omega: float = 0.0,
        engine: Engine = HOST,
        exchange: torch.dtype | None = None,
    ):
        self.nao, self._exchange = mol.nao, exchange or dtype
        self._auxiliary = auxiliary
        self._root = torch.from_numpy(engine.inverse_root(auxiliary, omega)).to(device, dtype)
        self._triangular = bool((self._root.tril() == self._root).all())
        self._solvent: Tensor | None = None
        self._twice: tuple[list[Tensor], list[Tensor]] | None = None
        width = len(self._root)
        super().__init__(mol, auxiliary, groups, device, dtype, omega, engine, width)

    def _put(self, integrals: Tensor, block: Tensor) -> None:
        raw, n = integrals.flatten(1), len(self._root)
        whole = block.is_contiguous()
        fitted = (block if whole else block.new_empty(block.shape)).view(-1, n)
        # With a triangular root 5/8 of the operations.
        step = -(-n // (_STRIPES if self._triangular else 1))
        for rows, out in zip(raw.split(_CHUNK, 1), fitted.split(_CHUNK), strict=True):
            part = rows.to(fitted).T.contiguous()
            for begin in range(0, n, step):
                end = begin + step if self._triangular else None
                root = self._root[begin : begin + step, :end]
                torch.mm(part[:, :end], root.T, out=out[:, begin : begin + step])
        if not whole:
            block.copy_(fitted.view(block.shape))

    @property
    def nbytes(self) -> int:
        lists = (self._blocks, *(self._twice or ()))
        distinct = {block.data_ptr(): block.nbytes for blocks in lists for block in blocks}
        return sum(distinct.values())

    def keep_twice(self, keep: bool) -> None:
        if not keep:
            self._twice = None
        elif self._twice is None:
            # The same tensors where both are of one precision.
            lower = [block.to(self._exchange) for block in self._blocks]
            higher = [
                block.new_empty(len(block), len(beyond), len(self._root))
                for beyond, block in zip(self._beyond, lower, strict=True)
            ]
            for rows, columns, block in zip(self._rows, self._columns, lower, strict=True):
                for before, beyond, there in zip(self._rows, self._beyond, higher, strict=True):
                    ours = (columns >= before.start) & (columns < before.stop)
                    its = (beyond >= rows.start) & (beyond < rows.stop)
                    if its.any():
                        there[:, its] = block[:, ours].transpose(0, 1)
            self._twice = lower, higher

    def put_into(self, cavity: Cavity | None) -> tuple[Tensor, float] | None:
        """Let Coulomb matrices hold the response of a polarizable continuum as well, by and large.

        The potential on its surface is that of the fitted density, and so is the way back: a matrix
        between fitting functions, which costs nothing in a Fock matrix. It is a tenth off, because
        fitted densities have no tails; :class:`~pyscf_deqh.fock.cavity.CavityResponse` is exact.

        Args:
            cavity: of the continuum; None for no more of it.

        Returns:
            Matrix (nao, nao), hartree, of the charges that the nuclei induce, and their energy.
        """
        self._solvent = None
        if cavity is None:
            return None
        potentials = gto.intor_cross("int2c2e", self._auxiliary, cavity.charges)
        fitted = self._root.double().cpu().numpy() @ potentials
        charges = np.linalg.solve(cavity.k, cavity.r @ np.column_stack([fitted.T, cavity.nuclei]))
        response, of_nuclei = fitted @ charges[:, :-1], charges[:, -1]
        transposed = cavity.r.T @ np.linalg.solve(cavity.k.T, cavity.nuclei)
        self._solvent = torch.from_numpy((response + response.T) / 2).to(self._root)
        matrix = -self.matrix(fitted @ (of_nuclei + transposed) / 2)
        return matrix, 0.5 * float(cavity.nuclei @ of_nuclei)

    def coulomb(self, density: Tensor) -> Tensor:
        """Coulomb matrix (nao, nao) of a symmetric density matrix (nao, nao)."""
        fitted = self.with_density(density)
        if self._solvent is not None:
            fitted = fitted + self._solvent @ fitted
        return self.matrix(fitted)

    def exchange(self, orbitals: Tensor, others: Tensor | None = None) -> Tensor:
        """See :meth:`Integrals.exchange`."""
        orbitals = orbitals[self._order]
        others = None if others is None else others[self._order]
        return self._unsorted(super().exchange(orbitals, others))

    def _halves(self, spaces: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        n_functions, largest = len(self._root), max(c.shape[1] for c in spaces)
        bytes_of_one = self._exchange.itemsize * self.nao * max(largest, 1) * len(spaces)
        step = max(self._block_bytes // bytes_of_one, 1)
        for begin in range(0, n_functions, step):
            functions = slice(begin, min(begin + step, n_functions))
            yield [self._half(c, functions) for c in spaces]

    def _half(self, orbitals: Tensor, functions: slice) -> Tensor:
        n_functions = functions.stop - functions.start
        half = orbitals.new_empty(self.nao, orbitals.shape[1], n_functions)
        if self._twice is None:
            half.zero_()
            for rows, columns, block in self._triples():
                part, own = block[:, :, functions].to(self._exchange), rows.start - rows.stop
                half[rows] += orbitals[columns].T @ part
                others = part[:, :own].transpose(0, 1)
                half.index_add_(0, columns[:own], orbitals[rows].T @ others)
            return half.flatten(1)
        all_of = zip(self._rows, self._columns, self._beyond, *self._twice, strict=True)
        for rows, columns, beyond, lower, higher in all_of:
            torch.matmul(orbitals[columns].T, lower[:, :, functions], out=half[rows])
            if len(beyond):
                half[rows] += orbitals[beyond].T @ higher[:, :, functions]
        return half.flatten(1)
