"""From a Hamiltonian to the density matrix that PySCF's different SCF classes start from."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from pyscf.scf import ghf, rohf, uhf

from ..errors import NumericalError
from ..pyscf_api import solve
from .cycles import Solution, occupied_orbitals
from .problem import Problem

_ELECTRONS = 1e-6  # error of their number that is no rounding


def density_of(solution: Solution, problem: Problem) -> np.ndarray:
    """Density matrix of the orbitals that a solution's Hamiltonian fills.

    Args:
        solution: in the basis set of ``problem`` or in another one.
        problem: the SCF's.

    Returns:
        In the form of the SCF's class: (nao, nao), (2, nao, nao), or (2 nao, 2 nao) for GHF; tagged
        with orbitals where PySCF does so.

    Raises:
        NumericalError: it holds NaN, or another number of electrons.
    """
    mf, overlap = problem.mf, problem.system.overlap
    if isinstance(mf, ghf.GHF):
        overlap = scipy.linalg.block_diag(overlap, overlap)
    if solution.problem is problem:
        density, wanted = _filled(problem, solution.hamiltonian, overlap)
    else:
        density, wanted = _projected(solution, problem), sum(problem.shells.electrons)
    total = density.sum(0) if density.ndim == 3 else density
    found = np.vdot(total, overlap).real
    if not abs(found - wanted) < _ELECTRONS * wanted:
        raise NumericalError(
            f"the density matrix holds {found:.6g} instead of {wanted:g} electrons"
        )
    return density


def _filled(
    problem: Problem, hamiltonian: np.ndarray, overlap: np.ndarray
) -> tuple[np.ndarray, float]:
    """Density matrix, and the electrons that the SCF's own rule has filled in."""
    mf = problem.mf
    if isinstance(mf, ghf.GHF):
        hamiltonian = scipy.linalg.block_diag(hamiltonian, hamiltonian)
    same = isinstance(mf, uhf.UHF) and hamiltonian.ndim == 2
    energies, orbitals = solve(mf, (hamiltonian, hamiltonian) if same else hamiltonian, overlap)
    occupation = mf.get_occ(energies, orbitals)
    return mf.make_rdm1(orbitals, occupation), float(np.sum(occupation))


def _projected(solution: Solution, problem: Problem) -> np.ndarray:
    densities = [c @ c.T for c in occupied_orbitals(solution, problem)]
    if isinstance(problem.mf, ghf.GHF):
        return scipy.linalg.block_diag(*densities)
    if isinstance(problem.mf, (uhf.UHF, rohf.ROHF)):
        return np.array(densities)
    return sum(densities)
