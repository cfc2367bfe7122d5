"""Molecules as the networks see them: one graph type, and batches of it.

Matrices stay dense and in PySCF's AO order, padded to the largest molecule of a batch. Index
tensors, made once per batch, turn them into per-atom and per-pair template blocks and back, so
that no step loops over atom pairs. Nothing here imports PySCF.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .ao import OrbitalTemplate
from .errors import UnsupportedMoleculeError

BOHR = 0.529177210903  # angstrom, CODATA 2018


@dataclass
class MolecularGraph:
    """One molecule, all arrays NumPy.

    Attributes:
        numbers: (N,) atomic numbers.
        positions: (N, 3) in bohr.
        n_occupied: doubly occupied orbitals.
        overlap: (nao, nao).
        reference: (nao, nao) reference Hamiltonian in hartree; zeros without one.
        atomic_density: (nao, nao) superposed atomic densities (zeros without a reference).
        basis_vectors: (nao, n) orthonormal vectors, X^T S X = 1: the orbitals of the reference
            Hamiltonian, or Löwdin's without one.
        hamiltonian: (nao, nao) label, or None.
        target_orbitals, target_energies: (nao, n), (n,) eigenpairs of the label, or None.
    """

    numbers: np.ndarray
    positions: np.ndarray
    n_occupied: int
    overlap: np.ndarray
    reference: np.ndarray
    atomic_density: np.ndarray
    basis_vectors: np.ndarray
    hamiltonian: np.ndarray | None = None
    target_orbitals: np.ndarray | None = None
    target_energies: np.ndarray | None = None

    @property
    def nao(self) -> int:
        return len(self.overlap)


@dataclass
class GraphBatch:
    """B molecules side by side: N atoms, E directed pairs, n = largest nao, T = template size.

    Attributes:
        element: (N,) index of the element in the template's ``numbers``.
        molecule: (N,) molecule of each atom.
        edge_index: (2, E) atoms (i, j) of each ordered pair within the cutoff.
        edge_vector: (E, 3) r_j - r_i in bohr.
        reverse: (E,) position of the pair (j, i).
        ao_atom: (B n,) atom of each AO; N where padded.
        n_occupied, nao: (B,).
        overlap, reference, atomic_density, basis_vectors: (B, n, n), zero padded.
        block_index: ((N + E) T T,) position of each block element in a flat (B n n + 1) matrix
            whose last entry is zero; atoms first.
        matrix_index: (B n n,) position of each matrix element in flat ((N + E) T T + 1) blocks.
        template_size: T.
        max_occupied: largest of ``n_occupied``, or more.
        hamiltonian, target_orbitals, target_energies: labels, (B, n, n), (B, n, n), (B, n).
    """

    element: Tensor
    molecule: Tensor
    edge_index: Tensor
    edge_vector: Tensor
    reverse: Tensor
    ao_atom: Tensor
    n_occupied: Tensor
    nao: Tensor
    overlap: Tensor
    reference: Tensor
    atomic_density: Tensor
    basis_vectors: Tensor
    block_index: Tensor
    matrix_index: Tensor
    template_size: int
    max_occupied: int
    hamiltonian: Tensor | None = None
    target_orbitals: Tensor | None = None
    target_energies: Tensor | None = None

    @property
    def n_molecules(self) -> int:
        return len(self.nao)

    @property
    def n_atoms(self) -> int:
        return len(self.element)

    @cached_property
    def orbital_mask(self) -> Tensor:
        """(B, n), True where an AO exists."""
        return torch.arange(self.overlap.shape[1], device=self.nao.device) < self.nao[:, None]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def map(self, function: Callable[[Tensor], Tensor]) -> GraphBatch:
        """A copy with ``function`` of each tensor."""
        changed: dict[str, Any] = {name: function(value) for name, value in self.tensors.items()}
        return replace(self, **changed)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> GraphBatch:
        """A copy on another device, floating-point tensors in another precision."""

        def move(value: Tensor) -> Tensor:
            # From pinned memory copies need not wait.
            kind = dtype if value.is_floating_point() else None
            return value.to(device, kind, non_blocking=value.is_pinned())

        return self.map(move)

    def pin_memory(self) -> GraphBatch:
        """What PyTorch's loader calls to have batches where a GPU can fetch them by itself."""
        return self.map(Tensor.pin_memory)

    def blocks(self, *matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Template blocks of matrices (B, n, n): on-site (N, T T, K) and pair (E, T T, K)."""
        k, t = len(matrices), self.template_size
        last = self.overlap.numel() - 1
        # Elements beyond the last one are the blocks' empty places.
        index, filled = self.block_index.clamp(max=last), self.block_index <= last
        parts = [m.reshape(-1).index_select(0, index) * filled for m in matrices]
        blocks = torch.stack(parts, dim=-1).view(-1, t * t, k)
        return blocks[: self.n_atoms], blocks[self.n_atoms :]

    def populations(self, density: Tensor) -> Tensor:
        """Mulliken populations (N,) of density matrices (B, n, n)."""
        per_ao = (density * self.overlap).sum(-1).reshape(-1)
        return per_ao.new_zeros(self.n_atoms + 1).index_add(0, self.ao_atom, per_ao)[:-1]

    def potential_matrix(self, potential: Tensor) -> Tensor:
        """(phi_A + phi_B) S / 2: first-order matrices (B, n, n) of a potential (N,) at atoms."""
        at_ao = torch.cat([potential, potential.new_zeros(1)])[self.ao_atom]
        at_ao = at_ao.view(self.overlap.shape[:2])
        return 0.5 * self.overlap * (at_ao[:, :, None] + at_ao[:, None, :])

    def matrix(self, onsite: Tensor, pair: Tensor) -> Tensor:
        """Matrices (B, n, n) from on-site blocks (N, T, T) and pair blocks (E, T, T)."""
        flat = torch.cat([onsite.reshape(-1), pair.reshape(-1), onsite.new_zeros(1)])
        return flat.index_select(0, self.matrix_index).view_as(self.overlap)


def _pad(arrays: Sequence[np.ndarray], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    out = torch.zeros(len(arrays), *shape, dtype=dtype)
    for row, array in zip(out, arrays, strict=True):
        row[tuple(slice(s) for s in array.shape)] = torch.from_numpy(np.asarray(array))
    return out


# Smallest padded size, and the ratio of one to the next.
_FIRST_RUNG, _RUNGS_RATIO = 16, 1.15


def _rung(size: int) -> int:
    """The size, rounded up to the next of a ladder of even numbers."""
    rung = _FIRST_RUNG
    while rung < size:
        rung = 2 * math.ceil(_RUNGS_RATIO * rung / 2)
    return rung


@dataclass
class _Topology:
    """A molecule's atoms, orbitals and pairs, which index tensors are made of.

    Attributes:
        element: (N,).
        ao_atom, ao_slot: (nao,) atom and template slot of each AO.
        rows: (N, T) AO of each atom's template slots, -1 where there is none.
        pairs: (2, E) atoms (i, j).
        vectors: (E, 3) r_j - r_i.
        pair_number: (N, N) position of each pair, -1 where there is none.
    """

    element: np.ndarray
    ao_atom: np.ndarray
    ao_slot: np.ndarray
    rows: np.ndarray
    pairs: np.ndarray
    vectors: np.ndarray
    pair_number: np.ndarray

    @classmethod
    def of(cls, graph: MolecularGraph, template: OrbitalTemplate, cutoff: float) -> _Topology:
        n_atoms = len(graph.numbers)
        slots = [template.slots(int(z)) for z in graph.numbers]
        ao_atom = np.repeat(np.arange(n_atoms), [len(s) for s in slots])
        ao_slot = np.concatenate(slots)
        if len(ao_slot) != graph.nao:
            raise UnsupportedMoleculeError(
                f"a matrix of {graph.nao} orbitals does not fit atoms that have {len(ao_slot)}"
            )
        rows = np.full((n_atoms, template.size), -1)
        rows[ao_atom, ao_slot] = np.arange(graph.nao)
        delta = graph.positions[None] - graph.positions[:, None]
        near = np.linalg.norm(delta, axis=-1) < cutoff
        np.fill_diagonal(near, False)
        i, j = np.nonzero(near)
        number = np.full((n_atoms, n_atoms), -1)
        number[i, j] = np.arange(len(i))
        element = np.array([template.numbers.index(int(z)) for z in graph.numbers])
        return cls(element, ao_atom, ao_slot, rows, np.stack([i, j]), delta[i, j], number)

    @property
    def n_atoms(self) -> int:
        return len(self.element)

    @property
    def n_pairs(self) -> int:
        return len(self.vectors)

    def block_index(self, left: np.ndarray, right: np.ndarray, n: int) -> np.ndarray:
        """Positions in a flat (n, n) matrix of the blocks of atoms (K,), (K,); -1 where empty."""
        left, right = self.rows[left][:, :, None], self.rows[right][:, None, :]
        return np.where((left < 0) | (right < 0), -1, left * n + right).reshape(-1)

    def matrix_index(self, first_atom: int, first_pair: int, area: int) -> np.ndarray:
        """Positions (nao, nao) of the matrix elements in blocks of ``area`` elements; -1: none.

        ``first_atom`` and ``first_pair`` are the positions of the molecule's first blocks.
        """
        atom, slot = self.ao_atom, self.ao_slot
        number = self.pair_number[atom[:, None], atom]
        block = np.where(atom[:, None] == atom, first_atom + atom, first_pair + number)
        exists = (number >= 0) | (atom[:, None] == atom)
        within = slot[:, None] * math.isqrt(area) + slot
        return np.where(exists, block * area + within, -1)


def collate(
    graphs: Sequence[MolecularGraph],
    template: OrbitalTemplate,
    cutoff: float,
    dtype: torch.dtype = torch.float32,
    few_shapes: bool = False,
) -> GraphBatch:
    """Batch molecules of any elements and sizes.

    Args:
        graphs: the molecules.
        template: of the orbitals of all elements.
        cutoff: in bohr, limits the atom pairs.
        dtype: of the floating-point tensors.
        few_shapes: pad all sizes to a coarse ladder, so that many batches have the same shape, as
            a captured CUDA graph needs it. Additional atoms, counted to the last molecule, have
            neither orbitals nor pairs with others; additional pairs are of the last of them with
            itself, beyond the cutoff.

    Raises:
        UnsupportedMoleculeError: a matrix does not fit the template's orbitals.
    """
    size = _rung if few_shapes else lambda n: n
    parts = [_Topology.of(graph, template, cutoff) for graph in graphs]
    n, area = size(max(g.nao for g in graphs)), template.size**2
    first_atom = np.cumsum([0] + [part.n_atoms for part in parts])
    first_pair = np.cumsum([0] + [part.n_pairs for part in parts])
    # One atom more at least, which the additional pairs are of.
    n_atoms = size(first_atom[-1] + 1) if few_shapes else first_atom[-1]
    n_pairs = size(first_pair[-1])
    spare_atoms, spare_pairs = n_atoms - first_atom[-1], n_pairs - first_pair[-1]

    # What is empty, the additional atoms and pairs first of all, points to the last element.
    no_element, no_block = len(graphs) * n * n, (n_atoms + n_pairs) * area
    onsite: list[np.ndarray] = []
    pair: list[np.ndarray] = []
    matrix_index = np.full((len(graphs), n, n), no_block)
    ao_atom = np.full((len(graphs), n), n_atoms)
    for b, (part, atom, edge) in enumerate(zip(parts, first_atom, first_pair, strict=False)):
        atoms = np.arange(part.n_atoms)
        for blocks, (i, j) in ((onsite, (atoms, atoms)), (pair, part.pairs)):
            index = part.block_index(i, j, n)
            blocks.append(np.where(index < 0, no_element, b * n * n + index))
        index = part.matrix_index(atom, n_atoms + edge, area)
        nao = len(index)
        matrix_index[b, :nao, :nao] = np.where(index < 0, no_block, index)
        ao_atom[b, :nao] = atom + part.ao_atom
    onsite.append(np.full(spare_atoms * area, no_element))
    pair.append(np.full(spare_pairs * area, no_element))

    def joined(arrays: Iterable[np.ndarray], *spare: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.concatenate([*arrays, *spare], axis=axis)

    def long(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).long()

    def padded(name: str, *shape: int) -> Tensor:
        return _pad([getattr(g, name) for g in graphs], shape, dtype)

    beyond = np.tile([[0, 0, 1.1 * cutoff], [0, 0, -1.1 * cutoff]], (spare_pairs // 2, 1))
    reverse = [
        first + part.pair_number[part.pairs[1], part.pairs[0]]
        for part, first in zip(parts, first_pair, strict=False)
    ]
    pairs = [part.pairs + first for part, first in zip(parts, first_atom, strict=False)]
    molecule = np.repeat(np.arange(len(graphs)), [part.n_atoms for part in parts])
    labelled = all(g.hamiltonian is not None for g in graphs)
    return GraphBatch(
        element=long(joined((part.element for part in parts), np.zeros(spare_atoms, int))),
        molecule=long(joined([molecule], np.full(spare_atoms, len(graphs) - 1))),
        edge_index=long(joined(pairs, np.full((2, spare_pairs), n_atoms - 1), axis=1)),
        edge_vector=torch.from_numpy(joined((part.vectors for part in parts), beyond)).to(dtype),
        reverse=long(joined(reverse, first_pair[-1] + (np.arange(spare_pairs) ^ 1))),
        ao_atom=long(ao_atom.reshape(-1)),
        n_occupied=torch.tensor([g.n_occupied for g in graphs]),
        nao=torch.tensor([g.nao for g in graphs]),
        overlap=padded("overlap", n, n),
        reference=padded("reference", n, n),
        atomic_density=padded("atomic_density", n, n),
        basis_vectors=padded("basis_vectors", n, n),
        block_index=long(joined(onsite + pair)),
        matrix_index=long(matrix_index.reshape(-1)),
        template_size=template.size,
        max_occupied=n if few_shapes else max(g.n_occupied for g in graphs),
        hamiltonian=padded("hamiltonian", n, n) if labelled else None,
        target_orbitals=padded("target_orbitals", n, n) if labelled else None,
        target_energies=padded("target_energies", n) if labelled else None,
    )
