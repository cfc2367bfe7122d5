"""Rotation matrices of real spherical harmonics for many directions at once.

e3nn 0.6 exponentiates generators that it keeps in single precision: slow for one matrix per atom
pair, and off by 1e-7 in double precision. Here a rotation about the polar axis is written down, and
one about the second axis is the first between two constant matrices.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .angular import representation


@functools.cache
def _axis_exchange(l: int) -> Tensor:
    """Representation (2l+1, 2l+1) of the rotation of e3nn's y axis onto its x axis, in float64."""
    rotation = torch.tensor(
        [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64
    )
    return representation(l, rotation)


@functools.cache
def _axis_exchange_on(l: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Kept where it is used: a copy to a GPU makes the host wait.
    return _axis_exchange(l).to(device, dtype)


def _polar_rotation(l: int, angle: Tensor) -> Tensor:
    """Rotation about e3nn's y axis (the physical z axis), (E, 2l+1, 2l+1)."""
    m = torch.arange(-l, l + 1, device=angle.device)
    phase = angle[:, None] * m
    out = torch.diag_embed(torch.cos(phase))
    antidiagonal = torch.arange(2 * l + 1, device=angle.device)
    # Y_m -> Y_m cos(m a) - Y_-m sin(m a), for cosine (m > 0) and sine (m < 0) functions alike.
    out[:, antidiagonal, 2 * l - antidiagonal] -= torch.sin(phase)
    return out


def wigner_d(l: int, direction: Tensor) -> Tensor:
    """Representation (E, 2l+1, 2l+1) of a rotation that takes the polar axis onto each direction.

    Args:
        l: degree.
        direction: (E, 3) physical vectors, not zero; the polar axis is the physical z axis.
    """
    x, y, z = direction.unbind(-1)
    exchange = _axis_exchange_on(l, direction.device, direction.dtype)
    tilt = exchange @ _polar_rotation(l, torch.atan2(torch.hypot(x, y), z)) @ exchange.T
    return _polar_rotation(l, torch.atan2(y, x)) @ tilt


def wigner_frames(lmax: int, direction: Tensor, side: Tensor) -> list[Tensor]:
    """Representations (E, 2l+1, 2l+1), of each degree, of rotations that take the polar axis onto a
    direction and the physical x axis into the half plane of that and a second vector.

    Args:
        lmax: largest degree, at least 1.
        direction, side: (E, 3) physical vectors, not parallel.
    """
    turned = [wigner_d(l, direction) for l in range(lmax + 1)]
    # Components of vectors are (y, z, x); the azimuth is what the turn above leaves of the side's.
    y, _, x = (turned[1].mT @ side[:, [1, 2, 0], None])[..., 0].unbind(-1)
    azimuth = torch.atan2(y, x)
    return [turn @ _polar_rotation(l, azimuth) for l, turn in enumerate(turned)]
