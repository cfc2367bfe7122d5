"""Readers of the MD17 Hamiltonians of SchNOrb (Schütt et al., Nat. Commun. 10, 5024 (2019)).

Water, ethanol, malondialdehyde and uracil in PBE/def2-SVP by ORCA. They are published as ASE
databases, whose rows hold ``numbers``, ``positions`` (angstrom) and, in ``data``, ``energy``,
``forces``, ``hamiltonian`` and ``overlap``. An ``.npz`` file of the same content has the arrays
``numbers`` or ``Z`` (N,), ``positions`` or ``R`` (n, N, 3), ``hamiltonian`` and ``overlap``
(n, nao, nao), and perhaps ``energy`` (n,). Hamiltonians are in hartree, matrices in ORCA's AO
order: inside a shell m = 0, +1, -1, +2, -2. Records have PySCF's order, and the stored overlap has
to be PySCF's own there: a wrong order, phase or unit cannot pass.
"""

from __future__ import annotations

import math
import sqlite3
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DatasetError
from ...files import most_unpacked
from ..record import LabelFile, Record
from .foreign import to_record
from .sqlite import SQLiteLabels, connect_read_only, opening, table_columns

_BASIS = "def2-svp"
_SETTINGS = {"program": "ORCA", "xc": "pbe", "basis": _BASIS}
# ORCA's matrices went through text with a limited number of digits.
_ASYMMETRY = 1e-5
_record = partial(to_record, basis=_BASIS, asymmetry=_ASYMMETRY)


class MD17Database(SQLiteLabels):
    """An ASE database of one molecule; rows are known by ASE's ``id``.

    ASE keeps ``data`` as JSON or as JSON with raw arrays; nothing is unpickled.

    Raises:
        DatasetError: not an ASE database, or the package ase is not installed.
    """

    format = "MD17 (ASE)"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with opening(self.path, "an ASE"):
            self._connection = connect_read_only(self.path)
            columns = table_columns(self._connection)
        if "natoms" not in columns.get("systems", ()):
            raise DatasetError(f"{self.path} has no table 'systems' as ASE databases have")
        try:
            from ase.db import connect
        except ImportError as error:
            raise DatasetError(
                f"{self.path} is an ASE database; to read it, pip install 'pyscf_deqh[md17]'"
            ) from error
        self._ase = connect(str(self.path), type="db", use_lock_file=False)

    def ids(self) -> list[int]:
        return self._integers("id", "systems")

    def sizes(self) -> list[int]:
        return self._integers("natoms", "systems")

    def settings(self) -> dict[str, Any]:
        return dict(_SETTINGS)

    def __getitem__(self, row_id: int) -> Record:
        try:
            row = self._ase.get(id=row_id)
        except KeyError as error:
            raise KeyError(f"{self.path} has no row with id {row_id}") from error
        except (OSError, ValueError, TypeError, sqlite3.DatabaseError) as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error
        try:
            data = row.data
            missing = {"hamiltonian", "overlap"} - set(data)
            if missing:
                raise ValueError(f"the row's data lacks {', '.join(sorted(missing))}")
            meta: dict[str, Any] = {"kind": "md"}
            if "energy" in data:
                meta["energy"] = float(np.ravel(data["energy"])[0])
            return _record(
                row_id,
                np.asarray(row.numbers, np.int32),
                np.asarray(row.positions, np.float64),
                np.asarray(data["hamiltonian"], np.float64),
                np.asarray(data["overlap"], np.float64),
                meta,
            )
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise DatasetError(f"{self.path}, id {row_id}: {error}") from error


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an ``.npz`` file: mapped where stored as it is, in memory where compressed."""
    info = archive.getinfo(f"{name}.npy")
    packed = min(info.compress_size, path.stat().st_size)
    if info.file_size > most_unpacked(packed):
        raise ValueError(f"{name} unpacks from {packed} to {info.file_size} bytes: store it "
                         "without compression if it is sound")  # fmt: skip
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(member)
        header = member.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    size = math.prod(shape) * dtype.itemsize
    if header + size != info.file_size:
        raise ValueError(f"{name} has {info.file_size} bytes, its header announces {header + size}")
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(info) as member:
            array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        return array
    with open(path, "rb") as handle:
        # A member's local header is 30 bytes, then its name and an extra field (PKWARE 4.3.7).
        handle.seek(info.header_offset + 26)
        lengths = np.frombuffer(handle.read(4), "<u2")
    offset = info.header_offset + 30 + int(lengths.sum()) + header
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


class MD17Arrays(LabelFile):
    """An ``.npz`` file of one molecule; rows are known by their position, from 0.

    Raises:
        DatasetError: not an npz file, or arrays are missing or do not fit together.
    """

    format = "MD17 (npz)"
    row_name = "row"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist()}
                chosen = {
                    "numbers": "numbers" if "numbers" in names else "Z",
                    "positions": "positions" if "positions" in names else "R",
                    "hamiltonian": "hamiltonian",
                    "overlap": "overlap",
                }
                missing = set(chosen.values()) - names
                if missing:
                    raise ValueError(
                        f"lacks the arrays {', '.join(sorted(missing))} "
                        f"(found: {', '.join(sorted(names)) or 'none'})"
                    )
                if "energy" in names:
                    chosen["energy"] = "energy"
                self._arrays = {k: _array(self.path, archive, v) for k, v in chosen.items()}
            lengths = {k: len(v) for k, v in self._arrays.items() if k != "numbers"}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"arrays of different lengths: {lengths}")
            if self._arrays["numbers"].ndim != 1:
                raise ValueError("numbers has to be one row for all geometries")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile,
                zlib.error) as error:  # fmt: skip
            raise DatasetError(f"{self.path} cannot be read as MD17 arrays: {error}") from error

    def close(self) -> None:
        self._arrays = {}

    def ids(self) -> list[int]:
        return list(range(len(self._arrays["positions"])))

    def sizes(self) -> list[int]:
        return [self._arrays["numbers"].size] * len(self)

    def settings(self) -> dict[str, Any]:
        return dict(_SETTINGS)

    def __getitem__(self, row_id: int) -> Record:
        if not 0 <= row_id < len(self):
            raise KeyError(f"{self.path} has no row {row_id}")
        row = {k: np.array(v[row_id]) for k, v in self._arrays.items() if k != "numbers"}
        meta: dict[str, Any] = {"kind": "md"}
        try:
            if "energy" in row:
                meta["energy"] = float(row["energy"].ravel()[0])
            return _record(
                row_id,
                self._arrays["numbers"].astype(np.int32),
                row["positions"].astype(np.float64),
                row["hamiltonian"].astype(np.float64),
                row["overlap"].astype(np.float64),
                meta,
            )
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise DatasetError(f"{self.path}, row {row_id}: {error}") from error
