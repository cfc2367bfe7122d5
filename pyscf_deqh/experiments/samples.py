"""Labels for smoke runs: small molecules, slightly distorted, on a coarse grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pyscf import gto

from ..data.geometry import Geometry
from ..data.make.label import LabelSettings, label
from .datasets import DEFAULT_BASIS

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
    make_water(folder)
    label(_molecules(), folder / "molecules.db", _settings("b3lyp", DEFAULT_BASIS))
    return folder


def _molecules() -> list[Geometry]:
    rng = np.random.default_rng(1)
    return [_distorted(z, rng, {"qm9_id": str(i)}) for i, z in _MOLECULES.items()]


def make_steps(folder: Path) -> Path:
    """A label store of ``molecules.db``'s molecules, with steps of their SCFs, if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "molecules.store"
    label(_molecules(), file, _settings("b3lyp", DEFAULT_BASIS), steps=4)
    return file


def make_water(folder: Path, bases: Sequence[str] = (DEFAULT_BASIS,)) -> Path:
    """Labels of the same geometries in each basis set, in a folder, if absent."""
    rng = np.random.default_rng(0)
    water = [_distorted(_WATER, rng, {"id": str(i)}) for i in range(sum(SPLIT_SIZES))]
    folder.mkdir(parents=True, exist_ok=True)
    for k, basis in enumerate(bases):
        label(water, folder / f"water{k or ''}.db", _settings("pbe", basis))
    return folder


def _settings(xc: str, basis: str) -> LabelSettings:
    return LabelSettings(xc=xc, basis=basis, conv_tol=1e-8, density_fit=True)
