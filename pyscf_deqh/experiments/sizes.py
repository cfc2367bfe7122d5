"""What smoke, small and full mean: networks, training budgets, numbers of molecules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .datasets import MD17

SIZES = ("smoke", "small", "full")


@dataclass(frozen=True)
class Recipe:
    """How one kind of data is trained on.

    Attributes:
        batch_size: molecules per step.
        learning_rate: after warm-up.
        ema_decay: of the averaged weights; 0 for none.
        iterations: limit of the fixed-point solvers, forward and backward.
    """

    batch_size: int
    learning_rate: float
    ema_decay: float
    iterations: int


@dataclass(frozen=True)
class Size:
    """One preset.

    Attributes:
        networks: sizes by backbone.
        variants: what is another for some variants of a backbone, by their names.
        md17, qh9: recipes by kind of data; ``water`` of its own, as in Table 4.
        steps: end of a training; 0 where the clock ends it.
        minutes: of a training; 0 where the steps end it.
        steps_per_epoch: after which the clock is looked at.
        validate_every: epochs between validations.
        warmup_steps: of the learning rate.
        max_validation, max_test: molecules used of these splits; 0 for all.
        acceleration_molecules: Table 3.
        counted_geometries, scf_geometries: Fig. 4a, DEQHNet and PySCF.
        curve_molecules: Fig. 4b.
        noise_draws: Fig. 6, for each of its noise levels.
        keep_every: steps between the networks that are followed.
    """

    name: str
    networks: dict[str, dict[str, Any]] = field(repr=False)
    variants: dict[str, dict[str, Any]] = field(repr=False)
    water: Recipe
    md17: Recipe
    qh9: Recipe
    steps: int
    minutes: float
    steps_per_epoch: int
    validate_every: int
    warmup_steps: int
    max_validation: int
    max_test: int
    acceleration_molecules: int
    counted_geometries: int
    scf_geometries: int
    curve_molecules: int
    noise_draws: int
    keep_every: int

    def recipe(self, dataset: str) -> Recipe:
        """The recipe for a data set by its name, in whatever basis set."""
        molecule = dataset.partition("-")[0]
        if molecule not in MD17:
            return self.qh9
        return self.water if molecule == "water" else self.md17


_SMOKE = Recipe(batch_size=2, learning_rate=1e-3, ema_decay=0.0, iterations=3)
# As many parameters as DEQHNet of 32 channels, within 3 %, by streams beside the structural one.
_AS_MANY = {"none": {"channels": 42}, "one": {"channels": 36}}

_BY_NAME = {
    # Every line of code, in a minute or two, on labels made on the spot; the figures mean nothing.
    "smoke": Size(
        name="smoke",
        networks={
            "qhnet": {"layers": 4, "channels": 8, "bottleneck_channels": 4, "radial_functions": 8,
                      "heads": 2, "head_channels": (4, 2, 1)},
            "phisnet": {"channels": 8, "radial_functions": 8, "modules": 1},
            "deeph": {"atom_features": 8, "pair_features": 32},
            "schnorb": {"features": 8, "factors": 8, "directions": 3},
            "so2net": {"natural_channels": 8, "pseudo_channels": 4, "injection_layers": 1,
                       "filter_layers": 1, "invariants": 16, "radial_functions": 8},
        },
        variants={},
        water=_SMOKE, md17=_SMOKE, qh9=_SMOKE,
        steps=6, minutes=0.0, steps_per_epoch=6, validate_every=1, warmup_steps=2,
        max_validation=2, max_test=3, acceleration_molecules=1,
        counted_geometries=3, scf_geometries=1, curve_molecules=2, noise_draws=30, keep_every=3,
    ),
    # What two CPU cores train in ten minutes. With fewer radial functions, untrained networks of
    # this width overflow for molecules of 17 and more atoms.
    "small": Size(
        name="small",
        networks={
            "qhnet": {"layers": 4, "channels": 32, "bottleneck_channels": 16,
                      "heads": 4, "head_channels": (8, 4, 2)},
            "phisnet": {"channels": 32, "radial_functions": 32, "modules": 3},
            "deeph": {},
            "schnorb": {"features": 128, "factors": 128, "directions": 6},
            "so2net": {},
        },
        variants={
            "qhnet": _AS_MANY["none"], "qhnet-amortized": _AS_MANY["none"],
            "qhnet-commutator": _AS_MANY["none"], "qhnet+s": _AS_MANY["one"],
            "deqhnet-s": _AS_MANY["one"],
        },
        water=Recipe(10, 1e-3, 0.99, 3), md17=Recipe(5, 1e-3, 0.99, 3),
        qh9=Recipe(4, 1e-3, 0.99, 3),
        steps=0, minutes=10.0, steps_per_epoch=10, validate_every=5, warmup_steps=100,
        max_validation=32, max_test=300, acceleration_molecules=10, counted_geometries=20,
        scf_geometries=5, curve_molecules=5, noise_draws=200, keep_every=500,
    ),
    # Table 4 of the paper. It gives neither the number of steps nor the decay of the average.
    "full": Size(
        name="full",
        networks={"qhnet": {}, "phisnet": {}, "deeph": {}, "schnorb": {}, "so2net": {}},
        variants={},
        water=Recipe(10, 5e-4, 0.99, 40), md17=Recipe(5, 1e-3, 0.99, 40),
        qh9=Recipe(32, 5e-4, 0.0, 3),
        steps=200_000, minutes=0.0, steps_per_epoch=2000, validate_every=1, warmup_steps=1000,
        max_validation=500, max_test=0, acceleration_molecules=50, counted_geometries=50,
        scf_geometries=10, curve_molecules=10, noise_draws=1000, keep_every=20_000,
    ),
}  # fmt: skip


def size_of(name: str) -> Size:
    """The preset of one of :data:`SIZES`."""
    return _BY_NAME[name]
