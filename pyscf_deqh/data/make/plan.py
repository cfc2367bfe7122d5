"""What a set of labels will cost: core hours and disk, from some of its molecules."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pyscf import gto, lib

from ...errors import ConfigError, DatasetError
from ...graph.basis import n_orbitals
from ...graph.build import build_graph
from ...tasks import Failure, outcomes
from ..dataset import encoded_size
from ..geometry import Geometry
from .label import LabelSettings, solve

_LEAST = 3  # molecules that a power law is fitted to


@dataclass(frozen=True)
class Plan:
    """Expected cost of all labels of a set.

    Attributes:
        molecules: how many.
        sample: orbitals and core seconds of each molecule that was timed.
        failures: reasons of those that have no label.
        exponent: of the number of orbitals in the seconds.
        core_hours: of all molecules, and the standard error that the choice of the sample makes
            (jackknife).
        matrix_bytes: of all Hamiltonians: whole in double precision, as QH9's databases hold them,
            and their upper triangles in single precision.
        graph_bytes: of the graphs that a training makes of the labels.
    """

    molecules: int
    sample: tuple[tuple[int, float], ...]
    failures: tuple[str, ...]
    exponent: float
    core_hours: tuple[float, float]
    matrix_bytes: tuple[int, int]
    graph_bytes: int

    def __str__(self) -> str:
        hours, error = self.core_hours
        whole, triangles = (size / 1e9 for size in self.matrix_bytes)
        timed = ", ".join(f"{orbitals}: {seconds:.2f}" for orbitals, seconds in self.sample)
        lines = [
            f"{self.molecules} molecules",
            f"core seconds by orbitals: {timed}",
            f"seconds grow with orbitals to the power {self.exponent:.2f}",
            f"labels: {hours:.3g} ± {error:.2g} core hours",
            f"disk: {whole:.3g} GB of whole matrices in double precision (.db), {triangles:.3g} GB "
            "of upper triangles in single precision",
            f"disk: {self.graph_bytes / 1e9:.3g} GB more for the graphs of a training",
        ]
        lines += [f"no label: {reason}" for reason in self.failures]
        return "\n".join(lines)


def spread(sizes: Sequence[int], n: int) -> list[int]:
    """Indices of n molecules at evenly spaced quantiles of the sizes, the largest among them."""
    order = np.argsort(sizes, kind="stable")
    return order[np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int)].tolist()


def timed(
    geometry: Geometry, settings: LabelSettings, device: str, reference: str
) -> tuple[float, int]:
    """Seconds of a molecule's label, those of all its threads, and bytes of its graph."""
    started = time.perf_counter()
    hamiltonian = solve(geometry, settings, device).hamiltonian
    seconds = lib.num_threads() * (time.perf_counter() - started)
    mol = gto.M(atom=geometry.atom(), basis=settings.basis, charge=geometry.charge, verbose=0)
    return seconds, encoded_size(build_graph(mol, reference, hamiltonian))


def plan(
    geometries: Sequence[Geometry],
    settings: LabelSettings | None = None,
    sample: int = 8,
    workers: int | None = None,
    scheduler: str | None = None,
    device: str = "cpu",
    reference: str = "sad",
) -> Plan:
    """Time the labels of some molecules, and add up what all of them will take.

    Seconds are fitted by a power of the number of orbitals. The sample runs as the labels will, all
    workers at once, so that they share the machine's memory as later.

    Args:
        geometries: the whole set.
        settings: method of the labels.
        sample: molecules to time, from the smallest to the largest; at least three.
        workers, scheduler: where to compute, see :func:`pyscf_deqh.tasks.outcomes`.
        device: for fitted Fock matrices.
        reference: of the graphs, see :mod:`pyscf_deqh.fock.reference`.

    Raises:
        ConfigError: too small a sample, or PySCF does not have the basis set.
        DatasetError: too few molecules of the sample got a label.
    """
    if sample < _LEAST:
        raise ConfigError(f"a sample of {sample} molecules: take at least {_LEAST}")
    settings = settings or LabelSettings()
    sizes = np.array([n_orbitals(geometry.numbers, settings.basis) for geometry in geometries])
    chosen = spread(sizes.tolist(), sample)
    # The first label of a worker loads libraries: those of the smallest molecule do it.
    tasks = deque((i, (geometries[i], settings, device, reference)) for i in (*chosen[:1], *chosen))
    found: dict[int, tuple[float, int]] = {}
    failures: list[str] = []
    for i, result in outcomes(timed, tasks, workers, scheduler):
        if isinstance(result, Failure):
            failures.append(f"{geometries[i].name}: {result.reason}")
        else:
            found[i] = min(result, found.get(i, result))
    if len(found) < _LEAST:
        raise DatasetError(f"{len(found)} molecules got a label: {'; '.join(failures)}")
    known = sorted(found, key=lambda i: sizes[i])
    seconds = np.array([found[i][0] for i in known])
    exponent, total = _total(sizes[known], seconds, sizes)
    others = [
        _total(np.delete(sizes[known], k), np.delete(seconds, k), sizes)[1]
        for k in range(len(known))
    ]
    n = len(known)
    error = np.sqrt((n - 1) / n * np.square(np.array(others) - np.mean(others)).sum())
    per_element = np.mean([found[i][1] / sizes[i] ** 2 for i in known])
    return Plan(
        molecules=len(geometries),
        sample=tuple((int(sizes[i]), found[i][0]) for i in known),
        failures=tuple(dict.fromkeys(failures)),
        exponent=exponent,
        core_hours=(total / 3600, float(error) / 3600),
        matrix_bytes=(int(8 * (sizes**2).sum()), int(2 * (sizes * (sizes + 1)).sum())),
        graph_bytes=int(per_element * (sizes**2).sum()),
    )


def _total(known: np.ndarray, seconds: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Exponent of the power law through the sample, and the seconds of all sizes.

    The law goes through the logarithms' means, and is scaled to the sample's sum: what matters is
    the sum of all seconds, and that of a scatter of factors is larger than its middle.
    """
    same_size = np.ptp(known) == 0
    exponent = 0.0 if same_size else float(np.polyfit(np.log(known), np.log(seconds), 1)[0])
    scale = seconds.sum() / (known**exponent).sum()
    return exponent, float(scale * (sizes.astype(float) ** exponent).sum())
