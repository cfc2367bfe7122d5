"""Molecules as the networks see them: one graph type, and batches of it.

Matrices stay dense and in PySCF's AO order, padded to the largest molecule of a batch. Each atom's
orbitals by template slot say where template blocks are in them, so that no step loops over atom
pairs. Nothing here imports PySCF.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UnsupportedMoleculeError
from .layout import OrbitalTemplate

BOHR = 0.529177210903  # angstrom, CODATA 2018
# Kinds of reference Hamiltonian; see :mod:`pyscf_deqh.fock.reference`.
REFERENCES = ("none", "sad")


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
        shells: (K, 2) atom and angular momentum of each shell; None for the template's own.
        steps: (K, 2, nao, nao) Hamiltonians of the label's SCF, hartree, and the Fock matrices of
            their densities; or None.
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
    shells: np.ndarray | None = None
    steps: np.ndarray | None = None

    @property
    def nao(self) -> int:
        return len(self.overlap)

    def slots(self, template: OrbitalTemplate) -> list[np.ndarray]:
        """Template positions of each atom's orbitals, see :meth:`OrbitalTemplate.slots`."""
        if self.shells is None:
            return [template.slots(int(z)) for z in self.numbers]
        atoms, degrees = self.shells.T
        return [
            template.slots(int(z), degrees[atoms == atom].tolist())
            for atom, z in enumerate(self.numbers)
        ]


@dataclass
class GraphBatch:
    """B molecules side by side: N atoms, E directed pairs, n = largest nao, T = template size.

    Attributes:
        element: (N,) index of the element in the template's ``numbers``.
        molecule: (N,) molecule of each atom.
        positions: (N, 3) in bohr.
        edge_index: (2, E) atoms (i, j) of each ordered pair within the cutoff. Pairs come in
            couples: (j, i) is at the odd place after (i, j), see :func:`opposite`.
        edge_vector: (E, 3) r_j - r_i in bohr.
        orbital: (N, T) AO of each template slot, counted within the molecule; -1 for none.
        ao_atom: (B n,) atom of each AO; N where padded.
        n_occupied, nao: (B,).
        overlap, reference, atomic_density, basis_vectors: (B, n, n), zero padded.
        max_occupied: largest of ``n_occupied``, or more.
        shell_counts: shells of each angular momentum that atoms have, or more.
        hamiltonian, target_orbitals, target_energies: labels, (B, n, n), (B, n, n), (B, n).
        steps: of the labels' SCFs, (B, K, 2, n, n).
    """

    element: Tensor
    molecule: Tensor
    positions: Tensor
    edge_index: Tensor
    edge_vector: Tensor
    orbital: Tensor
    ao_atom: Tensor
    n_occupied: Tensor
    nao: Tensor
    overlap: Tensor
    reference: Tensor
    atomic_density: Tensor
    basis_vectors: Tensor
    max_occupied: int
    shell_counts: tuple[int, ...]
    hamiltonian: Tensor | None = None
    target_orbitals: Tensor | None = None
    target_energies: Tensor | None = None
    steps: Tensor | None = None

    @property
    def n_molecules(self) -> int:
        return len(self.nao)

    @property
    def n_atoms(self) -> int:
        return len(self.element)

    @property
    def atoms(self) -> Tensor:
        """(N,) positions of all atoms."""
        return torch.arange(self.n_atoms, device=self.element.device)

    @property
    def labels(self) -> tuple[Tensor, Tensor, Tensor]:
        """``hamiltonian``, ``target_orbitals`` and ``target_energies``.

        Raises:
            ValueError: not all molecules have them.
        """
        found = self.hamiltonian, self.target_orbitals, self.target_energies
        hamiltonian, orbitals, energies = found
        if hamiltonian is None or orbitals is None or energies is None:
            raise ValueError("there are molecules without a label in the batch")
        return hamiltonian, orbitals, energies

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

    def of_slots(self, slots: Tensor | slice) -> GraphBatch:
        """A copy whose template has these slots alone."""
        return replace(self, orbital=self.orbital[:, slots])

    def pin_memory(self) -> GraphBatch:
        """What PyTorch's loader calls to have batches where a GPU can fetch them by itself."""
        return self.map(Tensor.pin_memory)

    def _block_index(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (K, T, T) of blocks in flat (B n n) matrices, and which elements exist."""
        n = self.overlap.shape[-1]
        rows, columns = self.orbital[i], self.orbital[j]
        index = (self.molecule[i, None] * n + rows)[:, :, None] * n + columns[:, None]
        return index, (rows >= 0)[:, :, None] & (columns >= 0)[:, None]

    def blocks(self, i: Tensor, j: Tensor, *matrices: Tensor) -> Tensor:
        """Template blocks (K, T T, M) of atoms i (K,) and j (K,) in M matrices (B, n, n)."""
        index, exists = (tensor.flatten() for tensor in self._block_index(i, j))
        index = index * exists
        parts = [matrix.reshape(-1).index_select(0, index) * exists for matrix in matrices]
        area = self.orbital.shape[1] ** 2
        return torch.stack(parts, dim=-1).view(len(i), area, len(matrices))

    def onsite_blocks(self, *matrices: Tensor) -> Tensor:
        """Template blocks (N, T T, M) of all atoms in M matrices (B, n, n)."""
        return self.blocks(self.atoms, self.atoms, *matrices)

    def pair_slices(self, at_once: int) -> Iterator[slice]:
        """Slices of the pairs, in whole couples, to be gone through one after the other.

        A CPU goes through few pairs at a time: they stay in its caches, and their memory is used
        again instead of being asked of the system anew for each tensor. All pairs are one slice
        where gradients are wanted, whose way back keeps everything, and on a GPU.

        Args:
            at_once: pairs in a slice, an even number.
        """
        n = self.edge_index.shape[1]
        if torch.is_grad_enabled() or self.edge_index.is_cuda:
            at_once = max(n, at_once)
        # One at least, of an atom alone too.
        yield from (slice(start, start + at_once) for start in range(0, max(n, 1), at_once))

    def populations(self, density: Tensor) -> Tensor:
        """Mulliken populations (N,) of density matrices (B, n, n)."""
        per_ao = torch.einsum("bij,bij->bi", density, self.overlap).reshape(-1)
        return per_ao.new_zeros(self.n_atoms + 1).index_add(0, self.ao_atom, per_ao)[:-1]

    def potential_blocks(self, i: Tensor, j: Tensor, potential: Tensor) -> Tensor:
        """(phi_i + phi_j) S_ij / 2 (K, T, T): what a potential phi (N,) adds to first order."""
        size = self.orbital.shape[1]
        overlap = self.blocks(i, j, self.overlap).view(len(i), size, size)
        return (0.5 * (potential[i] + potential[j]))[:, None, None] * overlap

    def matrix(self, onsite: Tensor, pair: Tensor) -> Tensor:
        """Matrices (B, n, n) from on-site blocks (N, T, T) and pair blocks (E, T, T)."""
        i, j = torch.cat([self.atoms.expand(2, -1), self.edge_index], dim=1)
        index, exists = self._block_index(i, j)
        # What no orbitals belong to goes to an additional last element.
        last = self.overlap.numel()
        places = torch.where(exists, index, last).flatten()
        blocks = torch.cat([onsite, pair]).flatten()
        flat = blocks.new_zeros(last + 1).scatter_(0, places, blocks)
        return flat[:last].view_as(self.overlap)


def opposite(pairs: Tensor) -> Tensor:
    """Values (E, ...) of pairs (i, j) -> those of (j, i)."""
    return pairs.unflatten(0, (len(pairs) // 2, 2)).flip(1).flatten(0, 1)


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
        ao_atom: (nao,) atom of each AO.
        orbital: (N, T) AO of each atom's template slots, -1 where there is none.
        pairs: (2, E) atoms (i, j), in couples.
        vectors: (E, 3) r_j - r_i.
    """

    element: np.ndarray
    ao_atom: np.ndarray
    orbital: np.ndarray
    pairs: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, graph: MolecularGraph, template: OrbitalTemplate, cutoff: float) -> _Topology:
        n_atoms = len(graph.numbers)
        slots = graph.slots(template)
        ao_atom = np.repeat(np.arange(n_atoms), [len(s) for s in slots])
        if len(ao_atom) != graph.nao:
            raise UnsupportedMoleculeError(
                f"a matrix of {graph.nao} orbitals does not fit atoms that have {len(ao_atom)}"
            )
        orbital = np.full((n_atoms, template.size), -1)
        orbital[ao_atom, np.concatenate(slots)] = np.arange(graph.nao)
        distance = np.linalg.norm(graph.positions[None] - graph.positions[:, None], axis=-1)
        i, j = np.nonzero(np.triu(distance < cutoff, 1))
        pairs = np.stack([np.stack([i, j], -1).ravel(), np.stack([j, i], -1).ravel()])
        vectors = graph.positions[pairs[1]] - graph.positions[pairs[0]]
        element = np.array([template.numbers.index(int(z)) for z in graph.numbers])
        return cls(element, ao_atom, orbital, pairs, vectors)

    @property
    def n_atoms(self) -> int:
        return len(self.element)

    @property
    def n_pairs(self) -> int:
        return len(self.vectors)


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
    n = size(max(g.nao for g in graphs))
    first_atom = np.cumsum([0] + [part.n_atoms for part in parts])
    # One atom more at least, which the additional pairs are of.
    n_atoms = size(first_atom[-1] + 1) if few_shapes else first_atom[-1]
    n_pairs = sum(part.n_pairs for part in parts)
    spare_atoms, spare_pairs = n_atoms - first_atom[-1], size(n_pairs) - n_pairs

    ao_atom = np.full((len(graphs), n), n_atoms)
    for row, part, first in zip(ao_atom, parts, first_atom, strict=False):
        row[: len(part.ao_atom)] = first + part.ao_atom

    def joined(arrays: Iterable[np.ndarray], *spare: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.concatenate([*arrays, *spare], axis=axis)

    def long(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).long()

    def padded(name: str, *shape: int) -> Tensor:
        return _pad([getattr(g, name) for g in graphs], shape, dtype)

    beyond = np.tile([[0, 0, 1.1 * cutoff], [0, 0, -1.1 * cutoff]], (spare_pairs // 2, 1))
    pairs = [part.pairs + first for part, first in zip(parts, first_atom, strict=False)]
    no_orbital = np.full((spare_atoms, template.size), -1)
    # Of the elements, and of other basis sets.
    slots = [template.slots(z) for z in np.unique(np.concatenate([g.numbers for g in graphs]))]
    slots += [np.nonzero((part.orbital >= 0).any(0))[0] for part in parts]
    molecule = np.repeat(np.arange(len(graphs)), [part.n_atoms for part in parts])
    labelled, steps = all(g.hamiltonian is not None for g in graphs), graphs[0].steps
    return GraphBatch(
        element=long(joined((part.element for part in parts), np.zeros(spare_atoms, int))),
        molecule=long(joined([molecule], np.full(spare_atoms, len(graphs) - 1))),
        positions=torch.from_numpy(
            joined((g.positions for g in graphs), np.zeros((spare_atoms, 3)))
        ).to(dtype),
        edge_index=long(joined(pairs, np.full((2, spare_pairs), n_atoms - 1), axis=1)),
        edge_vector=torch.from_numpy(joined((part.vectors for part in parts), beyond)).to(dtype),
        orbital=long(joined((part.orbital for part in parts), no_orbital)),
        ao_atom=long(ao_atom.reshape(-1)),
        n_occupied=torch.tensor([g.n_occupied for g in graphs]),
        nao=torch.tensor([g.nao for g in graphs]),
        overlap=padded("overlap", n, n),
        reference=padded("reference", n, n),
        atomic_density=padded("atomic_density", n, n),
        basis_vectors=padded("basis_vectors", n, n),
        max_occupied=n if few_shapes else max(g.n_occupied for g in graphs),
        shell_counts=template.counts if few_shapes else template.counts_in(np.concatenate(slots)),
        hamiltonian=padded("hamiltonian", n, n) if labelled else None,
        target_orbitals=padded("target_orbitals", n, n) if labelled else None,
        target_energies=padded("target_energies", n) if labelled else None,
        steps=padded("steps", *steps.shape[:2], n, n) if steps is not None else None,
    )
