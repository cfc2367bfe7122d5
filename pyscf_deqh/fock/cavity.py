"""The response of a polarizable continuum around a molecule, in exact integrals.

Fitted densities have no tails, where the surface of the cavity is: the charges there are a tenth
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

_DTYPE = torch.float32


def response_bytes(cavity: Cavity, groups: OrbitalGroups) -> int:
    """What a :class:`CavityResponse` keeps."""
    n = cavity.charges.nao
    return _DTYPE.itemsize * n * groups.n_pairs() + 8 * n**2


class CavityResponse:
    """Potentials of the charges that a density induces on the surface.

    Args:
        mol: the molecule.
        cavity: around it.
        groups: its orbitals.
        device: of the integrals.
        engine: makes them.

    Attributes:
        of_nuclei: matrix (nao, nao), hartree, of the charges that the nuclei induce.
    """

    def __init__(
        self,
        mol: Mole,
        cavity: Cavity,
        groups: OrbitalGroups,
        device: torch.device,
        engine: Engine,
    ):
        self._integrals = OrbitalBlocks(mol, cavity.charges, groups, device, _DTYPE, 0.0, engine)
        self._r, self._k = cavity.r, scipy.linalg.lu_factor(cavity.k)
        self.of_nuclei = -self._matrix(cavity.nuclei)

    @property
    def nbytes(self) -> int:
        return self._integrals.nbytes + self._k[0].nbytes

    def __call__(self, density: Tensor) -> Tensor:
        """Matrix (nao, nao), hartree, of a symmetric density matrix (nao, nao) of electrons."""
        return self._matrix(self._integrals.with_density(density).double().cpu().numpy())

    def _matrix(self, potential: np.ndarray) -> Tensor:
        """That of the charges which a potential (charges,) induces, of opposite sign."""
        # PySCF's charges are the mean of those by K^-1 R and by its transpose.
        charges = scipy.linalg.lu_solve(self._k, self._r @ potential)
        charges = (charges + self._r.T @ scipy.linalg.lu_solve(self._k, potential, trans=1)) / 2
        return self._integrals.matrix(charges)
