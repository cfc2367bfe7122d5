"""From a molecule to the Hamiltonian that a model predicts."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .checkpoint import DEFAULT_MODEL, ModelSpec, basis_of, load_model, resolve_model
from .errors import ConfigError, NumericalError, UnsupportedMoleculeError, own_errors
from .fock.system import System, check_molecule
from .graph.basis import check_basis

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


def resolve_device(device: str) -> str:
    """``auto`` resolved, anything else checked.

    Raises:
        ConfigError: no such device.
    """
    import torch

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
    """
    check_molecule(mol)
    basis, template = basis_of(model)
    check_basis(mol, basis, template.numbers)
    with own_errors():
        return solve_network(System(mol), model, device, mol.max_memory, initial)[0]


def solve_network(
    system: System,
    model: str | Path,
    device: str,
    memory: float,
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

    device = resolve_device(device)
    try:
        return _solve(system, model, device, memory, initial)
    except torch.OutOfMemoryError:
        note = f"{device} ran out of memory: solved on the CPU"
    # Not in the handler, whose traceback would keep what the device holds.
    prediction, fitted = _solve(system, model, "cpu", memory, initial)
    return replace(prediction, notes=(note,)), fitted


def _solve(
    system: System, model: str | Path, device: str, memory: float, initial: np.ndarray | None
) -> tuple[Prediction, FittedFock]:
    import torch

    from .fock.fitted import FittedFock
    from .graph.batch import collate
    from .graph.build import build_graph

    network, spec = cached_model(model, device)
    started = time.perf_counter()
    fitted = FittedFock(system.mol, device, memory=memory)
    graph = build_graph(system, spec.reference, fitted=fitted)
    batch = collate([graph], spec.template, spec.backbone.cutoff_bohr)
    start = None
    if initial is not None:
        if initial.shape != graph.overlap.shape:
            raise UnsupportedMoleculeError(
                f"initial has shape {initial.shape}, the molecule has {graph.nao} orbitals"
            )
        start = torch.as_tensor(initial, dtype=batch.overlap.dtype)[None].to(device)
    built = time.perf_counter()
    with torch.no_grad():
        solution = network(batch.to(device), start)
    # The network's correction is in single precision; the reference keeps its double precision.
    difference = (solution.hamiltonian.cpu() - batch.reference)[0].double().numpy()
    hamiltonian = graph.reference + difference
    if not np.isfinite(hamiltonian).all():
        raise NumericalError("the network returned NaN for this molecule")
    prediction = Prediction(
        hamiltonian=(hamiltonian + hamiltonian.T) / 2,
        model=str(model),
        device=device,
        iterations=int(solution.iterations[0]),
        residual=float(solution.residual[0]),
        fock_builds=0 if spec.reference == "none" else 1,
        graph_seconds=built - started,
        network_seconds=time.perf_counter() - built,
    )
    return prediction, fitted
