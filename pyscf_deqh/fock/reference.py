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
    from pyscf.gto import Mole

    from .fitted import FittedFock

_XC = "pbe"


def superposed_atomic_density(mol: Mole) -> np.ndarray:
    """Density matrix (nao, nao) of PySCF's minao guess, tagged with ``mo_coeff`` and ``mo_occ``."""
    from pyscf.scf import hf

    return hf.init_guess_by_minao(mol)


def sad_reference(mol: Mole, density_matrix: np.ndarray, fitted: FittedFock) -> np.ndarray:
    """Reference Kohn-Sham matrix (nao, nao) in hartree.

    Args:
        mol: the molecule; its spin is ignored, the density is treated as a closed shell's.
        density_matrix: (nao, nao) of :func:`superposed_atomic_density`, with its tags.
        fitted: builds it.
    """
    from pyscf.scf import hf

    tags: Any = density_matrix
    filled = tags.mo_occ > 0
    orbitals = tags.mo_coeff[:, filled] * np.sqrt(tags.mo_occ[filled])
    return fitted(np.asarray(hf.get_hcore(mol)), orbitals, _XC)[0]
