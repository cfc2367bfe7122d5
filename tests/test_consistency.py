"""Losses of self-consistency, against PySCF and finite differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol, metrics, small_model
from pyscf import dft, scf

from pyscf_deqh.errors import ConfigError
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.refine import refine
from pyscf_deqh.fock.shells import Shells
from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.density import density_matrix
from pyscf_deqh.train.config import ConsistencyConfig, TrainConfig
from pyscf_deqh.train.consistency import SelfConsistency, commutator
from pyscf_deqh.train.run import train

ELEMENTS = (1, 6, 7, 8)


def batch_of(*mols):
    graphs = [build_graph(mol, "none") for mol in mols]
    return collate(graphs, template_of("def2-svp", ELEMENTS), 30.0, torch.float64)


SOLUTIONS = {}


def solution(mol, xc="pbe"):
    """Hamiltonian of the SCF in fitted matrices, made once."""
    key = mol._atm.tobytes(), mol._env.tobytes(), xc
    if key not in SOLUTIONS:
        SOLUTIONS[key] = solved(mol, xc)
    return SOLUTIONS[key]


def solved(mol, xc):
    mf, fitted = dft.RKS(mol, xc=xc), FittedFock(mol, dtype=torch.float64)
    start = mf.get_fock(dm=mf.get_init_guess())
    hcore = mf.get_hcore()
    refined = refine(lambda c: fitted(hcore, c, xc)[0], mf.get_ovlp(), Shells.of(mf, mol), start,
                     40, 1e-9)  # fmt: skip
    assert refined.gradients[-1] < 1e-9
    return refined.fock


def padded(matrices, batch):
    found = torch.zeros_like(batch.overlap)
    for row, matrix in zip(found, matrices, strict=True):
        row[: len(matrix), : len(matrix)] = torch.as_tensor(matrix)
    return found


def density(h, pairs):
    (found,) = density_matrix(h[None], torch.eye(len(h)).to(h)[None], torch.tensor([pairs]))
    return found


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    a = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, 6, dtype=torch.float64)
    fock = weights + weights.T
    assert torch.autograd.gradcheck(lambda a: density(a + a.T, 2), (a,))
    assert torch.autograd.gradcheck(lambda a: commutator(fock, density(a + a.T, 2)), (a,))


def test_equal_energies_among_the_occupied_do_no_harm():
    h = torch.diag(torch.tensor([1.0, 1.0, 3.0, 3.0], dtype=torch.float64)).requires_grad_()
    density(h, 2)[0, 3].backward()
    assert torch.isfinite(h.grad).all()
    # dD_03 = 2 dH_03 / (1 - 3), H being symmetric.
    assert h.grad[0, 3] + h.grad[3, 0] == pytest.approx(-1.0)


@pytest.mark.parametrize("loss", ["amortized", "commutator"])
def test_a_solution_of_the_scf_has_none(loss):
    mols = [make_mol(WATER), make_mol(FORMAMIDE)]
    batch = batch_of(*mols)
    exact = padded([solution(mol) for mol in mols], batch)
    losses = SelfConsistency(loss, "pbe", "def2-svp", ELEMENTS)
    torch.manual_seed(0)
    error = torch.randn_like(exact) * 1e-2
    far = exact + padded([e[:n, :n] for e, n in zip(error + error.mT, batch.nao)], batch)  # noqa: B905
    # Fitted matrices in single precision.
    assert (losses(exact, batch) < 0.05).all()
    assert (losses(far, batch) > 1.0).all()
    for b, mol in enumerate(mols):
        n = mol.nao
        alone = losses(far[b : b + 1, :n, :n], batch_of(mol))
        torch.testing.assert_close(alone[0], losses(far, batch)[b], rtol=1e-4, atol=1e-3)


def test_the_commutator_is_pyscfs_and_the_amortized_loss_eq_45():
    mol = make_mol(WATER)
    batch = batch_of(mol)
    mf = dft.RKS(mol, xc="pbe")
    h, s = mf.get_fock(dm=mf.get_init_guess()), mf.get_ovlp()
    _, orbitals = mf.eig(h, s)
    occupied = orbitals[:, :5] * np.sqrt(2)
    fock, _ = FittedFock(mol, dtype=torch.float64)(mf.get_hcore(), occupied, "pbe")
    x = batch.basis_vectors[0].numpy()
    error = scf.diis.get_err_vec(s, occupied @ occupied.T, fock, x).reshape(mol.nao, mol.nao)
    expected = 1e3 * np.sqrt(np.mean(error**2))
    predicted = torch.from_numpy(h)[None]
    found = SelfConsistency("commutator", "pbe", "def2-svp", ELEMENTS)(predicted, batch)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    found = SelfConsistency("amortized", "pbe", "def2-svp", ELEMENTS)(predicted, batch)
    expected = 1e3 * (np.sqrt(np.mean((h - fock) ** 2)) + np.mean(abs(h - fock)))
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_a_step_down_the_commutator_lowers_the_energy():
    """The gradient of the energy by the density is the Fock matrix."""
    mol = make_mol(WATER)
    mf = dft.RKS(mol, xc="pbe")
    batch = batch_of(mol)
    h = torch.from_numpy(mf.get_fock(dm=mf.get_init_guess()))[None].requires_grad_()
    losses = SelfConsistency("commutator", "pbe", "def2-svp", ELEMENTS)
    energies, path = [], []
    for _ in range(20):
        loss = losses(h, batch).sum()
        (gradient,) = torch.autograd.grad(loss, h)
        path.append(loss.item())
        energy, c = mf.eig(h[0].detach().numpy(), mf.get_ovlp())
        energies.append(mf.energy_tot(mf.make_rdm1(c, mf.get_occ(energy, c))))
        step = 0.5 * loss.detach() / gradient.square().sum() * gradient
        h = (h - step).detach().requires_grad_()
    assert path[-1] < 0.4 * path[0]
    assert energies[-1] < energies[0]
    assert energies[-1] == pytest.approx(mf.kernel(), abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["amortized", "commutator"])
def test_networks_learn_without_labels(loss):
    mols = [make_mol([("H", (0, 0, 0)), ("H", (0, 0, 0.8))])]
    batch, template = batch_of(*mols), template_of("def2-svp", ELEMENTS)
    model = small_model(template).train()
    losses = SelfConsistency(loss, "hf", "def2-svp", ELEMENTS)
    exact = padded([solution(mol, "hf") for mol in mols], batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    path, errors = [], []
    for _ in range(30):
        predicted = model(batch).hamiltonian
        value = losses(predicted, batch).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        path.append(value.item())
        errors.append((predicted - exact).abs().mean().item())
    assert path[-1] < 0.5 * path[0]
    if loss == "amortized":  # the other one says nothing on the orbitals' energies
        assert errors[-1] < 0.5 * errors[0]


@pytest.mark.usefixtures("quick_workers")
def test_runs_log_them_beside_the_labels_loss(config, monkeypatch):
    monkeypatch.setattr("pyscf_deqh.train.consistency._KEPT", 1.0)
    config.consistency = ConsistencyConfig(loss="amortized", weight=0.5, xc="hf")
    config = replace(config, run=replace(config.run, max_epochs=4))
    train(config)
    (row, *_) = [row for row in metrics(config) if row.get("train/consistency")]
    labels = float(row["train/elements"]) + 10.0 * float(row["train/rotation"])
    expected = labels + 0.5 * float(row["train/consistency"])
    assert float(row["train/loss"]) == pytest.approx(expected, rel=1e-5)


def test_bad_input(config):
    with pytest.raises(ConfigError, match="must be one of none, amortized, commutator"):
        replace(config, consistency=ConsistencyConfig(loss="diis"))
    with pytest.raises(ConfigError, match="nothing to train on"):
        replace(config, consistency=ConsistencyConfig(labels=False))
    assert TrainConfig().consistency.loss == "none"


@pytest.mark.usefixtures("quick_workers")
def test_a_functional_is_needed(config, monkeypatch):
    monkeypatch.setattr("pyscf_deqh.data.dataset._check_method", lambda *args: None)
    config.consistency = ConsistencyConfig(loss="commutator")
    with pytest.raises(ConfigError, match=r"give it as consistency\.xc"):
        train(config)
