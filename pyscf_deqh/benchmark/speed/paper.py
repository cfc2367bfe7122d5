"""Part ``paper``: DEQHNet at the paper's size against the recursion as it is written there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .plain_recursion import molecule_frame, plain_recursion, with_full_products
from .report import Report
from .samples import batch_of, geometries_of, labelled_graphs, untrained
from .settings import Settings
from .timing import Sample, measure

_ROW_SECONDS = 60.0


def run(settings: Settings, report: Report) -> None:
    report.start("paper", f"untrained DEQHNet, {settings.threads} threads, one molecule of "
                 f"{settings.sizes.small_atoms} atoms")  # fmt: skip
    model = untrained("qhnet", settings.sizes.qhnet)
    network: Any = model.backbone
    report.say("network", f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
               f"{network.config.channels} channels")  # fmt: skip
    graphs = labelled_graphs(geometries_of(settings.sizes.small_atoms)[-1:])
    batch = batch_of(model, graphs)
    start = model.initial_hamiltonian(batch)
    limit = model.settings.forward_max_iterations
    full = with_full_products(network)

    def timed(name: str, function: Callable[[], Tensor]) -> tuple[Sample, Tensor]:
        with torch.no_grad():
            sample = measure(function, settings.repeats, 1, _ROW_SECONDS)
            report.add(name, sample, "s")
            return sample, function()

    with torch.no_grad():
        # The solver returns its best iterate; the readout is one more application of f.
        applications = int(model(batch).iterations[0]) + 1
    ours, solved = timed(
        f"solver, {limit} iterations and readout", lambda: model(batch).hamiltonian
    )
    name = "plain recursion, {} applications, {} products"
    fast, _ = timed(
        name.format(applications, "our"),
        lambda: plain_recursion(network, start, batch, applications),
    )
    with molecule_frame():
        slow, expected = timed(
            name.format(applications, "full"),
            lambda: plain_recursion(full, start, batch, applications),
        )
        short, _ = timed(
            name.format(limit, "full"), lambda: plain_recursion(full, start, batch, limit)
        )
    report.add("speed-up at the same output", slow.median / ours.median, "",
               "recursion with full products / solver")  # fmt: skip
    report.add(f"speed-up over {limit} applications", short.median / ours.median, "",
               "less output than the solver's")  # fmt: skip
    report.add("speed-up of the solver alone", fast.median / ours.median, "",
               "recursion with our products / solver")  # fmt: skip
    deviation = (solved - expected).abs().max() / expected.abs().max()
    report.add("max deviation / max |H|, float32", deviation.item())
    with torch.no_grad(), molecule_frame():
        double = plain_recursion(
            full.double(), start.double(), batch.to(dtype=torch.float64), applications
        )
    for name, single in (("solver", solved), ("recursion", expected)):
        error = (single.double() - double).abs().max() / double.abs().max()
        report.add(f"{name}, max deviation from float64 / max |H|", error.item())
