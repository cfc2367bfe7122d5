"""Label generation: converged Kohn-Sham (or Hartree-Fock) matrices from PySCF into a QH9 database.

Worker processes compute, the parent alone writes, one transaction a molecule: a run that is
killed at any moment loses at most the molecules then in work, and the same command resumes it.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyscf
import torch
from pyscf import dft, gto, scf
from pyscf.scf.dispersion import parse_dft
from tqdm import tqdm

from ...errors import ConfigError, DatasetError
from ...fock.auxiliary import HEAVY, LIGHT
from ...fock.fitted import FittedFock
from ...fock.grid import GRID
from ...fock.orbitals import Orbitals, density_matrix
from ...fock.reference import sad_reference
from ...fock.refine import refine
from ...fock.shells import Shells
from ...fock.system import System
from ...graph.basis import check_all_electron
from ...process import use_threads
from ..formats.qh9 import QH9Database, Record
from ..formats.sqlite import explained
from ..xyz import Geometry, places

# Orbital gradient (hartree) at which fitted Fock matrices hand over to PySCF's.
_COARSE_GRADIENT = 1e-3


@dataclass(frozen=True)
class LabelSettings:
    """Method of the labels; stored with the data.

    ``density_fit`` takes the Fock matrices of :mod:`pyscf_deqh.fock.fitted`, with their fitted
    integrals and their coarse grid instead of ``grid_level``: several times faster, more so on a
    GPU, with an error of about 10 micro-hartree, below what a network learns.
    """

    xc: str = "b3lyp"
    basis: str = "def2-svp"
    grid_level: int = 3
    conv_tol: float = 1e-9
    max_cycle: int = 100
    density_fit: bool = False


def solve(
    geometry: Geometry, settings: LabelSettings, device: str = "cpu"
) -> tuple[np.ndarray, float]:
    """Converged AO Fock matrix (nao, nao) and total energy, both in hartree.

    Fitted Fock matrices are converged first; PySCF's own, unless ``settings.density_fit``, from
    there. ``device`` takes the fitted part.

    Raises:
        DatasetError: the molecule is charged.
        UnsupportedMoleculeError: the basis set has an effective core potential for an atom.
        RuntimeError: the SCF did not converge.
    """
    atom = geometry.neutral().atom()
    check_all_electron(geometry.numbers, settings.basis)
    mol = gto.M(atom=atom, basis=settings.basis, unit="angstrom", verbose=0)
    fitted = FittedFock(mol, device, torch.float64)
    system = System(mol)
    start = sad_reference(system, fitted)
    tolerance = math.sqrt(settings.conv_tol) if settings.density_fit else _COARSE_GRADIENT
    energies = []

    def build(orbitals: Orbitals) -> np.ndarray:
        fock, energy = fitted(system.core_hamiltonian, orbitals, settings.xc)
        energies.append(energy)
        return fock

    shells = Shells.closed(mol.nelectron)
    refined = refine(build, system.overlap, shells, start, settings.max_cycle, tolerance)
    if settings.density_fit:
        if refined.gradients[-1] >= tolerance:
            raise RuntimeError(f"SCF not converged in {settings.max_cycle} cycles")
        return refined.fock, energies[-1] + float(mol.energy_nuc())
    mf = scf.RHF(mol) if settings.xc.lower() == "hf" else dft.RKS(mol, xc=settings.xc)
    if hasattr(mf, "grids"):
        mf.grids.level = settings.grid_level
    mf.conv_tol, mf.max_cycle = settings.conv_tol, settings.max_cycle
    mf.kernel(dm0=density_matrix(refined.orbitals))
    if not mf.converged:
        raise RuntimeError(f"SCF not converged in {settings.max_cycle} cycles")
    return np.asarray(mf.get_fock()), float(mf.e_tot)


def _work(row_id: int, geometry: Geometry, settings: LabelSettings, device: str) -> Record | str:
    # Errors travel as text: exceptions of libraries do not always survive pickling.
    try:
        meta = {
            "qm9_id": geometry.qm9_id,
            "smiles": geometry.info.get("smiles"),
            "kind": geometry.info.get("kind", "eq"),
            "grid_level": None if settings.density_fit else settings.grid_level,
            "temperature": float(geometry.info.get("temperature", 0.0)),
        }
        hamiltonian, meta["energy"] = solve(geometry, settings, device)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return Record(row_id, geometry.numbers, geometry.positions, hamiltonian, meta)


def _start_worker(threads: int) -> None:
    use_threads(threads)


def row_ids(geometries: Sequence[Geometry]) -> list[int]:
    """The comment's ``id``, else ``10 * qm9_id (+ 1 if kind is md)``, else the place in the file
    that it was read from, else that among ``geometries``.

    Raises:
        DatasetError: an ``id`` or ``qm9_id`` that is no whole number, or an id twice.
    """
    ids = []
    for place, geometry in zip(places(geometries), geometries, strict=True):
        row_id, qm9_id = geometry.whole_number("id"), geometry.qm9_id
        if row_id is None:
            md = geometry.info.get("kind") == "md"
            row_id = place if qm9_id is None else 10 * qm9_id + md
        ids.append(row_id)
    if len(set(ids)) != len(ids):
        raise DatasetError("two geometries have the same id: give each an id=… in its comment line")
    return ids


_AUXBASIS = f"{LIGHT}, beyond neon {HEAVY}"


def _check_settings(database: QH9Database, settings: LabelSettings) -> None:
    wanted = asdict(settings) | {"pyscf_version": pyscf.__version__, "program": "PySCF"}
    if settings.density_fit:
        wanted |= {"auxbasis": _AUXBASIS, "atom_grid": list(GRID)}
    found = database.settings()
    if not found:
        database.write_settings(wanted)
        return
    changed = {k: (found.get(k), v) for k, v in wanted.items() if found.get(k) != v}
    if changed:
        details = ", ".join(f"{k}: {old} there, {new} now" for k, (old, new) in changed.items())
        raise DatasetError(
            f"{database.path} was labelled with other settings ({details}); "
            "write to another file or repeat its settings"
        )


def _beyond_the_grid(xc: str) -> str | None:
    """What fitted Fock matrices and their energy do not have of a functional.

    Raises:
        ConfigError: PySCF does not know it.
    """
    try:
        xc, nonlocal_part, dispersion = parse_dft(xc)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"PySCF cannot read the functional {xc}: {error}") from error
    if nonlocal_part or dft.libxc.is_nlc(xc):
        return "nonlocal correlation"
    return "dispersion correction" if dispersion else None


def _check_atoms(database: QH9Database, done: dict[int, Geometry]) -> None:
    """Refuse to take other molecules for those that the rows hold."""
    for row_id, geometry in done.items():
        numbers, positions = database.atoms(row_id)
        same = np.array_equal(numbers, geometry.numbers)
        if not same or not np.allclose(positions, geometry.positions, rtol=0, atol=1e-6):
            raise DatasetError(
                f"{database.path} holds another geometry with id {row_id}: give each an id=… of "
                "its own in its comment line, or write to another file"
            )


def label(
    geometries: Iterable[Geometry],
    out: str | Path,
    settings: LabelSettings | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
    progress: bool = True,
    device: str = "cpu",
) -> tuple[int, dict[int, str]]:
    """Label all geometries that ``out`` does not hold yet.

    Args:
        geometries: molecules, neutral closed shells, positions in angstrom.
        out: the database; made if absent, else resumed.
        settings: method; must equal the one of an existing ``out``.
        workers: processes, one thread each (default: all cores).
        retry_failed: compute the molecules again that failed in an earlier run.
        progress: show a progress bar.
        device: where all workers compute fitted Fock matrices, ``cpu`` or ``cuda``.

    Returns:
        The number of rows written by this call, and the reasons of all failures in ``out`` by id.

    Raises:
        ConfigError: a functional that ``density_fit`` has a part of only.
        DatasetError: other settings in ``out``, or other geometries with the same ids; repeated
            ids; a disk that takes no more data, or another process that writes the same rows (all
            rows written before are kept).
    """
    settings = settings or LabelSettings()
    if settings.density_fit and (what := _beyond_the_grid(settings.xc)):
        raise ConfigError(f"density_fit leaves out the {what} of {settings.xc}: label without it")
    geometries = list(geometries)
    by_id = dict(zip(row_ids(geometries), geometries, strict=True))
    workers = workers or os.cpu_count() or 1
    written = 0
    with QH9Database(out, writable=True) as database:
        _check_settings(database, settings)
        done = set(database.ids())
        _check_atoms(database, {i: g for i, g in by_id.items() if i in done})
        if not retry_failed:
            done |= set(database.failures())
        todo = [(row_id, g) for row_id, g in by_id.items() if row_id not in done]
        bar = tqdm(total=len(by_id), initial=len(by_id) - len(todo), desc="labelling",
                   unit="mol", disable=not progress)  # fmt: skip
        try:
            while todo:
                todo, died, n_written = _label_pool(todo, database, settings, workers, bar, device)
                written += n_written
                for row_id, geometry in died:
                    # A worker that dies takes its pool along. Run its molecules one by one, so that
                    # only the one that really kills its process is counted as failed.
                    _, dead, n_written = _label_pool(
                        [(row_id, geometry)], database, settings, 1, bar, device
                    )
                    written += n_written
                    if dead:
                        reason = "the worker process died (out of memory?)"
                        database.add_failure(row_id, geometry.qm9_id, reason)
                        bar.update()
        except sqlite3.OperationalError as error:
            raise DatasetError(
                f"cannot write to {database.path}: {explained(error)}. The {len(database)} rows in "
                "it are kept"
            ) from error
        except sqlite3.IntegrityError as error:
            raise DatasetError(
                f"another process writes to {database.path}: wait for it, and run the same "
                "command again"
            ) from error
        finally:
            bar.close()
        return written, database.failures()


def _label_pool(todo, database, settings, workers, bar, device):
    """Run one pool; returns (not started, in work when a worker died, rows written)."""
    todo = list(todo)[::-1]
    running: dict[Future, tuple[int, Geometry]] = {}
    written = 0
    # Spawned, not forked: PySCF's OpenMP runtime does not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (1,))
    try:
        while todo or running:
            while todo and len(running) < workers + 1:
                row_id, geometry = todo[-1]
                # Raises if a worker has died since: the molecule is still to do then.
                future = pool.submit(_work, row_id, geometry, settings, device)
                running[future] = todo.pop()
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                row_id, geometry = running[future]
                result = future.result()
                del running[future]
                if isinstance(result, Record):
                    database.add(result)
                    written += 1
                else:
                    database.add_failure(row_id, geometry.qm9_id, result)
                    bar.write(f"id {row_id}: {result}")
                bar.update()
    except BrokenProcessPool:
        return todo[::-1], list(running.values()), written
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [], [], written
