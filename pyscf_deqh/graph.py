"""Molecules as the networks see them: one graph type, and batches of it.

Matrices stay dense and in PySCF's AO order, padded to the largest molecule of a batch. Index
tensors, made once per batch, turn them into per-atom and per-pair template blocks and back, so
that no step loops over atom pairs. Nothing here imports PySCF.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        """A copy on another device, floating-point tensors in another precision."""

        def move(value):
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None)

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

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


def collate(
    graphs: Sequence[MolecularGraph],
    template: OrbitalTemplate,
    cutoff: float,
    dtype: torch.dtype = torch.float32,
) -> GraphBatch:
    """Batch molecules of any elements and sizes. ``cutoff`` in bohr limits the atom pairs."""
    n_max = max(g.nao for g in graphs)
    t, zero_matrix = template.size, len(graphs) * n_max * n_max
    element_of = {z: i for i, z in enumerate(template.numbers)}
    slots_of = {z: template.slots(z) for z in template.numbers}

    elements, molecules, edges, vectors, reverses = [], [], [], [], []
    onsite_index, pair_index, ao_atoms, ao_slots, edge_tables = [], [], [], [], []
    atom_offset = edge_offset = 0
    for b, graph in enumerate(graphs):
        n_atoms = len(graph.numbers)
        slots = [slots_of[int(z)] for z in graph.numbers]
        ao_atom = np.repeat(np.arange(n_atoms), [len(s) for s in slots])
        ao_slot = np.concatenate(slots)
        if len(ao_slot) != graph.nao:
            raise UnsupportedMoleculeError(
                f"a matrix of {graph.nao} orbitals does not fit atoms that have {len(ao_slot)}"
            )
        # Row of every template slot of every atom in the AO order; n_max where there is none.
        rows = np.full((n_atoms, t), n_max)
        rows[ao_atom, ao_slot] = np.arange(graph.nao)

        delta = graph.positions[None] - graph.positions[:, None]
        near = np.linalg.norm(delta, axis=-1) < cutoff
        np.fill_diagonal(near, False)
        i, j = np.nonzero(near)
        table = np.full((n_atoms, n_atoms), -1)
        table[i, j] = np.arange(len(i)) + edge_offset

        def positions_of(left, right, offset=b * n_max * n_max):
            index = offset + left[:, :, None] * n_max + right[:, None, :]
            missing = (left[:, :, None] == n_max) | (right[:, None, :] == n_max)
            index[missing] = zero_matrix
            return index.reshape(-1)

        onsite_index.append(positions_of(rows, rows))
        pair_index.append(positions_of(rows[i], rows[j]))
        elements.append([element_of[int(z)] for z in graph.numbers])
        molecules.append(np.full(n_atoms, b))
        edges.append(np.stack([i, j]) + atom_offset)
        vectors.append(delta[i, j])
        reverses.append(table[j, i])
        ao_atoms.append(ao_atom)
        ao_slots.append(ao_slot)
        edge_tables.append(table)
        atom_offset += n_atoms
        edge_offset += len(i)

    zero_block = (atom_offset + edge_offset) * t * t
    matrix_index = np.full((len(graphs), n_max, n_max), zero_block)
    ao_atom = np.full((len(graphs), n_max), atom_offset)
    first_atom = 0
    for b, graph in enumerate(graphs):
        n, atom, slot = graph.nao, ao_atoms[b], ao_slots[b]
        block = edge_tables[b][atom[:, None], atom[None]]
        position = (atom_offset + block) * t * t
        same = atom[:, None] == atom[None]
        position[same] = ((first_atom + atom) * t * t)[:, None].repeat(n, 1)[same]
        position += slot[:, None] * t + slot[None]
        position[(block < 0) & ~same] = zero_block
        matrix_index[b, :n, :n] = position
        ao_atom[b, :n] = first_atom + atom
        first_atom += len(graph.numbers)

    def padded(name: str, *shape: int) -> Tensor:
        return _pad([getattr(g, name) for g in graphs], shape, dtype)

    labelled = all(g.hamiltonian is not None for g in graphs)

    index = lambda parts: torch.from_numpy(np.concatenate(parts)).long()  # noqa: E731
    return GraphBatch(
        element=index(elements),
        molecule=index(molecules),
        edge_index=torch.from_numpy(np.concatenate(edges, axis=1)).long(),
        edge_vector=torch.from_numpy(np.concatenate(vectors)).to(dtype),
        reverse=index(reverses),
        ao_atom=torch.from_numpy(ao_atom.reshape(-1)),
        n_occupied=torch.tensor([g.n_occupied for g in graphs]),
        nao=torch.tensor([g.nao for g in graphs]),
        overlap=padded("overlap", n_max, n_max),
        reference=padded("reference", n_max, n_max),
        atomic_density=padded("atomic_density", n_max, n_max),
        basis_vectors=padded("basis_vectors", n_max, n_max),
        block_index=index(onsite_index + pair_index),
        matrix_index=torch.from_numpy(matrix_index.reshape(-1)),
        template_size=t,
        hamiltonian=padded("hamiltonian", n_max, n_max) if labelled else None,
        target_orbitals=padded("target_orbitals", n_max, n_max) if labelled else None,
        target_energies=padded("target_energies", n_max) if labelled else None,
    )
