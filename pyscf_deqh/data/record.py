"""What every file of labels gives, whatever its format: checked records and one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError
from ..files import differences
from .xyz import Geometry


@dataclass(frozen=True)
class Provenance:
    """How a label came about.

    Attributes:
        settings: of the method, and versions of the programs.
        source: file that it was converted from.
        written_by: this package and its version.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    written_by: str | None = None


@dataclass(frozen=True, eq=False)
class SCFStep:
    """What an SCF has passed, in fitted Fock matrices; it begins at the reference of superposed
    atoms.

    Attributes:
        hamiltonian: (nao, nao) hartree, whose lowest orbitals were filled.
        fock: (nao, nao) hartree, the Fock matrix of their density.
    """

    hamiltonian: np.ndarray
    fock: np.ndarray


@dataclass
class Record:
    """A labelled molecule: positions (N, 3) in angstrom, hamiltonian (nao, nao) in hartree.

    The matrix is in PySCF's AO order, also where the file's is another. ``provenance`` is there
    where the file keeps it for each record. ``steps`` are the first ones of the SCF, for files
    that keep them; :meth:`LabelFile.steps_of` reads them.
    """

    id: int
    numbers: np.ndarray
    positions: np.ndarray
    hamiltonian: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance | None = None
    steps: tuple[SCFStep, ...] = ()

    @property
    def charge(self) -> int:
        return int(self.meta.get("charge") or 0)

    def geometry(self) -> Geometry:
        info = {"id": str(self.id)} | {k: str(v) for k, v in self.meta.items() if v is not None}
        return Geometry(self.numbers, self.positions, info)


def check_arrays(
    numbers: np.ndarray,
    positions: np.ndarray,
    hamiltonian: np.ndarray,
    asymmetry: float | None = 1e-6,
) -> None:
    """Refuse arrays that cannot be a molecule and its Hamiltonian.

    Args:
        numbers: (N,) atomic numbers.
        positions: (N, 3).
        hamiltonian: (nao, nao) in hartree.
        asymmetry: largest |H - H^T| in hartree that passes as rounding; None where the matrix is
            made of one half.

    Raises:
        ValueError: says what is wrong; the reader adds the file and the row.
    """
    if numbers.size == 0:
        raise ValueError("no atoms")
    if numbers.min() < 1 or numbers.max() > 118:
        raise ValueError(f"{numbers.tolist()} are not atomic numbers")
    if positions.shape != (numbers.size, 3):
        raise ValueError(f"positions of shape {positions.shape} for {numbers.size} atoms")
    if hamiltonian.ndim != 2 or hamiltonian.shape[0] != hamiltonian.shape[1]:
        raise ValueError(f"a Hamiltonian of shape {hamiltonian.shape} is not square")
    if hamiltonian.size == 0:
        raise ValueError("the Hamiltonian is empty")
    if not (np.isfinite(positions).all() and np.isfinite(hamiltonian).all()):
        raise ValueError("NaN or infinite values")
    if asymmetry is not None and np.abs(hamiltonian - hamiltonian.T).max() > asymmetry:
        raise ValueError("the Hamiltonian is not symmetric")


def symmetric(matrix: np.ndarray) -> np.ndarray:
    """Mean of a matrix and its transpose; of a symmetric matrix, the same to the last bit."""
    return (matrix + matrix.T) / 2


def refuse_mixture(
    path: Path, found: dict[str, Any], wanted: dict[str, Any], versions: bool = False
) -> None:
    """Refuse labels of another method than those in a file.

    Args:
        path: of the file, for the message.
        found: settings of its labels.
        wanted: settings of the labels to come.
        versions: whether versions of programs have to be the same, too.

    Raises:
        DatasetError: names what differs.
    """
    if not versions:
        found, wanted = (
            {key: value for key, value in settings.items() if not key.endswith("_version")}
            for settings in (found, wanted)
        )
    if changed := differences(found, wanted):
        raise DatasetError(
            f"{path} has labels of other settings ({', '.join(changed)}); write to another file"
        )


class LabelFile(ABC):
    """A file of labelled molecules, open for reading.

    Attributes:
        path: where it lies.
        format: name of the format, for messages.
        row_name: what the format calls the number of a row, for messages.
        steps: how many of each SCF are kept.
    """

    path: Path
    format: str
    row_name: str = "id"
    steps: int = 0

    @abstractmethod
    def ids(self) -> list[int]:
        """The rows in the file's own order, which the published split rules count in."""

    @abstractmethod
    def sizes(self) -> list[int]:
        """Number of atoms of each row, in the order of :meth:`ids`."""

    @abstractmethod
    def __getitem__(self, row_id: int) -> Record:
        """Read one row.

        Raises:
            KeyError: there is no such row.
            DatasetError: the row cannot be used; the message names file, row and reason.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def molecules(self) -> list[int] | None:
        """Molecule of each row, in the order of :meth:`ids`; None where the file names none."""
        return None

    def failures(self) -> dict[int, str]:
        """Molecules without a usable label: reasons by row."""
        return {}

    def failed_molecules(self) -> dict[int, int | None]:
        """Molecule of each row of :meth:`failures`, where it is known."""
        return dict.fromkeys(self.failures())

    def settings(self) -> dict[str, Any]:
        """How the labels were made, as far as the file or its publication says."""
        return {}

    def steps_of(self, row_id: int) -> tuple[SCFStep, ...]:
        """First steps of a row's SCF, where the file keeps them."""
        return ()

    def __len__(self) -> int:
        return len(self.ids())

    def __iter__(self) -> Iterator[Record]:
        """All usable records."""
        failures = self.failures()
        for row_id in self.ids():
            if row_id not in failures:
                yield self[row_id]

    def __enter__(self):
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


class WritableLabels(LabelFile):
    """A file of labels that takes more of them; what a method has written survives a kill.

    Attributes:
        holds_ions, holds_seeds: whether the format has a place for a molecule's charge, and for
            the seed of its geometry.
    """

    holds_ions: bool = True
    holds_seeds: bool = True

    @abstractmethod
    def atoms(self, row_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Atomic numbers (N,) and positions (N, 3) in angstrom of a row, without its matrix."""

    @abstractmethod
    def meta(self, row_id: int) -> dict[str, Any]:
        """Meta data of a row, without its matrix."""

    @abstractmethod
    def add_all(self, records: Iterable[Record]) -> None:
        """Write rows, with their meta data, in one transaction.

        Raises:
            DatasetError: a record that cannot be one; none of them is written then.
        """

    def add(self, record: Record) -> None:
        """Write one row, with its meta data, in a transaction of its own."""
        self.add_all([record])

    @abstractmethod
    def add_failure(
        self, row_id: int, qm9_id: int | None, reason: str, atoms: int | None = None
    ) -> None:
        """Record a molecule that has no label, so that it is never dropped without a word.

        Args:
            row_id: of the molecule.
            qm9_id: its index in QM9.
            reason: why it has none.
            atoms: number of atoms, of a row that keeps its place among the others.

        Raises:
            DatasetError: the format has no place for rows without a label.
        """

    @abstractmethod
    def write_settings(self, settings: dict[str, Any], source: str | None = None) -> None:
        """Say how the labels to come were made, and from which file they are.

        Raises:
            DatasetError: the file has labels of another method.
        """
