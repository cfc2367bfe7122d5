"""Corrected cycles inside PySCF's own loop: an object that it uses as its DIIS.

In each of its cycles PySCF hands the full Fock matrix F(D_k) to its DIIS and diagonalizes what
comes back. This one solves

    F(D) = F_fit(D) + E(D),    E(D_i) = F(D_i) - F_fit(D_i)

to self-consistency, in fitted Fock matrices and their defect E, see
:mod:`~pyscf_deqh.fock.nearby`. PySCF's own Fock matrices stay its own, so that the result is the
one that it would find.
"""

from __future__ import annotations

import functools
import importlib
import time
import traceback
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pyscf import lib
from pyscf.lib import logger
from pyscf.scf import hf

from ..engine import HOST, Engine, engine_of, gpu_engine
from ..errors import ConfigError, UnsupportedMoleculeError, own_errors
from ..process import import_torch, pyscf_threads
from ..pyscf_api import attribute, fills_by_aufbau, numint_of
from .corrector import Corrector, parts_of
from .cost import too_cheap
from .descent import MAX_DESCENT
from .failure import LEAST_LEFT, Strictly, WayBack, patience_when_far

if TYPE_CHECKING:
    from pyscf.gto import Mole

    from .fitted import FittedFock

# Part of PySCF's threshold at which a cycle of fitted ones ends, and below which there is none. Not
# more: PySCF's cycles, that of its check among them, can leave ten times the gradient and more.
# Closed shells with a gap (hartree) of this width are the exception: the engine says what serves.
_GOAL, _WIDE = 0.1, 0.15
# What a step leaves of the gradient: before the first one, and the least that is believed.
_LEAVES, _LEAVES_AT_LEAST = 1e-2, 1e-4
# A step that leaves more of the gradient than this has failed, and so have fitted cycles that end
# above the other. After two failures PySCF's DIIS takes over for good.
_FAILED, _FITTED_FAILED, _PATIENCE = 0.5, 0.3, 2
# A direct minimization may lead into the neighbourhood of another solution, where the gradient is
# no smaller at first: so often that is no failure.
_MAX_MOVES = 2
# Packages whose ways to a Fock matrix are known.
_PROGRAMS = ("pyscf", "gpu4pyscf")
_ON_GPU = "GPUCorrectedDIIS"
# Spin contamination of an open shell above which a far start may have led to another state.
_CONTAMINATED = 0.4
# Cycles of PySCF's alone after which corrected ones from a far density are tried again.
_MAX_WAITS = 12


@dataclass(frozen=True)
class CorrectedCycle:
    """One cycle of PySCF's as this object has made it; on the SCF object as ``mf.deqh_cycles``.

    Attributes:
        gradient: norm of the orbital gradient in the full Fock matrix, hartree; NaN where PySCF's
            DIIS has taken over.
        fitted_gradients: the same in each of the fitted cycles that followed.
        seconds: of these.
        accepted: whether PySCF went on with their result; with its DIIS's otherwise.
        restarted: whether the SCF began anew here, at the full Fock matrix of PySCF's own start,
            which is one more than PySCF counts.
    """

    gradient: float
    fitted_gradients: tuple[float, ...] = ()
    seconds: float = 0.0
    accepted: bool = False
    restarted: bool = False


def corrected_diis(mf: hf.SCF) -> hf.SCF:
    """Make an SCF object use corrected cycles: ``scf.RKS(mol).apply(corrected_diis).run()``.

    From whatever density its SCF starts, fewer full Fock builds are left: mostly five. Alone it
    needs no network and serves every element.
    :func:`~pyscf_deqh.deqh_guess` does this as well.

    Args:
        mf: a molecular SCF object of PySCF or gpu4pyscf; it is changed and returned.

    Raises:
        ConfigError: a DIIS or its start has been chosen before.
        UnsupportedMoleculeError: gpu4pyscf is too old, uses several GPUs, or PyTorch sees none.

    Example:

        >>> from pyscf import gto, scf
        >>> mol = gto.M(atom="Cl 0 0 0; Cl 0 0 1.99", basis="def2-svp", verbose=0)
        >>> mf = scf.RHF(mol).apply(corrected_diis).run()
        >>> mf.converged, mf.cycles < scf.RHF(mol).run().cycles
        (True, True)
    """
    reason = _chosen(mf)
    if reason:
        raise ConfigError(f"corrected cycles take the place of DIIS, but {reason}")
    mf.DIIS, mf.diis_start_cycle, mf._deqh_diis = _corrected_class(engine_of(mf)), 0, None
    return mf


def is_corrected(mf: hf.SCF) -> bool:
    """Whether an SCF object uses corrected cycles."""
    return isinstance(mf.DIIS, type) and issubclass(mf.DIIS, _Corrected)


def plain_diis(mf: hf.SCF) -> None:
    """Undo :func:`corrected_diis`."""
    if is_corrected(mf):
        # Not in its place: PySCF's to_gpu() and gpu4pyscf's to_cpu() take it for a user's.
        vars(mf).pop("DIIS", None)
        _start_as_before(mf)


def _start_as_before(mf: hf.SCF) -> None:
    """Let PySCF's DIIS start where it did before corrected cycles, or where the user has said
    since."""
    if mf.diis_start_cycle == 0:
        before = mf._deqh_diis
        mf.diis_start_cycle = hf.SCF.diis_start_cycle if before is None else before
    mf._deqh_diis = None


def accelerate(mf: hf.SCF) -> str | None:
    """The same where nothing speaks against it, else why not."""
    reason = _chosen(mf) or _unsuitable(mf)
    if reason is None and not is_corrected(mf):
        before = mf.diis_start_cycle
        corrected_diis(mf)
        mf._deqh_diis = before
    elif reason is not None and mf._deqh_diis is not None:
        # The user may have put a DIIS of his own in the place of ours.
        if mf.diis is not True:
            plain_diis(mf)
        elif not is_corrected(mf):
            _start_as_before(mf)
    return reason


def relax(mf: hf.SCF) -> None:
    """Undo :func:`accelerate`, but no choice of the user's."""
    if mf._deqh_diis is not None:
        plain_diis(mf)


def _chosen(mf: hf.SCF) -> str | None:
    """What the user has chosen himself."""
    if mf.diis is not True:
        return f"mf.diis is {mf.diis!r}"
    if mf.DIIS is not engine_of(mf).diis_class and not is_corrected(mf):
        return f"mf.DIIS is {mf.DIIS.__name__}"
    if mf.diis_start_cycle not in (0, hf.SCF.diis_start_cycle):
        return f"mf.diis_start_cycle is {mf.diis_start_cycle}"
    for name in ("diis_file", "diis_damp", "damp", "level_shift"):
        if np.any(attribute(mf, name)):
            return f"mf.{name} is set"
    return None


def _unsuitable(mf: hf.SCF) -> str | None:
    """Why corrected cycles do not serve an SCF object."""
    if not fills_by_aufbau(mf):
        return "the orbitals are not filled by energy"
    if attribute(mf, "_scf") is not None:
        return "newton() uses no DIIS"
    module = getattr(type(mf).get_fock, "__module__", "")
    if "get_fock" in vars(mf) or module.partition(".")[0] not in _PROGRAMS:
        return "mf.get_fock is another one than PySCF's"
    if hasattr(type(mf), "update_fock_with_constraints"):
        return "its constraints change the Fock matrix in each cycle"
    if getattr(numint_of(mf), "collinear", "col") != "col":
        return "the functional is not collinear"
    return None


# With what says which molecule they are of: it may be changed in place.
_FITTED: weakref.WeakKeyDictionary[hf.SCF, tuple[FittedFock, tuple[np.ndarray, ...]]]
_FITTED = weakref.WeakKeyDictionary()


def hand_over(mf: hf.SCF, fitted: FittedFock) -> None:
    """Leave fitted integrals of ``mf``'s molecule for the corrected cycles of its next SCF."""
    if mf.max_cycle > 0:
        _FITTED[mf] = fitted, _fingerprint(mf.mol)


def _handed_over(mf: hf.SCF) -> FittedFock | None:
    """What was left, if it is of ``mf``'s molecule as it is now."""
    fitted, fingerprint = _FITTED.pop(mf, (None, ()))
    if fitted is None or not all(map(np.array_equal, fingerprint, _fingerprint(mf.mol))):
        return None
    return fitted


def _fingerprint(mol: Mole) -> tuple[np.ndarray, ...]:
    return mol._atm.copy(), mol._bas.copy(), mol._env.copy()


class _Corrected:
    """See :func:`corrected_diis`; PySCF makes one for each of its SCFs.

    It hands on to PySCF's commutator DIIS where corrected cycles are not possible or do not help:
    in methods that they do not serve, for single cycles, after two failures for good. Where those
    from a far start do not converge, or come to an open shell of strong spin contamination, it is
    not clear which state the SCF leads to: then the way into its neighbourhood is PySCF's, to the
    last digit. Where PySCF's DIIS goes nowhere after failures, or from a far guess, it begins anew
    from PySCF's start.
    """

    def __init__(self, mf: Any = None, filename: str | None = None):
        super().__init__(mf, filename)  # type: ignore[call-arg]  # of the engine's DIIS
        self.rollback, self.damp, self.Corth = 0, 0.0, None  # set by PySCF's kernel
        self._engine = HOST if mf is None else engine_of(mf)
        self._filename = filename
        self._plain: Any = self._engine.diis_class(mf, filename)
        self._mf = (lambda: None) if mf is None else weakref.ref(mf)
        self._method: Corrector | None = None
        self._cycles: list[CorrectedCycle] = []
        self._failures = self._waits = self._moves = 0
        self._gives_back = False  # memory, once nothing holds it any more
        self._first: list[Any] | None = None  # Fock matrix of a start that is none of ours
        self._way_back: WayBack | None = None
        self._leaves = _LEAVES

    @property
    def response_is_exact(self) -> bool:
        """Whether the last cycle's fitted matrices held all that the SCF's do, up to their fits."""
        return self._method is not None and self._method.response_is_exact

    def update(
        self, s: np.ndarray, d: Any, f: Any, mf: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """The Hamiltonian of PySCF's next cycle.

        Args:
            s: overlap.
            d: density matrix.
            f: the full Fock matrix of ``d``, hartree.
            mf: PySCF's SCF object; gpu4pyscf does not hand it on.
        """
        handed_on = () if mf is None else (mf,)
        mf = self._mf() if mf is None else mf
        before = self._cycles[-1] if self._cycles else None
        self._cycles.append(CorrectedCycle(np.nan))
        hamiltonian = anew = method = None
        try:
            with own_errors():
                if before is None:
                    self._begin(s, f, mf)
                with pyscf_threads:
                    if self._method is not None and (np.iscomplexobj(d) or np.iscomplexobj(f)):
                        self._stop("the matrices are complex")
                    if self._method is not None:
                        method = self._method  # it may end in the step
                        hamiltonian = self._step(method, d, f, before)
                        solved = bool(self._cycles[-1].fitted_gradients)
                        if isinstance(mf, hf.SCF_Scanner) and (solved or before is None):
                            if not solved:
                                method.know(d, f)
                            mf._deqh_defect = method.defect()  # for the next point
                    enough = self._max_cycle - len(self._cycles) >= LEAST_LEFT
                    if enough and self._way_back is not None and self._way_back.is_due(d, f):
                        anew = self._begin_anew(f, mf)
        except Exception as error:  # whatever it is, it may not stop PySCF's SCF
            self._stop(f"{type(error).__name__}: {error}")
            logger.debug(self, "%s", traceback.format_exc())
        method = None
        if self._gives_back:
            self._gives_back = False
            self._engine.give_back()
        mf.deqh_cycles = tuple(self._cycles)
        if anew is not None:
            return anew
        if before is None and hamiltonian is None and mf.diis_start_cycle == 0:
            return f  # PySCF's DIIS begins one cycle later
        d, f = self._engine.array(d), self._engine.array(f)
        extrapolated = self._plain.update(s, d, f, *handed_on, *args, **kwargs)
        return extrapolated if hamiltonian is None else hamiltonian

    def _begin(self, s: np.ndarray, f: Any, mf: Any) -> None:
        if isinstance(attribute(mf, "check_convergence"), Strictly):
            del mf.check_convergence  # of an SCF that did not converge
        self._set_up_plain()
        if not mf._deqh_guessed:
            self._first = [x.copy() for x in parts_of(f)]
        mf._deqh_guessed = False
        fitted, options = _handed_over(mf), mf._deqh
        frugal = options is not None and options.frugal and fitted is None
        reason = _chosen(mf) or _unsuitable(mf) or (too_cheap(mf, again=True) if frugal else None)
        if reason is None:
            import_torch()
            with pyscf_threads:
                self._method = Corrector(mf, s, self.Corth, fitted)
        else:
            self._stop(reason)

    def _begin_plain(self) -> None:
        """PySCF's DIIS, without a history."""
        self._plain = self._engine.diis_class(self._mf(), self._filename)
        self._set_up_plain()

    def _set_up_plain(self) -> None:
        for name in ("space", "rollback", "damp", "Corth"):
            setattr(self._plain, name, getattr(self, name))

    def _begin_anew(self, f: Any, mf: Any) -> Any:
        """The Hamiltonian that PySCF's SCF would have begun with, its DIIS empty again."""
        logger.note(self, "PySCF's DIIS has not got on either: back to the start of the SCF, %s; "
                    "%d of %d cycles are left",
                    "minao's" if self._first is None else "without corrected cycles",
                    self._max_cycle - len(self._cycles), self._max_cycle)  # fmt: skip
        self._way_back = None
        if self._method is not None:
            self._stop("they have not led on from a far start")
        self._begin_plain()
        first = self._first
        if first is None:
            density = self._engine.array(mf.get_init_guess(mf.mol, key="minao"))
            first = parts_of(mf.get_fock(None, None, None, density))
            self._cycles[-1] = replace(self._cycles[-1], restarted=True)
        for own, part in zip(parts_of(f), first, strict=True):
            own[...] = part
        return f

    def _stop(self, reason: str) -> None:
        self._method = None
        self._gives_back = True
        logger.note(self, "No corrected cycles: %s. PySCF's DIIS goes on.", reason)

    def _step(
        self, method: Corrector, d: Any, f: Any, before: CorrectedCycle | None
    ) -> np.ndarray | None:
        """The solution of the corrected cycles; None where there is none."""
        started = time.perf_counter()
        gradient = method.gradient(d, f)
        self._cycles[-1] = CorrectedCycle(gradient)
        far = gradient > method.lost
        goal = (self._engine.goal if method.gap > _WIDE else _GOAL) * method.tolerance
        if before is not None and before.accepted:
            leaves = gradient / before.gradient
            self._leaves = min(max(leaves, _LEAVES_AT_LEAST), 1.0)
            if leaves > _FAILED and gradient > max(goal, method.rounding):
                method.forget()
                if len(before.fitted_gradients) <= method.max_fitted or self._moves >= _MAX_MOVES:
                    self._fail(gradient)
                    return None
                self._moves += 1
                self._leaves = _LEAVES
                self._begin_plain()  # what it knows is of another place
        if gradient < goal or (far and 0 < self._waits < _MAX_WAITS):
            self._waits += far
            return None
        tolerance = max(goal, self._engine.stop * self._leaves * gradient, method.rounding)
        self._engine.make_room()
        enough = _FITTED_FAILED * gradient
        refined = method.solve(d, f, tolerance, 0 if far else MAX_DESCENT, enough)
        self._engine.make_room()
        gradients = refined.gradients
        accepted = gradients[-1] < min(gradient, max(enough, tolerance))
        if far and (gradients[-1] >= tolerance or method.contamination(refined) > _CONTAMINATED):
            accepted = False
        if accepted:
            self._way_back = None
        else:
            method.forget()
            if far and self._first is None and self._way_back is None:
                patience = patience_when_far(self._max_cycle)
                self._way_back = WayBack(method.gradient, gradient, patience)
        self._waits = int(far and not accepted)
        if not far and not accepted and gradients[-1] >= tolerance:
            self._fail(gradient)
        seconds = time.perf_counter() - started
        self._cycles[-1] = CorrectedCycle(gradient, tuple(gradients), seconds, accepted)
        logger.info(self, "corrected by %d fitted cycles: gradient %.2g -> %.2g, %.2f s%s",
                    len(gradients), gradient, gradients[-1], seconds,
                    "" if accepted else ", not used")  # fmt: skip
        return method.hamiltonian(refined, f) if accepted else None

    def _fail(self, gradient: float) -> None:
        self._failures += 1
        mf = self._mf()
        if self._engine is HOST and mf is not None and mf.check_convergence is None:
            mf.check_convergence = Strictly()
        if self._failures >= _PATIENCE and self._method is not None:
            self._way_back = WayBack(self._method.gradient, gradient)
            self._stop("they did not lower the gradient twice")

    @property
    def _max_cycle(self) -> int:
        mf = self._mf()
        return int(hf.SCF.max_cycle if mf is None else mf.max_cycle)


class CorrectedDIIS(_Corrected, lib.diis.DIIS):
    """Corrected cycles in PySCF's loop."""

    @classmethod
    def to_gpu(cls) -> Any:
        """Those in gpu4pyscf's loop, which PySCF's ``mf.to_gpu()`` asks for."""
        importlib.import_module("gpu4pyscf.scf.hf")
        try:
            return _corrected_class(gpu_engine())
        except UnsupportedMoleculeError:
            return importlib.import_module("gpu4pyscf.scf.diis").SCF_DIIS


@functools.lru_cache(maxsize=2)
def _corrected_class(engine: Engine) -> type:
    """That of an engine, whose loop takes no other DIIS than its own."""
    if engine is HOST:
        return CorrectedDIIS

    def to_cpu(cls: type) -> type:
        return CorrectedDIIS

    body = {"to_cpu": classmethod(to_cpu), "__doc__": "Corrected cycles in gpu4pyscf's loop.",
            "__module__": __name__}  # fmt: skip
    return type(_ON_GPU, (_Corrected, engine.diis_base), body)


def __getattr__(name: str) -> Any:
    """The class of gpu4pyscf's objects, which pickles look up by its name."""
    if name == _ON_GPU:
        return _corrected_class(gpu_engine())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
