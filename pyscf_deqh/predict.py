"""From a molecule to the Hamiltonian that a model predicts."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .checkpoint import DEFAULT_MODEL, ModelSpec, basis_of, load_model, resolve_model
from .engine import HOST, Engine, gpu_engine
from .errors import ConfigError, NumericalError, UnsupportedMoleculeError, own_errors
from .fock.system import System, check_molecule
from .graph.basis import check_basis
from .process import import_torch

if TYPE_CHECKING:
    from pyscf.gto import Mole

    from .fock.fitted import FittedFock
    from .nn.deqh import DEQH


@dataclass(frozen=True, eq=False)
class Prediction:
    """A solved Hamiltonian and how it was reached.

    Attributes:
        hamiltonian: (nao, nao) float64, hartree, PySCF's AO order.
        model: name or folder of the model.
        device: where the network ran.
        iterations, residual: of the fixed point; the residual is relative.
        fock_builds: Fock matrices built for the reference.
        graph_seconds, network_seconds: overlap, reference and features; the fixed point.
        notes: what was done differently from what was asked, one sentence each.
    """

    hamiltonian: np.ndarray
    model: str
    device: str
    iterations: int
    residual: float
    fock_builds: int
    graph_seconds: float
    network_seconds: float
    notes: tuple[str, ...] = ()


@functools.lru_cache(maxsize=4)
def _load_once(folder: Path, device: str, modified: int) -> tuple[DEQH, ModelSpec]:
    return load_model(folder, device)


def cached_model(model: str | Path, device: str) -> tuple[DEQH, ModelSpec]:
    """The model, loaded once per process, and again once it was exported anew."""
    folder = resolve_model(model)
    return _load_once(folder, device, (folder / "config.json").stat().st_mtime_ns)


def resolve_device(device: str, engine: Engine = HOST) -> str:
    """``auto`` resolved, anything else checked.

    Args:
        device: what a user has asked for.
        engine: of the SCF; one on a GPU keeps the guess there.

    Raises:
        ConfigError: no such device.
    """
    import_torch()
    import torch

    if engine.fixed:
        return engine.device
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}: {error}") from error
    if kind == "mps":
        raise ConfigError(f"device {device!r} has no double precision, which the guess needs")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() or "no"
        raise ConfigError(f"device {device!r} was asked for, but PyTorch sees {found} GPU")
    return device


def predict_hamiltonian(
    mol: Mole,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    initial: np.ndarray | None = None,
) -> Prediction:
    """Solve a model's fixed point for a molecule.

    Args:
        mol: a built molecule in the model's basis set. Models are trained on neutral closed
            shells; charge and spin change the occupation, not the prediction's kind.
        model: name of a bundled model, or folder of an exported one.
        device: ``'auto'`` (a GPU where PyTorch sees one), ``'cpu'``, ``'cuda'`` …
        initial: (nao, nao) Hamiltonian in hartree that the iteration starts from (the Fock matrix
            of PySCF's own guess, say), instead of what the model's configuration names.

    Raises:
        UnsupportedMoleculeError: the model cannot describe the molecule.
        NotEnoughMemoryError: it is too large for the machine.
        NumericalError: the network returned NaN.
        CheckpointError: no such model, or a damaged one.
        ConfigError: no such device.

    Example:

        >>> from pyscf import gto
        >>> mol = gto.M(atom="H 0 0 0; F 0 0 0.92", basis="def2-svp")
        >>> predict_hamiltonian(mol).hamiltonian.shape
        (19, 19)
    """
    _check(mol, model)
    device = resolve_device(device)
    system = System(mol, engine=_engine_on(device))
    with own_errors():
        prediction, _ = solve_network(system, model, device, initial=initial)
    return _on_host(prediction, system.engine)


def predict_hamiltonians(
    mols: Iterable[Mole],
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """Solve a model's fixed point for many molecules, some at a time; in their order.

    Args:
        mols: built molecules in the model's basis set; read as they are needed.
        model, device: see :func:`predict_hamiltonian`.
        batch_size: molecules that are solved together. They are padded to the largest of them:
            neighbours of similar size take least time.

    Yields:
        Predictions; a molecule's part of its batch's time is in ``network_seconds``.

    Raises:
        ConfigError: no such device, or a batch size below one.
        UnsupportedMoleculeError, NotEnoughMemoryError, NumericalError, CheckpointError: see
            :func:`predict_hamiltonian`.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, it is {batch_size}")
    device = resolve_device(device)
    engine, remaining = _engine_on(device), iter(mols)
    while batch := list(itertools.islice(remaining, batch_size)):
        for mol in batch:
            _check(mol, model)
        with own_errors():
            predictions, _ = _solve([System(mol, engine=engine) for mol in batch], model, device)
        yield from (_on_host(prediction, engine) for prediction in predictions)


def _on_host(prediction: Prediction, engine: Engine) -> Prediction:
    return replace(prediction, hamiltonian=engine.host(prediction.hamiltonian))


def _check(mol: Mole, model: str | Path) -> None:
    check_molecule(mol)
    basis, template = basis_of(model)
    check_basis(mol, basis, template.numbers)


def _engine_on(device: str) -> Engine:
    """gpu4pyscf for molecules on its GPU, where it is installed; else PySCF."""
    if device == "cpu" or importlib.util.find_spec("gpu4pyscf") is None:
        return HOST
    try:
        engine = gpu_engine()
    except UnsupportedMoleculeError:
        return HOST
    import torch

    its_own = torch.device(device).index in (None, torch.device(engine.device).index)
    return engine if its_own else HOST


def solve_network(
    system: System,
    model: str | Path,
    device: str,
    memory: float | None = None,
    initial: np.ndarray | None = None,
) -> tuple[Prediction, FittedFock]:
    """:func:`predict_hamiltonian` of a molecule that was found to fit the model, and what builds
    further Fock matrices from the reference's integrals.

    Args:
        system: the molecule.
        model, device, initial: see :func:`predict_hamiltonian`.
        memory: in megabytes, see :class:`~pyscf_deqh.fock.fitted.FittedFock`.
    """
    import torch

    device = resolve_device(device, system.engine)
    try:
        (prediction,), fitted = _solve([system], model, device, memory, initial)
        return prediction, fitted
    except torch.OutOfMemoryError:
        if system.engine.fixed:
            raise
        note = f"{device} ran out of memory: solved on the CPU"
    # Not in the handler, whose traceback would keep what the device holds.
    (prediction,), fitted = _solve([system], model, "cpu", memory, initial)
    return replace(prediction, notes=(note,)), fitted


def _solve(
    systems: Sequence[System],
    model: str | Path,
    device: str,
    memory: float | None = None,
    initial: np.ndarray | None = None,
) -> tuple[list[Prediction], FittedFock]:
    """Of molecules that fit the model, solved together, in arrays of their engine; and what builds
    further Fock matrices of the last one. Other arguments as of :func:`solve_network`."""
    import torch

    from .fock.fitted import FittedFock
    from .graph.batch import collate
    from .graph.build import build_graph

    network, spec = cached_model(model, device)
    graphs, graph_seconds = [], []
    for system in systems:
        started = time.perf_counter()
        fitted = FittedFock(system.mol, device, memory=memory, engine=system.engine)
        graphs.append(build_graph(system, spec.reference, fitted=fitted))
        graph_seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    batch = collate(graphs, spec.template, spec.backbone.cutoff_bohr)
    start = None
    if initial is not None:
        if initial.shape != graphs[0].overlap.shape:
            raise UnsupportedMoleculeError(
                f"initial has shape {initial.shape}, the molecule has {graphs[0].nao} orbitals"
            )
        start = torch.as_tensor(initial, dtype=batch.overlap.dtype)[None].to(device)
    built = time.perf_counter()
    with torch.no_grad():
        solution = network(batch.to(device), start)
    differences = solution.hamiltonian - batch.reference.to(device)
    hamiltonians = []
    for system, graph, difference in zip(systems, graphs, differences, strict=True):
        # The network's correction is in single precision; the reference keeps its double precision.
        correction = system.engine.of_tensor(difference[: graph.nao, : graph.nao])
        hamiltonian = system.engine.array(graph.reference) + correction
        if not np.isfinite(hamiltonian).all():
            raise NumericalError("the network returned NaN for this molecule")
        hamiltonians.append((hamiltonian + hamiltonian.T) / 2)
    ended, n = time.perf_counter(), len(graphs)
    predictions = [
        Prediction(
            hamiltonian=hamiltonian,
            model=str(model),
            device=device,
            iterations=int(solution.iterations[i]),
            residual=float(solution.residual[i]),
            fock_builds=0 if spec.reference == "none" else 1,
            graph_seconds=graph_seconds[i] + (built - started) / n,
            network_seconds=(ended - built) / n,
        )
        for i, hamiltonian in enumerate(hamiltonians)
    ]
    return predictions, fitted
