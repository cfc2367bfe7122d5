"""Makes ``dynamics_test.xyz``: a ring of six water molecules, aspirin, alanine dipeptide.

    python make_dynamics.py

needs ASE and tblite (``pip install 'pyscf_deqh[md]'``). The ring is made with the oxygen atoms in
a regular hexagon, and relaxed with GFN2-xTB, as the others are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.optimize import BFGS
from make import FOLDER, write
from tblite.ase import TBLite

from pyscf_deqh.data.geometry import read_geometries

EXAMPLES = Path(__file__).parents[3] / "examples"
DIPEPTIDE = "amino20x4 ALA_xab"
SIDE, BOND = 2.75, 0.96  # angstrom
FORCE = 0.01  # eV/angstrom


def ring() -> Atoms:
    """Each molecule gives one hydrogen atom to its neighbour's oxygen, and the others point up and
    down in turn."""
    angles = np.arange(6) * np.pi / 3
    oxygen = SIDE * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    along = np.roll(oxygen, -1, axis=0) - oxygen
    outwards = oxygen / SIDE + [(0, 0, (-1) ** k) for k in range(6)]
    atoms = Atoms()
    for place, *directions in zip(oxygen, along, outwards, strict=True):
        bonds = [BOND * d / np.linalg.norm(d) for d in directions]
        atoms += Atoms("OHH", [place, *(place + bond for bond in bonds)])
    return atoms


def relaxed(atoms: Atoms) -> Atoms:
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=FORCE)
    return atoms


def main() -> None:
    (aspirin,) = read_geometries(EXAMPLES / "aspirin.xyz")
    varied = read_geometries(FOLDER / "varied_test.xyz.gz")
    (peptide,) = [geometry for geometry in varied if geometry.info["name"] == DIPEPTIDE]
    molecules = {"water hexamer": ring()}
    for name, geometry in (("aspirin", aspirin), ("alanine dipeptide", peptide)):
        molecules[name] = Atoms(geometry.numbers, geometry.positions)
    write("dynamics_test.xyz", [(name, relaxed(atoms), {}) for name, atoms in molecules.items()])


if __name__ == "__main__":
    main()
