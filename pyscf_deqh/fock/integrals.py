"""Three-index integrals of density fitting, kept as one tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
import torch
from pyscf import gto
from torch import Tensor

from ..pyscf_api import Cavity, three_index_integrals

if TYPE_CHECKING:
    from pyscf.gto import Mole

_BLOCK_BYTES = 2**27  # working memory of one block
# Relative eigenvalue of a metric below which combinations of functions cannot be told apart, and
# the square of a relative pivot below which its Cholesky factor is not to be trusted.
_DEPENDENT, _CHOLESKY = 1e-9, 1e-8


class FittedIntegrals:
    """Orbital products fitted in the Coulomb metric: (mn|rs) = sum_P B_P,mn B_P,rs.

    Args:
        mol: the molecule.
        auxiliary: its auxiliary basis set, as a molecule.
        device, dtype: of the tensor and of its products.
        omega: range-separation parameter in 1/bohr: fits erf(omega r) / r, the long range.

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
    ):
        self.nao = mol.nao
        n_pairs, n_auxiliary = n_orbital_pairs(mol), auxiliary.nao
        size = dtype.itemsize
        self.packed = torch.empty(n_auxiliary, n_pairs, device=device, dtype=dtype)
        with mol.with_range_coulomb(omega), auxiliary.with_range_coulomb(omega):
            metric = auxiliary.intor("int2c2e")
            first = 0
            for shells in _shell_blocks(auxiliary, max(_BLOCK_BYTES // (8 * n_pairs), 1)):
                block = three_index_integrals(mol, auxiliary, shells)
                rows = torch.from_numpy(np.ascontiguousarray(block.T)).to(device)
                self.packed[first : first + len(rows)] = rows
                first += len(rows)
        # Compact functions cannot be told apart at long range.
        factor = torch.from_numpy(_inverse_root(metric, cholesky=not omega)).to(device, dtype)
        for columns in self.packed.split(max(_BLOCK_BYTES // (size * n_auxiliary), 1), dim=1):
            columns[: len(factor)] = factor @ columns
        self.packed = self.packed[: len(factor)]
        row, column = torch.tril_indices(self.nao, self.nao, device=device)
        self._diagonal = row == column
        self._row, self._column = row, column
        square = torch.empty(self.nao, self.nao, dtype=torch.long, device=device)
        square[row, column] = square[column, row] = torch.arange(n_pairs, device=device)
        self._square = square.reshape(-1)
        self._tensor: Tensor | None = None
        self._factor, self._auxiliary = factor, auxiliary
        self._solvent: Tensor | None = None

    def put_into(self, cavity: Cavity) -> None:
        """Let Coulomb matrices hold the response of a polarizable continuum as well.

        The potential on its surface is that of the fitted density, and so is the way back: a matrix
        between fitting functions, which costs nothing in a Fock matrix.

        Args:
            cavity: of the continuum.
        """
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
            self._tensor = self._unpack(self.packed)

    def _unpack(self, packed: Tensor) -> Tensor:
        return packed.index_select(1, self._square).view(-1, self.nao, self.nao)

    def coulomb(self, density: Tensor) -> Tensor:
        """Coulomb matrix (nao, nao) of a symmetric density matrix (nao, nao)."""
        weights = torch.where(self._diagonal, 1.0, 2.0).to(density.dtype)
        fitted = self.packed @ (density[self._row, self._column] * weights)
        if self._solvent is not None:
            fitted = fitted + self._solvent @ fitted
        return (fitted @ self.packed)[self._square].view(self.nao, self.nao)

    def exchange(self, orbitals: Tensor, others: Tensor | None = None) -> Tensor:
        """Exchange matrix (nao, nao) of the density C D^T of orbitals C and D (nao, k).

        Args:
            orbitals: C.
            others: D; the same if it is None.
        """
        total = orbitals.new_zeros(self.nao, self.nao)
        for block in self._blocks():
            half = self._half(block, orbitals)
            total += half @ (half if others is None else self._half(block, others)).T
        return total

    def _half(self, block: Tensor, orbitals: Tensor) -> Tensor:
        half = (block.reshape(-1, self.nao) @ orbitals).view(len(block), self.nao, -1)
        return half.transpose(0, 1).reshape(self.nao, -1)

    def _blocks(self) -> Iterator[Tensor]:
        """The whole tensor, some auxiliary functions at a time."""
        n_rows = max(_BLOCK_BYTES // (self.packed.element_size() * self.nao**2), 1)
        if self._tensor is not None:
            yield from self._tensor.split(n_rows)
        else:
            yield from (self._unpack(rows) for rows in self.packed.split(n_rows))


def n_orbital_pairs(mol: Mole) -> int:
    """Pairs of orbitals, each once."""
    return mol.nao * (mol.nao + 1) // 2


def _inverse_root(metric: np.ndarray, cholesky: bool = True) -> np.ndarray:
    """R (k, n) with R^T R = M^-1 for a positive matrix M (n, n), or its pseudoinverse where
    functions depend on each other, as those of close atoms do.

    Args:
        metric: M.
        cholesky: try its Cholesky factor first, which is faster.
    """
    if cholesky:
        try:
            lower = scipy.linalg.cholesky(metric, lower=True)
        except np.linalg.LinAlgError:
            return _inverse_root(metric, cholesky=False)
        if lower.diagonal().min() ** 2 > _CHOLESKY * metric.diagonal().max():
            return np.tril(scipy.linalg.lapack.dtrtri(lower, lower=1)[0])
    values, vectors = np.linalg.eigh(metric)
    keep = values > _DEPENDENT * values[-1]
    return (vectors[:, keep] / np.sqrt(values[keep])).T


def _shell_blocks(auxiliary: Mole, limit: int) -> list[tuple[int, int]]:
    """Consecutive shells with at most ``limit`` functions together (or one shell)."""
    offsets = auxiliary.ao_loc_nr()
    blocks, first = [], 0
    for shell in range(1, auxiliary.nbas + 1):
        if shell == auxiliary.nbas or offsets[shell + 1] - offsets[first] > limit:
            blocks.append((first, shell))
            first = shell
    return blocks
