"""Density matrices of batched Hamiltonians, differentiable through occupied-virtual rotations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Smallest orbital-energy difference (hartree) that a gradient is divided by.
_SMALLEST_GAP = 0.02
# Energy (hartree) of the orbitals that pad small molecules of a batch: above all real ones.
_PADDING_ENERGY = 100.0
_MAX_PURIFICATIONS = 80


def _purified(hamiltonian: Tensor, electron_pairs: Tensor) -> Tensor:
    """Projectors (B, n, n) on the lowest eigenvectors, by products of matrices alone.

    Trace-correcting second-order purification (Niklasson, Phys. Rev. B 66, 155115, 2002): what a
    GPU does at once for a whole batch, where it would diagonalize one matrix after the other.
    """
    diagonal = torch.diagonal(hamiltonian, dim1=-2, dim2=-1)
    radius = hamiltonian.abs().sum(-1) - diagonal.abs()
    highest, lowest = (diagonal + radius).amax(-1), (diagonal - radius).amin(-1)
    highest, lowest = highest[:, None, None], lowest[:, None, None]
    eye = torch.eye(hamiltonian.shape[-1], dtype=hamiltonian.dtype, device=hamiltonian.device)
    width = (highest - lowest).clamp_min(torch.finfo(hamiltonian.dtype).tiny)
    p = (highest * eye - hamiltonian) / width
    for step in range(_MAX_PURIFICATIONS):
        square = p @ p
        trace, of_square = (m.diagonal(dim1=-2, dim2=-1).sum(-1) for m in (p, square))
        too_many = (of_square - electron_pairs).abs() < (
            2 * trace - of_square - electron_pairs
        ).abs()
        p = torch.where(too_many[:, None, None], square, 2 * p - square)
        if step % 5 == 4 and ((trace - of_square).abs() < 1e-5 * electron_pairs).all():
            break
    return p


class _DensityMatrix(torch.autograd.Function):
    """D(H) = 2 C_occ C_occ^T.

    Only occupied-virtual rotations change D. Its derivative divides by e_v - e_o alone, so it
    exists wherever there is a gap; autograd through eigh divides by all eigenvalue differences.
    """

    @staticmethod
    def forward(
        ctx: Any, hamiltonian: Tensor, basis_vectors: Tensor, occupied: Tensor, empty: Tensor
    ) -> Tensor:
        h = basis_vectors.mT @ hamiltonian @ basis_vectors
        h = h + torch.diag_embed(empty.to(h.dtype) * _PADDING_ENERGY)
        energies, rotation = torch.linalg.eigh(h)
        orbitals = basis_vectors @ rotation
        filled = orbitals * occupied[:, None]
        ctx.save_for_backward(energies, orbitals, occupied)
        density: Tensor = 2 * filled @ filled.mT
        return density

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        energies, orbitals, occupied = ctx.saved_tensors
        grad = (grad + grad.mT) / 2
        gap = energies[:, None, :] - energies[:, :, None]
        coupled = occupied[:, :, None] & ~occupied[:, None, :]
        response = -4 * (orbitals.mT @ grad @ orbitals) / gap.clamp_min(_SMALLEST_GAP)
        response = torch.where(coupled, response, torch.zeros_like(response))
        response = orbitals @ response @ orbitals.mT
        return (response + response.mT) / 2, None, None, None


def density_matrix(hamiltonian: Tensor, basis_vectors: Tensor, n_occupied: Tensor) -> Tensor:
    """Closed-shell density matrices of Hamiltonians.

    Args:
        hamiltonian: (B, n, n), zero padded.
        basis_vectors: (B, n, n) orthonormal vectors X, X^T S X = 1, zero columns where padded.
        n_occupied: (B,) doubly occupied orbitals.

    Returns:
        (B, n, n).
    """
    # Half precision resolves no gap between orbitals of which some lie at tens of hartree.
    with torch.autocast(hamiltonian.device.type, enabled=False):
        return _density_matrix(hamiltonian.to(basis_vectors.dtype), basis_vectors, n_occupied)


def _density_matrix(hamiltonian: Tensor, basis_vectors: Tensor, n_occupied: Tensor) -> Tensor:
    n = hamiltonian.shape[-1]
    occupied = torch.arange(n, device=hamiltonian.device) < n_occupied[:, None]
    empty = (basis_vectors == 0).all(dim=1)
    if hamiltonian.is_cuda and not hamiltonian.requires_grad:
        h = basis_vectors.mT @ hamiltonian @ basis_vectors
        # Padding above all orbitals, but not so far that it slows the purification down.
        h = h + torch.diag_embed(empty.to(h.dtype) * h.abs().amax((1, 2))[:, None])
        projector = _purified(h, n_occupied.to(h.dtype))
        return 2 * basis_vectors @ projector @ basis_vectors.mT
    apply: Any = _DensityMatrix.apply  # without types in PyTorch
    density: Tensor = apply(hamiltonian, basis_vectors, occupied, empty)
    return density
