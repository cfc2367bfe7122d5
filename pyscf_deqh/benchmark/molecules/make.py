"""Makes ``heavy_test.xyz``, ``counterpoise_test.xyz`` and ``radicals_test.xyz`` of this folder.

    python make.py MSTORE

needs ASE (``pip install ase``), the folder of this file, and MSTORE, the folder
``tad_mctc/data/structures/mstore`` of the package tad-mctc 0.11.3 (``pip download --no-deps
tad-mctc``, then unzip; Apache-2.0).
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.collections import s22
from ase.io import read
from ase.neighborlist import build_neighbor_list
from ase.units import Bohr
from scipy.sparse.csgraph import connected_components

FOLDER = Path(__file__).parent
SEED = 0
N_HEAVY28, N_DIMERS, N_RADICALS = 15, 10, 10

# Name, atoms, and entries of the comment line.
Molecule = tuple[str, Atoms, dict[str, int]]

TETRAHEDRON = np.array([[1, 1, 1], [-1, -1, 1], [1, -1, -1], [-1, 1, -1]]) / 3**0.5
OCTAHEDRON = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
SQUARE, LINE = OCTAHEDRON[:4], OCTAHEDRON[4:]


def simple(metal: str, ligand: str, directions: np.ndarray, *distances: float) -> Atoms:
    """A metal with monatomic ligands, or with linear ones of as many atoms as distances."""
    atoms = Atoms(metal, [(0, 0, 0)])
    symbols = re.findall("[A-Z][a-z]?", ligand)
    for direction in directions:
        for symbol, r in zip(symbols, np.cumsum(distances), strict=True):
            atoms += Atoms(symbol, [r * direction])
    return atoms


def with_tripods(metal: str, central: str, distance: float, bond: float) -> Atoms:
    """Two methyl or ammonia ligands on a line, hydrogen atoms at tetrahedral angles, staggered."""
    atoms = simple(metal, central, LINE, distance)
    for direction, first in ((1, 0.0), (-1, np.pi / 3)):
        for angle in first + np.arange(3) * 2 * np.pi / 3:
            side = bond * 8**0.5 / 3
            h = (side * np.cos(angle), side * np.sin(angle), direction * (distance + bond / 3))
            atoms += Atoms("H", [h])
    return atoms


def ferrocene() -> Atoms:
    """Eclipsed: rings 1.66 angstrom from the metal, bonds of 1.43 and 1.08 angstrom."""
    atoms, radius = Atoms("Fe", [(0, 0, 0)]), 1.43 / (2 * np.sin(np.pi / 5))
    for z in (1.66, -1.66):
        for angle in np.arange(5) * 2 * np.pi / 5:
            u = np.array([np.cos(angle), np.sin(angle), 0])
            for symbol, r in (("C", radius), ("H", radius + 1.08)):
                atoms += Atoms(symbol, [r * u + (0, 0, z)])
    return atoms


def vanadyl_chloride() -> Atoms:
    atoms, angle = Atoms("VO", [(0, 0, 0), (0, 0, 1.57)]), np.radians(108)
    for turn in np.arange(3) * 2 * np.pi / 3:
        side = 2.14 * np.sin(angle)
        at = (side * np.cos(turn), side * np.sin(turn), 2.14 * np.cos(angle))
        atoms += Atoms("Cl", [at])
    return atoms


# Ideal shapes with rounded bond lengths from experiment, angstrom; total charges.
COMPLEXES = {
    "titanium tetrachloride": (simple("Ti", "Cl", TETRAHEDRON, 2.17), 0),
    "vanadyl chloride": (vanadyl_chloride(), 0),
    "chromium hexacarbonyl": (simple("Cr", "CO", OCTAHEDRON, 1.91, 1.14), 0),
    "permanganate": (simple("Mn", "O", TETRAHEDRON, 1.63), -1),
    "ferrocene": (ferrocene(), 0),
    "nickel tetracarbonyl": (simple("Ni", "CO", TETRAHEDRON, 1.84, 1.14), 0),
    "diamminecopper cation": (with_tripods("Cu", "N", 1.90, 1.02), 1),
    "dimethylzinc": (with_tripods("Zn", "C", 1.93, 1.09), 0),
    "molybdenum hexafluoride": (simple("Mo", "F", OCTAHEDRON, 1.82), 0),
    "tetrachloropalladate": (simple("Pd", "Cl", SQUARE, 2.31), -2),
    "dimethylcadmium": (with_tripods("Cd", "C", 2.11, 1.09), 0),
    "tungsten hexafluoride": (simple("W", "F", OCTAHEDRON, 1.83), 0),
    "osmium tetroxide": (simple("Os", "O", TETRAHEDRON, 1.71), 0),
    "tetrachloroaurate": (simple("Au", "Cl", SQUARE, 2.28), -1),
}


def from_mstore(path: Path) -> Iterable[Molecule]:
    """The records of a file of mstore, without running it; they are in bohr."""
    for record in re.split(r'\n    "(?=[^"]+": \{)', path.read_text())[1:]:
        name, rest = record.split('"', 1)
        symbols = re.search(r'symbol_to_number\(\s*"([^"]+)"', rest)
        rows = re.findall(r"\[([-+\d.eE]+), ([-+\d.eE]+), ([-+\d.eE]+)\]", rest)
        if symbols is None:  # a row of the periodic table
            continue
        entries = {
            key: int(found[1])
            for key, word in (("charge", "charge"), ("spin", "uhf"))
            if (found := re.search(rf'"{word}": torch.tensor\(([-\d]+)\)', rest))
        }
        yield name, Atoms(symbols[1].split(), np.array(rows, float) * Bohr), entries


def heavy(mstore: Path) -> Iterable[Molecule]:
    records = {name: atoms for name, atoms, _ in from_mstore(mstore / "heavy28.py")}
    dimers = sorted(name for name in records if "_" in name)
    for name in sorted(random.Random(SEED).sample(dimers, N_HEAVY28)):
        yield f"Heavy28 {name}", records[name], {}
    trichlorides = {name: atoms for name, atoms, _ in from_mstore(mstore / "f_block.py")}
    yield "lanthanum trichloride", trichlorides["LaCl3"], {}
    for name, (atoms, charge) in COMPLEXES.items():
        yield name, atoms, {"charge": charge} if charge else {}


def counterpoise() -> Iterable[Molecule]:
    """The first monomer of dimers of the S22 set, in the basis functions of both."""
    for name in sorted(random.Random(SEED).sample(sorted(s22.names), N_DIMERS)):
        dimer = s22[name]
        bonds = build_neighbor_list(dimer, self_interaction=False).get_connectivity_matrix()
        count, monomer = connected_components(bonds)
        assert count == 2
        order = np.argsort(monomer, kind="stable")
        yield name, dimer[order], {"ghosts": int((monomer == monomer[order[-1]]).sum())}


def radicals() -> Iterable[Molecule]:
    """Test molecules of QM9 that have lost a hydrogen atom at random."""
    rng = random.Random(SEED)
    molecules = list(read(FOLDER / "qm9_test.xyz", index=":"))
    for atoms in rng.sample(molecules, N_RADICALS):
        hydrogens = [i for i, symbol in enumerate(atoms.symbols) if symbol == "H"]
        lost = rng.choice(hydrogens)
        name = f"qm9-{atoms.info['qm9_id']} without H{lost}"
        del atoms[lost]
        yield name, atoms, {}


def lines_of(molecules: Iterable[Molecule]) -> Iterable[str]:
    """Extended xyz."""
    for i, (title, atoms, info) in enumerate(molecules):
        entries = "".join(f" {key}={value}" for key, value in info.items())
        yield str(len(atoms))
        yield f"Properties=species:S:1:pos:R:3 id={i} name='{title}'{entries}"
        for symbol, position in zip(atoms.symbols, atoms.positions, strict=True):
            yield f"{symbol:2s}" + "".join(f" {x:13.8f}" for x in position)


def write(name: str, molecules: Iterable[Molecule]) -> None:
    (FOLDER / name).write_text("\n".join(lines_of(molecules)) + "\n")


if __name__ == "__main__":
    write("heavy_test.xyz", heavy(Path(sys.argv[1])))
    write("counterpoise_test.xyz", counterpoise())
    write("radicals_test.xyz", radicals())
