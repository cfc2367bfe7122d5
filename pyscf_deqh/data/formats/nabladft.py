"""Reader of nablaDFT's Hamiltonians (Khrabrov et al., Phys. Chem. Chem. Phys. 24, 25853, 2022).

Drug-like molecules of H, C, N, O, F, S, Cl, Br in wB97X-D/def2-SVP by Psi4, as SQLite databases in
the schema of PhiSNet's: table ``data`` with ``Z`` (int32), ``R`` (N, 3) in bohr, ``E``, ``H`` and
``S`` (nao, nao) in hartree, all float32; ``dataset_ids`` with the molecule (``MOSES_ID``) and
``CONFORMER_ID`` of each row. Records have PySCF's AO order, which the stored overlap confirms.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from pyscf.data.nist import BOHR

from ...errors import DatasetError
from ..record import Record
from .foreign import ORCA, PHISNET, to_record
from .sqlite import SQLiteLabels, check_columns, connect_read_only, opening, table_columns

_BASIS = "def2-svp"
_COLUMNS = {"id", "Z", "R", "E", "H", "S"}
# Single precision of the largest core elements.
_ASYMMETRY = 1e-3


def is_nabladft(columns: dict[str, set[str]]) -> bool:
    """Whether a database's tables and columns are of this format."""
    return {"R", "H", "S"} <= columns.get("data", set())


def _array(blob: Any, dtype: str, name: str) -> np.ndarray:
    if not isinstance(blob, bytes):
        raise ValueError(f"{name} is {type(blob).__name__}, and no array")
    return np.frombuffer(blob, dtype)


def _square(blob: Any, name: str) -> np.ndarray:
    flat = _array(blob, "<f4", name)
    n = math.isqrt(flat.size)
    if n * n != flat.size:
        raise ValueError(f"{name} has {flat.size} elements, which is no square")
    return flat.reshape(n, n).astype(np.float64)


class NablaDFTDatabase(SQLiteLabels):
    """A database of nablaDFT; rows are known by their ``id``.

    Raises:
        DatasetError: not a database, or a wrong schema.
    """

    format = "nablaDFT"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with opening(self.path, "a nablaDFT"):
            self._connection = connect_read_only(self.path)
            columns = table_columns(self._connection)
        check_columns(self.path, columns, _COLUMNS)
        self._has_molecules = {"id", "MOSES_ID"} <= columns.get("dataset_ids", set())

    def ids(self) -> list[int]:
        return self._integers("id")

    def sizes(self) -> list[int]:
        return [n // 4 for n in self._integers("length(Z)")]

    def molecules(self) -> list[int] | None:
        if not self._has_molecules:
            return None
        known = dict(self._query("SELECT id, MOSES_ID FROM dataset_ids"))
        try:
            return [int(known[row_id]) for row_id in self.ids()]
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{self.path}: a row's MOSES_ID is missing: {error!r}") from error

    def settings(self) -> dict[str, Any]:
        return {"program": "Psi4", "xc": "wb97x-d", "basis": _BASIS}

    def __getitem__(self, row_id: int) -> Record:
        rows = self._query("SELECT Z, R, E, H, S FROM data WHERE id = ?", row_id)
        if not rows:
            raise KeyError(f"{self.path} has no row with id {row_id}")
        numbers, positions, energy, hamiltonian, overlap = rows[0]
        meta: dict[str, Any] = {"kind": "conformer"}
        if self._has_molecules:
            query = "SELECT MOSES_ID, CONFORMER_ID FROM dataset_ids WHERE id = ?"
            for molecule, conformer in self._query(query, row_id):
                # The name that splits go by, in what is made of the rows too.
                meta |= {"qm9_id": molecule, "conformer_id": conformer}
        try:
            if energy is not None:
                meta["energy"] = float(energy)
            return to_record(
                row_id,
                _array(numbers, "<i4", "Z").astype(np.int32),
                BOHR * _array(positions, "<f4", "R").astype(np.float64).reshape(-1, 3),
                _square(hamiltonian, "H"),
                _square(overlap, "S"),
                meta,
                _BASIS,
                _ASYMMETRY,
                (ORCA, PHISNET),
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error
