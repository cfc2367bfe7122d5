"""Loss of predicted Hamiltonians, in milli-hartree."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph.batch import GraphBatch

MILLI = 1e3
_SMALLEST_GAP = 0.05  # hartree
_LOW = 0.9  # weight of the occupied orbitals' block in the alignment


def element_loss(error: Tensor, nao: Tensor) -> Tensor:
    """Eq. 45 per molecule (B,): root mean square plus mean absolute error of all matrix elements.

    Args:
        error: (B, n, n) predicted minus true Hamiltonian, zero where padded.
        nao: (B,) number of AOs.
    """
    count = nao.to(error.dtype) ** 2
    mean_square = error.square().sum((1, 2)) / count
    return torch.sqrt(mean_square + 1e-20) + error.abs().sum((1, 2)) / count


def orbital_rotation(error: Tensor, graph: GraphBatch) -> Tensor:
    """First-order rotation (B,) of the occupied space that an error of the Hamiltonian causes.

    ``|| C_occ^T (H - H*) C_virt / (e_virt - e_occ) ||`` in the true orbitals. The part of the error
    that changes the density, and so the SCF's start; the mean absolute error is blind to it. Unlike
    in :class:`~pyscf_deqh.metrics.HamiltonianErrors` no difference of energies is below 0.05
    hartree: one molecule with a small gap may not outweigh a batch.
    """
    _, orbitals, energies = graph.labels
    occupied = _lowest(graph.n_occupied, error)
    virtual = orbitals.ne(0).any(dim=1) & ~occupied
    error = orbitals.mT @ error @ orbitals
    gap = energies[:, None, :] - energies[:, :, None]
    pairs = occupied[:, :, None] & virtual[:, None, :]
    rotation = torch.where(pairs, error / gap.clamp_min(_SMALLEST_GAP), torch.zeros_like(error))
    return torch.sqrt(rotation.square().sum((1, 2)) + 1e-20)


def alignment(error: Tensor, graph: GraphBatch) -> Tensor:
    """Root mean square (B,) of the error in the true orbitals, hartree.

    After the wavefunction alignment loss of Li et al. (ICLR 2025), to which C^T (H - H*) C stands
    for errors of orbital energies and of orbitals: AOs that nearly depend on each other make the
    former much larger than matrix elements are. The block of the occupied orbitals and the first
    virtual one has its own mean, and nine tenths of the weight.
    """
    orbitals = graph.labels[1]
    exists = orbitals.ne(0).any(dim=1)
    low = _lowest(graph.n_occupied + 1, error) & exists
    squares = (orbitals.mT @ error @ orbitals).square()
    block = low[:, :, None] & low[:, None, :]
    others = (exists[:, :, None] & exists[:, None, :]) & ~block
    parts = [
        torch.sqrt((squares * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1) + 1e-20)
        for pairs in (block, others)
    ]
    return _LOW * parts[0] + (1 - _LOW) * parts[1]


def _lowest(n: Tensor, matrices: Tensor) -> Tensor:
    """Which orbitals are the first n (B,) of those of matrices (B, orbitals, orbitals)."""
    return torch.arange(matrices.shape[-1], device=matrices.device) < n[:, None]


def hamiltonian_loss(
    predicted: Tensor, graph: GraphBatch, rotation_weight: float, alignment_weight: float = 0.0
) -> dict[str, Tensor]:
    """Mean loss of a batch and its parts.

    Args:
        predicted: (B, n, n) Hamiltonians, hartree.
        graph: with labels.
        rotation_weight: the loss (mEh) of a rotation of norm 1; 0 leaves it out.
        alignment_weight: factor of the alignment, which is in mEh like Eq. 45; 0 leaves it out.
    """
    error = predicted - graph.labels[0]
    elements = MILLI * element_loss(error, graph.nao).mean()
    rotation = orbital_rotation(error, graph).mean()
    loss = elements + rotation_weight * rotation
    if alignment_weight:
        loss = loss + alignment_weight * MILLI * alignment(error, graph).mean()
    return {"loss": loss, "elements": elements.detach(), "rotation": rotation.detach()}
