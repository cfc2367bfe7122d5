"""Losses of self-consistency: a predicted Hamiltonian beside the Fock matrix of its own density.

They need no labels, but a Fock matrix for each molecule of each step, here a fitted one. With D of
the occupied orbitals of the prediction H and F = F_fit[D],

- ``amortized`` is Eq. 45 of H - F (self-consistency training; Zhang et al., ICML 2024): F stands in
  for the label, as in one cycle of an SCF, and is not differentiated;
- ``commutator`` is the DIIS error F D S - S D F (Pulay, J. Comput. Chem. 3, 556, 1982; as a loss,
  Hazra et al., 2024), differentiated by D alone. H D S - S D H of H itself is zero.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from pyscf import gto
from torch import Tensor

from ..fock.fitted import FittedFock
from ..fock.system import System
from ..graph.batch import GraphBatch
from ..nn.density import density_matrix
from .loss import MILLI, element_loss

# Bytes of fitted integrals that are kept for the next epoch.
_KEPT = 2e9


class SelfConsistency:
    """One of the losses, for batches of closed shells.

    Args:
        loss: ``amortized`` or ``commutator``.
        xc: functional, as PySCF has it.
        basis: name of the basis set.
        numbers: atomic numbers of the elements, as the graphs count them.
    """

    def __init__(self, loss: str, xc: str, basis: str, numbers: Sequence[int]):
        self._loss, self._xc = loss, xc
        self._basis, self._numbers = basis, np.array(numbers)
        # The last ones at the end, with their bytes.
        self._kept: OrderedDict[bytes, tuple[System, FittedFock, int]] = OrderedDict()

    def __call__(self, hamiltonian: Tensor, graph: GraphBatch) -> Tensor:
        """Loss of each molecule (B,), milli-hartree.

        Args:
            hamiltonian: (B, n, n) predicted, hartree.
            graph: the molecules.
        """
        element, molecule = graph.element.cpu().numpy(), graph.molecule.cpu().numpy()
        positions = graph.positions.double().cpu().numpy()
        losses = []
        for b, padded in enumerate(hamiltonian):
            nao, n_occupied = int(graph.nao[b]), int(graph.n_occupied[b])
            here = (molecule == b) & graph.orbital.ge(0).any(1).cpu().numpy()
            predicted = padded[:nao, :nao].double()
            x = graph.basis_vectors[b, :nao].double()
            x = x[:, x.ne(0).any(0)]
            in_basis = x.mT @ predicted @ x
            with torch.no_grad():
                occupied = 2**0.5 * x @ torch.linalg.eigh(in_basis)[1][:, :n_occupied]
            fock = self._fock(self._numbers[element[here]], positions[here], occupied)
            if self._loss == "amortized":
                losses.append(element_loss((predicted - fock)[None], graph.nao[b : b + 1])[0])
            else:
                orthonormal = torch.eye(len(in_basis)).to(in_basis)
                pairs = graph.n_occupied[b : b + 1]
                (density,) = density_matrix(in_basis[None], orthonormal[None], pairs)
                losses.append(commutator(x.mT @ fock @ x, density))
        return MILLI * torch.stack(losses).to(hamiltonian.dtype)

    def _fock(self, numbers: np.ndarray, positions: np.ndarray, occupied: Tensor) -> Tensor:
        """Fitted Fock matrix (nao, nao), hartree.

        Args:
            numbers, positions: of the atoms, in bohr.
            occupied: orbitals (nao, k), each scaled by the root of its occupation.
        """
        key = numbers.tobytes() + positions.tobytes()
        if key in self._kept:
            self._kept.move_to_end(key)
            system, fitted, _ = self._kept[key]
        else:
            atoms = [(int(z), tuple(r)) for z, r in zip(numbers, positions, strict=True)]
            charge = int(numbers.sum()) - 2 * occupied.shape[1]
            mol = gto.M(atom=atoms, unit="Bohr", basis=self._basis, charge=charge, verbose=0)
            system, fitted = System(mol), FittedFock(mol)
        fock, _ = fitted(system.core_hamiltonian, occupied.cpu().numpy(), self._xc)
        fitted.forget()
        self._kept.setdefault(key, (system, fitted, fitted.nbytes))
        while sum(kept[2] for kept in self._kept.values()) > _KEPT and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return torch.from_numpy(fock).to(occupied)


def commutator(fock: Tensor, density: Tensor) -> Tensor:
    """Root mean square of F D - D F in an orthonormal basis, hartree."""
    product = fock @ density
    return torch.sqrt((product - product.mT).square().mean() + 1e-20)
