"""The cheap reference Hamiltonian that a network learns the difference from.

``sad``: the Kohn-Sham matrix of superposed atomic densities (PySCF's minao guess) with the PBE
functional, in fitted integrals and on a coarse grid. It is off by 2-4 mEh per matrix element, most
of which is the response of the density to bonding.

The grid has 30 radial shells of at most 110 points. PySCF's level 0 is a quarter cheaper, but off
by 65-90 micro-Eh on average, and that error turns with the grid's fixed axes and not with the
molecule: no equivariant network can undo it. Here that is 6-9 micro-Eh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .fitted import FittedFock
    from .system import System

_XC = "pbe"


def sad_reference(
    system: System, fitted: FittedFock, hcore: np.ndarray | None = None
) -> np.ndarray:
    """Reference Kohn-Sham matrix (nao, nao) in hartree.

    Args:
        system: the molecule; its spin is ignored, the density is treated as a closed shell's.
        fitted: builds it.
        hcore: one-electron Hamiltonian (nao, nao), hartree; the molecule's alone if it is None, as
            networks know it.
    """
    density: Any = system.atomic_density
    filled = density.mo_occ > 0
    orbitals = density.mo_coeff[:, filled] * np.sqrt(density.mo_occ[filled])
    return fitted(system.core_hamiltonian if hcore is None else hcore, orbitals, _XC)[0]
