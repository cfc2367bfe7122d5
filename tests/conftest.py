"""Shared molecules and small untrained networks."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from pyscf import gto

from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.layout import OrbitalTemplate
from pyscf_deqh.graph.onsite import onsite_overlaps
from pyscf_deqh.nn.deqh import DEQH, SolverSettings
from pyscf_deqh.nn.qhnet import QHNet, QHNetConfig
from pyscf_deqh.nn.so2net import SO2Net, SO2NetConfig
from pyscf_deqh.testing import FORMAMIDE, WATER

__all__ = ["FORMAMIDE", "WATER"]

NUMBERS = (1, 6, 7, 8, 9)


def make_mol(atoms=FORMAMIDE, **options) -> gto.Mole:
    return gto.M(atom=atoms, **({"basis": "def2-svp", "verbose": 0} | options))


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
    """Label and graph workers start as forks of a process that has imported what they need.

    They still get and give all by pickling, but a start takes no seconds of imports.
    """
    modules = ["pyscf_deqh.data.dataset", "pyscf_deqh.data.make.label"]
    context = get_context("forkserver")
    context.set_forkserver_preload(modules)
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(f"{module}.get_context", lambda method: context)
        yield


@pytest.fixture
def spawned_workers(monkeypatch):
    """Among tests with quick workers, one whose workers start as a user's."""
    for module in ("pyscf_deqh.data.dataset", "pyscf_deqh.data.make.label"):
        monkeypatch.setattr(f"{module}.get_context", get_context)


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
