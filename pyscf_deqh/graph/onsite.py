"""On-site three-index overlaps: the coefficients of the diagonal reduction (Eq. 8-9, 33-37).

The auxiliary Gaussians are those of OrbNet-Equi (Qiao et al., PNAS 120, e2205221120, 2023). They do
not depend on the element, so that all on-site blocks reduce to features of one length.
"""

from __future__ import annotations

import numpy as np
from pyscf import gto

from .basis import free_atom
from .layout import AUXILIARY_COUNTS, OrbitalTemplate

# Exponents in 1/bohr^2 by angular momentum, Eq. 35-37: the largest, and the ratio of neighbours.
_LARGEST_AND_RATIO = ((128, 0.5), (32, 0.25), (4, 0.25))
AUXILIARY_EXPONENTS: tuple[tuple[float, ...], ...] = tuple(
    tuple(largest * ratio**n for n in range(count))
    for (largest, ratio), count in zip(_LARGEST_AND_RATIO, AUXILIARY_COUNTS, strict=True)
)
N_AUXILIARY = sum(n * (2 * l + 1) for l, n in enumerate(AUXILIARY_COUNTS))


def auxiliary_atom() -> gto.Mole:
    """The auxiliary functions at the origin, normalized, one shell each, by angular momentum."""
    shells = [[l, [a, 1.0]] for l, exponents in enumerate(AUXILIARY_EXPONENTS) for a in exponents]
    # The element has no part in the functions; helium makes a closed shell.
    return gto.M(atom=[("He", (0, 0, 0))], basis={"He": shells}, verbose=0)


def onsite_overlaps(basis: str, template: OrbitalTemplate) -> np.ndarray:
    """Integrals of two AOs and an auxiliary function at the same atom, by element.

    Args:
        basis: name of the AO basis set.
        template: layout of the blocks.

    Returns:
        (elements, T, T, 60): elements as in ``template.numbers``, AOs in template slots (zero where
        an element has no function), auxiliary functions shell by shell, m = -l … l.
    """
    auxiliary = auxiliary_atom()
    order = _template_order(AUXILIARY_COUNTS)
    t = template.size
    out = np.zeros((len(template.numbers), t, t, N_AUXILIARY))
    for i, z in enumerate(template.numbers):
        atom = free_atom(z, basis)
        both = gto.conc_mol(atom, auxiliary)
        n = atom.nbas
        integrals = both.intor("int3c1e", shls_slice=(0, n, 0, n, n, both.nbas))
        slots = template.slots(z)
        out[i][np.ix_(slots, slots)] = integrals[..., order]
    return out


def _template_order(counts: tuple[int, ...]) -> np.ndarray:
    """Positions of the auxiliary functions m = -l … l in PySCF's order, where p is x, y, z."""
    order: list[int] = []
    for l, count in enumerate(counts):
        for _ in range(count):
            shell = (1, 2, 0) if l == 1 else range(2 * l + 1)
            start = len(order)
            order.extend(start + m for m in shell)
    return np.array(order)
