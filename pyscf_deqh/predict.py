"""From a molecule to the Hamiltonian that a model predicts."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .checkpoint import DEFAULT_MODEL, ModelSpec, load_model, resolve_model, single_precision
from .errors import ConfigError, UnsupportedMoleculeError
from .graph.basis import check_basis

if TYPE_CHECKING:
    from pyscf.gto import Mole

    from .fock.fitted import FittedFock
    from .nn.deqh import DEQH


@dataclass
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
    notes: list[str]


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
        CheckpointError: no such model, or a damaged one.
        ConfigError: no such device.
    """
    return predict_with_integrals(mol, model, device, initial)[0]


def predict_with_integrals(
    mol: Mole,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    initial: np.ndarray | None = None,
) -> tuple[Prediction, FittedFock]:
    """:func:`predict_hamiltonian`, and what builds further Fock matrices of the molecule from the
    reference's integrals, which take much memory."""
    import torch

    device = resolve_device(device)
    try:
        return _predict(mol, model, device, initial)
    except torch.OutOfMemoryError:
        prediction, fitted = _predict(mol, model, "cpu", initial)
        prediction.notes.append(f"{device} ran out of memory: solved on the CPU")
        return prediction, fitted


def _predict(
    mol: Mole, model: str | Path, device: str, initial: np.ndarray | None
) -> tuple[Prediction, FittedFock]:
    import torch

    from .fock.fitted import FittedFock
    from .graph.batch import collate
    from .graph.build import build_graph, check_molecule

    network, spec = cached_model(model, device)
    check_molecule(mol)
    check_basis(mol, spec.basis, spec.template.numbers)
    started = time.perf_counter()
    fitted = FittedFock(mol, device)
    graph = build_graph(mol, spec.reference, fitted=fitted)
    batch = collate([graph], spec.template, spec.backbone.cutoff_bohr)
    start = None
    if initial is not None:
        if initial.shape != graph.overlap.shape:
            raise UnsupportedMoleculeError(
                f"initial has shape {initial.shape}, the molecule has {graph.nao} orbitals"
            )
        start = torch.as_tensor(initial, dtype=batch.overlap.dtype)[None].to(device)
    built = time.perf_counter()
    with torch.no_grad(), single_precision():
        solution = network(batch.to(device), start)
    # The network's correction is in single precision; the reference keeps its double precision.
    difference = (solution.hamiltonian.cpu() - batch.reference)[0].double().numpy()
    hamiltonian = graph.reference + difference
    if not np.isfinite(hamiltonian).all():
        raise UnsupportedMoleculeError("the network returned NaN for this molecule")
    prediction = Prediction(
        hamiltonian=(hamiltonian + hamiltonian.T) / 2,
        model=str(model),
        device=device,
        iterations=int(solution.iterations[0]),
        residual=float(solution.residual[0]),
        fock_builds=0 if spec.reference == "none" else 1,
        graph_seconds=built - started,
        network_seconds=time.perf_counter() - built,
        notes=[],
    )
    return prediction, fitted
