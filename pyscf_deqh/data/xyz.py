"""Molecular geometries from xyz and extended-xyz files, plain or gzipped."""

from __future__ import annotations

import gzip
import re
import shlex
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pyscf.data import elements

from ..errors import DatasetError
from ..files import most_unpacked


class Described:
    """A molecule with entries of a comment, ``info``."""

    info: dict[str, str]
    place: int | None

    @property
    def qm9_id(self) -> int | None:
        """Index in QM9, where the comment line gives one."""
        return self.whole_number("qm9_id")

    def whole_number(self, key: str) -> int | None:
        """An entry of the comment; None where there is none.

        Raises:
            DatasetError: it is something else.
        """
        value = self.info.get(key)
        try:
            return None if value is None else int(value)
        except ValueError as error:
            raise DatasetError(f"{key}={value} in a comment line is no whole number") from error

    def check_closed_shell(self) -> None:
        """What labels and dynamics are made of.

        Raises:
            DatasetError: by the comment it is an open shell, or has ghost atoms.
        """
        for key, wanted in (("spin", "closed shells"), ("ghosts", "molecules without ghost atoms")):
            if self.whole_number(key):
                raise DatasetError(f"{self.name} has {key}={self.info[key]}: only {wanted}")

    @property
    def molecule(self) -> int | None:
        """What splits know the molecule by: its index in QM9, else its ``id``."""
        return self.whole_number("id") if self.qm9_id is None else self.qm9_id

    @property
    def charge(self) -> int:
        return self.whole_number("charge") or 0

    @property
    def name(self) -> str:
        """From the comment line; a frame of a trajectory by its temperature and number too."""
        info = self.info
        words = [f"qm9-{info['qm9_id']}" if "qm9_id" in info else info.get("id", "")]
        words.append(info.get("name", info.get("smiles", "")))
        if "frame" in info:
            words.append(f"{info.get('temperature', '?')} K frame {info['frame']}")
        return " ".join(word for word in words if word) or "molecule"


@dataclass
class Geometry(Described):
    """A molecule: atomic numbers (N,), positions (N, 3) in angstrom, and its comment's entries.

    Attributes:
        place: index in the file or folder that it was read from.
    """

    numbers: np.ndarray
    positions: np.ndarray
    info: dict[str, str] = field(default_factory=dict)
    place: int | None = None

    @property
    def n_heavy(self) -> int:
        return int((self.numbers > 1).sum())

    def atom(self) -> list[tuple[int, tuple[float, float, float]]]:
        """The geometry in the form that ``pyscf.gto.Mole.atom`` takes (angstrom)."""
        return [
            (int(z), (float(r[0]), float(r[1]), float(r[2])))
            for z, r in zip(self.numbers, self.positions, strict=True)
        ]


def parse_comment(comment: str) -> dict[str, str]:
    """The entries ``key=value`` of a comment line."""
    try:
        words = shlex.split(comment)
    except ValueError:  # an apostrophe in free text
        words = comment.split()
    return dict(word.split("=", 1) for word in words if re.match(r"[A-Za-z_]\w*=", word))


def _atomic_number(text: str) -> int:
    """Of a symbol, or of a number as some programs write it."""
    if text.isdecimal() and 1 <= int(text) < len(elements.ELEMENTS):
        return int(text)
    try:
        number = elements.charge(text)
    except KeyError:
        number = 0
    if number < 1:
        raise ValueError(f"{text!r} is not an element")
    return number


def _position_column(info: dict[str, str]) -> tuple[int, int]:
    """Columns of species and positions, from extended xyz's ``Properties`` where given."""
    species, position, column = 0, 1, 0
    fields = info.get("Properties", "species:S:1:pos:R:3").split(":")
    for name, width in zip(fields[0::3], fields[2::3], strict=False):
        if name == "species":
            species = column
        elif name == "pos":
            position = column
        column += int(width)
    return species, position


def _text(path: Path) -> str:
    if path.suffix != ".gz":
        return path.read_text(encoding="utf-8")
    most = most_unpacked(path.stat().st_size)
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        text = handle.read(most + 1)
    if len(text) > most:
        raise ValueError(
            f"it unpacks to more than {most} characters; unpack it first if it is sound"
        )
    return text


def read_xyz(path: str | Path) -> Iterator[Geometry]:
    """Yield every frame of an xyz or extended-xyz file (``.xyz``, ``.extxyz``, also ``.gz``).

    Raises:
        DatasetError: the file is missing, empty or malformed; the message names the line.
    """
    path = Path(path)
    try:
        lines = _text(path).splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    at = 0
    found = False
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        try:
            n_atoms = int(lines[at])
            info = parse_comment(lines[at + 1])
            species, position = _position_column(info)
            rows = [line.split() for line in lines[at + 2 : at + 2 + n_atoms]]
            if len(rows) != n_atoms:
                raise ValueError(f"{n_atoms} atoms announced, {len(rows)} found")
            numbers = np.array([_atomic_number(row[species]) for row in rows], dtype=np.int32)
            positions = np.array(
                [[float(row[position + axis]) for axis in range(3)] for row in rows]
            ).reshape(n_atoms, 3)
        except IndexError as error:
            raise DatasetError(f"{path}, frame that starts at line {at + 1}: cut short") from error
        except (ValueError, RuntimeError) as error:
            raise DatasetError(f"{path}, frame that starts at line {at + 1}: {error}") from error
        found = True
        yield Geometry(numbers, positions, info)
        at += 2 + n_atoms
    if not found:
        raise DatasetError(f"{path} holds no molecule")


def places(geometries: Sequence[Described]) -> list[int]:
    """Of each in the file that it was read from, else among ``geometries``."""
    return [i if g.place is None else g.place for i, g in enumerate(geometries)]
