"""Checks that every backbone has to pass, for the tests of whoever adds one::

    @pytest.mark.parametrize("check", CHECKS)
    def test_backbone(check):
        check(untrained("mine", channels=8))

Each check raises AssertionError where it does not hold. Networks are checked in float64 and
untrained. They get a reference that turns exactly with the
molecule: the one-electron Hamiltonian in the place of a Kohn-Sham matrix on a grid.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyscf import dft, gto
from torch import Tensor

from .checkpoint import ModelSpec, load_model, save_model
from .fock.orbitals import solve_roothaan
from .fock.system import System
from .graph.basis import template_of
from .graph.batch import MolecularGraph, collate
from .graph.build import build_graph
from .graph.onsite import onsite_overlaps
from .nn.backbones import build_backbone, config_from
from .nn.deqh import DEQH, SolverSettings

BASIS, ELEMENTS = "def2-svp", (1, 6, 7, 8, 9)
WATER = [("O", (0.0, 0.0, 0.119)), ("H", (0.0, 0.763, -0.477)), ("H", (0.0, -0.763, -0.477))]
# Formamide, bent out of its plane so that it is chiral.
FORMAMIDE = [
    ("C", (-0.163, 0.386, 0.031)),
    ("O", (-1.187, -0.246, -0.012)),
    ("N", (1.085, -0.158, 0.097)),
    ("H", (-0.145, 1.491, -0.063)),
    ("H", (1.918, 0.402, -0.182)),
    ("H", (1.181, -1.159, 0.213)),
]
_ORDER, _SHIFT = [3, 0, 5, 2, 1, 4], np.array([3.0, -2.0, 1.0])
# Errors of float64 in some hundred operations, and of weights in float32.
_PRECISE, _SINGLE = 1e-10, 1e-5

Atoms = Sequence[tuple[str, Sequence[float]]]


def untrained(name: str, seed: int = 0, **options: Any) -> DEQH:
    """A float64 network of random weights, for def2-SVP and H, C, N, O, F.

    Args:
        name: of a registered backbone.
        seed: of the weights.
        options: of its configuration.

    Raises:
        ConfigError: no backbone of that name.
    """
    template, config = template_of(BASIS, ELEMENTS), config_from(name, options)
    torch.manual_seed(seed)
    settings = SolverSettings(start="identity", forward_max_iterations=3)
    backbone = build_backbone(template, config, lambda: onsite_overlaps(BASIS, template))
    return DEQH(backbone.double(), settings).eval()


def predicted(model: DEQH, *molecules: Atoms, charge: int = 0) -> Tensor:
    """Hamiltonians (molecules, nao, nao) of a batch, hartree, float64, in the layout's order of
    orbitals; smaller molecules' are filled up with zeros.

    Args:
        model: the network.
        molecules: symbols and positions, angstrom.
        charge: of each.
    """
    backbone = model.backbone
    graphs = [_graph(atoms, charge, backbone.config.reference) for atoms in molecules]
    batch = collate(graphs, backbone.template, backbone.cutoff, torch.float64)
    with torch.no_grad():
        hamiltonians: Tensor = model(batch).hamiltonian
    return hamiltonians


def _mol(atoms: Atoms, charge: int = 0) -> gto.Mole:
    return gto.M(atom=atoms, basis=BASIS, charge=charge, verbose=0)


def _graph(atoms: Atoms, charge: int, reference: str) -> MolecularGraph:
    system = System(_mol(atoms, charge))
    graph = build_graph(system, "none")
    if reference == "none":
        return graph
    fock = system.core_hamiltonian
    vectors = solve_roothaan(fock, system.overlap)[1]
    density = np.asarray(system.atomic_density)
    return replace(graph, reference=fock, atomic_density=density, basis_vectors=vectors)


def _moved(matrix: np.ndarray | None = None) -> Atoms:
    matrix = np.eye(3) if matrix is None else matrix
    return [(s, tuple(matrix @ np.array(r))) for s, r in FORMAMIDE]


def _turned_orbitals(matrix: np.ndarray) -> np.ndarray:
    """T with H(turned) = T H T^T: PySCF evaluates both sets of orbitals at the same points."""
    points = np.random.default_rng(0).normal(scale=2.0, size=(4000, 3))
    before, after = _mol(_moved()), _mol(_moved(matrix))
    values = dft.numint.eval_ao(before, points), dft.numint.eval_ao(after, points @ matrix.T)
    transposed: np.ndarray = np.linalg.lstsq(*values, rcond=None)[0]
    return transposed.T


def _check_turned(model: DEQH, matrix: np.ndarray, tolerance: float) -> None:
    before, after = (predicted(model, _moved(m))[0].numpy() for m in (None, matrix))
    turn = _turned_orbitals(matrix)
    assert np.abs(before - after).max() > 1e-3, "the Hamiltonian does not depend on orientation"
    expected = turn @ before @ turn.T
    np.testing.assert_allclose(after, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def _rotation() -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    rotation: np.ndarray = q * np.sign(np.linalg.det(q))
    return rotation


def check_rotation(model: DEQH, tolerance: float = 1e-7) -> None:
    """A turned molecule has the turned Hamiltonian.

    Args:
        model: the network.
        tolerance: largest error, of the largest matrix element.
    """
    _check_turned(model, _rotation(), tolerance)


def check_reflection(model: DEQH, tolerance: float = 1e-7) -> None:
    """A reflected molecule has the reflected Hamiltonian; not every network knows parity."""
    _check_turned(model, -_rotation(), tolerance)


def check_translation_and_permutation(model: DEQH) -> None:
    """Neither the molecule's place nor the order of its atoms matters."""
    moved = [(s, tuple(np.array(r) + _SHIFT)) for s, r in (FORMAMIDE[i] for i in _ORDER)]
    slices = _mol(FORMAMIDE).aoslice_by_atom()[:, 2:]
    orbitals = np.concatenate([np.arange(*slices[i]) for i in _ORDER])
    before, after = (predicted(model, atoms)[0].numpy() for atoms in (FORMAMIDE, moved))
    expected = before[np.ix_(orbitals, orbitals)]
    np.testing.assert_allclose(after, expected, atol=_PRECISE * np.abs(before).max(), rtol=0)


def check_hermitian(model: DEQH) -> None:
    """The Hamiltonian is symmetric."""
    h = predicted(model, FORMAMIDE)[0]
    torch.testing.assert_close(h, h.T, atol=1e-13, rtol=0)


def check_batches(model: DEQH) -> None:
    """Molecules of a batch do not see each other."""
    together = predicted(model, WATER, FORMAMIDE)
    for atoms, h in zip((WATER, FORMAMIDE), together, strict=True):
        alone = predicted(model, atoms)[0]
        n = len(alone)
        tolerance = _PRECISE * float(alone.abs().max())
        torch.testing.assert_close(h[:n, :n], alone, atol=tolerance, rtol=0)


def check_lone_atom(model: DEQH) -> None:
    """An atom without neighbours, which has no pairs, has a Hamiltonian."""
    h = predicted(model, [("F", (0.0, 0.0, 0.0))], charge=-1)[0]
    assert h.isfinite().all()
    assert h.any()
    torch.testing.assert_close(h, h.T, atol=1e-13, rtol=0)


def check_saving(model: DEQH) -> None:
    """A saved network is the same when it is loaded."""
    single = copy.deepcopy(model).float()  # as models are saved
    backbone = single.backbone
    spec = ModelSpec(BASIS, backbone.template, backbone.config, single.settings)
    with tempfile.TemporaryDirectory() as folder:
        save_model(single, spec, folder)
        loaded, spec_found = load_model(folder)
    assert spec_found == spec
    expected = predicted(single.double(), FORMAMIDE)
    # Constants that are no weights are made anew, in single precision.
    tolerance = _SINGLE * float(expected.abs().max())
    found = predicted(loaded.double(), FORMAMIDE)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


CHECKS: tuple[Callable[[DEQH], None], ...] = (
    check_rotation, check_translation_and_permutation, check_hermitian, check_batches,
    check_lone_atom, check_saving,
)  # fmt: skip
