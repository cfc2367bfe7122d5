"""Three-index integrals of density fitting, kept as one tensor."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from pyscf import gto
from torch import Tensor

from ..engine import HOST, Engine
from ..pyscf_api import Cavity

if TYPE_CHECKING:
    from pyscf.gto import Mole

_STRIPES = 4  # in which a symmetric product is made: 5/8 of its operations


class Integrals(abc.ABC):
    """Orbital products fitted in the Coulomb metric: (mn|rs) = sum_P B_P,mn B_P,rs."""

    nao: int
    _exchange: torch.dtype  # of exchange matrices

    @abc.abstractmethod
    def coulomb(self, density: Tensor) -> Tensor:
        """Coulomb matrix (nao, nao) of a symmetric density matrix (nao, nao)."""

    def exchange(self, orbitals: Tensor, others: Tensor | None = None) -> Tensor:
        """Exchange matrix (nao, nao) of the density C D^T of orbitals C and D (nao, k).

        Args:
            orbitals: C.
            others: D; the same if it is None.
        """
        orbitals = orbitals.to(self._exchange)
        total = orbitals.new_zeros(self.nao, self.nao)
        for block in self._blocks():
            half = self._half(block, orbitals)
            if others is None:
                _add_gram_matrix(half, total)
            else:
                total += half @ self._half(block, others.to(self._exchange)).T
        return total if others is not None else total.tril() + total.tril(-1).T

    @abc.abstractmethod
    def keep_tensor(self, keep: bool) -> None:
        """Keep what makes exchange faster, if there is such a thing, or let it go."""

    @abc.abstractmethod
    def _blocks(self) -> Iterable[Tensor]:
        """B, some auxiliary functions at a time."""

    @abc.abstractmethod
    def _half(self, block: Tensor, orbitals: Tensor) -> Tensor:
        """(nao, k functions): a block with one of its orbitals transformed."""


class FittedIntegrals(Integrals):
    """Orbital products fitted in the Coulomb metric: (mn|rs) = sum_P B_P,mn B_P,rs.

    Args:
        mol: the molecule.
        auxiliary: its auxiliary basis set, as a molecule.
        device, dtype: of the tensor and of its products.
        omega: range-separation parameter in 1/bohr: fits erf(omega r) / r, the long range.
        engine: makes them.
        exchange: dtype of exchange matrices; the same if it is None.

    Attributes:
        packed: (functions, pairs of orbitals), each pair once.
    """

    def __init__(
        self,
        mol: Mole,
        auxiliary: Mole,
        device: torch.device | str,
        dtype: torch.dtype,
        omega: float = 0.0,
        engine: Engine = HOST,
        exchange: torch.dtype | None = None,
    ):
        self.nao, self._auxiliary = mol.nao, auxiliary
        self._exchange = exchange or dtype
        self._block_bytes = engine.block_bytes
        device = torch.device(device)
        self.packed, self._factor = engine.fitted_integrals(mol, auxiliary, device, dtype, omega)
        row, column = torch.tril_indices(self.nao, self.nao, device=device)
        self._diagonal = row == column
        self._row, self._column = row, column
        square = torch.empty(self.nao, self.nao, dtype=torch.long, device=device)
        square[row, column] = square[column, row] = torch.arange(len(row), device=device)
        self._square = square.reshape(-1)
        self._tensor: Tensor | None = None
        self._solvent: Tensor | None = None

    def put_into(self, cavity: Cavity) -> None:
        """Let Coulomb matrices hold the response of a polarizable continuum as well.

        The potential on its surface is that of the fitted density, and so is the way back: a matrix
        between fitting functions, which costs nothing in a Fock matrix.

        Args:
            cavity: of the continuum.
        """
        assert self._factor is not None
        potentials = gto.intor_cross("int2c2e", self._auxiliary, cavity.charges)
        fitted = self._factor.double().cpu().numpy() @ potentials
        response = fitted @ np.linalg.solve(cavity.k, cavity.r @ fitted.T)
        symmetric = (response + response.T) / 2
        self._solvent = torch.from_numpy(symmetric).to(self.packed)

    def keep_tensor(self, keep: bool) -> None:
        """Keep (functions, nao, nao) as well, which makes exchange faster, or let it go."""
        if not keep:
            self._tensor = None
        elif self._tensor is None:
            shape = (len(self.packed), self.nao, self.nao)
            whole = self.packed.new_empty(shape, dtype=self._exchange)
            for part, block in zip(self._split(whole), self._blocks(), strict=True):
                part.copy_(block)
            self._tensor = whole

    def _unpack(self, packed: Tensor) -> Tensor:
        square = packed.to(self._exchange).index_select(1, self._square)
        return square.view(-1, self.nao, self.nao)

    def coulomb(self, density: Tensor) -> Tensor:
        """Coulomb matrix (nao, nao) of a symmetric density matrix (nao, nao)."""
        weights = torch.where(self._diagonal, 1.0, 2.0).to(density.dtype)
        fitted = self.packed @ (density[self._row, self._column] * weights)
        if self._solvent is not None:
            fitted = fitted + self._solvent @ fitted
        return (fitted @ self.packed)[self._square].view(self.nao, self.nao)

    def _half(self, block: Tensor, orbitals: Tensor) -> Tensor:
        half = (block.reshape(-1, self.nao) @ orbitals).view(len(block), self.nao, -1)
        return half.transpose(0, 1).reshape(self.nao, -1)

    def _blocks(self) -> Iterator[Tensor]:
        """The whole tensor, some auxiliary functions at a time."""
        if self._tensor is not None:
            yield from self._split(self._tensor)
        else:
            yield from (self._unpack(rows) for rows in self._split(self.packed))

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        n_rows = max(self._block_bytes // (self.packed.element_size() * self.nao**2), 1)
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
        """Coulomb matrix (nao, nao) of a symmetric density matrix (nao, nao)."""
        fitted = (density.double()[self._row, self._column] * self._weights) @ self._values
        pairs = self._values @ fitted
        square = pairs.new_zeros(self.nao, self.nao)
        square[self._row, self._column] = pairs
        square[self._column, self._row] = pairs
        return square

    def keep_tensor(self, keep: bool) -> None:
        """Nothing: blocks are always made by the engine."""

    def _blocks(self) -> Iterable[Tensor]:
        return self._make_blocks(self._step)

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
