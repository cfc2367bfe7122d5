"""What a run measures: its options, and the sizes of networks and molecules."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoint import DEFAULT_MODEL


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured; the defaults are those of the documentation.

    Attributes:
        so2net, qhnet: options of the untrained networks' configurations; ``qhnet``'s defaults are
            the paper's.
        small_atoms: atoms of the molecules that rates are measured on.
        larger_carbons: of the alkane in part ``guess``; nonane has 29 atoms.
        training_batches: molecules per step on the CPU.
        device_batches: molecules per batch on a GPU.
        stored: molecules in the graph store that loading is timed with.
        growth_atoms: about how many atoms chains and clusters have.
        reference_atoms: largest system whose reference is built; larger ones get a stand-in.
        error_carbons: chain of the cutoff's error.
        peak_order, peak_bytes: square matrices and copies that find the machine's peak rates.
    """

    so2net: dict[str, Any] = field(default_factory=lambda: {"injection_layers": 1})
    qhnet: dict[str, Any] = field(default_factory=dict)
    small_atoms: int = 15
    larger_carbons: int = 9
    training_batches: tuple[int, ...] = (4, 8, 16)
    device_batches: tuple[int, ...] = (1, 32, 256)
    stored: int = 64
    growth_atoms: tuple[int, ...] = (10, 30, 60, 120, 250, 500)
    reference_atoms: int = 120
    error_carbons: int = 12
    peak_order: int = 2048
    peak_bytes: int = 2**30


# Every line of code in a minute; the figures mean nothing.
SMOKE = Sizes(
    so2net={"natural_channels": 4, "pseudo_channels": 2, "injection_layers": 1, "filter_layers": 1,
            "invariants": 8, "radial_functions": 8},
    qhnet={"layers": 4, "channels": 8, "bottleneck_channels": 4, "radial_functions": 32,
           "heads": 2, "head_channels": (4, 2, 1)},
    small_atoms=5,
    larger_carbons=2,
    training_batches=(2,),
    device_batches=(1, 2),
    stored=4,
    growth_atoms=(6, 9, 14),
    reference_atoms=6,
    error_carbons=2,
    peak_order=128,
    peak_bytes=2**20,
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Options of one run.

    Attributes:
        repeats: timed calls of each figure.
        threads: of PyTorch and PySCF.
        device: where the networks of part ``gpu`` run.
        model: bundled model or exported folder.
        max_atoms: largest system of part ``growth``.
        seconds: part ``gpu`` begins no further row after this time.
    """

    repeats: int = 9
    threads: int = 1
    device: str = "cuda"
    model: str | Path = DEFAULT_MODEL
    max_atoms: int = 500
    seconds: float = 130.0
    sizes: Sizes = field(default_factory=Sizes)

    def to_config(self) -> dict[str, Any]:
        return asdict(self) | {"model": str(self.model)}
