"""The response of a polarizable continuum around a molecule, in exact integrals.

Fitted densities have no tails, where the surface of the cavity is: charges there are up to a tenth
off. Integrals of all pairs of orbitals with all charges of the surface take a few times the room of
the fitted ones, and are made once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ..engine import Engine
from ..pyscf_api import Cavity
from .blocks import OrbitalBlocks, OrbitalGroups

if TYPE_CHECKING:
    from pyscf.gto import Mole


def response_bytes(cavity: Cavity, groups: OrbitalGroups, dtype: torch.dtype) -> int:
    """What a :class:`CavityResponse` keeps."""
    n = cavity.charges.nao
    return dtype.itemsize * n * groups.n_pairs() + 8 * n**2


class CavityResponse:
    """Potentials of the charges that a density induces on the surface.

    Args:
        mol: the molecule.
        cavity: around it.
        groups: its orbitals.
        device, dtype: of the integrals.
        engine: makes them.

    Attributes:
        of_nuclei: matrix (nao, nao), hartree, of the charges that the nuclei induce.
        energy_of_nuclei: of the nuclei with these, hartree.
    """

    def __init__(
        self,
        mol: Mole,
        cavity: Cavity,
        groups: OrbitalGroups,
        device: torch.device,
        dtype: torch.dtype,
        engine: Engine,
    ):
        self._integrals = OrbitalBlocks(mol, cavity.charges, groups, device, dtype, 0.0, engine)
        self._r, self._k = cavity.r, scipy.linalg.lu_factor(cavity.k)
        charges = self._charges(cavity.nuclei)
        self.of_nuclei = -self._integrals.matrix(charges)
        self.energy_of_nuclei = 0.5 * float(cavity.nuclei @ charges)

    @property
    def nbytes(self) -> int:
        return self._integrals.nbytes + self._k[0].nbytes

    def __call__(self, density: Tensor) -> Tensor:
        """Matrix (nao, nao), hartree, of a symmetric density matrix (nao, nao) of electrons."""
        v = self._integrals.with_density(density).double().cpu().numpy()
        return self._integrals.matrix(self._charges(v))

    def _charges(self, potential: np.ndarray) -> np.ndarray:
        """Those that a potential (charges,) induces: PySCF's, the mean of those by K^-1 R and by
        its transpose."""
        charges = scipy.linalg.lu_solve(self._k, self._r @ potential)
        transposed = self._r.T @ scipy.linalg.lu_solve(self._k, potential, trans=1)
        both: np.ndarray = (charges + transposed) / 2
        return both
