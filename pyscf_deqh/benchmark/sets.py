"""Bundled test molecules, and the sets of the suite: which molecules and which method.

``molecules/README.md`` tells how the molecules were made.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import DEFAULT_MODEL
from ..data.geometry import Geometry, read_geometries
from .scf_runs import Method

FOLDER = Path(__file__).parent / "molecules"
BUNDLED = FOLDER / "qm9_test.xyz"
# The published figures of the benchmark and of the paper's tables are for the first molecules.
PUBLISHED = 44

SEED = 0
_TRANSFER_MOLECULES = 20


def in_random_order(geometries: Sequence[Geometry]) -> list[Geometry]:
    """The same order each time: the first n are a random sample."""
    shuffled = list(geometries)
    random.Random(SEED).shuffle(shuffled)
    return shuffled


def distinct_names(geometries: Sequence[Geometry]) -> list[str]:
    """Their own, with that of their place in the file or folder where several have the same."""
    counts = Counter(geometry.name for geometry in geometries)
    return [g.name if g.info and counts[g.name] == 1 else f"{g.name} {g.place}" for g in geometries]


@dataclass(frozen=True)
class SuiteSet:
    """One row of the suite's table.

    Attributes:
        name: of the set and its files.
        title: in the table.
        file: molecules.
        xc, basis, charge, spin, density_fit, solvent, unrestricted: see :class:`Method`.
        limit: number of molecules; None for all.
        others: molecules of another kind than the models learnt.
    """

    name: str
    title: str
    file: Path
    xc: str = Method.xc
    basis: str = Method.basis
    limit: int | None = None
    charge: int = 0
    spin: int | None = None
    density_fit: bool = False
    solvent: str | None = None
    unrestricted: bool = False
    others: bool = False

    @property
    def is_transfer(self) -> bool:
        """Whether the bundled models learnt something else."""
        return self.others or self.method().details != Method().details

    def geometries(self, n: int | None = None) -> list[Geometry]:
        """The molecules in random order, at most ``n`` of them: those of a smaller n come first."""
        geometries = in_random_order(read_geometries(self.file))
        limits = [limit for limit in (self.limit, n) if limit is not None]
        return geometries[: min(limits)] if limits else geometries

    def method(self, model: str | Path = DEFAULT_MODEL, device: str = "auto") -> Method:
        return Method(self.xc, self.basis, model, device, charge=self.charge, spin=self.spin,
                      density_fit=self.density_fit, solvent=self.solvent,
                      unrestricted=self.unrestricted)  # fmt: skip


def _transfer(name: str, title: str, **method: Any) -> SuiteSet:
    """Something that the bundled models did not learn, at the neutral singlets' geometries."""
    return SuiteSet(name, f"QM9 test, {title}", BUNDLED, limit=_TRANSFER_MOLECULES, **method)


def _other(name: str, title: str) -> SuiteSet:
    return SuiteSet(name, title, FOLDER / f"{name}_test.xyz", others=True)


SUITE = {
    entry.name: entry
    for entry in (
        SuiteSet("qm9", "QM9 test", BUNDLED),
        SuiteSet("md", "MD snapshots", FOLDER / "md_test.xyz"),
        *(_other(name, title) for name, title in (
            ("fragments", "drug fragments with S, P, Cl, Br, Si"), ("ions", "ions"),
            ("heavy", "heavy elements"), ("radicals", "radicals"),
            ("counterpoise", "counterpoise monomers (ghost atoms)"),
            ("hard", "SCFs that do not converge from minao"),
        )),
        SuiteSet("larger", "larger molecules", FOLDER / "larger_test.xyz"),
        _other("large", "600 to 900 orbitals"),
        *(_transfer(xc, f"{xc}/{Method.basis}", xc=xc) for xc in ("pbe", "pbe0", "wb97x", "hf")),
        *(_transfer(b, f"{Method.xc}/{b}", basis=b)
          for b in ("def2-tzvp", "cc-pvdz", "cc-pvtz", "aug-cc-pvdz")),
        _transfer("pople", f"{Method.xc}/6-311+G(2d,p)", basis="6-311+g(2d,p)"),
        _transfer("pcm", "PCM", solvent="PCM"),
        _transfer("smd", "SMD, water", solvent="SMD"),
        _transfer("singlet", "UKS singlets", unrestricted=True),
        _transfer("density-fit", "density_fit()", density_fit=True),
        _transfer("cation", "radical cations", charge=1, spin=1),
        _transfer("triplet", "triplets", spin=2),
    )
}  # fmt: skip
