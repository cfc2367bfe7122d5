"""The coarse integration grid of the cheap SCF, and orbitals' values on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyscf.dft.gen_grid import Grids
    from pyscf.gto import Mole

GRID = (30, 110)  # radial shells, largest angular grid; pruned by PySCF's default scheme
_POINTS = 8192  # grid points of one block


def coarse_grid(mol: Mole, size: tuple[int, int] = GRID) -> Grids:
    """Integration grid of so many radial shells and at most so many points in each."""
    from pyscf.dft import gen_grid

    grids = gen_grid.Grids(mol)
    grids.verbose, grids.atom_grid = 0, size
    return grids.build(with_non0tab=True)


def orbital_values(mol: Mole, grids: Grids, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Orbitals and their gradients on a grid, (4, points, nao)."""
    from pyscf.dft import numint

    ni = numint.NumInt()
    values = torch.empty(4, len(grids.weights), mol.nao, device=device, dtype=dtype)
    # PySCF's screening tables come in blocks of its own size.
    step = _POINTS - _POINTS % numint.BLKSIZE
    for first in range(0, len(grids.weights), step):
        part = slice(first, first + step)
        table = grids.non0tab[first // numint.BLKSIZE :]
        block = ni.eval_ao(mol, grids.coords[part], deriv=1, non0tab=table, cutoff=grids.cutoff)
        values[:, part] = torch.from_numpy(block).to(device)
    return values
