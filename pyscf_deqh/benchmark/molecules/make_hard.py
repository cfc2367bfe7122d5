"""Makes ``hard_test.xyz``: SCFs that do not converge from minao with PySCF's defaults.

    python make_hard.py

runs B3LYP/def2-SVP for every candidate below, small molecules of transition metals and of stretched
bonds, and keeps those whose SCF from minao is not converged after PySCF's 50 cycles, whatever
becomes of it from another start. What the runs have shown is kept in ``hard_runs.json`` beside it:
the same command goes on where it stopped. Needs ASE.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from make import FOLDER, LINE, OCTAHEDRON, SQUARE, TETRAHEDRON, Molecule, simple, write
from pyscf import dft, gto
from tqdm import tqdm

RUNS = Path(__file__).with_name("hard_runs.json")
_ALL_ELECTRON = 36

# Metal (or first atom), partner, distance in angstrom, unpaired electrons of some states.
DIATOMIC = """
Sc O 1.67 1; Ti O 1.62 2 0; V O 1.59 3 1; Cr O 1.62 4 2; Mn O 1.65 5 3; Fe O 1.62 4 2; Co O 1.63 3 1
Ni O 1.63 2 0; Cu O 1.72 1; Zn O 1.72 0; Ti C 1.70 2 0; V C 1.65 1 3; Cr C 1.63 2 0; Mn C 1.64 3 1
Fe C 1.60 2 4; Co C 1.56 1; Ni C 1.63 0; Sc N 1.69 0; Ti N 1.58 1; V N 1.57 2; Cr N 1.57 3
Mn N 1.55 2; Fe N 1.58 3 1; Co N 1.57 4 2; Ni N 1.63 3; Ti S 2.08 2; V S 2.06 3; Cr S 2.08 4
Mn S 2.07 5; Fe S 2.02 4; Co S 1.99 3; Ni S 1.97 2; Cu S 2.05 1; Sc H 1.78 0; Ti H 1.78 3
V H 1.73 4; Cr H 1.66 5; Mn H 1.73 6; Fe H 1.61 3; Co H 1.54 2; Ni H 1.48 1; Ti F 1.84 3; V F 1.77 4
Cr F 1.78 5; Mn F 1.84 6; Fe F 1.78 5; Co F 1.74 2; Ni F 1.74 1; Sc Sc 2.60 4; Ti Ti 1.94 2
V V 1.77 2; Cr Cr 1.68 0; Mn Mn 3.40 10; Fe Fe 2.02 6; Co Co 2.00 4; Ni Ni 2.15 2; Zr O 1.71 0
Nb O 1.69 3; Mo O 1.70 4; Ru O 1.70 4; Rh O 1.73 3; Pd O 1.85 2; Ag O 2.00 1; Mn O 1.65 1
Fe O 1.62 0; Fe C 1.60 0; Co C 1.56 3; Mn N 1.55 4; Fe N 1.58 5; Co N 1.57 0; Ni N 1.63 1
Mn S 2.07 3; Fe S 2.02 2; Co S 1.99 1; Ni S 1.97 0; Mn H 1.73 4; Fe H 1.61 1 5; Co H 1.54 0 4
Ni H 1.48 3; Mn F 1.84 4; Fe F 1.78 3; Co F 1.74 4; Ni F 1.74 3; Ti Cl 2.26 3 1; V Cl 2.21 4 2
Cr Cl 2.20 5 3; Mn Cl 2.24 6 4; Fe Cl 2.18 5 3; Co Cl 2.09 2 4; Ni Cl 2.06 1 3; Fe Fe 2.02 8
Co Co 2.00 2; Ni Ni 2.15 4; Fe Co 1.99 5 7; Fe Ni 2.00 4 6; Co Ni 2.00 3 5; Fe B 1.74 3; Co B 1.70 2
Fe Si 2.10 2 4; Fe P 2.05 3; Co P 2.02 2; Ni P 1.98 1; Ru C 1.61 0 2; Rh C 1.61 1; Pd C 1.71 0
Rh Rh 2.28 4; Pd Pd 2.48 2; W O 1.66 2; Os O 1.70 4; Ir O 1.72 3; Pt O 1.73 2; Mo Mo 1.93 0
Nb Nb 2.08 2; Ru Ru 2.27 6; Pt Pt 2.33 2; W W 2.05 0; N O 1.15 1; O O 1.21 0; C C 1.24 0; B N 1.28 0
S O 1.48 0; F F 2.50 0; N N 2.20 0; Cl O 1.57 1; Li F 4.00 0; C O 2.20 0
"""
# Metal, ligand, shape, distance in angstrom, charge, unpaired electrons.
COMPLEXES = """
Ti Cl line 2.28 0 2; V Cl line 2.25 0 3; Cr Cl line 2.20 0 4; Mn Cl line 2.18 0 5
Fe Cl line 2.13 0 4; Co Cl line 2.11 0 3; Ni Cl line 2.06 0 2; Cu Cl line 2.05 0 1
Cr O line 1.60 0 2; Mn O line 1.60 0 3; Fe O line 1.60 0 2; Ni O line 1.60 0 0
Mn O tetrahedron 1.63 -1 0; Fe O tetrahedron 1.65 -2 2; Fe Cl tetrahedron 2.20 -1 5
Fe Cl tetrahedron 2.29 -2 4; Co Cl tetrahedron 2.27 -2 3; Ni Cl tetrahedron 2.27 -2 2
Cu Cl square 2.26 -2 1; Mn Cl tetrahedron 2.36 -2 5; Cr F octahedron 1.90 -3 3
Fe F octahedron 1.92 -3 5; Co F octahedron 1.89 -3 4; Mn F octahedron 1.91 -3 4
V F octahedron 1.93 -3 2; Pt F octahedron 1.85 0 2
"""
_SHAPES = {"line": LINE, "square": SQUARE, "tetrahedron": TETRAHEDRON, "octahedron": OCTAHEDRON}


def _entries(text: str) -> list[list[str]]:
    return [entry.split() for line in text.strip().splitlines() for entry in line.split(";")]


def candidates() -> list[Molecule]:
    """Name, atoms, and the entries ``charge`` and ``spin`` of the comment line."""
    found: list[Molecule] = []
    for first, second, distance, *spins in _entries(DIATOMIC):
        atoms = Atoms(first + second, [(0, 0, 0), (0, 0, float(distance))])
        found += [
            (f"{first}{second}, {spin} unpaired", atoms, {"spin": int(spin)}) for spin in spins
        ]
    for metal, ligand, shape, distance, charge, spin in _entries(COMPLEXES):
        atoms = simple(metal, ligand, _SHAPES[shape], float(distance))
        name = f"{metal}{ligand}{len(_SHAPES[shape])} {charge}, {spin} unpaired"
        found.append((name, atoms, {"charge": int(charge), "spin": int(spin)}))
    return found


def converges(atoms: Atoms, charge: int = 0, spin: int = 0) -> bool:
    """Whether the SCF does, from minao by PySCF's defaults."""
    heavy = [s for s in set(atoms.symbols) if atomic_numbers[s] > _ALL_ELECTRON]
    positions = np.asarray(atoms.positions)
    mol = gto.M(atom=list(zip(atoms.symbols, positions, strict=True)), basis="def2-svp",
                ecp=dict.fromkeys(heavy, "def2-svp"), charge=charge, spin=spin,
                verbose=0)  # fmt: skip
    mf = dft.KS(mol, xc="b3lyp")
    mf.kernel()
    return bool(mf.converged)


if __name__ == "__main__":
    runs = json.loads(RUNS.read_text()) if RUNS.is_file() else {}
    for name, atoms, entries in tqdm(candidates()):
        if name not in runs:
            runs[name] = converges(atoms, **entries)
            RUNS.write_text(json.dumps(runs, indent=1) + "\n")
    write("hard_test.xyz", (c for c in candidates() if not runs[c[0]]))
    print(f"{sum(not found for found in runs.values())} of {len(runs)} do not converge: {FOLDER}")
