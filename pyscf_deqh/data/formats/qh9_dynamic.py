"""Reader of QH9-dynamic (100k and 300k): molecular dynamics of QM9 molecules (Yu et al., 2023).

Table ``data``: ``id, geo_id, N, Z, pos, ekin, epot, etot, time, Ham, converged``. As in QH9-stable,
but for three things: positions are in **bohr**, ``id`` is the molecule (an integer, or one as an
8-byte blob) and ``geo_id`` its geometry, and ``converged`` is 0 where the SCF did not converge.
A row is known by its SQLite ``rowid``, whose order the published split rules count in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyscf.data.nist import BOHR

from ...errors import DatasetError
from ..record import Record, check_arrays
from .qh9 import decode_atoms, decode_matrix
from .sqlite import SQLiteLabels, check_columns, connect_read_only, opening, table_columns

_COLUMNS = {"id", "geo_id", "N", "Z", "pos", "epot", "Ham", "converged"}


def _whole_number(value: int | bytes) -> int:
    return int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)


class QH9DynamicDatabase(SQLiteLabels):
    """A QH9-dynamic file; records are in angstrom like all others.

    A row whose SCF did not converge has no label: it is listed by :meth:`failures`, and reading it
    is an error.

    Raises:
        DatasetError: not a database, or a wrong schema.
    """

    format = "QH9-dynamic"
    row_name = "row"  # the column id is the molecule

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with opening(self.path, "a QH9-dynamic"):
            self._connection = connect_read_only(self.path)
            columns = table_columns(self._connection)
        check_columns(self.path, columns, _COLUMNS)

    def ids(self) -> list[int]:
        return self._integers("rowid")

    def sizes(self) -> list[int]:
        return self._integers("N")

    def molecules(self) -> list[int]:
        found = [value for (value,) in self._query("SELECT id FROM data ORDER BY rowid")]
        try:
            return [_whole_number(value) for value in found]
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{self.path}: a molecule's id is damaged: {error}") from error

    def failures(self) -> dict[int, str]:
        rows = self._query("SELECT rowid FROM data WHERE converged IS NOT 1 ORDER BY rowid")
        return {row_id: "the SCF of this row did not converge" for (row_id,) in rows}

    def failed_molecules(self) -> dict[int, int | None]:
        failures = self.failures()
        pairs = zip(self.ids(), self.molecules(), strict=True)
        return {row_id: molecule for row_id, molecule in pairs if row_id in failures}

    def settings(self) -> dict[str, Any]:
        return {"program": "PySCF", "xc": "b3lyp", "basis": "def2-svp"}

    def __getitem__(self, row_id: int) -> Record:
        columns = "N, Z, pos, Ham, id, geo_id, epot, converged"
        rows = self._query(f"SELECT {columns} FROM data WHERE rowid = ?", row_id)
        if not rows:
            raise KeyError(f"{self.path} has no row {row_id}")
        *arrays, matrix, molecule, geometry, energy, converged = rows[0]
        try:
            if converged != 1:
                raise ValueError("the SCF of this row did not converge (converged is not 1)")
            numbers, positions = decode_atoms(*arrays)
            hamiltonian = decode_matrix(matrix)
            check_arrays(numbers, positions, hamiltonian)
            # All geometries of a molecule have to stay in one split, in what is made of them too.
            meta = {
                "qm9_id": _whole_number(molecule),
                "geo_id": _whole_number(geometry),
                "kind": "md",
            }
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{self.path}, row {row_id}: {error}") from error
        return Record(row_id, numbers, BOHR * positions, hamiltonian, meta | {"energy": energy})
