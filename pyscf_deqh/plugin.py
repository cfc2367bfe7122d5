"""The guess ``deqh`` in PySCF.

Three ways to the same guess: ``mf.init_guess = 'deqh'`` after ``import pyscf_deqh``,
``mf.apply(deqh_guess)`` for one SCF object with a model or device of its own, and
``init_guess_by_deqh(mol)`` for the density matrix alone.
"""

from __future__ import annotations

import functools
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from pyscf.gto import MoleBase
from pyscf.lib import logger
from pyscf.scf import hf

from .after_import import AfterImport
from .checkpoint import DEFAULT_MODEL, list_models, resolve_model
from .engine import engine_of
from .errors import ConfigError, UnsupportedMoleculeError
from .fock import diis
from .fock.cost import too_cheap
from .fock.cycles import CycleSettings
from .fock.problem import check_method
from .fock.shells import Kind
from .guess import ON_UNSUPPORTED, Options, cycles_after, make_guess, starts_of
from .pyscf_api import attribute, fills_by_aufbau, full_builds, moved
from .report import Report, Scan, Seconds
from .starts.previous import MAX_POINTS, Point

if TYPE_CHECKING:
    from pyscf.gto import Mole

KEY = "deqh"
MAX_CYCLES = CycleSettings.max_cycles


def _options(
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    max_cycles: int = MAX_CYCLES,
    accelerate: bool = True,
    start: str = "auto",
    **choices: Any,
) -> Options:
    starts, cycles = starts_of(start, model, device), cycles_after(max_cycles, accelerate)
    return Options(starts, cycles, accelerate, device=device, **choices)


def deqh_guess(
    mf: hf.SCF,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    on_unsupported: str = "raise",
    max_cycles: int = MAX_CYCLES,
    accelerate: bool = True,
    start: str = "auto",
    lowest: bool = False,
    every_point: bool = True,
    exact_build: bool | None = None,
) -> hf.SCF:
    """Make an SCF object start from the DEQH guess: ``scf.RKS(mol).apply(deqh_guess).run()``.

    After the guess ``mf.deqh_report`` tells what happened in it, see :class:`~pyscf_deqh.Report`.

    Args:
        mf: any molecular SCF object of PySCF or gpu4pyscf; it is changed and returned.
        model: name of a bundled model, or folder of an exported one.
        device: ``'auto'``, ``'cpu'``, ``'cuda'`` …; guesses for gpu4pyscf's objects stay on their
            GPU.
        on_unsupported: what to do where there is no guess: ``'raise'`` the error, or warn and use
            ``'minao'``.
        max_cycles: limit of density-fitted cycles after the network (fitted integrals, coarse grid,
            the SCF's own functional); they stop as soon as they have no more to give, and where
            they are lost, direct minimization follows. 0: the network alone is the start.
        accelerate: let the SCF go on with corrected cycles in the place of DIIS, see
            :func:`~pyscf_deqh.corrected_diis`; not where the user chose a DIIS, damping or a level
            shift of his own.
        start: where these cycles begin: ``'network'``, or ``'atoms'``, the Kohn-Sham matrix of
            superposed atomic densities, which serves every element; ``'auto'``: the network where
            the model can describe the molecule, else the atoms, and PySCF's own start and DIIS
            where the whole SCF would take no longer than a guess.
        lowest: look for the lowest state of the SCF's kind before it starts: in fitted matrices,
            from this start and from PySCF's, for singlets of UHF and UKS also with their symmetry
            broken in both of its ways, and on along instabilities. For open shells and small gaps;
            it takes as long as one or two full Fock matrices. The report has the energies of all
            states that were found.
        every_point: serve every point of a scanner (geometry optimizations, dynamics, scans): from
            the second one on with the orbitals of the point before. False: the first point only;
            PySCF starts the others from the last density.
        exact_build: of version 0.1.0; ``accelerate`` has taken its place.

    Raises:
        ConfigError: ``on_unsupported`` or ``start`` is none of these, or ``max_cycles`` is
            negative.
        CheckpointError: there is no such model.
        UnsupportedMoleculeError: the object is no molecular SCF with spatial orbitals
            (spinors), another package evaluates its functional, or gpu4pyscf is too old or
            uses several GPUs, and ``on_unsupported`` is ``'raise'``.

    Example:

        >>> from pyscf import gto, scf
        >>> mol = gto.M(atom="O 0 0 .119; H 0 .763 -.477; H 0 -.763 -.477", basis="def2-svp")
        >>> mf = scf.RKS(mol, xc="b3lyp").set(verbose=0).apply(deqh_guess, start="network")
        >>> print(f"{mf.kernel():.6f} hartree in {mf.cycles} cycles")
        -76.358288 hartree in 2 cycles
        >>> mf.deqh_report.model
        'b3lyp-def2svp'
    """
    if on_unsupported not in ON_UNSUPPORTED:
        raise ConfigError(f"on_unsupported must be one of {ON_UNSUPPORTED}, not {on_unsupported!r}")
    if max_cycles < 0:
        raise ConfigError(f"max_cycles must not be negative, it is {max_cycles}")
    if exact_build is not None:
        warnings.warn("exact_build is now accelerate", FutureWarning, stacklevel=2)
        accelerate = exact_build
    folder = resolve_model(model)
    if str(model) not in list_models():
        model = folder  # absolute: the process may change its directory
    if on_unsupported == "raise":
        check_method(mf)
    mf._deqh = _options(
        model, device, max_cycles, accelerate, start, on_unsupported=on_unsupported,
        frugal=start == "auto" and not lowest, lowest=lowest, every_point=every_point,
    )  # fmt: skip
    mf.init_guess = KEY
    if not accelerate:
        diis.plain_diis(mf)
    elif on_unsupported == "raise" or isinstance(mf, hf.SCF):
        diis.accelerate(mf)  # an SCF from a user's own density gains as well
    return mf


@overload
def init_guess_by_deqh(
    mol: Mole, model: str | Path = ..., device: str = ..., xc: str = ..., start: str = ...
) -> np.ndarray: ...
@overload
def init_guess_by_deqh(
    mol: Mole,
    model: str | Path = ...,
    device: str = ...,
    xc: str = ...,
    start: str = ...,
    *,
    return_report: Literal[True],
) -> tuple[np.ndarray, Report]: ...
def init_guess_by_deqh(
    mol: Mole,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    xc: str = "b3lyp",
    start: str = "auto",
    *,
    return_report: bool = False,
) -> np.ndarray | tuple[np.ndarray, Report]:
    """Density matrix (nao, nao) of both spins; tagged with orbitals for a closed shell.

    The plain function beside ``pyscf.scf.hf.init_guess_by_minao``; ``xc`` is the functional of the
    cycles after the network, or ``hf``. Where these come to nothing it is minao's: the report says
    so, or a warning without one.

    Args:
        mol: a built molecule.
        model, device, start: see :func:`deqh_guess`.
        xc: functional in PySCF's notation, or ``hf``.
        return_report: return the report as well.

    Raises:
        UnsupportedMoleculeError, NotEnoughMemoryError, NumericalError, CheckpointError,
        ConfigError: see :func:`predict_hamiltonian`.

    Example:

        >>> from pyscf import gto, scf
        >>> mol = gto.M(atom="O 0 0 .119; H 0 .763 -.477; H 0 -.763 -.477", basis="def2-svp")
        >>> density, report = init_guess_by_deqh(mol, xc="pbe", return_report=True)
        >>> density.shape, report.start
        ((24, 24), 'network')
    """
    from pyscf import dft, scf

    mf = scf.RHF(mol) if xc.lower() == "hf" else dft.RKS(mol, xc=xc)
    mf.verbose = 0
    guess = make_guess(mf, mol, _options(model, device, accelerate=False, start=start))
    dm = guess.density_matrix
    total = dm if dm.ndim == 2 else dm[0] + dm[1]
    if return_report:
        return total, guess.report
    if guess.report.fallback is not None:
        warnings.warn(f"minao's density, because {guess.report.fallback}", stacklevel=2)
    return total


def _density(mf: hf.SCF, mol: Mole, overlap: np.ndarray | None, minao: Callable[[], Any]) -> Any:
    """The guess for an SCF object, which gets its report; with words in PySCF's log."""
    # Objects that only name the guess: a screening run must go on past whatever happens in it.
    options: Options | None = mf._deqh
    log, started = logger.new_logger(mf), time.perf_counter()
    mf.deqh_report, mf.deqh_cycles = None, ()
    # An SCF hands its overlap on, but for gpu4pyscf's: who only asks for a density does not.
    follows = overlap is not None and mf.max_cycle > 0
    mf._deqh_guessed = False
    try:
        guess = make_guess(mf, mol, options or _options(frugal=True), overlap)
        guessed = follows or not isinstance(mf, hf.SCF)
        ours = guess.report.fallback is None  # else it is where PySCF's own SCF begins
        mf._deqh_guessed = guessed and ours and diis.is_corrected(mf)
    except Exception as error:
        if options is not None and options.on_unsupported == "raise":
            raise
        guess, reason = None, f"{type(error).__name__}: {error}"
        log.debug("%s", traceback.format_exc())
    if guess is None:  # not in the handler, whose traceback keeps what the guess has held
        start = "network" if options is None else options.starts[0].name
        seconds = Seconds(total=time.perf_counter() - started)
        mf.deqh_report = Report(start, seconds=seconds, fallback=reason)
        log.warn("No DEQH guess: %s. The minao guess is used instead.", reason)
        with suppress(UnsupportedMoleculeError):
            engine_of(mf).give_back()
        return minao()
    report = mf.deqh_report = guess.report
    for note in report.notes:
        log.note("DEQH guess: %s", note)
    if report.fallback is not None:
        log.note("DEQH guess: %s: the minao guess is used instead", report.fallback)
    log.info("Initial guess from DEQH %s", report)
    return guess.density_matrix


# Attributes of SCF objects: those that PySCF's conversions between classes keep, and the others.
_KEPT: dict[str, Any] = {
    "deqh_report": None,
    "deqh_cycles": (),
    "deqh_scan": None,
    "_deqh": None,  # options
    "_deqh_diis": None,  # diis_start_cycle before the guess switched corrected cycles on
}
_PASSING: dict[str, Any] = {
    "_deqh_guessed": False,  # the SCF that comes next begins with what we have made of it
    "_deqh_defect": None,  # of the last full Fock matrix
    "_deqh_points": (),  # of a scan
    "_deqh_orbitals": None,  # those of its last point, and how they were filled
    "_deqh_previous": (),  # those that the next guess starts from
}


def _with_key(original: Callable[..., Any]) -> Callable[..., Any]:
    """A class's ``get_init_guess`` that knows the key ``'deqh'`` as well."""

    @functools.wraps(original, assigned=("__doc__", "__name__", "__qualname__"))
    def get_init_guess(self: Any, mol: Any = None, key: Any = "minao", **kwargs: Any) -> Any:
        if not (isinstance(key, str) and key.lower() == KEY):
            return original(self, mol, key, **kwargs)
        minao = functools.partial(original, self, mol, "minao")
        return _density(self, self.mol if mol is None else mol, kwargs.get("s1e"), minao)

    return get_init_guess


def _know_deqh(scf_class: Any) -> None:
    """Make an SCF class and all that take their guess from it know the key ``'deqh'``."""
    for name, default in (_KEPT | _PASSING).items():
        setattr(scf_class, name, default)
    scf_class._keys = scf_class._keys | _KEPT.keys()
    original = scf_class.get_init_guess
    if original.__module__ == __name__:
        return

    get_init_guess = _with_key(original)
    for cls in (scf_class, *_subclasses(scf_class)):
        # Some classes hold the function itself.
        if vars(cls).get("get_init_guess") is original:
            cls.get_init_guess = get_init_guess


def _know_generalized(module: Any) -> None:
    """gpu4pyscf's GHF makes two spins of whatever guess RHF makes, which ours is not."""
    original = module.GHF.get_init_guess
    if original.__module__ == __name__:
        return
    module.GHF.get_init_guess = _with_key(original)


# Of an occupied orbital, what was occupied at the last point as well, if the state is the same.
_SAME_STATE = 0.7


def _know_points() -> None:
    """Make PySCF's scanners ask for a guess at every point.

    They hand on the last point's density matrix, which does not fit the new overlap, and no guess
    is made. A density of the user's own stays his.
    """
    begin, original = hf.SCF_Scanner.__init__, hf.SCF_Scanner.__call__
    if original.__module__ == __name__:
        return

    @functools.wraps(begin, assigned=("__doc__", "__name__", "__qualname__"))
    def __init__(self: Any, mf_obj: Any) -> None:
        begin(self, mf_obj)
        if _at_every_point(mf_obj):
            self.deqh_scan = mf_obj.deqh_scan = Scan()
            # Now: drivers change the molecule before they call.
            if (point := _found_point(mf_obj)) is not None:
                self._deqh_points = (point,)
                self._deqh_orbitals = self.mo_coeff, self.mo_occ

    @functools.wraps(original, assigned=("__doc__", "__name__", "__qualname__"))
    def __call__(self: Any, mol_or_geom: Any, **kwargs: Any) -> Any:
        if not _at_every_point(self):
            return original(self, mol_or_geom, **kwargs)
        options: Options = getattr(self, "_deqh", None) or _options(frugal=True)
        ours = _are_ours(self)
        points, self._deqh_points = _points(self), ()
        self._deqh_defect = self._deqh_orbitals = None  # of the last point
        later = self.mo_coeff is not None and "dm0" not in kwargs
        worth_it = later and _is_worth_it(self, mol_or_geom, options)
        if worth_it and _asks_for_a_guess(self, mol_or_geom, points, ours):
            self._deqh_previous = points
            self.mo_coeff = None  # without orbitals PySCF asks for one
        report, started = self.deqh_report, time.perf_counter()
        start = "a density of the user's" if "dm0" in kwargs else "PySCF's"
        try:
            energy = original(self, mol_or_geom, **kwargs)
        finally:
            self._deqh_previous = ()
        seconds = time.perf_counter() - started
        report = None if self.deqh_report is report else self.deqh_report
        if report is not None:
            start = report.start if report.fallback is None else "minao"
        point, self._deqh_orbitals = Point.of(self), (self.mo_coeff, self.mo_occ)  # now, as above
        if point is not None:
            earlier = [p for p in points[1 - MAX_POINTS :] if p.is_like(point)]
            self._deqh_points = (*earlier, point)
        _say_point(self, start, seconds, point, points[-1] if points else None)
        return energy

    hf.SCF_Scanner.__init__, hf.SCF_Scanner.__call__ = __init__, __call__


def _at_every_point(mf: Any) -> bool:
    """Whether a scanner of an SCF object, of PySCF's classes or of others, asks for guesses."""
    options: Options | None = getattr(mf, "_deqh", None)
    return _by_name(mf) and (options is None or options.every_point) and _serves(mf)


def _by_name(mf: Any) -> bool:
    key = getattr(mf, "init_guess", None)
    return isinstance(key, str) and key.lower() == KEY


def _found_point(mf: hf.SCF) -> Point | None:
    """That of a converged SCF object whose orbitals are those of its molecule."""
    try:
        point = Point.of(mf)
        return point if point is not None and point.fits(mf.get_ovlp()) else None
    except Exception:  # whatever it is, it may not stop a scan
        logger.debug(mf, "%s", traceback.format_exc())
        return None


def _are_ours(scanner: Any) -> bool:
    """Whether a scanner's orbitals are those that its last SCF has ended with, filled as then."""
    coefficients, occupation = scanner._deqh_orbitals or (None, None)
    if scanner.mo_coeff is not coefficients or scanner.mo_occ is not occupation:
        return False
    points: tuple[Point, ...] = scanner._deqh_points
    # They may be changed in place.
    return coefficients is None or not points or points[-1].has_orbitals_of(scanner)


def _points(scanner: Any) -> tuple[Point, ...]:
    """The last points, the last one in the state that the scanner's orbitals are of: a user may
    have put it into another one since. None of them where orbitals are of elsewhere."""
    points: tuple[Point, ...] = scanner._deqh_points
    if not points or _are_ours(scanner):
        return points
    try:
        last = points[-1].with_orbitals_of(scanner)
    except Exception:
        logger.debug(scanner, "%s", traceback.format_exc())
        last = None
    return () if last is None else (*points[:-1], last)


def _is_worth_it(scanner: Any, mol_or_geom: Any, options: Options) -> bool:
    """Whether a point is worth a guess; what it cannot be told for is not."""
    try:
        if isinstance(mol_or_geom, MoleBase) and mol_or_geom.nao != scanner.mol.nao:
            return True  # of another molecule: the guess itself will tell
        return not (options.frugal and too_cheap(scanner))
    except Exception:  # whatever it is, it may not stop a scan
        logger.debug(scanner, "%s", traceback.format_exc())
        return False


def _asks_for_a_guess(
    scanner: Any, mol_or_geom: Any, points: tuple[Point, ...], ours: bool
) -> bool:
    """Whether a point is to start from a guess: from the last one's orbitals where that is near, or
    anew. Open shells keep PySCF's way, the last density, where it is far: another start may lead to
    another state."""
    if not points:
        return ours and not scanner.converged
    last = points[-1]
    if last.kind == Kind.CLOSED:
        return True
    try:
        mol = mol_or_geom
        if not isinstance(mol, MoleBase):
            mol = moved(scanner.mol, mol)
        return last.is_near_or_of_another(scanner, mol)
    except Exception:  # whatever it is, it may not stop a scan
        logger.debug(scanner, "%s", traceback.format_exc())
        return False


def _say_point(
    scanner: Any, start: str, seconds: float, point: Point | None, last: Point | None
) -> None:
    """Into the log and the scan's report: what happened at a point, and whether its state is that
    of the last one."""
    scan = scanner.deqh_scan = scanner.deqh_scan or Scan()
    # newton() does not count its Fock matrices.
    second_order = attribute(scanner, "_scf") is not None
    builds = 0 if second_order else full_builds(scanner)
    scan.add(start, builds, seconds, scanner.converged)
    logger.info(scanner, "DEQH point %d: start %s, %d full Fock matrices, %.2f s; so far %s",
                scan.points, start, builds, seconds, scan)  # fmt: skip
    if point is None or last is None or not (point.is_like(last) and point.is_near(last)):
        return
    try:
        likeness = point.likeness(last, scanner.get_ovlp())
    except (ValueError, np.linalg.LinAlgError):  # other numbers of orbitals, or none that is sound
        likeness = 0.0
    if likeness < _SAME_STATE:
        scan.switched.append(scan.points)
        logger.note(scanner, "DEQH point %d: another state than at the last point, of which an "
                    "occupied orbital has %.2f", scan.points, likeness)  # fmt: skip


def _serves(mf: hf.SCF) -> bool:
    """Whether a guess knows the class of an SCF object and how it fills its orbitals."""
    try:
        return engine_of(mf).class_of(mf) is not None and fills_by_aufbau(mf)
    except UnsupportedMoleculeError:
        return False


def _subclasses(cls: Any) -> Iterator[Any]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def register() -> None:
    """Make PySCF's SCF classes know the key ``'deqh'``. Called when the package is imported.

    gpu4pyscf's classes are none of PySCF's and take a key that they do not know for minao. They
    learn it, before or after this.
    """
    _know_deqh(hf.SCF)
    _know_points()
    if not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        AfterImport("gpu4pyscf.scf.hf", lambda module: _know_deqh(module.SCF)).install()
        AfterImport("gpu4pyscf.scf.ghf", _know_generalized).install()
