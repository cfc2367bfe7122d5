"""Loss of predicted Hamiltonians, in milli-hartree."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph.batch import GraphBatch

MILLI = 1e3


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
    that changes the density, and so the SCF's start; the mean absolute error is blind to it.
    """
    n = error.shape[-1]
    column = torch.arange(n, device=error.device)
    occupied = column < graph.n_occupied[:, None]
    _, orbitals, energies = graph.labels
    exists = orbitals.ne(0).any(dim=1)
    virtual = exists & ~occupied
    error = orbitals.mT @ error @ orbitals
    gap = energies[:, None, :] - energies[:, :, None]
    pairs = occupied[:, :, None] & virtual[:, None, :]
    rotation = torch.where(pairs, error / gap.clamp_min(0.05), torch.zeros_like(error))
    return torch.sqrt(rotation.square().sum((1, 2)) + 1e-20)


def hamiltonian_loss(
    predicted: Tensor, graph: GraphBatch, rotation_weight: float
) -> dict[str, Tensor]:
    """Mean loss of a batch and its parts.

    ``rotation_weight`` is the loss (mEh) of a rotation of norm 1; 0 leaves Eq. 45 alone.
    """
    error = predicted - graph.labels[0]
    elements = MILLI * element_loss(error, graph.nao).mean()
    rotation = orbital_rotation(error, graph).mean()
    return {
        "loss": elements + rotation_weight * rotation,
        "elements": elements.detach(),
        "rotation": rotation.detach(),
    }
