"""Functions of the distance of two atoms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class BernsteinRadialBasis(nn.Module):
    """Exponential Bernstein polynomials of the distance (Unke et al., PhiSNet, NeurIPS 2021).

    Functions of exp(-alpha r) with a learned alpha (initially 0.5 / bohr), times a cutoff function.
    """

    log_binomial: Tensor
    order: Tensor

    def __init__(self, n_functions: int, cutoff: float):
        super().__init__()
        self.cutoff = cutoff
        v = torch.arange(n_functions, dtype=torch.float64)
        top = torch.tensor(float(n_functions - 1), dtype=torch.float64)
        log_binomial = torch.lgamma(top + 1) - torch.lgamma(v + 1) - torch.lgamma(top - v + 1)
        dtype = torch.get_default_dtype()
        self.register_buffer("log_binomial", log_binomial.to(dtype), persistent=False)
        self.register_buffer("order", v.to(dtype), persistent=False)
        self.raw_alpha = nn.Parameter(torch.tensor(math.log(math.expm1(0.5))))

    def forward(self, distance: Tensor) -> Tensor:
        """(E,) in bohr -> (E, n_functions)."""
        x = -nn.functional.softplus(self.raw_alpha) * distance[:, None]
        n = len(self.order) - 1
        log_basis = self.log_binomial + (n - self.order) * x
        log_basis = log_basis + self.order * torch.log(-torch.expm1(x))
        inside = distance.clamp(max=0.999999 * self.cutoff)[:, None]
        envelope = torch.exp(-(inside**2) / ((self.cutoff - inside) * (self.cutoff + inside)))
        return envelope * torch.exp(log_basis)
