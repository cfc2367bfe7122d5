"""From a Hamiltonian to the density matrix that PySCF's different SCF classes start from."""

from __future__ import annotations

from typing import Any

import numpy as np

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
        In the form of the SCF's class, none of generalized orbitals: (nao, nao) or (2, nao, nao);
        tagged with orbitals where PySCF does so.

    Raises:
        NumericalError: it holds NaN, or another number of electrons.
    """
    overlap = problem.system.overlap
    if solution.problem is problem and problem.mol is problem.mf.mol:
        density, wanted = _filled(problem, solution.hamiltonian, overlap)
    else:
        density, wanted = _projected(solution, problem), sum(problem.shells.electrons)
    total = density.sum(0) if density.ndim == 3 else density
    found = float(np.vdot(total, overlap).real)
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
    same = _class_of(problem) == "uhf" and hamiltonian.ndim == 2
    energies, orbitals = solve(mf, (hamiltonian, hamiltonian) if same else hamiltonian, overlap)
    occupation = mf.get_occ(energies, orbitals)
    return mf.make_rdm1(orbitals, occupation), float(np.sum(occupation))


def _projected(solution: Solution, problem: Problem) -> np.ndarray:
    spins = occupied_orbitals(solution, problem)
    densities = [c @ c.T for c in spins]
    name = _class_of(problem)
    density = np.stack(densities) if name in ("uhf", "rohf") else sum(densities)
    # gpu4pyscf's restricted open shells read no orbitals of both spins.
    if not problem.engine.factorizes or name == "rohf":
        return density
    return problem.engine.tagged(density, **_tags(name, spins))


def _tags(name: str | None, spins: list[Any]) -> dict[str, Any]:
    """Orbitals and their occupations, of which a density is made."""
    ones = [np.ones_like(c[0]) for c in spins]
    coefficients = np.concatenate(spins, 1)
    if name == "rhf":
        return {"mo_coeff": coefficients, "mo_occ": np.concatenate(ones)}
    up = np.concatenate([ones[0], np.zeros_like(ones[1])])
    both = np.stack([coefficients, coefficients])
    return {"mo_coeff": both, "mo_occ": np.stack([up, 1 - up])}


def _class_of(problem: Problem) -> str | None:
    return problem.engine.class_of(problem.mf)
