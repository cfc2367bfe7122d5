"""The energy of a molecule from one full Fock matrix and no SCF, for screening.

The SCF's own F(D) is built once, at the guess's density D. Corrected cycles lead from there to a
density D' near the solution, and the slopes at both ends to its energy,

    E(D') = E(D) + tr[(F(D) + F') (D' - D)] / 2,

where F' is the fitted Fock matrix of D' with the defect of F(D). What that lacks is of third order
in D' - D, or of the change of the defect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pyscf.lib import logger
from pyscf.scf import hf

from .engine import engine_of
from .fock.corrector import parts_of
from .plugin import KEY, deqh_guess
from .pyscf_api import frozen_potential, solve

# What the energy may be off: of the correction this part, and what is of third order, at least so
# much (hartree). Where corrected cycles have not converged, or have not all of the response (of a
# solvent, of exact exchange that does not fit into memory), the whole correction.
_PART, _AT_LEAST = 0.02, 1e-8
# Part of the gradient that converged cycles may leave: its square of the correction.
_LEFT = 0.1


@dataclass(frozen=True)
class SingleBuild:
    """What :func:`single_build` has found, in hartree.

    Attributes:
        energy: of the SCF's solution, estimated.
        error: that the estimate may have, if the SCF has no other solution.
        upper: energy of the guess's density, above that of the SCF's ground state; not where it is
            PySCF's own start, as of singlets whose spin symmetry that breaks, which is of no
            orbitals.
    """

    energy: float
    error: float
    upper: float


def single_build(mf: hf.SCF, **options: Any) -> SingleBuild:
    """Estimate an SCF's energy with one full Fock matrix: ``single_build(scf.RKS(mol, xc="pbe"))``.

    The SCF object gets orbitals, their energies and ``e_tot``, but is not ``converged``.

    Args:
        mf: any molecular SCF object; it is changed as by :func:`deqh_guess`.
        options: of :func:`deqh_guess`.

    Raises:
        UnsupportedMoleculeError, NotEnoughMemoryError, NumericalError, CheckpointError,
        ConfigError: see :func:`deqh_guess`.

    Example:

        >>> from pyscf import gto, scf
        >>> from pyscf_deqh import single_build
        >>> mol = gto.M(atom="O 0 0 .119; H 0 .763 -.477; H 0 -.763 -.477", basis="def2-svp")
        >>> found = single_build(scf.RKS(mol, xc="b3lyp").set(verbose=0))
        >>> print(f"{found.energy:.6f}, off by less than {found.error:.0e}")
        -76.358288, off by less than 1e-08
    """
    deqh_guess(mf, **options)
    mf._deqh = replace(mf._deqh, frugal=False)  # as it was asked for
    mf.build()
    host = engine_of(mf).host
    overlap, hcore = mf.get_ovlp(), mf.get_hcore()
    density = mf.get_init_guess(mf.mol, KEY, s1e=overlap)
    potential = mf.get_veff(mf.mol, density)
    upper = float(mf.energy_tot(density, hcore, potential))
    fock = _by_spin(mf.get_fock(hcore, overlap, potential, density), host)
    diis, basis = mf.DIIS(mf), None
    if hasattr(type(mf), "check_linear_dependency"):
        basis = diis.Corth = mf.check_linear_dependency(overlap)
    corrected = mf.get_fock(
        hcore, overlap, potential, density, cycle=mf.diis_start_cycle, diis=diis,
        level_shift_factor=0.0,
    )  # fmt: skip
    mf.mo_energy, mf.mo_coeff = solve(mf, corrected, overlap, basis)
    mf.mo_occ = mf.get_occ(mf.mo_energy, mf.mo_coeff)
    change = host(mf.make_rdm1()) - host(density)
    slopes = fock + _by_spin(corrected, host)
    frozen = frozen_potential(mf)
    if frozen is not None:  # part of the Fock matrix, of the energy a constant
        slopes = slopes - 2 * host(frozen)
    correction = 0.5 * float(np.vdot(slopes, np.reshape(change, slopes.shape)).real)
    size = abs(correction)
    solved = any(
        cycle.accepted and cycle.fitted_gradients[-1] <= _LEFT * cycle.gradient
        for cycle in mf.deqh_cycles[-1:]
    )
    known = solved and getattr(diis, "response_is_exact", False)
    error = max((_PART + np.sqrt(size)) * size, _AT_LEAST) if known else size
    found = SingleBuild(upper + correction, float(error), upper)
    mf.e_tot, mf.converged = found.energy, False
    logger.note(mf, "E of a single build = %.15g +- %.1e", found.energy, found.error)
    return found


def _by_spin(fock: Any, host: Any) -> np.ndarray:
    """Fock matrices of either spin, where the density has two."""
    if isinstance(fock, tuple):  # gpu4pyscf's with a level shift
        return np.stack([host(spin) for spin in fock])
    whole, *spins = parts_of(fock)
    return np.stack([host(spin) for spin in spins]) if spins else np.array(host(whole))
