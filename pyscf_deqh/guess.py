"""The initial guess ``deqh`` in PySCF.

Three ways to the same guess: ``mf.init_guess = 'deqh'`` after ``import pyscf_deqh``,
``mf.apply(deqh_guess)`` for one SCF object with a model or device of its own, and
``init_guess_by_deqh(mol)`` for the density matrix alone.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pyscf.lib import logger
from pyscf.scf import ghf, hf, uhf

from .ao import check_basis
from .checkpoint import DEFAULT_MODEL, ModelSpec, load_model, resolve_model
from .errors import CheckpointError, ConfigError, UnsupportedMoleculeError

if TYPE_CHECKING:
    from pyscf.gto import Mole

    from .nn.deqh import DEQH

KEY = "deqh"
ON_UNSUPPORTED = ("raise", "minao")


@dataclass(frozen=True)
class _Options:
    """What :func:`deqh_guess` attaches to an SCF object."""

    model: str | Path = DEFAULT_MODEL
    device: str = "auto"
    on_unsupported: str = "raise"


# For objects that only name the guess: a screening run must go on past a molecule no model knows.
_BY_NAME = _Options(on_unsupported="minao")


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


def _cached_model(model: str | Path, device: str) -> tuple[DEQH, ModelSpec]:
    """A model is loaded once per process, and again once it was exported anew."""
    folder = resolve_model(model)
    return _load_once(folder, device, (folder / "config.json").stat().st_mtime_ns)


def _resolve_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}: {error}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but PyTorch sees no GPU")
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
    import torch

    from .data.graph import build_graph, check_molecule
    from .graph import collate

    notes: list[str] = []
    device = _resolve_device(device)
    network, spec = _cached_model(model, device)
    check_molecule(mol)
    check_basis(mol, spec.basis, spec.template.numbers)
    started = time.perf_counter()
    graph = build_graph(mol, spec.reference)
    batch = collate([graph], spec.template, spec.backbone.cutoff_bohr)
    start = None
    if initial is not None:
        if initial.shape != graph.overlap.shape:
            raise UnsupportedMoleculeError(
                f"initial has shape {initial.shape}, the molecule has {graph.nao} orbitals"
            )
        start = torch.as_tensor(initial, dtype=batch.overlap.dtype)[None]
    built = time.perf_counter()
    with torch.no_grad():
        try:
            solution = network(batch.to(device), start if start is None else start.to(device))
        except torch.OutOfMemoryError:
            notes.append(f"{device} ran out of memory: solved on the CPU")
            device = "cpu"
            solution = _cached_model(model, device)[0](batch, start)
    # The network's correction is in single precision; the reference keeps its double precision.
    difference = (solution.hamiltonian.cpu() - batch.reference)[0].double().numpy()
    hamiltonian = graph.reference + difference
    if not np.isfinite(hamiltonian).all():
        raise UnsupportedMoleculeError("the network returned NaN for this molecule")
    return Prediction(
        hamiltonian=(hamiltonian + hamiltonian.T) / 2,
        model=str(model),
        device=device,
        iterations=int(solution.iterations[0]),
        residual=float(solution.residual[0]),
        fock_builds=0 if spec.reference == "none" else 1,
        graph_seconds=built - started,
        network_seconds=time.perf_counter() - built,
        notes=notes,
    )


def _eigenvectors(mf: hf.SCF, hamiltonian: np.ndarray) -> tuple[Any, Any]:
    """``mf``'s own orbital energies and orbitals of one spatial Hamiltonian."""
    overlap = mf.get_ovlp()
    if isinstance(mf, ghf.GHF):
        zero = np.zeros_like(hamiltonian)
        hamiltonian = np.block([[hamiltonian, zero], [zero, hamiltonian]])
    fock = (hamiltonian, hamiltonian) if isinstance(mf, uhf.UHF) else hamiltonian
    if hasattr(mf, "check_linear_dependency"):  # PySCF >= 2.10
        return mf.eig(fock, overlap, x=mf.check_linear_dependency(overlap, logger.new_logger(mf)))
    return mf.eig(fock, overlap)


def guess_density(mf: hf.SCF, mol: Mole, hamiltonian: np.ndarray) -> np.ndarray:
    """Density matrix of a Hamiltonian (nao, nao) in the form that ``mf``'s class starts from."""
    mo_energy, mo_coeff = _eigenvectors(mf, hamiltonian)
    mo_occ = mf.get_occ(mo_energy, mo_coeff)
    dm = mf.make_rdm1(mo_coeff, mo_occ)
    if isinstance(mf, uhf.UHF) and mol.spin == 0 and mf.init_guess_breaksym:
        # PySCF breaks the spin symmetry of every guess of a UHF singlet; so is it asked here.
        dm = np.asarray(uhf._break_dm_spin_symm(mol, dm, mf.init_guess_breaksym))
    return dm


def _guess(mf: hf.SCF, mol: Mole, options: _Options) -> np.ndarray:
    log = logger.new_logger(mf)
    started = time.perf_counter()
    prediction = predict_hamiltonian(mol, options.model, options.device)
    solved = time.perf_counter()
    dm = guess_density(mf, mol, prediction.hamiltonian)
    for note in prediction.notes:
        log.warn("DEQH guess: %s", note)
    if mol.charge or mol.spin:
        log.info("DEQH guess: the model was trained on neutral closed shells")
    log.info(
        "Initial guess from DEQH model %s on %s: %d iterations, residual %.1e, %.2f s "
        "(overlap and reference %.2f, network %.2f, orbitals %.2f)",
        prediction.model, prediction.device, prediction.iterations, prediction.residual,
        time.perf_counter() - started, prediction.graph_seconds, prediction.network_seconds,
        time.perf_counter() - solved,
    )  # fmt: skip
    return dm


def deqh_guess(
    mf: hf.SCF,
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    on_unsupported: str = "raise",
) -> hf.SCF:
    """Make an SCF object start from the DEQH guess: ``scf.RKS(mol).apply(deqh_guess).run()``.

    Args:
        mf: any molecular SCF object of PySCF; it is changed and returned.
        model: name of a bundled model, or folder of an exported one.
        device: ``'auto'``, ``'cpu'``, ``'cuda'`` …
        on_unsupported: what to do about a molecule that the model cannot describe: ``'raise'``
            an :class:`~pyscf_deqh.UnsupportedMoleculeError`, or warn and use ``'minao'``.

    Raises:
        ConfigError: ``on_unsupported`` is neither.
        CheckpointError: there is no such model.
    """
    if on_unsupported not in ON_UNSUPPORTED:
        raise ConfigError(f"on_unsupported must be one of {ON_UNSUPPORTED}, not {on_unsupported!r}")
    resolve_model(model)
    mf.init_guess = KEY
    mf._deqh = _Options(model, device, on_unsupported)
    return mf


def init_guess_by_deqh(
    mol: Mole, model: str | Path = DEFAULT_MODEL, device: str = "auto"
) -> np.ndarray:
    """Closed-shell density matrix (nao, nao), tagged with ``mo_coeff`` and ``mo_occ``.

    The plain function beside ``pyscf.scf.hf.init_guess_by_minao``; odd electron numbers leave half
    an electron of each spin in the highest orbital.

    Raises:
        UnsupportedMoleculeError, CheckpointError, ConfigError: see :func:`predict_hamiltonian`.
    """
    prediction = predict_hamiltonian(mol, model, device)
    mf = hf.RHF(mol)
    mf.verbose = 0
    mo_energy, mo_coeff = _eigenvectors(mf, prediction.hamiltonian)
    mo_occ = np.zeros(len(mo_energy))
    order = np.argsort(mo_energy)
    mo_occ[order[: mol.nelectron // 2]] = 2
    if mol.nelectron % 2:
        mo_occ[order[mol.nelectron // 2]] = 1
    return hf.make_rdm1(mo_coeff, mo_occ)


def register() -> None:
    """Make PySCF's SCF classes know the key ``'deqh'``. Called when the package is imported."""
    original = hf.SCF.get_init_guess
    if original.__module__ == __name__:
        return

    @functools.wraps(original, assigned=("__doc__", "__name__", "__qualname__"))
    def get_init_guess(self, mol=None, key="minao", **kwargs):
        if isinstance(key, str) and key.lower() == KEY:
            options = getattr(self, "_deqh", _BY_NAME)
            try:
                return _guess(self, self.mol if mol is None else mol, options)
            except (UnsupportedMoleculeError, CheckpointError) as error:
                if options.on_unsupported == "raise":
                    raise
                log = logger.new_logger(self)
                log.warn("No DEQH guess: %s. The minao guess is used instead.", error)
                key = "minao"
        return original(self, mol, key, **kwargs)

    # Every molecular SCF class comes here for its guess, through subclasses or by name.
    hf.SCF.get_init_guess = get_init_guess
