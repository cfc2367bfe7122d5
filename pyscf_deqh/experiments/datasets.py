"""Which labelled files belong to which of the paper's data sets, and their split rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..data.formats import SUFFIXES, open_labels
from ..data.formats.qh9_dynamic import QH9DynamicDatabase
from ..data.formats.store import LabelStore
from ..data.geometry import Geometry
from ..data.splits import split_ids
from ..errors import ConfigError
from ..files import is_being_written

MD17 = ("water", "ethanol", "malondialdehyde", "uracil")
QH9 = ("stable-id", "stable-ood", "dynamic-geo", "dynamic-mol")
IN_HOUSE = "in-house"
DEFAULT_BASIS = "def2-svp"
_FIRST_ELEMENTS = (1, 6, 7, 8, 9)  # of all published data sets


@dataclass(frozen=True)
class Dataset:
    """One data set of Tables 1 and 2, or ``in-house``: labelled files and their split.

    Attributes:
        bases: basis sets of the labels; all have room in the first one's shells.
    """

    name: str
    databases: tuple[Path, ...]
    split_rule: str
    split_sizes: tuple[int, ...] = ()
    bases: tuple[str, ...] = (DEFAULT_BASIS,)

    @property
    def molecule(self) -> str:
        """The name without the basis set."""
        return self.name if self.bases[0] == DEFAULT_BASIS else self.name.partition("-")[0]

    @cached_property
    def elements(self) -> list[int]:
        """Atomic numbers that a network has to know: H, C, N, O, F, and what else a label store
        has, which has to be complete."""
        found = set(_FIRST_ELEMENTS)
        for path in self.databases:
            with open_labels(path) as file:
                if isinstance(file, LabelStore):
                    usable = set(file.ids()) - set(file.failures())
                    for row in usable:
                        found.update(file.atoms(row)[0].tolist())
        return sorted(found)

    @property
    def xc(self) -> str:
        """Functional of the labels; QH9's where the file does not say."""
        with open_labels(self.databases[0]) as file:
            return file.settings().get("xc", "b3lyp")

    @cached_property
    def rows(self) -> dict[str, int]:
        """Number of labels in each file, by its name: a file may grow."""
        found = {}
        for path in self.databases:
            with open_labels(path) as file:
                found[path.name] = len(set(file.ids()) - set(file.failures()))
        return found

    def check_split(self, split: str) -> None:
        """Make sure that there are labels of a split.

        Raises:
            ConfigError: there are none.
        """
        if not self.geometries(split, 1):
            files = ", ".join(path.name for path in self.databases)
            raise ConfigError(f"{self.name}: there are no labels of the {split} split in {files}")

    def geometries(self, split: str, n: int) -> list[Geometry]:
        """At most ``n`` geometries, evenly spread over a split."""
        found = []
        for path in self.databases:
            with open_labels(path) as file:
                unusable = file.failures()
                ids = split_ids(file, split, self.split_rule, self.split_sizes)
                found += [(path, i) for i in ids if i not in unusable]
        chosen = np.linspace(0, len(found) - 1, min(n, len(found))).round().astype(int)
        geometries = []
        for k in chosen:
            path, row = found[k]
            with open_labels(path) as file:
                geometries.append(file[row].geometry())
        return geometries


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
            if not inside:
                raise ConfigError(f"no file with one of {', '.join(SUFFIXES)} in {path}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise ConfigError(f"no file or folder {path}")
    return files


def _md17_molecule(path: Path) -> str | None:
    stem = path.stem.lower().replace("malonaldehyde", "malondialdehyde")
    return next((name for name in MD17 if name in stem), None)


def _refuse_published(path: Path) -> None:
    """Refuse copies of published data, whose ids are none of QM9's and whose splits are lost.

    Raises:
        ConfigError: it is one.
    """
    with open_labels(path) as file:
        known = file.provenances().values() if isinstance(file, LabelStore) else ()
        for source in (str(provenance.source) for provenance in known):
            if "qh9stable" in source.lower() or QH9DynamicDatabase.format in source:
                raise ConfigError(
                    f"{path} was made of {source}: name that file, whose splits are published"
                )


def find_datasets(paths: Sequence[Path], split_sizes: Sequence[int]) -> dict[str, Dataset]:
    """Data sets by name.

    A file with the name of an MD17 molecule in its own is that molecule's, split by the rule
    ``md17``; one in another basis set than def2-SVP is a data set of its own. QH9-dynamic and
    ``QH9Stable.db`` make two data sets each, one for each of their splits; all other files together
    are ``in-house``, split by molecule.

    Args:
        paths: files, or folders of them.
        split_sizes: training, validation and perhaps test rows for ``md17``; empty: published.

    Raises:
        ConfigError: a path does not exist, another process writes to it, two files are of the same
            data set, or one is a copy of published data.
    """
    found: dict[str, Dataset] = {}
    own: list[Path] = []
    for path in _files(paths):
        if is_being_written(path):
            raise ConfigError(
                f"{path} is being written to: trainings on it would be on different labels. Wait, "
                "or name a copy"
            )
        molecule = _md17_molecule(path)
        if molecule is not None:
            with open_labels(path) as file:
                basis = file.settings().get("basis", DEFAULT_BASIS)
            basis = DEFAULT_BASIS if basis.lower() == DEFAULT_BASIS else basis
            suffix = "" if basis == DEFAULT_BASIS else f"-{basis.replace('*', 's')}"
            name = molecule + suffix
            new = {name: Dataset(name, (path,), "md17", tuple(split_sizes), (basis,))}
        else:
            with open_labels(path) as file:
                dynamic = isinstance(file, QH9DynamicDatabase)
            if dynamic or "qh9stable" in path.stem.lower():
                names = [name for name in QH9 if name.startswith("dynamic") == dynamic]
                new = {name: Dataset(name, (path,), f"qh9-{name}") for name in names}
            else:
                _refuse_published(path)
                own.append(path)
                continue
        for name in new:
            if name in found:
                other = found[name].databases[0]
                raise ConfigError(f"{path} and {other} are both {name}: name one of them")
        found |= new
    if own:
        found[IN_HOUSE] = Dataset(IN_HOUSE, tuple(own), "qm9-id")
    return found
