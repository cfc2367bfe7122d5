"""Makes ``varied_test.xyz.gz``: molecules of many kinds, for random SCFs.

    python -m pyscf_deqh.data embed zwitterions.smi --out zwitterions.xyz
    python make_varied.py MSTORE zwitterions.xyz

needs ASE and MSTORE, see ``make.py``. The name of a molecule begins with its family's.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.collections import g2
from ase.io import read
from make import (
    FOLDER,
    LINE,
    OCTAHEDRON,
    SQUARE,
    TETRAHEDRON,
    Molecule,
    from_mstore,
    lines_of,
    simple,
    with_tripods,
)
from pyscf import gto

MSTORE = ("mb16_43", "heavy28", "upu23", "amino20x4", "f_block", "rc21", "il16")

CUBE = np.array([[x, y, z] for x in (1, -1) for y in (1, -1) for z in (1, -1)]) / 3**0.5
_GOLDEN = (1 + 5**0.5) / 2
_ICOSAHEDRON = [(0, a, b * _GOLDEN) for a in (1, -1) for b in (1, -1)]
ICOSAHEDRON = np.array([np.roll(v, k) for v in _ICOSAHEDRON for k in range(3)]) / np.hypot(
    1, _GOLDEN
)


def shell(symbols: str, directions: np.ndarray, *distances: float) -> Atoms:
    """Atoms at these distances from a centre (angstrom) in all directions, and none there."""
    return simple("H", symbols, directions, *np.diff(distances, prepend=0.0))[1:]


def linear(symbols: list[str], *bonds: float) -> Atoms:
    return Atoms(symbols, [(0, 0, z) for z in np.cumsum((0.0, *bonds))])


def methyl_between(halogen: str, distance: float) -> Atoms:
    """The transition state of an exchange of two halide ions at a flat methyl group."""
    atoms = simple("C", halogen, LINE, distance)
    for angle in np.arange(3) * 2 * np.pi / 3:
        atoms += Atoms("H", [(1.07 * np.cos(angle), 1.07 * np.sin(angle), 0)])
    return atoms


def ring(n: int, *radii: float) -> Atoms:
    """CH groups in a flat ring."""
    turns = [(np.cos(a), np.sin(a), 0) for a in np.arange(n) * 2 * np.pi / n]
    return shell("CH", np.array(turns), *radii)


def ethylene_twisted() -> Atoms:
    h = [(0.92 * s, 0, -0.57) for s in (1, -1)] + [(0, 0.92 * s, 1.91) for s in (1, -1)]
    return Atoms("CCHHHH", [(0, 0, 0), (0, 0, 1.34), *h])


def zundel() -> Atoms:
    """Two water molecules that share a proton."""
    h = [(0.76, 0, 0.55), (-0.76, 0, 0.55)]
    ends = [(x, y, 1.2 + z) for x, y, z in h] + [(y, x, -1.2 - z) for x, y, z in h]
    return Atoms("OOHHHHH", [(0, 0, 1.2), (0, 0, -1.2), (0, 0, 0), *ends])


def adamantane() -> Atoms:
    atoms = shell("CH", TETRAHEDRON, 0.89 * 3**0.5, 1.525 * 3**0.5) + shell("C", OCTAHEDRON, 1.78)
    for k in range(3):
        for side in (1, -1):
            for turn in (1, -1):
                h = (2.42 * side, 0.63 * turn, -0.63 * side * turn)
                atoms += Atoms("H", [np.roll(h, k)])
    return atoms


TRANSITION_STATES: dict[str, tuple[Atoms, dict[str, int]]] = {
    "H exchange": (linear(["H"] * 3, 0.93, 0.93), {"spin": 1}),
    "square H4": (shell("H", SQUARE, 0.85), {}),
    "fluoride exchange": (methyl_between("F", 1.83), {"charge": -1}),
    "chloride exchange": (methyl_between("Cl", 2.32), {"charge": -1}),
    "bromide exchange": (methyl_between("Br", 2.48), {"charge": -1}),
    "flat ammonia": (Atoms("N", [(0, 0, 0)]) + ring(3, 0.0, 1.0)[1::2], {}),
    "HCN isomerization": (Atoms("CNH", [(0, 0, 0), (0, 0, 1.19), (1.17, 0, 0.37)]), {}),
    "twisted ethylene": (ethylene_twisted(), {}),
    "twisted ethylene, triplet": (ethylene_twisted(), {"spin": 2}),
    "square cyclobutadiene": (ring(4, 1.02, 2.10), {}),
    "flat cyclooctatetraene": (ring(8, 1.83, 2.92), {}),
    "bifluoride": (linear(["F", "H", "F"], 1.15, 1.15), {"charge": -1}),
    "Zundel ion": (zundel(), {"charge": 1}),
    "linear water": (linear(["H", "O", "H"], 0.94, 0.94), {}),
}
CLUSTERS: dict[str, tuple[Atoms, dict[str, int]]] = {
    "Li2": (linear(["Li"] * 2, 2.67), {}),
    "Na2": (linear(["Na"] * 2, 3.08), {}),
    "K2": (linear(["K"] * 2, 3.92), {}),
    "Mg2": (linear(["Mg"] * 2, 3.89), {}),
    "Cu2": (linear(["Cu"] * 2, 2.22), {}),
    "Ag2": (linear(["Ag"] * 2, 2.53), {}),
    "Au2": (linear(["Au"] * 2, 2.47), {}),
    "Hg2": (linear(["Hg"] * 2, 3.69), {}),
    "Be4": (shell("Be", TETRAHEDRON, 1.27), {}),
    "Mg4": (shell("Mg", TETRAHEDRON, 1.90), {}),
    "Al4": (shell("Al", SQUARE, 1.83), {"spin": 2}),
    "Li4": (shell("Li", SQUARE, 1.95), {}),
    "Li6": (shell("Li", OCTAHEDRON, 2.05), {}),
    "Zn4": (shell("Zn", TETRAHEDRON, 1.65), {}),
    "Al6": (shell("Al", OCTAHEDRON, 1.95), {"spin": 2}),
    "Si6": (shell("Si", OCTAHEDRON, 1.75), {}),
    "NaCl tetramer": (shell("Na", CUBE[::1][[0, 3, 5, 6]], 2.30)
                      + shell("Cl", CUBE[[1, 2, 4, 7]], 2.45), {}),
}  # fmt: skip
CAGES: dict[str, tuple[Atoms, dict[str, int]]] = {
    "P4": (shell("P", TETRAHEDRON, 1.35), {}),
    "As4": (shell("As", TETRAHEDRON, 1.50), {}),
    "tetrahedrane": (shell("CH", TETRAHEDRON, 0.91, 1.98), {}),
    "cubane": (shell("CH", CUBE, 1.36, 2.45), {}),
    "adamantane": (adamantane(), {}),
    "dodecahydrododecaborate": (shell("BH", ICOSAHEDRON, 1.70, 2.90), {"charge": -2}),
}
NOBLE_GASES: dict[str, tuple[Atoms, dict[str, int]]] = {
    **{symbol: (Atoms(symbol), {}) for symbol in ("He", "Ne", "Ar", "Kr", "Xe")},
    "He2": (linear(["He"] * 2, 2.97), {}),
    "Ne2": (linear(["Ne"] * 2, 3.10), {}),
    "Ar2": (linear(["Ar"] * 2, 3.76), {}),
    "Kr2": (linear(["Kr"] * 2, 4.01), {}),
    "Xe2": (linear(["Xe"] * 2, 4.36), {}),
    "He2+": (linear(["He"] * 2, 1.08), {"charge": 1, "spin": 1}),
    "HArF": (linear(["H", "Ar", "F"], 1.33, 1.97), {}),
    "KrF2": (simple("Kr", "F", LINE, 1.88), {}),
    "XeF2": (simple("Xe", "F", LINE, 1.98), {}),
    "XeF4": (simple("Xe", "F", SQUARE, 1.95), {}),
    "XeF6": (simple("Xe", "F", OCTAHEDRON, 1.89), {}),
    "RnF2": (simple("Rn", "F", LINE, 2.08), {}),
    "xenon dihydride": (simple("Xe", "H", LINE, 1.86), {}),
    "diamminesilver cation": (with_tripods("Ag", "N", 2.15, 1.02), {"charge": 1}),
}


def g2_molecules() -> Iterable[Molecule]:
    for name in g2.names:
        unpaired = round(abs(float(g2[name].get_initial_magnetic_moments().sum())))
        yield name, g2[name], {"spin": unpaired} if unpaired else {}


def zwitterions(path: Path) -> Iterable[Molecule]:
    for atoms in read(path, index=":"):
        yield str(atoms.info["name"]), atoms, {}


def families(mstore: Path, embedded: Path) -> Iterable[tuple[str, Iterable[Molecule]]]:
    yield "g2", g2_molecules()
    for name in MSTORE:
        yield name.replace("_", "-"), from_mstore(mstore / f"{name}.py")
    for family, molecules in {
        "transition-states": TRANSITION_STATES, "clusters": CLUSTERS, "cages": CAGES,
        "noble-gases": NOBLE_GASES,
    }.items():  # fmt: skip
        yield family, [(name, *entry) for name, entry in molecules.items()]
    yield "zwitterions", zwitterions(embedded)


def has_basis(symbol: str) -> bool:
    """Whether PySCF has def2-SVP for an element."""
    try:
        return bool(gto.basis.load("def2-svp", symbol))
    except RuntimeError:  # PySCF's own kind of it
        return False


if __name__ == "__main__":
    text = "\n".join(lines_of(
        (f"{family} {name}", atoms, entries)
        for family, molecules in families(*map(Path, sys.argv[1:]))
        for name, atoms, entries in molecules
        if all(map(has_basis, set(atoms.symbols)))
    ))  # fmt: skip
    with gzip.GzipFile(FOLDER / "varied_test.xyz.gz", "wb", mtime=0) as file:
        file.write(f"{text}\n".encode())
