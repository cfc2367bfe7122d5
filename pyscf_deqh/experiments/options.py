"""The options of one call of ``python -m pyscf_deqh.experiments``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .datasets import DEFAULT_BASIS, Dataset, find_datasets
from .sizes import Size


@dataclass(frozen=True)
class Options:
    """What to run, on what, and how long.

    Attributes:
        size: preset of network, budget and numbers of molecules.
        out: folder of the results and of everything needed to go on after an interruption.
        data: labelled files and folders of them; empty (smoke only): labels are made.
        datasets: only these data sets of those found in ``data``; empty for all.
        split_sizes: training, validation and perhaps test rows of the MD17 molecules.
        seeds: of the trainings.
        minutes, steps: end of each training, instead of the preset's.
        init: bundled name or exported folder, whose weights all trainings start from.
        models: bundled names or exported folders (Table 3, Fig. 4b).
        n: number of molecules (Table 3, Fig. 4b, progress), instead of the preset's.
    """

    size: Size
    out: Path
    data: tuple[Path, ...] = ()
    datasets: tuple[str, ...] = ()
    split_sizes: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    minutes: float | None = None
    steps: int | None = None
    init: str | None = None
    models: tuple[str, ...] = ()
    n: int | None = None

    @property
    def budget(self) -> tuple[float, int]:
        """Minutes and steps of a training, one of them 0: no limit of that kind."""
        if self.minutes is None and self.steps is None:
            return self.size.minutes, self.size.steps
        return self.minutes or 0.0, self.steps or 0

    @cached_property
    def found(self) -> dict[str, Dataset]:
        """Data sets to work on, by name.

        Raises:
            ConfigError: there are no data, or not those that were asked for.
        """
        data, sizes = self.data, self.split_sizes
        if not data and self.size.name == "smoke":
            from .samples import SPLIT_SIZES, make_samples

            data, sizes = (make_samples(self.out / "samples"),), SPLIT_SIZES
        found = find_datasets(data, sizes)
        missing = set(self.datasets) - set(found)
        if missing:
            raise ConfigError(
                f"no data for {', '.join(sorted(missing))}; --data has "
                f"{', '.join(found) or 'nothing'}"
            )
        return {k: v for k, v in found.items() if not self.datasets or v.molecule in self.datasets}

    def need(self, *names: str) -> dict[str, Dataset]:
        """Those of ``names`` that there are data for, or all data sets in def2-SVP if none are
        named.

        Raises:
            ConfigError: there are data for none of them.
        """
        chosen = {
            k: v
            for k, v in self.found.items()
            if (k in names if names else v.bases == (DEFAULT_BASIS,))
        }
        if not chosen:
            raise ConfigError(
                f"name labelled files of {', '.join(names) or 'any data set'} with --data "
                "(docs/reproduction.md says how to get them), or try --size smoke, which makes "
                "its own"
            )
        return chosen

    def to_json(self) -> dict[str, Any]:
        """What a report says of the options."""
        minutes, steps = self.budget
        return {
            "size": self.size.name,
            "seeds": list(self.seeds),
            "minutes": minutes,
            "steps": steps,
            "split_sizes": list(self.split_sizes),
            "init": Path(self.init).name if self.init else None,
            "data": [path.name for path in self.data],
            "preset": asdict(self.size),
        }
