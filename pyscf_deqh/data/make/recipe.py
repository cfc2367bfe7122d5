"""Molecules whose geometries are made on the way to their labels: a conformer's minimum, or a
moment of its dynamics. A file of such recipes says all that a set of labels is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pyscf.data import elements

from ...errors import DatasetError
from ..xyz import Described, Geometry, parse_comment
from .dynamics import XTB, centred, thermal_velocities
from .embed import check_bonds, geometry_of, molecule_lines

SUFFIX = ".smi"
# Steps from the minimum, of 1 fs: three times what the thermostat needs to change a velocity.
_STEPS = 150


@dataclass
class GeometryRecipe(Described):
    """A molecule to be made.

    Attributes:
        smiles: of a closed shell.
        info: ``id``, and perhaps ``qm9_id``, ``charge``, ``heavy`` (atoms), ``temperature``
            (kelvin, of GFN2-xTB dynamics; 0 or none: the minimum) and ``seed``. ``kind``, ``eq`` or
            ``md``, follows.
        place: in the file.
    """

    smiles: str
    info: dict[str, str] = field(default_factory=dict)
    place: int | None = None

    def __post_init__(self) -> None:
        moves = self.info.get("temperature", "0").strip("0") not in ("", ".")
        self.info = {"smiles": self.smiles, **self.info, "kind": "md" if moves else "eq"}

    @property
    def n_heavy(self) -> int:
        """Heavy atoms, as the file says.

        Raises:
            DatasetError: it does not.
        """
        number = self.whole_number("heavy")
        if number is None:
            raise DatasetError(f"{self.smiles}: there is no heavy=… beside it")
        return number

    def geometry(self, number: int) -> Geometry:
        """The molecule: the same for the same recipe, but for rounding.

        Args:
            number: of the dynamics' random numbers, beside the seed.

        Raises:
            ValueError: no SMILES of a closed shell, no geometry with its bonds, or another charge
                than ``info`` says.
        """
        seed, temperature = self.whole_number("seed") or 0, float(self.info.get("temperature", 0))
        symbols, positions, charge = geometry_of(self.smiles, seed)
        if charge != self.charge and "charge" in self.info:
            raise ValueError(f"{self.smiles} has the charge {charge}, not {self.charge}")
        numbers = np.array([elements.charge(symbol) for symbol in symbols], dtype=np.int32)
        if temperature:
            rng = np.random.default_rng([seed, number])
            velocities = thermal_velocities(numbers, temperature, rng)
            state = XTB(timestep=1.0).advance(
                numbers, (positions, velocities), _STEPS, temperature, rng, charge
            )
            positions = centred(numbers, state)[0]
            check_bonds(self.smiles, positions)
        return Geometry(numbers, positions, self.info | {"charge": str(charge)}, self.place)


def read_recipes(path: str | Path) -> list[GeometryRecipe]:
    """Recipes from lines ``SMILES key=value …``; empty ones and those that begin with ``#`` are
    left out.

    Raises:
        DatasetError: the file is missing or empty, or a line has something else.
    """
    recipes: list[GeometryRecipe] = []
    for number, line in molecule_lines(path):
        smiles, *rest = line.split(maxsplit=1)
        words = rest[0].split() if rest else []
        info = parse_comment(" ".join(words))
        if len(info) != len(words):
            raise DatasetError(f"{path}, line {number}: {rest[0]!r} is not key=value …")
        recipes.append(GeometryRecipe(smiles, info, len(recipes)))
    return recipes
