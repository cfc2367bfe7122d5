"""Metrics and loss against cases worked out by hand."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from conftest import make_mol
from pyscf import scf

from pyscf_deqh.benchmark.ratios import distribution, error_level_cycle, ratios
from pyscf_deqh.benchmark.scf_runs import SCFRun
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.metrics import (
    UNITS,
    HamiltonianErrors,
    cosine_similarity,
    hamiltonian_errors,
    same_atom_mask,
)
from pyscf_deqh.train.loss import alignment, element_loss, hamiltonian_loss, orbital_rotation


def test_errors_of_a_two_level_system():
    """H* = diag(-1, 0), S = 1, one orbital per atom; H adds 0.1 on the diagonal, 0.2 beside it."""
    target = np.diag([-1.0, 0.0])
    predicted = target + np.array([[0.1, 0.2], [0.2, 0.1]])
    errors = hamiltonian_errors(predicted, target, np.eye(2), 1, np.array([1, 1]))
    assert errors.mae == pytest.approx(0.15)
    assert errors.mae_diagonal == pytest.approx(0.1)
    assert errors.mae_nondiagonal == pytest.approx(0.2)
    root = np.sqrt(0.25 + 0.04)
    assert errors.mae_occupied_energies == pytest.approx(abs(-0.4 - root + 1.0))
    assert errors.mae_homo == errors.mae_occupied_energies
    assert errors.mae_lumo == pytest.approx(-0.4 + root)
    assert errors.mae_gap == pytest.approx(2 * root - 1.0)
    assert errors.orbital_rotation == pytest.approx(0.2)
    angle = 0.5 * np.arctan2(2 * 0.2, 1.0)
    assert errors.cosine_similarity == pytest.approx(np.cos(angle))


def test_energies_of_a_shifted_system():
    """H* + 0.01 S moves all levels by 0.01: no gap error, no change of orbitals."""
    target, overlap = np.diag([-2.0, -1.0, 0.5]), np.diag([1.0, 2.0, 1.0])
    errors = hamiltonian_errors(target + 0.01 * overlap, target, overlap, 2, np.array([1, 2]))
    assert errors.mae_occupied_energies == pytest.approx(0.01)
    assert errors.mae_homo == pytest.approx(0.01)
    assert errors.mae_lumo == pytest.approx(0.01)
    assert errors.mae_gap == pytest.approx(0.0, abs=1e-14)
    assert errors.cosine_similarity == pytest.approx(1.0)
    assert errors.mae == pytest.approx(0.04 / 9)


def test_levels_in_the_wrong_order_and_no_virtual_orbital():
    """Levels -2, -1 predicted as -1, -2: energies agree in order, orbitals are exchanged."""
    target, overlap = np.diag([-2.0, -1.0]), np.eye(2)
    errors = hamiltonian_errors(np.diag([-1.0, -2.0]), target, overlap, 2, np.array([2]))
    assert errors.mae_diagonal == errors.mae == pytest.approx(0.5)
    assert errors.mae_nondiagonal == 0.0
    assert errors.mae_occupied_energies == pytest.approx(0.0)
    assert errors.cosine_similarity == pytest.approx(0.0)
    assert np.isnan(errors.mae_lumo)
    assert np.isnan(errors.mae_gap)


def test_every_error_has_a_unit():
    assert list(UNITS) == [field.name for field in fields(HamiltonianErrors)]
    assert UNITS["mae_diagonal"] == (1e6, "micro-Eh")


def test_same_atom_mask():
    expected = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert same_atom_mask(np.array([2, 1])).astype(int).tolist() == expected


def test_cosine_ignores_signs_and_rotations_within_degenerate_sets():
    target = np.eye(4)[:, :3]
    energies = np.array([-2.0, -1.0, -1.0])
    c, s = np.cos(0.7), np.sin(0.7)
    rotated = target @ np.array([[-1, 0, 0], [0, c, -s], [0, s, c]])
    assert cosine_similarity(rotated, target, energies) == pytest.approx(1.0)
    assert cosine_similarity(rotated, target, np.array([-3.0, -2.0, -1.0])) == pytest.approx(
        (1 + 2 * c) / 3
    )


def test_equation_45():
    """N = 2: differences 3, 0, 0, 4 give sqrt(25 / 4) + 7 / 4."""
    error = torch.zeros(1, 3, 3)
    error[0, 0, 0], error[0, 1, 1] = 3.0, -4.0
    assert element_loss(error, torch.tensor([2])).item() == pytest.approx(2.5 + 1.75)


def test_orbital_rotation_predicts_the_change_of_the_density(template):
    """|| dD || = 2 sqrt(2) || rotation || to first order, in an orthonormal basis."""
    mf = scf.RHF(make_mol("O 0 0 0; H 0 .76 .59; H 0 -.76 .59")).run(conv_tol=1e-13)
    fock = mf.get_fock()
    graph = build_graph(mf.mol, "none", fock)
    batch = collate([graph], template, 20.0, torch.float64)
    noise = np.random.default_rng(0).normal(size=fock.shape) * 1e-5
    noise = noise + noise.T
    energy, orbitals = mf.eig(fock + noise, mf.get_ovlp())
    dm = mf.make_rdm1(orbitals, mf.get_occ(energy, orbitals))
    half = np.linalg.inv(graph.basis_vectors)
    change = np.linalg.norm(half @ (dm - mf.make_rdm1()) @ half.T)
    rotation = orbital_rotation(torch.from_numpy(noise)[None], batch).item()
    assert change == pytest.approx(2 * np.sqrt(2) * rotation, rel=1e-3)
    errors = hamiltonian_errors(fock + noise, fock, mf.get_ovlp(), 5, np.array([14, 5, 5]))
    assert errors.orbital_rotation == pytest.approx(rotation, rel=1e-3)


def test_loss_of_the_label_itself_is_zero(template):
    mol = make_mol("H 0 0 0; F 0 0 .92")
    batch = collate([build_graph(mol, "none", scf.RHF(mol).run().get_fock())], template, 20.0)
    parts = hamiltonian_loss(batch.hamiltonian, batch, 10.0)
    assert parts["loss"].item() < 1e-5
    shifted = hamiltonian_loss(batch.hamiltonian + 1e-3 * batch.overlap, batch, 10.0)
    assert shifted["rotation"].item() < 1e-5 < shifted["elements"].item()


def test_alignment_is_the_error_in_the_true_orbitals(template):
    mol = make_mol("H 0 0 0; F 0 0 .92")
    mf = scf.RHF(mol).run()
    graph = build_graph(mol, "none", mf.get_fock())
    # Padded beside a larger molecule.
    other = make_mol("F 0 0 0; F 0 0 1.4")
    larger = build_graph(other, "none", scf.RHF(other).run().get_fock())
    batch = collate([graph, larger], template, 20.0, torch.float64)
    noise = np.random.default_rng(0).normal(size=(mol.nao, mol.nao)) * 1e-5
    noise = noise + noise.T
    error = torch.zeros_like(batch.hamiltonian)
    error[0, : mol.nao, : mol.nao] = torch.from_numpy(noise)
    squares = (mf.mo_coeff.T @ noise @ mf.mo_coeff) ** 2
    low = np.arange(mol.nao) <= mol.nelectron // 2
    block = np.outer(low, low)
    expected = 0.9 * squares[block].mean() ** 0.5 + 0.1 * squares[~block].mean() ** 0.5
    assert alignment(error, batch)[0].item() == pytest.approx(expected, rel=1e-4)
    assert alignment(error, batch)[1].item() < 1e-9
    parts = [hamiltonian_loss(batch.hamiltonian + error, batch, 0.0, w)["loss"] for w in (0.0, 2.0)]
    assert (parts[1] - parts[0]).item() == pytest.approx(1e3 * expected, rel=1e-4)


def run(cycles, errors, builds, corrected, seconds, energy=-1.0):
    return SCFRun(
        init="", converged=True, energy=energy, cycles=cycles, full_builds=builds,
        guess_fitted_builds=2, corrected=corrected, guess_seconds=1.0,
        scf_seconds=seconds - 1.0, gradient=[], times=[],
        focks=[np.full((2, 2), e) for e in errors], hamiltonian=np.zeros((2, 2)),
    )  # fmt: skip


def test_ratios_by_hand():
    baseline = run(9, [1.0, 0.5, 0.2, 0.05, 0.01, 0, 0, 0, 0], 11, [], 20.0)
    # Fitted Fock matrices, in the guess and in the SCF, are no full builds.
    deqh = run(5, [], 8, [6, 5, 3, 0, 0], 12.0)
    result = ratios(deqh, baseline, np.full((2, 2), 0.1))
    assert result == pytest.approx(
        {
            "achieved_ratio": 0.5,
            "optimal_ratio": 1 / 8,
            "error_level_ratio": 3 / 8,
            "full_builds_ratio": 8 / 11,
            "wall_ratio": 0.6,
            "own_share": None,
        }
    )
    timed = [replace(r, times=[5.0, 7.0, 8.0, 12.0], own_seconds=3.0) for r in (deqh, baseline)]
    assert ratios(*timed, None)["own_share"] == pytest.approx(1.5)
    assert error_level_cycle(baseline, 0.3) == 2
    assert error_level_cycle(baseline, -1.0) == 8
    assert ratios(deqh, baseline, np.zeros((3, 3))) == result | {"error_level_ratio": None}


def test_distribution():
    found = {"mean": 2.0, "std": np.sqrt(2.0), "median": 2.0, "n": 2}
    assert distribution([1.0, None, 3.0]) == pytest.approx(found)
    assert distribution([1.0])["std"] == 0.0
    assert distribution([1.0, 2.0, 6.0])["median"] == 2.0
    assert np.isnan(distribution([None])["mean"])
