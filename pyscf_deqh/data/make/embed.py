"""Geometries from SMILES: a conformer of RDKit (ETKDG, then MMFF94), optimised with GFN2-xTB.

The output is an extended-xyz file that is its own restart: the same command goes on with the
molecules that it does not hold.
"""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...errors import ConfigError, DatasetError
from ...files import cannot_write
from ...tasks import Failure, outcomes
from ..xyz import parse_comment
from .frames import complete_frames, foreign_file

_COLUMNS = "species:S:1:pos:R:3"
_MAX_FORCE = 0.01  # eV/angstrom
_MAX_STEPS = 2000
# Distances in units of the sum of covalent radii: bonds are shorter than the first, atoms without
# a bond farther apart than the second. Between them lie strained rings.
_LONGEST_BOND, _CLOSEST_CONTACT = 1.3, 1.15


def read_smiles(path: str | Path) -> dict[str, str]:
    """SMILES by name from lines ``SMILES name``; without a name, the SMILES is its own.

    Empty lines and those that begin with ``#`` are left out.

    Raises:
        DatasetError: the file is missing or empty, or a name stands there twice.
    """
    molecules: dict[str, str] = {}
    for _, line in molecule_lines(path):
        smiles, *rest = line.split(maxsplit=1)
        name = rest[0].strip() if rest else smiles
        if name in molecules:
            raise DatasetError(f"{path} has two molecules with the name {name}")
        molecules[name] = smiles
    return molecules


def molecule_lines(path: str | Path) -> list[tuple[int, str]]:
    """Lines of a file of SMILES, and their numbers; without empty ones and comments (``#``).

    Raises:
        DatasetError: the file is missing or empty.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    found = [(n, x) for n, x in enumerate(lines, 1) if x.strip() and not x.startswith("#")]
    if not found:
        raise DatasetError(f"{path} holds no molecule")
    return found


def check_packages() -> None:
    """Raise ModuleNotFoundError where RDKit, ASE or tblite is not installed."""
    import ase  # noqa: F401
    import rdkit  # noqa: F401
    import tblite.ase  # noqa: F401


def embed(
    molecules: dict[str, str],
    out: str | Path,
    seed: int = 0,
    progress: bool = True,
    workers: int | None = None,
    scheduler: str | None = None,
) -> tuple[int, dict[str, str]]:
    """Write a geometry of each molecule that ``out`` does not hold yet.

    Each gets an ``id``, its place among ``molecules``.

    Args:
        molecules: SMILES by name, closed shells.
        out: ``.xyz`` or ``.extxyz`` file; made if absent, else resumed.
        seed: of the conformers.
        progress: show a progress bar.
        workers, scheduler: where to compute, see :func:`pyscf_deqh.tasks.outcomes`.

    Returns:
        The number of molecules written by this call, and the reasons of the failures by name.

    Raises:
        ConfigError: ``out`` is another kind of file.
        DatasetError: ``out`` comes from another seed or command, or holds another molecule under
            one of the names or at another place, or cannot be written.
        ModuleNotFoundError: RDKit, ASE or tblite is not installed.
    """
    check_packages()
    out = Path(out)
    if out.suffix not in (".xyz", ".extxyz"):
        raise ConfigError(f"{out}: geometries are written to a plain .xyz or .extxyz file")
    written = 0
    failures: dict[str, str] = {}
    ids = {name: str(place) for place, name in enumerate(molecules)}
    try:
        present = _resume(out, molecules, ids, seed)
        todo = deque(
            (name, (smiles, seed)) for name, smiles in molecules.items() if name not in present
        )
        bar = tqdm(total=len(molecules), initial=len(molecules) - len(todo), desc="embedding",
                   unit="mol", disable=not progress)  # fmt: skip
        with bar, open(out, "a", encoding="utf-8") as handle:
            for name, result in outcomes(geometry_of, todo, workers, scheduler):
                bar.update()
                if isinstance(result, Failure):
                    failures[name] = result.reason
                    bar.write(f"{name}: {result.reason}")
                    continue
                symbols, positions, charge = result
                info = {"id": ids[name], "name": name, "smiles": molecules[name],
                        "method": "GFN2-xTB", "conformer": "ETKDGv3+MMFF94",
                        "seed": str(seed)}  # fmt: skip
                if charge:
                    info["charge"] = str(charge)
                handle.write(_frame(info, symbols, positions))
                handle.flush()
                written += 1
    except OSError as error:
        raise DatasetError(cannot_write(out, error)) from error
    return written, failures


def geometry_of(smiles: str, seed: int) -> tuple[list[str], np.ndarray, int]:
    """Chemical symbols and positions (N, 3) in angstrom of the minimum near one conformer, and the
    molecule's charge.

    Raises:
        ValueError: no SMILES of a closed shell, or no geometry with its bonds was found.
    """
    from rdkit import Chem

    molecule = _conformer(smiles, seed)
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    charge = Chem.GetFormalCharge(molecule)
    positions = _optimised(symbols, molecule.GetConformer().GetPositions(), charge)
    _check_bonds(molecule, positions)
    return symbols, positions, charge


def check_bonds(smiles: str, positions: np.ndarray) -> None:
    """Raise ValueError where a geometry, its atoms in the order of :func:`geometry_of`, has broken
    a bond of the molecule or made a new one."""
    _check_bonds(_molecule(smiles), positions)


def _conformer(smiles: str, seed: int) -> Any:
    """An RDKit molecule with hydrogens and one conformer, which carries the positions."""
    from rdkit import rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    with rdBase.BlockLogs():
        molecule = _molecule(smiles)
        parameters: Any = rdDistGeom.ETKDGv3()
        parameters.randomSeed = seed
        if rdDistGeom.EmbedMolecule(molecule, parameters) < 0:
            parameters.useRandomCoords = True
            if rdDistGeom.EmbedMolecule(molecule, parameters) < 0:
                raise ValueError("RDKit finds no conformer")
        # Where it lacks parameters or does not converge, xTB starts from a rougher geometry.
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            rdForceFieldHelpers.MMFFOptimizeMolecule(molecule, maxIters=2000)
    return molecule


def _molecule(smiles: str) -> Any:
    """An RDKit molecule with hydrogens."""
    from rdkit import Chem, rdBase

    # RDKit's messages would tear the progress bar; what matters is raised.
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raise ValueError(f"{smiles} is not a SMILES of a molecule")
        if any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
            raise ValueError("not a closed shell")
        return Chem.AddHs(molecule)


def _optimised(symbols: Sequence[str], positions: np.ndarray, charge: int) -> np.ndarray:
    from ase import Atoms
    from ase.optimize import LBFGS
    from tblite.ase import TBLite

    calculator = TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
    atoms = Atoms(symbols, positions, calculator=calculator)
    if not LBFGS(atoms, logfile=os.devnull).run(fmax=_MAX_FORCE, steps=_MAX_STEPS):
        raise ValueError(f"the geometry is not converged after {_MAX_STEPS} steps")
    return atoms.get_positions()


def _check_bonds(molecule: Any, positions: np.ndarray) -> None:
    """Raise ValueError where a bond of the molecule is broken or a new one was made."""
    from ase.data import covalent_radii

    radii = covalent_radii[[atom.GetAtomicNum() for atom in molecule.GetAtoms()]]
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    relative = distances / (radii[:, None] + radii)
    bonded = np.zeros(relative.shape, dtype=bool)
    for bond in molecule.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonded[i, j] = bonded[j, i] = True
    broken = bonded & (relative > _LONGEST_BOND)
    made = ~bonded & (relative < _CLOSEST_CONTACT) & ~np.eye(len(radii), dtype=bool)
    if broken.any() or made.any():
        pairs = np.argwhere(np.triu(broken | made)).tolist()
        raise ValueError(f"bonds are not those of the SMILES any more, between atoms {pairs}")


def _frame(info: dict[str, str], symbols: Sequence[str], positions: np.ndarray) -> str:
    comment = " ".join(f"{key}={shlex.quote(value)}" for key, value in info.items())
    atoms = [
        f"{symbol:2s}" + "".join(f" {x:13.8f}" for x in r)
        for symbol, r in zip(symbols, positions, strict=True)
    ]
    return "\n".join([str(len(symbols)), f"Properties={_COLUMNS} {comment}", *atoms, ""])


def _resume(path: Path, molecules: dict[str, str], ids: dict[str, str], seed: int) -> set[str]:
    """Names of the molecules in the file; one that was being written is cut off."""
    if not path.exists():
        return set()
    end, present = 0, {}
    try:
        for end, lines in complete_frames(path, _COLUMNS):  # noqa: B007
            info = parse_comment(lines[0])
            present[info["name"]] = (info["smiles"], info["seed"], info["id"])
    except (ValueError, KeyError) as error:
        raise foreign_file(path, end, error) from error
    for name, (smiles, used, place) in present.items():
        if used != str(seed):
            raise DatasetError(f"{path} was made with seed {used}: use it, or another file")
        if molecules.get(name, smiles) != smiles:
            raise DatasetError(f"{path}: {name} is {smiles} there and {molecules[name]} now")
        if ids.get(name, place) != place:
            raise DatasetError(
                f"{path}: {name} is number {place} there and {ids[name]} now: add molecules at the "
                "end, or name another file"
            )
    os.truncate(path, end)
    return set(present)
