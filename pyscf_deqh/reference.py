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
import scipy.linalg

from .errors import ConfigError

if TYPE_CHECKING:
    from pyscf.gto import Mole

REFERENCES = ("none", "sad")
_XC = "pbe"
_AUXBASIS = "def2-universal-jfit"
_GRID = (30, 110)  # radial shells, largest angular grid; pruned by PySCF's default scheme


def superposed_atomic_density(mol: Mole) -> np.ndarray:
    """Density matrix (nao, nao) of PySCF's minao guess.

    It keeps PySCF's tags (``mo_coeff``, ``mo_occ``), which make its density on a grid cheaper.
    """
    from pyscf.scf import hf

    return hf.init_guess_by_minao(mol)


def _coulomb_matrix(mol: Mole, density_matrix: np.ndarray) -> np.ndarray:
    """Density-fitted Coulomb matrix (nao, nao).

    The fitting integrals are used once, so they are neither factorized nor kept: half the time of
    PySCF's density-fitting object, which takes over where they do not fit into memory.
    """
    from pyscf import df, lib

    auxiliary = df.addons.make_auxmol(mol, _AUXBASIS)
    n_pairs = mol.nao * (mol.nao + 1) // 2
    if 8e-6 * n_pairs * auxiliary.nao > mol.max_memory / 2:
        return df.DF(mol, _AUXBASIS).get_jk(density_matrix, with_k=False)[0]
    integrals = df.incore.aux_e2(mol, auxiliary, aosym="s2ij")
    packed = lib.pack_tril(2 * density_matrix - np.diag(np.diag(density_matrix)))
    fitted = scipy.linalg.solve(auxiliary.intor("int2c2e"), packed @ integrals, assume_a="pos")
    return lib.unpack_tril(integrals @ fitted)


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
    from pyscf.scf import hf

    grids = dft.gen_grid.Grids(mol)
    grids.verbose, grids.atom_grid = 0, _GRID
    grids.build(with_non0tab=True)
    _, _, exchange_correlation = dft.numint.NumInt().nr_rks(mol, grids, _XC, density_matrix)
    coulomb = _coulomb_matrix(mol, np.asarray(density_matrix))
    return np.asarray(hf.get_hcore(mol)) + coulomb + np.asarray(exchange_correlation)
