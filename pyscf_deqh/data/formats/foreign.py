"""Matrices of other programs, brought to PySCF's AO order, which the stored overlap proves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyscf import gto

from ..record import Record, check_arrays

# PySCF's functions of a shell as positions in another program's. PySCF has p as x, y, z, which is
# m = 1, -1, 0, and d as m = -2, -1, 0, 1, 2.
_ORDERS = {
    "m = 0, 1, -1, 2, -2": {0: [0], 1: [1, 2, 0], 2: [4, 2, 0, 1, 3]},  # ORCA, Psi4
    "m = -2, -1, 0, 1, 2": {0: [0], 1: [2, 0, 1], 2: [0, 1, 2, 3, 4]},  # PhiSNet
}
ORCA, PHISNET = _ORDERS
_OVERLAP_TOLERANCE = 1e-4


def ao_order(mol: gto.Mole, convention: str = ORCA) -> np.ndarray:
    """Position in another AO order of each of PySCF's AOs (nao,): H[order][:, order] is PySCF's.

    Raises:
        ValueError: a shell has a higher angular momentum than the order is known for.
    """
    order: list[int] = []
    for shell in range(mol.nbas):
        momentum = mol.bas_angular(shell)
        if momentum not in _ORDERS[convention]:
            raise ValueError(f"the order of AOs with l = {momentum} is not known")
        for _ in range(mol.bas_nctr(shell)):
            order += [len(order) + i for i in _ORDERS[convention][momentum]]
    return np.array(order)


def to_record(
    row_id: int,
    numbers: np.ndarray,
    positions: np.ndarray,
    hamiltonian: np.ndarray,
    overlap: np.ndarray,
    meta: dict[str, Any],
    basis: str,
    asymmetry: float,
    conventions: Sequence[str] = (ORCA,),
) -> Record:
    """Check one row and bring it to PySCF's AO order.

    Args:
        row_id: number of the row.
        numbers: (N,) atomic numbers.
        positions: (N, 3) in angstrom.
        hamiltonian, overlap: (nao, nao) in the other order.
        meta: passed on.
        basis: name of the basis set.
        asymmetry: largest |H - H^T| in hartree that passes as rounding.
        conventions: AO orders that it may be in.

    Raises:
        ValueError: the arrays do not fit together.
    """
    check_arrays(numbers, positions, hamiltonian, asymmetry)
    atoms = list(zip(numbers.tolist(), positions.tolist(), strict=True))
    mol = gto.M(atom=atoms, basis=basis, spin=int(numbers.sum()) % 2, verbose=0)
    for name, matrix in (("hamiltonian", hamiltonian), ("overlap", overlap)):
        if matrix.shape != (mol.nao, mol.nao):
            raise ValueError(f"{name} of shape {matrix.shape} does not fit {mol.nao} orbitals")
    expected = mol.intor_symmetric("int1e_ovlp")
    errors = {}
    for convention in conventions:
        order = ao_order(mol, convention)
        here = np.ix_(order, order)
        error = errors[convention] = np.abs(overlap[here] - expected).max()
        if error < _OVERLAP_TOLERANCE:
            return Record(row_id, numbers, positions, hamiltonian[here], meta)
    raise ValueError(
        f"the stored overlap is off PySCF's by {min(errors.values()):.1e}: the order or the phases "
        f"of the AOs are not those of {' or '.join(conventions)}, the positions are not in the "
        f"format's unit, or the basis is not {basis}"
    )
