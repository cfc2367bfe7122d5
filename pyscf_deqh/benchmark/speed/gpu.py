"""Part ``gpu``: rates, accuracy of reduced precision, kernels, and captured graphs on a device.

Runs on the CPU as well, where it checks that every line works.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ...graph.batch import GraphBatch, MolecularGraph
from ...nn.deqh import DEQH
from ...nn.so2 import FrameFeatures
from ...train.cuda_graphs import CapturedGradients
from ...train.loss import hamiltonian_loss
from .report import Report
from .samples import batch_of, geometries_of, labelled_graphs, untrained
from .settings import Settings
from .steps import TrainingSteps, inference
from .timing import Sample, measure

# Seconds that the timed calls of one row may take.
_ROW_SECONDS = 2.0
# What compiling a filter may take.
_COMPILATION_SECONDS = {"so2net": 40.0, "qhnet": 80.0}
_TOP_KERNELS = 5
_MIXED_LAYERS = ("SO2Layer", "ConvLayer", "TransBlock", "SelfLayer", "PairLayer")


class _Bench:
    """What all rows share: the device, its clock, the graphs, and the time that is left."""

    def __init__(self, settings: Settings, report: Report):
        self.settings, self.report = settings, report
        self.device = torch.device(settings.device)
        self.on_cuda = self.device.type == "cuda"
        self.ends = time.perf_counter() + settings.seconds
        self.graphs: list[MolecularGraph] = []

    def synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def time(self, function: Callable[[], object]) -> Sample:
        repeats = self.settings.repeats
        return measure(function, repeats, 2, _ROW_SECONDS, self.synchronize)

    @contextmanager
    def row(self, name: str, needs: float = 0.0) -> Iterator[bool]:
        """Yields whether ``needs`` seconds are left for it; an error ends this row alone."""
        in_time = time.perf_counter() + needs < self.ends
        if not in_time:
            self.report.say(name, "left out: the time for this part is over", left_out=True)
        with self.report.attempt(name):
            yield in_time
        if self.on_cuda:
            torch.cuda.empty_cache()

    def model(self, kind: str) -> DEQH:
        options = getattr(self.settings.sizes, kind)
        return untrained(kind, options, str(self.device))

    def batch(self, model: DEQH, n: int, dtype: torch.dtype = torch.float32) -> GraphBatch:
        return batch_of(model, self.graphs, n, dtype).to(self.device)


def run(settings: Settings, report: Report) -> None:
    """All rows of the part; those that matter most come first."""
    bench = _Bench(settings, report)
    name = torch.cuda.get_device_name(bench.device) if bench.on_cuda else "CPU"
    report.start("gpu", f"untrained networks on {name}, molecules of {settings.sizes.small_atoms} "
                 "atoms, made-up labels")  # fmt: skip
    report.environment["device"] = name
    bench.graphs = labelled_graphs(geometries_of(settings.sizes.small_atoms))
    models = {}
    for kind in ("so2net", "qhnet"):
        with report.attempt(f"{kind}: network"):
            models[kind] = bench.model(kind)
    middle = settings.sizes.device_batches[len(settings.sizes.device_batches) // 2]
    for kind, model in models.items():
        for n in settings.sizes.device_batches:
            _rate(bench, f"{kind}, inference", model, n, _prepare_inference)
        for n in settings.sizes.device_batches:
            _rate(bench, f"{kind}, training", copy.deepcopy(model), n, TrainingSteps)
    for kind, model in models.items():
        _accuracy(bench, kind, model)
    for kind, model in models.items():
        _kernels(bench, f"{kind}, inference, batch {middle}", model, middle, _prepare_inference)
        _kernels(bench, f"{kind}, training, batch {middle}", copy.deepcopy(model), middle,
                 TrainingSteps)  # fmt: skip
    for kind, model in models.items():
        for n in sorted({1, middle}):
            _captured(bench, kind, model, n)
    if "so2net" in models:
        for n in sorted({middle, 2 * middle}):
            _captured_training(bench, copy.deepcopy(models["so2net"]), n)
    for kind, model in models.items():
        _compiled(bench, kind, model, middle)


# Rates.


def _prepare_inference(model: DEQH, batch: GraphBatch) -> Callable[[], Tensor]:
    return inference(model, batch)


def _rate(bench: _Bench, name: str, model: DEQH, n: int, prepare: Callable) -> None:
    """Molecules per second; where a batch does not fit into memory, half of it is tried."""
    with bench.row(f"{name}, batch {n}") as in_time:
        size = n
        while in_time:
            try:
                _rate_row(bench, f"{name}, batch {n}", model, size, n, prepare)
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside of the handler, whose traceback keeps the tensors alive.
            size //= 2
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()


def _rate_row(
    bench: _Bench, name: str, model: DEQH, size: int, asked: int, prepare: Callable
) -> None:
    batch = bench.batch(model, size)
    if bench.on_cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    step = prepare(model, batch)
    steps = getattr(step, "per_call", 1)
    sample = bench.time(step).rate(size * steps)
    memory = torch.cuda.max_memory_allocated(bench.device) if bench.on_cuda else 0
    notes = []
    if size < asked:
        notes.append(f"batch {size}: {asked} do not fit into memory")
    if memory:
        notes.append(f"{memory / 2**20 / size:.0f} MiB per molecule")
    bench.report.add(
        name, sample, "molecules/s", "; ".join(notes), batch=size, asked=asked, peak_bytes=memory
    )


# Accuracy of reduced precision.


def _full_precision(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, FrameFeatures):
        return FrameFeatures(*map(_full_precision, output.tensors))
    return type(output)(_full_precision(part) for part in output)


@contextmanager
def _layers_in_bfloat16(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Autocast inside the message-passing and block layers; what is between stays float32.

    The eigenproblem of the density matrix has no bfloat16.
    """
    layers = [m for m in model.modules() if type(m).__name__ in _MIXED_LAYERS]

    def mixed(forward):
        def call(*args, **kwargs):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                return _full_precision(forward(*args, **kwargs))

        return call

    for layer in layers:
        layer.forward = mixed(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of the class is back


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _fixed_depth(model: DEQH) -> DEQH:
    """A copy that makes all iterations whatever the residual, so that precisions compare."""
    fixed = copy.deepcopy(model)
    fixed.configure(replace(fixed.settings, forward_tolerance=1e-30))
    return fixed.eval()


def _accuracy(bench: _Bench, kind: str, model: DEQH) -> None:
    """Differences to float64, and the times, of single, TF32 and bfloat16 arithmetic."""
    n = len(bench.graphs)
    fixed = _fixed_depth(model)
    exact = None
    with bench.row(f"{kind}, float64") as in_time:
        if in_time:
            double = copy.deepcopy(fixed).double()
            solve = inference(double, bench.batch(double, n, torch.float64))
            exact = solve()
            sample = bench.time(solve).rate(n)
            bench.report.add(f"{kind}, float64, batch {n}", sample, "molecules/s")
    batch = bench.batch(fixed, n)
    modes: dict[str, Callable] = {
        "float32": nullcontext,
        "tf32": _tf32,
        "bfloat16 layers": lambda: _layers_in_bfloat16(fixed, bench.device),
    }
    for mode, context in modes.items():
        with bench.row(f"{kind}, {mode}") as in_time:
            if not in_time or exact is None:
                continue
            with context():
                solve = inference(fixed, batch)
                difference = (solve().double() - exact)[batch.orbital_mask].abs()
                sample = bench.time(solve).rate(n)
            change = (exact - batch.reference)[batch.orbital_mask].abs()
            bench.report.add(f"{kind}, {mode}, batch {n}", sample, "molecules/s")
            bench.report.add(f"{kind}, {mode}: max |H - H(float64)|", difference.max().item(), "Eh",
                             f"predicted: max {change.max().item():.2g} Eh")  # fmt: skip
            bench.report.add(f"{kind}, {mode}: mean |H - H(float64)|", difference.mean().item(),
                             "Eh", f"predicted: mean {change.mean().item():.2g} Eh")  # fmt: skip


# Kernels.


def _kernels(bench: _Bench, name: str, model: DEQH, n: int, prepare: Callable) -> None:
    """Largest kernels by device time, and the part of the wall-clock time that kernels run."""
    with bench.row(f"{name}: kernels") as in_time:
        if not in_time:
            return
        step = prepare(model, bench.batch(model, n))
        step()
        bench.synchronize()
        activities = [ProfilerActivity.CUDA if bench.on_cuda else ProfilerActivity.CPU]
        with profile(activities=activities) as profiler:
            started = time.perf_counter()
            step()
            bench.synchronize()
            wall = time.perf_counter() - started
        # Operators carry their kernels' times as well; kernels themselves are the device's events.
        where = DeviceType.CUDA if bench.on_cuda else DeviceType.CPU
        times = "self_device_time_total" if bench.on_cuda else "self_cpu_time_total"
        events = [event for event in profiler.key_averages() if event.device_type == where]
        events.sort(key=lambda event: getattr(event, times), reverse=True)
        total = sum(getattr(event, times) for event in events)
        launches = sum(event.count for event in events)
        bench.report.add(f"{name}: kernels run", 1e-4 * total / wall, "% of the time",
                         f"{launches} kernels", kernels=launches)  # fmt: skip
        for event in events[:_TOP_KERNELS]:
            share = 100 * getattr(event, times) / total
            bench.report.add(f"{name}: {event.key[:24]}", share, "% of kernels",
                             f"{event.count} calls: {event.key[:80]}", calls=event.count,
                             kernel=event.key)  # fmt: skip


# CUDA graphs and torch.compile.


def _filter(model: DEQH, batch: GraphBatch) -> tuple[str, Callable[[], Tensor]]:
    """The part of one iteration that can be captured: without the eigenproblem, which waits."""
    backbone: Any = model.backbone
    injected = backbone.injection(batch)
    state = backbone.state(model.initial_hamiltonian(batch), injected)
    if not hasattr(backbone, "filter_layers"):
        return "filter", lambda: backbone.filter(state, injected)

    def layers() -> Tensor:
        x, pairs = injected.atoms, injected.pairs
        for layer in backbone.filter_layers:
            x, pairs = layer(x, pairs, injected.chunks)
        return x

    return "filter layers", layers


def _captured(bench: _Bench, kind: str, model: DEQH, n: int) -> None:
    """Time of a filter against its replay as a CUDA graph."""
    name = f"{kind}, CUDA graph, batch {n}"
    if not bench.on_cuda:
        bench.report.say(name, "left out: no CUDA device", left_out=True)
        return
    with bench.row(name) as in_time, torch.no_grad():
        if not in_time:
            return
        what, function = _filter(model, bench.batch(model, n))
        eager = bench.time(function)
        expected = function()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()
        replayed = bench.time(graph.replay)
        _speedup(bench, name, what, eager, replayed, result, expected)


def _captured_training(bench: _Bench, model: DEQH, n: int) -> None:
    """Time of a gradient of one application of f against its replay, as a training replays it."""
    name = f"so2net, training, CUDA graph, batch {n}"
    if not bench.on_cuda:
        bench.report.say(name, "left out: no CUDA device", left_out=True)
        return
    with bench.row(name) as in_time:
        if not in_time:
            return
        model.train().configure(replace(model.settings, forward_max_iterations=1))
        batch = bench.batch(model, n)
        padded = batch_of(model, bench.graphs, n, few_shapes=True).to(bench.device)
        parameters = list(model.parameters())

        def loss(batch: GraphBatch) -> dict[str, Tensor]:
            return hamiltonian_loss(model(batch).hamiltonian, batch, 10.0)

        def differentiate() -> None:
            model.zero_grad()
            loss(batch)["loss"].backward()

        eager = bench.time(differentiate)
        expected = _flat(parameters)
        captured = CapturedGradients(loss, parameters)
        replayed = bench.time(lambda: captured(padded))
        result = _flat(parameters)
        _speedup(bench, name, "gradient", eager, replayed, result, expected)


def _flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([gradient.flatten() for gradient in gradients])


def _compiled(bench: _Bench, kind: str, model: DEQH, n: int) -> None:
    """Time of a filter against ``torch.compile``'s."""
    name = f"{kind}, torch.compile, batch {n}"
    with bench.row(name, _COMPILATION_SECONDS[kind]) as in_time, torch.no_grad():
        if not in_time:
            return
        what, function = _filter(model, bench.batch(model, n))
        eager = bench.time(function)
        expected = function()
        compiled = torch.compile(function, dynamic=False)
        started = time.perf_counter()
        result = compiled()
        bench.synchronize()
        bench.report.add(f"{name}: compilation", time.perf_counter() - started, "s")
        _speedup(bench, name, what, eager, bench.time(compiled), result, expected)


def _speedup(
    bench: _Bench, name: str, what: str, before: Sample, after: Sample, result: Tensor,
    expected: Tensor,
) -> None:  # fmt: skip
    deviation = ((result - expected).abs().max() / expected.abs().max()).item()
    bench.report.add(f"{name}: {what}, eager", before.scaled(1e3), "ms")
    bench.report.add(f"{name}: {what}", after.scaled(1e3), "ms")
    bench.report.add(f"{name}: speed-up", before.median / after.median, "",
                     f"relative deviation {deviation:.1e}")  # fmt: skip
