"""How large the coupled components of matrices are in a data set: shifts and scales of networks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph.batch import GraphBatch
from .irreps import BlockCoupling

# By which components of a matrix may be off in single precision, in sizes of its largest.
_ROUNDING = 1e-6
# Of elements and pairs of them that are rare in the data, so many are taken to be like all others.
_TYPICAL = 20


class Moments:
    """Means of scalar components by element, and root mean squares by path, of M matrices.

    A path counts where both elements have its shells: else heavy elements' shells, which most atoms
    lack, would seem small. Sums, so that batches may be many.

    Args:
        coupling: of the blocks.
        n_elements: of the template.
        pairs_at_once: how many are coupled together, which limits memory.
    """

    def __init__(self, coupling: BlockCoupling, n_elements: int, pairs_at_once: int):
        self.coupling = coupling
        self._scalar = coupling.is_scalar.to(coupling.path.device)[:, None]
        self._n, self._pairs_at_once = n_elements, pairs_at_once
        self._sums: list[Tensor] = []

    def add(self, graph: GraphBatch, matrices: list[Tensor]) -> None:
        """Count the blocks of a batch of M matrices (B, n, n)."""
        couple, n = self.coupling.couple, self._n
        atoms = couple(graph.onsite_blocks(*matrices)).double()
        if not self._sums:
            shape = atoms.shape[1:]
            shapes = ((n, *shape), (n, *shape), (n,), (n * n, *shape), (n * n,))
            self._sums = [atoms.new_zeros(shape) for shape in shapes]
        total, squares, count, pair_squares, pair_count = self._sums
        total.index_add_(0, graph.element, atoms)
        squares.index_add_(0, graph.element, atoms.square())
        count += torch.bincount(graph.element, minlength=n)
        for part in graph.pair_slices(self._pairs_at_once):
            pair = graph.edge_index[:, part]
            blocks = couple(graph.blocks(*pair, *matrices)).double()
            first, second = graph.element[pair]
            pair_squares.index_add_(0, n * first + second, blocks.square())
            pair_count += torch.bincount(n * first + second, minlength=n * n)

    def shift(self) -> Tensor:
        """(elements, T T, M); zero for what is no scalar, and for shells that an element has in
        another basis set alone."""
        total, _, count, *_ = self._sums
        own = (self.coupling.has_first & self.coupling.has_second)[:, self.coupling.path, None]
        return total / count.clamp_min(1)[:, None, None] * self._scalar * own

    def _centred(self) -> Tensor:
        """Sums of squares (elements, T T, M) about the shifts."""
        _, squares, count, *_ = self._sums
        return (squares - count[:, None, None] * self.shift().square()).clamp_min(0)

    def _by_path(self, squares: Tensor) -> Tensor:
        """Sums over the components of each path, (…, T T, M) -> (…, paths, M), by their number."""
        path = self.coupling.path
        shape = (*squares.shape[:-2], self.coupling.n_paths, squares.shape[-1])
        found = squares.new_zeros(shape).index_add(-2, path, squares)
        return found / torch.bincount(path)[:, None]

    def _on_atoms(self) -> Tensor:
        """How many atoms have each path, (elements, paths)."""
        has = self.coupling.has_first & self.coupling.has_second
        return self._sums[2][:, None] * has

    def _on_pairs(self) -> Tensor:
        """How many pairs have each path, (elements elements, paths)."""
        has = self.coupling.has_first[:, None] & self.coupling.has_second[None]
        return self._sums[4][:, None] * has.flatten(0, 1)

    def atom_scale(self) -> Tensor:
        """(paths, M)."""
        count = self._on_atoms().sum(0).clamp_min(1)[:, None]
        largest = self._by_path(self._sums[1]).sum(0) / self._sums[2].sum()
        return _scale(self._by_path(self._centred()).sum(0) / count, largest)

    def pair_scale(self) -> Tensor:
        """(paths, M)."""
        count = self._on_pairs().sum(0).clamp_min(1)[:, None]
        squares = self._by_path(self._sums[3]).sum(0)
        return _scale(squares / count, squares / self._sums[4].sum())

    def target_scales(self) -> tuple[Tensor, Tensor]:
        """Of the first matrix by element, (elements, paths), and by pair, (elements, elements,
        paths)."""
        by_element = self._by_path(self._centred())[..., 0]
        by_pair = self._by_path(self._sums[3])[..., 0]
        pairs = _likely(by_pair, self._on_pairs())
        return _likely(by_element, self._on_atoms()), pairs.unflatten(0, (self._n, self._n))


def _scale(mean_square: Tensor, whole: Tensor) -> Tensor:
    """Root mean squares (paths, M); 1 where a path never occurs, or holds nothing but rounding: of
    what is constant, or vanishes by symmetry.

    Args:
        mean_square: of each path.
        whole: over all atoms or pairs, before a mean was taken off.
    """
    rms, largest = mean_square.sqrt(), whole.amax(0).sqrt()
    return torch.where(rms > _ROUNDING * largest + 1e-8, rms, torch.ones_like(rms))


def _likely(squares: Tensor, count: Tensor) -> Tensor:
    """Root mean squares (kinds, paths) of kinds that may be rare: those of all kinds, as if that
    many more had been seen, where few were or none, because what has no scale is never learnt.

    Args:
        squares: sums.
        count: how many they are of.
    """
    mean = squares.sum(0) / count.sum(0).clamp_min(1)
    mean = torch.where(count.sum(0) > 0, mean, mean[count.sum(0) > 0].mean())
    return ((squares + _TYPICAL * mean) / (count + _TYPICAL)).sqrt()
