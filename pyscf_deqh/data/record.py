"""What every file of labels gives, whatever its format: checked records and one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .xyz import Geometry


@dataclass
class Record:
    """A labelled molecule: positions (N, 3) in angstrom, hamiltonian (nao, nao) in hartree.

    The matrix is in PySCF's AO order, also where the file's is another.
    """

    id: int
    numbers: np.ndarray
    positions: np.ndarray
    hamiltonian: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    def geometry(self) -> Geometry:
        info = {"id": str(self.id)} | {k: str(v) for k, v in self.meta.items() if v is not None}
        return Geometry(self.numbers, self.positions, info)


def check_arrays(
    numbers: np.ndarray, positions: np.ndarray, hamiltonian: np.ndarray, asymmetry: float = 1e-6
) -> None:
    """Refuse arrays that cannot be a molecule and its Hamiltonian.

    Args:
        numbers: (N,) atomic numbers.
        positions: (N, 3).
        hamiltonian: (nao, nao) in hartree.
        asymmetry: largest |H - H^T| in hartree that passes as rounding.

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
    if np.abs(hamiltonian - hamiltonian.T).max() > asymmetry:
        raise ValueError("the Hamiltonian is not symmetric")


class LabelFile(ABC):
    """A file of labelled molecules, open for reading.

    Attributes:
        path: where it lies.
        format: name of the format, for messages.
        row_name: what the format calls the number of a row, for messages.
    """

    path: Path
    format: str
    row_name: str = "id"

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

    def settings(self) -> dict[str, Any]:
        """How the labels were made, as far as the file or its publication says."""
        return {}

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
