"""What we use of PySCF beyond its public interface, all in one place.

Read and tested in PySCF 2.8 to 2.14:

====================================  ==========================================================
``mf._numint``, ``NumInt._xc_type``   all
``mf._eri``, ``mf._is_mem_enough``    all
``DF._cderi``, ``mf.only_dfj``        all
``mol._atm``, ``_bas``, ``_env``      all, with ``mol._add_suffix``, ``mol._atom``
``PCM._intermediates``                all: ``K``, ``R``, ``f_epsilon``
``get_init_guess(..., s1e=S)``        all; the kernel passes the overlap on, ``newton()`` does not
``mf.check_linear_dependency``        since 2.13; ``mf.eig`` takes its result as ``x``
``mf.DIIS(mf, file)``, ``.Corth``      all; ``Corth`` is ``check_linear_dependency``'s since 2.13
``NumInt.eval_xc_eff(..., spin=)``    since 2.10, and not used: all tell it from the shape
``elements._std_symbol_without_…``    all
``df.incore.aux_e2(shls_slice=)``     wrong for the last shell in 2.8, and not used
====================================  ==========================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pyscf import df, gto, lib
from pyscf.data.elements import _std_symbol_without_ghost
from pyscf.lib import logger
from pyscf.scf import ghf, hf, uhf

from .process import memory_of_torch, trim_memory

if TYPE_CHECKING:
    from pyscf.gto import Mole

# As PySCF has it: a user may put another one into the class.
_GET_HCORE = hf.SCF.get_hcore
_AUFBAU = {f"pyscf.scf.{name}" for name in ("hf", "uhf", "rohf", "ghf")}
_AUFBAU |= {f"{name}_symm" for name in _AUFBAU - {"pyscf.scf.rohf"}}
_GET_VEFF = {f"pyscf.{name}" for name in ("scf.hf", "scf.uhf", "scf.rohf", "scf.ghf", "dft.rks",
             "dft.uks", "dft.roks", "dft.gks", "sgx.sgx", "solvent._attach_solvent")}  # fmt: skip


def attribute(x: Any, name: str, default: Any = None) -> Any:
    """``getattr`` for molecules and SCF objects, whose ``__getattr__`` imports all of PySCF for a
    name that it does not find."""
    found = name in vars(x) or hasattr(type(x), name)
    return getattr(x, name) if found else default


def has_plain_potential(mf: hf.SCF) -> bool:
    """Whether ``mf.get_veff`` is PySCF's own: others may add to energy and Fock matrix."""
    found = [vars(cls)["get_veff"] for cls in type(mf).__mro__ if "get_veff" in vars(cls)]
    own = all(getattr(function, "__module__", None) in _GET_VEFF for function in found)
    return own and "get_veff" not in vars(mf)


def moved(mol: Mole, geometry: Any, unit: str | None = None) -> Mole:
    """A molecule at another geometry, as ``mol.set_geom_`` takes it, without words in its log."""
    copy = mol.copy(deep=False)
    copy.verbose = 0
    copy.unit = unit or mol.unit
    return copy.set_geom_(geometry, unit, inplace=False)


def is_periodic(mol: Mole) -> bool:
    """Whether it is a cell of ``pyscf.pbc``."""
    return attribute(mol, "pbc_intor") is not None


def numint_of(mf: hf.SCF) -> Any:
    """The object that evaluates an SCF's functional; None without one."""
    return attribute(mf, "_numint")


def functional_kind(numint: Any, xc: str) -> str:
    """``HF``, ``LDA``, ``GGA``, ``MGGA`` or ``NLC``."""
    return numint._xc_type(xc)


def has_exchange(mf: hf.SCF) -> bool:
    """Whether the Fock matrix of an SCF holds exact exchange."""
    numint = numint_of(mf)
    return numint is None or numint.libxc.is_hybrid_xc(mf.xc)


def has_plain_hcore(mf: hf.SCF) -> bool:
    """Whether the one-electron Hamiltonian is the molecule's alone: no X2C, no external charges,
    nothing that the user put in."""
    return getattr(mf.get_hcore, "__func__", None) is _GET_HCORE


@dataclass(frozen=True, eq=False)
class Cavity:
    """The surface of a solute in a polarizable continuum: its charges q solve K q = R v for the
    electrostatic potential v on it.

    Attributes:
        charges: Gaussian ones on the surface, of unit charge, as a molecule of one function each.
        k, r: (charges, charges), of the model; see Lange and Herbert, J. Chem. Phys. 133, 244111
            (2010).
        nuclei: (charges,) potential of the nuclei on the surface.
    """

    charges: Mole
    k: np.ndarray
    r: np.ndarray
    nuclei: np.ndarray


def cavity_of(mf: hf.SCF, build: bool = False, keep: bool = True) -> Cavity | None:
    """That of PySCF's PCM and SMD; None without one, or where the solvent does not respond. ddCOSMO
    and ddPCM have none of this kind.

    Args:
        mf: SCF object.
        build: make it, as the first Fock matrix would; else None before that.
        keep: leave what is built in ``mf``, whose options of the solvent come too late then.
    """
    solvent = attribute(mf, "with_solvent")
    if solvent is None:
        return None
    from pyscf.solvent import pcm

    if not isinstance(solvent, pcm.PCM) or solvent.frozen:
        return None
    if build and not solvent._intermediates:
        if not keep:
            solvent = solvent.copy()
            solvent.reset()
        solvent.build()
    if not solvent._intermediates:
        return None
    surface, matrices = solvent.surface, solvent._intermediates
    if not 0 <= matrices["f_epsilon"] <= 1:  # of a dielectric; SMD without a solvent has another
        return None
    exponents = surface["charge_exp"] ** 2
    charges = gto.fakemol_for_charges(surface["grid_coords"], expnt=exponents)
    return Cavity(charges, matrices["K"], matrices["R"], solvent.v_grids_n)


def cds_energy(mf: hf.SCF) -> float:
    """What SMD adds to the energy whatever the density, hartree."""
    solvent = attribute(mf, "with_solvent")
    if getattr(solvent, "method", "").upper() != "SMD":
        return 0.0
    return float(np.ravel(solvent.copy().reset().get_cds())[0])  # which would be remembered


def dispersion_energy(mf: hf.SCF) -> float:
    """What a dispersion correction (D3, D4) adds to the energy, hartree."""
    corrected = getattr(mf, "do_disp", None)
    return float(mf.get_dispersion()) if corrected is not None and corrected() else 0.0


def has_nonlocal_correlation(mf: hf.SCF) -> bool:
    """Whether its functional has a nonlocal part, such as VV10."""
    asks = attribute(mf, "do_nlc")
    return asks is not None and bool(asks())


def frozen_potential(mf: hf.SCF) -> Any:
    """That of a solvent which does not respond, (nao, nao), hartree; None without one."""
    solvent = attribute(mf, "with_solvent")
    if not getattr(solvent, "frozen", False):
        return None
    potential: Any = getattr(solvent, "v", None)
    return potential if np.shape(potential) == (mf.mol.nao,) * 2 else None


def solve(
    mf: hf.SCF, fock: Any, overlap: np.ndarray, basis: np.ndarray | None = None
) -> tuple[Any, Any]:
    """``mf``'s own orbital energies and orbitals, with its treatment of linear dependencies.

    Args:
        mf: an SCF object.
        fock, overlap: in the form of its class.
        basis: orthonormal, as PySCF's kernel makes it and hands it to its DIIS; made anew if it is
            not known.
    """
    if not hasattr(type(mf), "check_linear_dependency"):
        return mf.eig(fock, overlap)
    if basis is None:
        basis = mf.check_linear_dependency(overlap, logger.new_logger(mf))
    return mf.eig(fock, overlap, x=basis)


def fills_by_aufbau(mf: hf.SCF) -> bool:
    """Whether the orbitals are filled as the SCF's class does it, in symmetry-adapted classes by
    irreducible representation: not fractional, dynamic, smeared or by maximum overlap."""
    fill = getattr(mf.get_occ, "__func__", mf.get_occ)
    module = getattr(fill, "__module__", "").removeprefix("gpu4")
    return module in _AUFBAU and getattr(fill, "__name__", "") == "get_occ"


def three_index_integrals(
    mol: Mole, auxiliary: Mole, bra: tuple[int, int], ket: tuple[int, int]
) -> np.ndarray:
    """(functions of an auxiliary basis set, orbitals of the ket, of the bra), with the range of the
    Coulomb operator that is set in ``mol``.

    Args:
        mol, auxiliary: the molecule in orbitals and in auxiliary functions.
        bra, ket: first shell and end.
    """
    atoms = gto.conc_env(
        mol._atm, mol._bas, mol._env, auxiliary._atm, auxiliary._bas, auxiliary._env
    )
    part = (*bra, *ket, mol.nbas, mol.nbas + auxiliary.nbas)
    integrals: np.ndarray = gto.moleintor.getints(
        mol._add_suffix("int3c2e"), *atoms, shls_slice=part
    )
    return integrals.T


def elements_of(mol: Mole) -> dict[str, str | None]:
    """Element by atomic symbol, of ghost atoms too; None where the symbol names none."""
    elements: dict[str, str | None] = {}
    for symbol in {symbol for symbol, _ in mol._atom}:
        try:
            elements[symbol] = _std_symbol_without_ghost(symbol)
        except (RuntimeError, KeyError):
            elements[symbol] = None
    return elements


def make_integrals(mf: hf.SCF) -> None:
    """Make the two-electron integrals that ``mf`` will hold in memory, by its own decision.

    PySCF decides by what the process holds at the first Fock build. A guess that had its own
    integrals in memory by then would leave none for PySCF's.
    """
    fitted = attribute(mf, "with_df")
    if isinstance(fitted, df.DF):
        # Without exact exchange PySCF fits the Coulomb matrix without a tensor.
        if not has_exchange(mf) or mf.only_dfj:
            return
        whole, ranges = _operators(mf)
        if whole and fitted._cderi is None:
            fitted.build()
        for omega in ranges:
            with fitted.range_coulomb(omega) as part:
                if part._cderi is None:
                    part.build()
        return
    if mf._eri is None and holds_integrals(mf):
        mf._eri = mf.mol.intor("int2e", aosym="s8")


def _operators(mf: hf.SCF) -> tuple[bool, tuple[float, ...]]:
    """Of which operators an SCF makes exchange matrices: whether Coulomb's is one, and the range
    separations, negative for the short range (``pyscf.dft.rks.get_veff``)."""
    numint = numint_of(mf)
    if numint is None:
        return True, ()
    omega, long_range, short_range = numint.rsh_and_hybrid_coeff(mf.xc, spin=mf.mol.spin)
    if omega == 0:
        return True, ()
    if long_range == 0:
        return False, (-omega,)
    return short_range != 0, (omega,)


def holds_integrals(mf: hf.SCF) -> bool:
    """Whether ``mf`` holds its two-electron integrals in memory, or will by PySCF's rule. Memory
    that is free in the process is given back where it decides, and PyTorch's, which a guess has
    brought, does not count: without it PySCF would hold them."""
    kinds = (hf.RHF.get_jk, uhf.UHF.get_jk, ghf.GHF.get_jk)
    own = getattr(mf.get_jk, "__func__", None) in kinds
    if not own or mf._eri is not None or mf.mol.incore_anyway or mf._is_mem_enough():
        return own
    if mf.mol.nao**4 / 1e6 < mf.max_memory:  # in an empty process there would be room
        trim_memory()
    return integrals_fit(mf.mol, lib.current_memory()[0] - memory_of_torch(), mf.max_memory)


def integrals_fit(mol: Mole, taken: float, max_memory: float) -> bool:
    """Whether PySCF holds two-electron integrals in memory, of which so many MB are taken."""
    return bool(mol.nao**4 / 1e6 + taken < 0.95 * max_memory)


def bytes_of_integrals(mf: hf.SCF) -> int:
    """Memory that two-electron integrals of ``mf`` take now."""
    mf = attribute(mf, "_scf") or mf  # newton() has its Fock matrices from the object that it wraps
    fitted = attribute(mf, "with_df")
    of_ranges = getattr(fitted, "_rsh_df", None) or {}
    parts = [fitted, *of_ranges.values()] if fitted else []
    held = [attribute(mf, "_eri"), *(getattr(part, "_cderi", None) for part in parts)]
    return sum(array.nbytes for array in held if isinstance(array, np.ndarray))


def full_builds(mf: hf.SCF) -> int:
    """Fock matrices of the last SCF: the first one, one a cycle, that of the last check, and those
    of a restart."""
    restarts = sum(cycle.restarted for cycle in mf.deqh_cycles)
    # Before its limit an SCF ends by its criterion alone, which the check may then refuse.
    ended = mf.converged or mf.cycles < mf.max_cycle
    checked = ended and isinstance(mf, hf.SCF) and mf.conv_check  # gpu4pyscf makes none
    return 1 + int(mf.cycles) + bool(checked) + restarts
