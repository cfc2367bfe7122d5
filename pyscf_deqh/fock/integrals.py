"""Three-index integrals of density fitting, which are kept."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyscf.gto import Mole

_STRIPES = 4  # in which a symmetric product is made: 5/8 of its operations


class Integrals(abc.ABC):
    """Orbital products fitted in the Coulomb metric: (mn|rs) = sum_P B_P,mn B_P,rs."""

    nao: int
    _exchange: torch.dtype  # of exchange matrices

    @property
    def is_single(self) -> bool:
        """Whether exchange matrices are made in single precision."""
        return self._exchange == torch.float32

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Of all that is kept here."""

    @abc.abstractmethod
    def keep_twice(self, keep: bool) -> None:
        """Keep each pair of orbitals twice, which makes exchange faster, or only once again."""

    @abc.abstractmethod
    def coulomb(self, density: Tensor) -> Tensor:
        """Coulomb matrix (nao, nao) of a symmetric density matrix (nao, nao)."""

    def exchange(self, orbitals: Tensor, others: Tensor | None = None) -> Tensor:
        """Exchange matrix (nao, nao) of the density C D^T of orbitals C and D (nao, k).

        Args:
            orbitals: C.
            others: D; the same if it is None.
        """
        spaces = [c.to(self._exchange) for c in (orbitals, others) if c is not None]
        total = spaces[0].new_zeros(self.nao, self.nao)
        for halves in self._halves(spaces):
            if others is None:
                _add_gram_matrix(halves[0], total)
            else:
                total += halves[0] @ halves[1].T
        return total if others is not None else total.tril() + total.tril(-1).T

    @abc.abstractmethod
    def _halves(self, spaces: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """B with one of its orbitals transformed to each space of orbitals (nao, k), some auxiliary
        functions at a time: (nao, k functions)."""


class PackedIntegrals(Integrals):
    """The same as an engine packs them.

    Args:
        packed: (functions, pairs of orbitals), each pair once.
        nao: number of orbitals.
        block_bytes: working memory of a block.
        exchange: dtype of exchange matrices.
        empty: an engine's, for large tensors.
    """

    def __init__(
        self,
        packed: Tensor,
        nao: int,
        block_bytes: int,
        exchange: torch.dtype,
        empty: Callable[[tuple[int, ...], torch.dtype, torch.device], Tensor],
    ):
        self.nao, self._packed, self._block_bytes = nao, packed, block_bytes
        self._exchange, self._empty = exchange, empty
        row, column = torch.tril_indices(nao, nao, device=packed.device)
        self._diagonal = row == column
        self._row, self._column = row, column
        square = torch.empty(nao, nao, dtype=torch.long, device=packed.device)
        square[row, column] = square[column, row] = torch.arange(len(row), device=packed.device)
        self._square = square.reshape(-1)
        self._tensor: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + (0 if self._tensor is None else self._tensor.nbytes)

    def keep_twice(self, keep: bool) -> None:
        if not keep:
            self._tensor = None
        elif self._tensor is None:
            shape = (len(self._packed), self.nao, self.nao)
            whole = self._empty(shape, self._exchange, self._packed.device)
            for part, block in zip(self._split(whole), self._blocks(), strict=True):
                part.copy_(block)
            self._tensor = whole

    def coulomb(self, density: Tensor) -> Tensor:
        weights = torch.where(self._diagonal, 1.0, 2.0).to(density.dtype)
        fitted = self._packed @ (density[self._row, self._column] * weights)
        return (fitted @ self._packed)[self._square].view(self.nao, self.nao)

    def _halves(self, spaces: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        for block in self._blocks():
            yield [self._half(block, orbitals) for orbitals in spaces]

    def _half(self, block: Tensor, orbitals: Tensor) -> Tensor:
        half = (block.reshape(-1, self.nao) @ orbitals).view(len(block), self.nao, -1)
        return half.transpose(0, 1).reshape(self.nao, -1)

    def _blocks(self) -> Iterator[Tensor]:
        """The whole tensor, some auxiliary functions at a time."""
        if self._tensor is not None:
            yield from self._split(self._tensor)
        else:
            for rows in self._split(self._packed):
                square = rows.to(self._exchange).index_select(1, self._square)
                yield square.view(-1, self.nao, self.nao)

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        n_rows = max(self._block_bytes // (self._packed.element_size() * self.nao**2), 1)
        return rows.split(n_rows)


class PairIntegrals(Integrals):
    """The same, (mn|rs) = sum_P B_mn,P B_rs,P, in the form that an engine keeps them in itself:
    neither copied nor changed, in double precision, without pairs of orbitals that do not overlap.

    Args:
        values: (pairs, functions).
        addresses: (pairs,), m nao + n of the pair mn.
        weights: (pairs,), 2 for pairs whose nm is not among them, 1 for others.
        blocks: all functions, at most so many at a time: (nao, nao, functions), symmetric; a block
            is gone when the next one is asked for.
        nao: number of orbitals.
        block_bytes: working memory of a block.
    """

    def __init__(
        self,
        values: Tensor,
        addresses: Tensor,
        weights: Tensor,
        blocks: Callable[[int], Iterable[Tensor]],
        nao: int,
        block_bytes: int,
    ):
        self.nao, self._exchange = nao, torch.float64
        self._values, self._weights, self._make_blocks = values, weights, blocks
        self._row, self._column = addresses.long() // nao, addresses.long() % nao
        self._step = max(block_bytes // (8 * nao**2), 1)

    def coulomb(self, density: Tensor) -> Tensor:
        fitted = (density.double()[self._row, self._column] * self._weights) @ self._values
        pairs = self._values @ fitted
        square = pairs.new_zeros(self.nao, self.nao)
        square[self._row, self._column] = pairs
        square[self._column, self._row] = pairs
        return square

    @property
    def nbytes(self) -> int:
        return self._values.nbytes

    def keep_twice(self, keep: bool) -> None:
        """Nothing: the engine makes what exchange needs."""

    def _halves(self, spaces: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        for block in self._make_blocks(self._step):
            yield [self._half(block, orbitals) for orbitals in spaces]

    def _half(self, block: Tensor, orbitals: Tensor) -> Tensor:
        # Both orbitals of a pair may change places: one product of large matrices.
        half = orbitals.T @ block.reshape(self.nao, -1)
        return half.view(-1, self.nao, block.shape[-1]).transpose(0, 1).reshape(self.nao, -1)


def _add_gram_matrix(rows: Tensor, total: Tensor) -> None:
    """Add R R^T, but not all of what is above the diagonal."""
    step = max(len(rows) // _STRIPES, 1)
    for first in range(0, len(rows), step):
        columns = slice(first, first + step)
        total[first:, columns] += rows[first:] @ rows[columns].T


def n_orbital_pairs(mol: Mole) -> int:
    """Pairs of orbitals, each once."""
    return mol.nao * (mol.nao + 1) // 2
