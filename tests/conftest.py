"""Shared molecules, small untrained networks, and a small training."""

from __future__ import annotations

import csv
import os
import resource
from contextlib import contextmanager
from multiprocessing import get_context

# Before anything loads OpenMP: sums, and where PySCF's own SCFs end, depend on the threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from pyscf import dft, gto

from pyscf_deqh.data.geometry import Geometry
from pyscf_deqh.data.make.label import LabelSettings, label
from pyscf_deqh.fock.cost import rates
from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.layout import OrbitalTemplate
from pyscf_deqh.graph.onsite import onsite_overlaps
from pyscf_deqh.nn.deqh import DEQH, SolverSettings
from pyscf_deqh.nn.qhnet import QHNet, QHNetConfig
from pyscf_deqh.nn.so2net import SO2Net, SO2NetConfig
from pyscf_deqh.testing import FORMAMIDE, WATER
from pyscf_deqh.train.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig

__all__ = ["FORMAMIDE", "WATER"]

NUMBERS = (1, 6, 7, 8, 9)


def make_mol(atoms=FORMAMIDE, **options) -> gto.Mole:
    return gto.M(atom=atoms, **({"basis": "def2-svp", "verbose": 0} | options))


# Files that take longest, longest first: one of them at the end would keep a single worker busy.
_LONG = (
    "experiments", "fitted", "diis", "train", "faults", "everyday_molecules", "processes",
    "machine_faults", "tasks", "speed", "memory", "backbones", "plugin", "starts", "states",
    "steps", "solvents", "descent", "examples", "points", "pyscf_tests", "suite", "label",
    "benchmark", "random_guesses", "single_build_benchmark",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@contextmanager
def file_size_limit(size):
    """No file grows beyond so many bytes: the system refuses with EFBIG in the midst of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def transformed(atoms, matrix=None, shift=(0.0, 0.0, 0.0), order=None):
    """Atoms after r -> matrix r + shift, in another order."""
    matrix = np.eye(3) if matrix is None else matrix
    moved = [(s, tuple(matrix @ np.array(r) + np.array(shift))) for s, r in atoms]
    return moved if order is None else [moved[i] for i in order]


@pytest.fixture(autouse=True)
def every_scf_is_worth_a_guess(monkeypatch):
    """Molecules of tests are so small that PySCF's own start would mostly be faster."""
    for module in ("pyscf_deqh.guess", "pyscf_deqh.plugin", "pyscf_deqh.fock.diis"):
        monkeypatch.setattr(f"{module}.too_cheap", lambda mf, again=False: None)


@pytest.fixture(autouse=True)
def a_machine_of_its_own(monkeypatch, tmp_path_factory):
    """Without rates that were measured on it, and with random numbers that do not depend on which
    tests ran before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    rates.cache_clear()
    torch.manual_seed(0)


@pytest.fixture
def coarse_grids(monkeypatch):
    """Of PySCF's SCFs, for tests that compare SCFs on one grid."""
    monkeypatch.setattr(dft.gen_grid.Grids, "level", 1)


@pytest.fixture(scope="session")
def template() -> OrbitalTemplate:
    return template_of("def2-svp", NUMBERS)


@pytest.fixture(scope="session")
def rotation() -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


@pytest.fixture(scope="module")
def quick_workers():
    """Workers of graphs and tasks start as forks of a process that has imported what they need.

    They still get and give all by pickling, but a start takes no seconds of imports.
    """
    from distributed.utils import get_mp_context

    context = get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch, start_of_workers("forkserver"):
        get_mp_context()  # Dask sets a list of its own at its first call
        context.set_forkserver_preload([
            "distributed", "pyscf_deqh.data.dataset", "pyscf_deqh.data.make.label"
        ])  # fmt: skip
        patch.setattr("pyscf_deqh.data.dataset.get_context", lambda method: context)
        yield


@pytest.fixture
def spawned_workers(monkeypatch):
    """Among tests with quick workers, one whose workers start as a user's."""
    monkeypatch.setattr("pyscf_deqh.data.dataset.get_context", get_context)
    with start_of_workers("spawn"):
        yield


def start_of_workers(method):
    """A context in which Dask's workers start so. What a chemist installs does not bring Dask."""
    import dask
    import distributed  # noqa: F401 - brings the defaults of what is set here

    return dask.config.set({"distributed.worker.multiprocessing-method": method})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, quick_workers):
    """Hydrogen and hydrogen fluoride at several distances: mixed elements and sizes."""
    folder = tmp_path_factory.mktemp("labels")
    geometries = []
    for i in range(20):
        z, distance = ((1, 1), 0.7) if i % 2 else ((9, 1), 0.9)
        positions = np.array([[0, 0, 0], [0, 0.3, distance + 0.01 * i]])
        geometries.append(Geometry(np.array(z, np.int32), positions, {"qm9_id": str(i)}))
    label(geometries, folder / "a.db", LabelSettings(xc="hf"), 0, progress=False)
    return folder


@pytest.fixture
def config(tmp_path, labelled) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(databases=[labelled / "a.db"], elements=[1, 9], cache=labelled / "cache"),
        so2net=SO2NetConfig(natural_channels=4, pseudo_channels=2, injection_layers=1,
                            filter_layers=1, invariants=8, radial_functions=8),
        solver=SolverSettings(forward_max_iterations=2, backward_max_iterations=2),
        optimizer=OptimizerConfig(warmup_steps=2, ema_decay=0.9),
        run=RunConfig(folder=tmp_path / "run", max_epochs=2, batch_size=4, accelerator="cpu"),
    )  # fmt: skip


def last(config, key="state_dict"):
    path = config.run.folder / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)[key]


def metrics(config):
    """Logged values, those of the parts of a resumed run one after the other."""
    files = sorted(config.run.folder.glob("csv/*/metrics.csv"))
    return [row for file in files for row in csv.DictReader(file.open())]


def small_model(template, reference="none", seed=0, **solver) -> DEQH:
    """A float64 network with outputs of realistic size, whose fixed point contracts."""
    torch.manual_seed(seed)
    config = SO2NetConfig(
        reference=reference, natural_channels=6, pseudo_channels=3, injection_layers=1,
        filter_layers=1, invariants=12, radial_functions=8,
    )  # fmt: skip
    net = SO2Net(template, config).double()
    with torch.no_grad():
        for scale in (net.output_atom_scale, net.output_pair_scale):
            scale.fill_(0.2)
    settings = SolverSettings(
        **({"start": "identity", "forward_tolerance": 1e-13, "forward_max_iterations": 60} | solver)
    )
    return DEQH(net, settings).eval()


def small_qhnet(template, seed=0, config=None, **solver) -> DEQH:
    """A float64 QHNet with few channels; other options of its configuration in ``config``."""
    torch.manual_seed(seed)
    sizes = {"layers": 4, "channels": 8, "bottleneck_channels": 4, "radial_functions": 8,
             "heads": 2, "head_channels": (4, 2, 1)}  # fmt: skip
    options = QHNetConfig(**(sizes | (config or {})))
    overlaps = torch.from_numpy(onsite_overlaps("def2-svp", template))
    net = QHNet(template, options).double()
    if hasattr(net, "reduction"):
        net.reduction.overlaps.copy_(overlaps)
    settings = SolverSettings(
        **({"start": "identity", "forward_tolerance": 1e-13, "forward_max_iterations": 3} | solver)
    )
    return DEQH(net, settings).eval()


def solve(model, *graphs):
    """Hamiltonians (B, n, n) of a batch in float64."""
    backbone = model.backbone
    batch = collate(graphs, backbone.template, backbone.cutoff, torch.float64)
    with torch.no_grad():
        return model(batch).hamiltonian


def ao_transformation(before, after):
    """T with overlap(after) = T overlap(before) T^T, from the overlap between shared points.

    PySCF gives the AO representation of a rotation by evaluating both sets of functions.
    """
    from pyscf import dft

    points = np.random.default_rng(0).normal(scale=2.0, size=(4000, 3))
    return lambda matrix: (
        np.linalg.lstsq(
            dft.numint.eval_ao(before, points),
            dft.numint.eval_ao(after, points @ matrix.T),
            rcond=None,
        )[0].T
    )


def in_another_order(mol, matrix, functions):
    """Sort the AOs atom by atom and shell by shell, inside a shell by their labels.

    Args:
        functions: labels as PySCF has them, in the other order, by ``s``, ``p``, ``d``.
    """

    def key(ao):
        atom, _, shell, function = labels[ao]
        momentum = shell[-1]
        rank = functions[momentum].index(function)
        return atom, "spd".index(momentum), int(shell[:-1]), rank

    labels = mol.ao_labels(fmt=None)
    order = sorted(range(mol.nao), key=key)
    return matrix[np.ix_(order, order)]
