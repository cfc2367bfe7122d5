"""Part ``training``: molecules per second of training steps, memory, and the rate of loading."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.dataset import GraphStore, HamiltonianDataset
from ...data.formats.qh9 import QH9Database
from ...data.geometry import Geometry
from ...data.record import Record
from ...graph.batch import BOHR, MolecularGraph, collate
from .report import Report
from .samples import BASIS, batch_of, geometries_of, labelled_graphs, untrained
from .settings import Settings
from .steps import TrainingSteps
from .timing import measure

_ROW_SECONDS = 60.0


def run(settings: Settings, report: Report) -> None:
    """Training of SO2Net beside reading and batching the same molecules from a graph store."""
    sizes = settings.sizes
    model = untrained("so2net", sizes.so2net)
    config: Any = model.backbone.config
    report.start(
        "training", f"SO2Net, {config.natural_channels} channels, "
        f"{config.injection_layers + config.filter_layers} layers, {settings.threads} threads, "
        f"{sizes.small_atoms} atoms, made-up labels",
    )  # fmt: skip
    geometries = geometries_of(sizes.small_atoms)
    graphs = labelled_graphs(geometries)
    rates = {}
    for depth in (model.settings.forward_max_iterations, 1):
        model.configure(replace(model.settings, forward_max_iterations=depth))
        what = f"training, at most {depth} applications of f" if depth > 1 else "training"
        for n in sizes.training_batches:
            with report.attempt(f"{what}, batch {n}"):
                batch = batch_of(model, graphs, n)
                steps = TrainingSteps(model, batch)
                seconds = measure(steps, settings.repeats, 1, _ROW_SECONDS)
                sample = seconds.rate(n * steps.per_call)
                note = f"a measurement is {steps.per_call} steps, one of each depth"
                report.add(f"{what}, batch {n}", sample, "molecules/s", note if depth > 1 else "")
                rates[n] = sample.median
                if depth == 1:  # only the last application of f is differentiated
                    report.add(f"memory kept for backward, batch {n}",
                               saved_bytes(steps) / n / 2**20, "MiB/molecule")  # fmt: skip
    with report.attempt("loading"):
        _loading(settings, report, model, geometries, graphs, rates)


def saved_bytes(steps: TrainingSteps) -> int:
    """Bytes that autograd keeps from forward to backward, each storage once, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in steps.model.parameters()}
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # alive, so that no address is given twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        steps.loss()
    return sum(storages.values())


def _loading(
    settings: Settings, report: Report, model: Any, geometries: Sequence[Geometry],
    graphs: Sequence[MolecularGraph], rates: dict[int, float],
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.db"
        _write_labels(path, geometries, graphs)
        store = GraphStore(Path(folder) / "cache", model.backbone.config.reference, BASIS)
        data = HamiltonianDataset([path], "all", store, workers=1, progress=False)
        backbone = model.backbone
        ways: dict[str, tuple[Callable[[list[int]], list[MolecularGraph]], str]] = {
            "loading": (lambda chosen: [data[i] for i in chosen], "graph store")
        }
        if find_spec("torch_geometric"):
            from ...data.pyg import from_data, to_data
            from .pyg_store import OnDiskHamiltonians

            on_disk = OnDiskHamiltonians(Path(folder) / "pyg")
            on_disk.extend([to_data(data[i]) for i in range(len(data))])

            def from_pyg(chosen: list[int]) -> list[MolecularGraph]:
                return [from_data(found) for found in on_disk.multi_get(chosen)]

            ways["loading by PyG"] = from_pyg, "OnDiskDataset with a schema"
        for n in settings.sizes.training_batches:
            chosen = [i % len(data) for i in range(n)]
            for what, (read, store_name) in ways.items():

                def load(read: Any = read, chosen: list[int] = chosen) -> None:
                    collate(read(chosen), backbone.template, backbone.cutoff)

                sample = measure(load, settings.repeats, 2, _ROW_SECONDS).rate(n)
                report.add(f"{what}, batch {n}", sample, "molecules/s",
                           f"{store_name} and batching, one process, cached pages")  # fmt: skip
                report.add(f"{what} / training, batch {n}", sample.median / rates[n])


def _write_labels(
    path: Path, geometries: Sequence[Geometry], graphs: Sequence[MolecularGraph]
) -> None:
    with QH9Database(path, writable=True) as database:
        for i, (geometry, graph) in enumerate(zip(geometries, graphs, strict=True)):
            assert graph.hamiltonian is not None
            positions = graph.positions * BOHR
            database.add(Record(i, geometry.numbers, positions, graph.hamiltonian))
