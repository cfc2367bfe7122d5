"""The cheap reference Hamiltonian that a network learns the difference from.

``sad``: the Kohn-Sham matrix of superposed atomic densities (PySCF's minao guess), with density-
fitted Coulomb integrals, the PBE functional and a coarse grid. It costs about a third of one SCF
cycle of a hybrid functional and is off by 2-4 mEh per matrix element, most of which is the response
of the density to bonding.

The grid has 30 radial shells of at most 110 points. PySCF's level 0 is a quarter cheaper, but off
by 65-90 micro-Eh on average, and that error turns with the grid's fixed axes and not with the
molecule: no equivariant network can undo it. Here that is 6-9 micro-Eh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import ConfigError

if TYPE_CHECKING:
    from pyscf.gto import Mole

REFERENCES = ("none", "sad")
_XC = "pbe"
_AUXBASIS = "def2-universal-jfit"
_GRID = (30, 110)  # radial shells, largest angular grid; pruned by PySCF's default scheme


def superposed_atomic_density(mol: Mole) -> np.ndarray:
    """Density matrix (nao, nao) of PySCF's minao guess, which every guess of PySCF starts from."""
    from pyscf.scf import hf

    return np.asarray(hf.init_guess_by_minao(mol))


def reference_hamiltonian(mol: Mole, kind: str, density_matrix: np.ndarray) -> np.ndarray:
    """Reference Kohn-Sham matrix (nao, nao) in hartree of a fixed density matrix (nao, nao).

    Args:
        mol: the molecule; its spin is ignored, the density is treated as a closed shell's.
        kind: ``'sad'``, or ``'none'`` for a matrix of zeros.
        density_matrix: usually :func:`superposed_atomic_density`.
    """
    if kind not in REFERENCES:
        raise ConfigError(f"unknown reference {kind!r}; known: {', '.join(REFERENCES)}")
    if kind == "none":
        return np.zeros_like(density_matrix)
    from pyscf import dft

    mol = mol.copy(deep=False)
    mol.spin, mol.symmetry, mol.verbose = mol.nelectron % 2, False, 0
    mf = dft.RKS(mol, xc=_XC) if mol.spin == 0 else dft.rks.RKS(mol, xc=_XC)
    mf = mf.density_fit(auxbasis=_AUXBASIS)
    mf.grids.atom_grid = _GRID
    return np.asarray(mf.get_hcore() + mf.get_veff(mol, density_matrix))
