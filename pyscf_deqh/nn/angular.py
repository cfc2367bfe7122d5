"""Coupling of angular momenta in the basis of real spherical harmonics.

The same numbers as ``e3nn.o3.wigner_3j``. Importing e3nn takes longer than loading a model and
solving a molecule, and a guess needs nothing else of it.
"""

from __future__ import annotations

import functools
from math import factorial, sqrt

import torch
from torch import Tensor


def _clebsch_gordan(j1: int, m1: int, j2: int, m2: int, j3: int, m3: int) -> float:
    """<j1 m1 j2 m2 | j3 m3>, Racah's formula (Edmonds, Eq. 3.6.11)."""
    if m1 + m2 != m3:
        return 0.0
    f = factorial
    triangle = f(j1 + j2 - j3) * f(j1 - j2 + j3) * f(-j1 + j2 + j3) / f(j1 + j2 + j3 + 1)
    orders = f(j1 + m1) * f(j1 - m1) * f(j2 + m2) * f(j2 - m2) * f(j3 + m3) * f(j3 - m3)
    total = 0.0
    for k in range(max(0, j2 - j3 - m1, j1 - j3 + m2), min(j1 + j2 - j3, j1 - m1, j2 + m2) + 1):
        denominator = f(k) * f(j1 + j2 - j3 - k) * f(j1 - m1 - k) * f(j2 + m2 - k)
        denominator *= f(j3 - j2 + m1 + k) * f(j3 - j1 - m2 + k)
        total += (-1) ** k / denominator
    return sqrt((2 * j3 + 1) * triangle * orders) * total


def _complex_from_real(l: int) -> Tensor:
    """Complex spherical harmonics, rows, from real ones; with the phase that makes 3j real."""
    out = torch.zeros(2 * l + 1, 2 * l + 1, dtype=torch.complex128)
    out[l, l] = 1.0
    for m in range(1, l + 1):
        out[l - m, l + m], out[l - m, l - m] = 1 / sqrt(2), -1j / sqrt(2)
        out[l + m, l + m], out[l + m, l - m] = (-1) ** m / sqrt(2), 1j * (-1) ** m / sqrt(2)
    return (-1j) ** l * out


@functools.cache
def wigner_3j(l1: int, l2: int, l3: int) -> Tensor:
    """Wigner 3j symbols of real spherical harmonics, (2 l1 + 1, 2 l2 + 1, 2 l3 + 1), in float64.

    The only invariant of three such representations, with unit norm and e3nn's sign.

    Raises:
        ValueError: the degrees do not couple.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"degrees {l1}, {l2}, {l3} do not couple")
    coupled = torch.tensor(
        [
            [[_clebsch_gordan(l1, a, l2, b, l3, c) for c in range(-l3, l3 + 1)]
             for b in range(-l2, l2 + 1)]
            for a in range(-l1, l1 + 1)
        ],
        dtype=torch.complex128,
    )  # fmt: skip
    bases = [_complex_from_real(l) for l in (l1, l2, l3)]
    real = torch.einsum("abc,ai,bj,ck->ijk", coupled, bases[0], bases[1], bases[2].conj()).real
    return real / real.norm()


def representation(l: int, vectors: Tensor) -> Tensor:
    """Representation (2l + 1, 2l + 1) of a rotation, from that of the vectors (3, 3).

    Both in e3nn's order of components, which for vectors is (y, z, x) of the physical ones.
    """
    if l == 0:
        return torch.ones(1, 1, dtype=vectors.dtype)
    matrix = vectors
    for degree in range(2, l + 1):
        symbols = wigner_3j(degree - 1, 1, degree).to(vectors)
        matrix = (2 * degree + 1) * torch.einsum(
            "abm,ac,bd,cdn->mn", symbols, matrix, vectors, symbols
        )
    return matrix
