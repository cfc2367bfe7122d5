"""Labels for smoke runs: small molecules, slightly distorted, on a coarse grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pyscf import gto

from ..data.geometry import Geometry
from ..data.make.label import LabelSettings, label

# Of water, for the rule md17.
SPLIT_SIZES = (6, 3, 3)
_WATER = "O; H 1 0.96; H 1 0.96 2 104.5"
# By qm9_id, whose last digit decides the split: 3 validation, 7 test.
_MOLECULES = {
    0: _WATER,
    1: "N; H 1 1.01; H 1 1.01 2 107; H 1 1.01 2 107 3 115",
    2: "C; H 1 1.09; H 1 1.09 2 109.5; H 1 1.09 2 109.5 3 120; H 1 1.09 2 109.5 3 -120",
    3: "N; H 1 1.02; H 1 1.02 2 106; H 1 1.02 2 106 3 113",
    4: "F; H 1 0.92",
    5: "C; H 1 1.07; N 1 1.16 2 180",
    7: "O; H 1 0.95; H 1 0.95 2 106",
    13: "O; H 1 0.97; H 1 0.97 2 103",
    17: "C; H 1 1.10; H 1 1.10 2 109; H 1 1.10 2 109 3 119; H 1 1.10 2 109 3 -121",
    27: "N; H 1 1.00; H 1 1.00 2 108; H 1 1.00 2 108 3 117",
}
_DISPLACEMENT = 0.03  # angstrom


def _distorted(zmatrix: str, rng: np.random.Generator, info: dict[str, str]) -> Geometry:
    mol = gto.M(atom=zmatrix, basis="sto-3g", verbose=0)
    positions = mol.atom_coords(unit="angstrom")
    noise = rng.normal(scale=_DISPLACEMENT, size=positions.shape)
    return Geometry(mol.atom_charges().astype(np.int32), positions + noise, info)


def make_samples(folder: Path) -> Path:
    """``water.db`` (PBE, as MD17) and ``molecules.db`` (B3LYP, as QH9) in a folder, if absent."""
    rng = np.random.default_rng(0)
    water = [_distorted(_WATER, rng, {"id": str(i)}) for i in range(sum(SPLIT_SIZES))]
    others = [_distorted(z, rng, {"qm9_id": str(i)}) for i, z in _MOLECULES.items()]
    folder.mkdir(parents=True, exist_ok=True)
    for name, xc, geometries in (("water", "pbe", water), ("molecules", "b3lyp", others)):
        settings = LabelSettings(xc=xc, conv_tol=1e-8, density_fit=True)
        label(geometries, folder / f"{name}.db", settings)
    return folder
