"""Label generation: converged Kohn-Sham (or Hartree-Fock) matrices from PySCF, kept in a file.

Workers compute (:mod:`pyscf_deqh.tasks`), this process alone writes, one transaction a molecule: a
run that is killed at any moment loses at most the molecules then in work, and the same command
resumes it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyscf
import torch
from pyscf import dft, gto, scf
from pyscf.scf.dispersion import parse_dft
from tqdm import tqdm

from ...errors import ConfigError, DatasetError, own_errors
from ...files import differences
from ...fock.auxiliary import HEAVY, LIGHT
from ...fock.fitted import FittedFock
from ...fock.grid import GRID
from ...fock.orbitals import Orbitals, density_matrix
from ...fock.reference import sad_reference
from ...fock.refine import refine
from ...fock.shells import Shells
from ...fock.system import System
from ...graph.basis import check_all_electron, free_atom
from ...tasks import Failure, outcomes
from ..formats import open_for_writing
from ..formats.sqlite import writing
from ..record import Record, SCFStep, WritableLabels
from ..xyz import Geometry, places
from .embed import check_packages
from .recipe import GeometryRecipe

# Orbital gradient (hartree) at which fitted Fock matrices hand over to PySCF's.
_COARSE_GRADIENT = 1e-3
# The same, below which fitted ones are made in double precision.
_SINGLE = 5e-5


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


class Solved(NamedTuple):
    """What a label is made of.

    Attributes:
        hamiltonian: converged Fock matrix (nao, nao), hartree.
        energy: total, hartree.
        steps: the first ones of the SCF, in fitted Fock matrices.
    """

    hamiltonian: np.ndarray
    energy: float
    steps: tuple[SCFStep, ...] = ()


def solve(
    geometry: Geometry, settings: LabelSettings, device: str = "cpu", steps: int = 0
) -> Solved:
    """Converged AO Fock matrix and total energy.

    Fitted Fock matrices are converged first; PySCF's own, unless ``settings.density_fit``, from
    there. ``device`` takes the fitted part, of which so many ``steps`` are kept.

    Raises:
        DatasetError: the molecule is an open shell by its comment, or has ghost atoms.
        UnsupportedMoleculeError: the basis set has an effective core potential for an atom.
        RuntimeError: the SCF did not converge.
    """
    geometry.check_closed_shell()
    check_all_electron(geometry.numbers, settings.basis)
    mol = gto.M(
        atom=geometry.atom(), basis=settings.basis, charge=geometry.charge, unit="angstrom",
        verbose=0,
    )  # fmt: skip
    tolerance = math.sqrt(settings.conv_tol) if settings.density_fit else _COARSE_GRADIENT
    # Of exchange and functional single precision leaves a tenth of what the fit is off, or less.
    dtype = torch.float64 if tolerance < _SINGLE else torch.float32
    fitted = FittedFock(mol, device, dtype, coulomb=torch.float64)
    system = System(mol)
    start = sad_reference(system, fitted)
    energies = []

    def build(orbitals: Orbitals) -> np.ndarray:
        fock, energy = fitted(system.core_hamiltonian, orbitals, settings.xc)
        energies.append(energy)
        return fock

    first: list[SCFStep] = []

    def keep(hamiltonian: np.ndarray, fock: np.ndarray) -> None:
        if len(first) < steps:
            first.append(SCFStep(hamiltonian, fock))

    shells = Shells.closed(mol.nelectron)
    refined = refine(build, system.overlap, shells, start, settings.max_cycle, tolerance, seen=keep)
    if settings.density_fit:
        if refined.gradients[-1] >= tolerance:
            raise RuntimeError(f"SCF not converged in {settings.max_cycle} cycles")
        return Solved(refined.fock, energies[-1] + float(mol.energy_nuc()), tuple(first))
    mf = scf.RHF(mol) if settings.xc.lower() == "hf" else dft.RKS(mol, xc=settings.xc)
    if hasattr(mf, "grids"):
        mf.grids.level = settings.grid_level
    mf.conv_tol, mf.max_cycle = settings.conv_tol, settings.max_cycle
    mf.kernel(dm0=density_matrix(refined.orbitals))
    if not mf.converged:
        raise RuntimeError(f"SCF not converged in {settings.max_cycle} cycles")
    return Solved(np.asarray(mf.get_fock()), float(mf.e_tot), tuple(first))


def _work(
    row_id: int,
    molecule: Geometry | GeometryRecipe,
    settings: LabelSettings,
    device: str,
    steps: int,
) -> Record:
    geometry = molecule.geometry(row_id) if isinstance(molecule, GeometryRecipe) else molecule
    meta = {
        "qm9_id": geometry.qm9_id,
        "smiles": geometry.info.get("smiles"),
        "kind": geometry.info.get("kind", "eq"),
        "grid_level": None if settings.density_fit else settings.grid_level,
        "temperature": float(geometry.info.get("temperature", 0.0)),
        "charge": geometry.charge or None,
        "seed": geometry.whole_number("seed"),
    }
    with own_errors():  # of memory, which another attempt may have
        solved = solve(geometry, settings, device, steps)
    meta["energy"] = solved.energy
    return Record(
        row_id, geometry.numbers, geometry.positions, solved.hamiltonian, meta, steps=solved.steps
    )


def row_ids(geometries: Sequence[Geometry | GeometryRecipe]) -> list[int]:
    """The comment's ``id``, else ``10 * qm9_id (+ 1 if kind is md)``, else the place in the file
    that it was read from, else that among ``geometries``.

    Raises:
        DatasetError: an ``id`` or ``qm9_id`` that is no whole number of 63 bits, or an id twice.
    """
    ids = []
    for place, geometry in zip(places(geometries), geometries, strict=True):
        row_id, qm9_id = geometry.whole_number("id"), geometry.qm9_id
        if row_id is None:
            md = geometry.info.get("kind") == "md"
            row_id = place if qm9_id is None else 10 * qm9_id + md
        if abs(row_id) >= 2**63:
            raise DatasetError(f"{geometry.name}: the id {row_id} is too large")
        ids.append(row_id)
    if len(set(ids)) != len(ids):
        raise DatasetError("two geometries have the same id: give each an id=… in its comment line")
    return ids


_AUXBASIS = f"{LIGHT}, beyond neon {HEAVY}"


def _check_settings(database: WritableLabels, settings: LabelSettings) -> None:
    wanted = asdict(settings) | {"pyscf_version": pyscf.__version__, "program": "PySCF"}
    if settings.density_fit:
        wanted |= {"auxbasis": _AUXBASIS, "atom_grid": list(GRID)}
    found = database.settings()
    if not found:
        database.write_settings(wanted)
        return
    # A file may say more of how it was made.
    if changed := differences({key: found.get(key) for key in wanted}, wanted):
        raise DatasetError(
            f"{database.path} was labelled with other settings ({', '.join(changed)}); "
            "write to another file or repeat its settings"
        )


def _beyond_the_grid(xc: str) -> str | None:
    """What fitted Fock matrices and their energy do not have of a functional.

    Raises:
        ConfigError: PySCF does not know it.
    """
    try:
        xc, nonlocal_part, dispersion = parse_dft(xc)
        is_nonlocal = nonlocal_part or dft.libxc.is_nlc(xc)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ConfigError(f"PySCF cannot read the functional {xc}: {error}") from error
    if is_nonlocal:
        return "nonlocal correlation"
    return "dispersion correction" if dispersion else None


def _check_basis(basis: str, geometries: Iterable[Geometry | GeometryRecipe]) -> None:
    """Make sure that PySCF has it of any of the elements: molecules of others fail one by one.

    Raises:
        ConfigError: it has not.
    """
    known = (g.numbers.tolist() for g in geometries if isinstance(g, Geometry))
    for number in (numbers := sorted({*chain.from_iterable(known)} or {1})):
        try:
            free_atom(number, basis)
        except ConfigError:
            if number == numbers[-1]:
                raise
        else:
            return


def _check_atoms(database: WritableLabels, done: dict[int, Geometry | GeometryRecipe]) -> None:
    """Refuse to take other molecules for those that the rows hold."""
    for row_id, molecule in done.items():
        meta = database.meta(row_id)
        charge = molecule.charge
        if isinstance(molecule, GeometryRecipe):
            same = _made_by(molecule.info) == _made_by(meta)
            if "charge" not in molecule.info:
                charge = int(meta.get("charge") or 0)  # the SMILES has it
        else:
            numbers, positions = database.atoms(row_id)
            same = np.array_equal(numbers, molecule.numbers) and np.allclose(
                positions, molecule.positions, rtol=0, atol=1e-6
            )
        if not same or charge != int(meta.get("charge") or 0):
            raise DatasetError(
                f"{database.path} holds another geometry with id {row_id}: give each an id=… of "
                "its own in its comment line, or write to another file"
            )


def _made_by(info: Mapping[str, Any]) -> tuple[str, float, int]:
    """What makes a recipe's geometry: SMILES, temperature and seed."""
    return str(info.get("smiles")), float(info.get("temperature") or 0), int(info.get("seed") or 0)


def label(
    geometries: Iterable[Geometry | GeometryRecipe],
    out: str | Path,
    settings: LabelSettings | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
    progress: bool = True,
    device: str = "cpu",
    scheduler: str | None = None,
    precision: str | None = None,
    steps: int = 0,
) -> tuple[int, dict[int, str]]:
    """Label all geometries that ``out`` does not hold yet.

    Args:
        geometries: molecules, closed shells, or recipes of their geometries.
        out: a label store (``.store``) or a database of QH9; made if absent, else resumed.
        settings: method; must equal the one of an existing ``out``.
        workers, scheduler: where to compute, see :func:`pyscf_deqh.tasks.outcomes`.
        retry_failed: compute the molecules again that failed in an earlier run.
        progress: show a progress bar.
        device: where all workers compute fitted Fock matrices, ``cpu`` or ``cuda``.
        precision: of a new label store: ``float64`` (default) or ``float32``.
        steps: of each SCF, at its beginning, that are kept beside its end.

    Returns:
        The number of rows written by this call, and the reasons of all failures in ``out`` by id.

    Raises:
        ConfigError: a functional or basis set that PySCF does not know, or a functional that
            ``density_fit`` has a part of only; a precision, steps or seeds that the format does not
            have.
        DatasetError: other settings in ``out``, or other geometries with the same ids; repeated
            ids; a disk that takes no more data, or another process that writes the same rows (all
            rows written before are kept).
        ModuleNotFoundError: recipes need RDKit, ASE and tblite.
    """
    settings = settings or LabelSettings()
    what = _beyond_the_grid(settings.xc)
    if settings.density_fit and what:
        raise ConfigError(f"density_fit leaves out the {what} of {settings.xc}: label without it")
    geometries = list(geometries)
    _check_basis(settings.basis, geometries)
    recipes = [molecule for molecule in geometries if isinstance(molecule, GeometryRecipe)]
    if recipes:
        check_packages()
    by_id = dict(zip(row_ids(geometries), geometries, strict=True))
    written = 0
    with open_for_writing(out, precision, steps) as database, writing(database):
        if not database.holds_seeds and any("seed" in recipe.info for recipe in recipes):
            raise ConfigError(f"{out} has no place for the seeds of geometries: name a .store")
        _check_settings(database, settings)
        done = set(database.ids())
        _check_atoms(database, {i: g for i, g in by_id.items() if i in done})
        if not retry_failed:
            done |= set(database.failures())
        todo = deque(
            (row_id, (row_id, geometry, settings, device, steps))
            for row_id, geometry in by_id.items()
            if row_id not in done
        )
        bar = tqdm(total=len(by_id), initial=len(by_id) - len(todo), desc="labelling",
                   unit="mol", disable=not progress)  # fmt: skip
        with bar:
            for row_id, result in outcomes(_work, todo, workers, scheduler):
                reason = result.reason if isinstance(result, Failure) else None
                if isinstance(result, Record) and result.charge and not database.holds_ions:
                    reason = f"charge {result.charge}: {out} has no place for it, a label store has"
                if reason is None:
                    database.add(result)
                    written += 1
                else:
                    database.add_failure(row_id, by_id[row_id].qm9_id, reason)
                    bar.write(f"id {row_id}: {reason}")
                bar.update()
        return written, database.failures()
