"""Orbitals on a grid, block by block, and what functionals make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class GridBlock(NamedTuple):
    """Orbitals on some neighbouring points.

    Attributes:
        points: which of the grid's.
        orbitals: numbers of those that reach them, (k,); None where all do.
        values: of these and of their gradients, (4, k, points).
    """

    points: slice
    orbitals: Tensor | None
    values: Tensor

    def rows(self, matrix: Tensor) -> Tensor:
        """Those of a matrix (nao, n) that belong to the orbitals."""
        return matrix if self.orbitals is None else matrix.index_select(0, self.orbitals)

    def pairs(self, matrix: Tensor) -> Tensor:
        """What of a matrix (nao, nao) belongs to the orbitals."""
        rows = self.rows(matrix)
        return rows if self.orbitals is None else rows.index_select(1, self.orbitals)

    def add_to(self, matrix: Tensor, part: Tensor) -> None:
        """Add a matrix of the orbitals to one (nao, nao)."""
        if self.orbitals is None:
            matrix += part
        else:
            matrix[self.orbitals[:, None], self.orbitals] += part


class OrbitalValues:
    """All blocks of a grid, one after the other: as many are kept as there is room for, the others
    are made anew each time.

    Args:
        make: blocks from a point on.
        reserve: whether there is room for so many bytes, which are taken then.
    """

    def __init__(
        self,
        make: Callable[[int], Iterator[GridBlock]],
        reserve: Callable[[float], bool],
    ):
        self._make, self._reserve = make, reserve
        self._kept: list[GridBlock] = []
        self._grows = True

    def __iter__(self) -> Iterator[GridBlock]:
        yield from self._kept
        for block in self._make(self._kept[-1].points.stop if self._kept else 0):
            self._grows = self._grows and self._reserve(block.values.nbytes)
            if self._grows:
                self._kept.append(block)
            yield block

    def batches(self, n_bytes: float) -> Iterator[list[GridBlock]]:
        """Consecutive blocks of more or less so many bytes together: PySCF's threads, which
        evaluate functionals, and PyTorch's stand in each other's way if they take turns often."""
        batch: list[GridBlock] = []
        held = 0
        for block in self:
            batch.append(block)
            held += block.values.nbytes
            if held >= n_bytes:
                yield batch
                batch, held = [], 0
        if batch:
            yield batch

    @property
    def nbytes(self) -> int:
        """Of what is kept."""
        return sum(block.values.nbytes for block in self._kept)

    def release(self) -> int:
        """Keep none from now on; how many bytes that frees."""
        freed = self.nbytes
        self._kept.clear()
        self._grows = False
        return freed


def density_on_grid(block: GridBlock, orbitals: Tensor, density: Tensor, kind: str) -> Tensor:
    """Density, for GGA its gradient, for meta-GGA the kinetic energy density: (1, 4 or 5, points).

    Args:
        block: basis functions and their gradients.
        orbitals: (nao, k), each scaled by the root of its occupation.
        density: (nao, nao), of these.
        kind: PySCF's name of the kind of functional.
    """
    values = block.values[:1] if kind == "LDA" else block.values
    few = len(values) * orbitals.shape[1] < values.shape[1]
    if few or kind == "MGGA":
        right = block.rows(orbitals).T @ values
        left = right[0]
    elif 5 * orbitals.shape[1] < values.shape[1]:
        rows = block.rows(orbitals)
        left, right = rows @ (rows.T @ values[0]), values
    else:
        left, right = block.pairs(density) @ values[0], values
    rho = (left * right).sum(1)
    rho[1:] *= 2
    if kind == "MGGA":
        rho = torch.cat([rho, 0.5 * right[1:].square().sum((0, 1))[None]])
    return rho


def half_potential(block: GridBlock, weighted: Tensor) -> Tensor:
    """Matrix (k, k) that makes that of a functional's potential with its transpose.

    Args:
        block: basis functions and their gradients.
        weighted: the functional's derivatives (1, 4 or 5, points), times the weights.
    """
    values, gradients = block.values[0], block.values[1 : len(weighted)]
    # phi v (phi / 2 + ...)^T and its transpose: half of the products.
    half = values * (0.5 * weighted[0])
    for gradient, weight in zip(gradients, weighted[1:4], strict=True):
        half.addcmul_(gradient, weight)
    matrix = values @ half.T
    for weight in weighted[4:]:
        for gradient in gradients:
            matrix += gradient @ (gradient * (0.25 * weight)).T
    return matrix
