"""From a Hamiltonian to the density matrix that PySCF's different SCF classes start from."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from pyscf.scf import ghf, rohf, uhf

from ..errors import NumericalError
from ..pyscf_api import break_spin_symmetry, solve
from .cycles import Solution, projected_orbitals
from .problem import Problem
from .shells import breaks_spin_symmetry

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
    if solution.problem.system is problem.system:
        density = _filled(problem, solution.hamiltonian, overlap)
    else:
        density = _projected(solution, problem)
    total = density.sum(0) if density.ndim == 3 else density
    found, wanted = np.vdot(total, overlap).real, sum(problem.shells.electrons)
    if not abs(found - wanted) < _ELECTRONS * wanted:
        raise NumericalError(f"the density matrix holds {found:.6g} instead of {wanted} electrons")
    if breaks_spin_symmetry(mf, problem.mol):
        return break_spin_symmetry(mf, problem.mol, density)
    return density


def _filled(problem: Problem, hamiltonian: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    mf = problem.mf
    if isinstance(mf, ghf.GHF):
        hamiltonian = scipy.linalg.block_diag(hamiltonian, hamiltonian)
    same = isinstance(mf, uhf.UHF) and hamiltonian.ndim == 2
    energies, orbitals = solve(mf, (hamiltonian, hamiltonian) if same else hamiltonian, overlap)
    return mf.make_rdm1(orbitals, mf.get_occ(energies, orbitals))


def _projected(solution: Solution, problem: Problem) -> np.ndarray:
    densities = [c @ c.T for c in projected_orbitals(solution, problem)]
    if isinstance(problem.mf, ghf.GHF):
        return scipy.linalg.block_diag(*densities)
    if isinstance(problem.mf, (uhf.UHF, rohf.ROHF)):
        return np.array(densities)
    return sum(densities)
