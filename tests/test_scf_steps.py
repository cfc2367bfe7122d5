"""Steps of SCFs as examples for f."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_mol, metrics, small_model, small_qhnet
from test_data import hydrogen

from pyscf_deqh.data.dataset import GraphStore, HamiltonianDataset
from pyscf_deqh.data.formats.store import LabelStore
from pyscf_deqh.data.make.label import LabelSettings, label
from pyscf_deqh.data.record import SCFStep
from pyscf_deqh.errors import ConfigError, DatasetError
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.so2net import SO2NetConfig
from pyscf_deqh.train.config import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    StepsConfig,
    TrainConfig,
)
from pyscf_deqh.train.module import HamiltonianModule
from pyscf_deqh.train.run import train

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Two steps each of training and validation molecules."""
    path = tmp_path_factory.mktemp("labels") / "a.store"
    geometries = [hydrogen(0.7 + 0.02 * i, qm9_id=str(i)) for i in range(4)]
    settings = LabelSettings(xc="pbe", conv_tol=1e-8, density_fit=True)
    assert label(geometries, path, settings, workers=0, progress=False, steps=2) == (4, {})
    return path


def dataset(labels, folder, steps=2):
    store = GraphStore(folder, "sad", "def2-svp", steps=steps)
    return HamiltonianDataset([labels], "all", store, progress=False)


def test_graphs_have_them(labels, tmp_path):
    graphs = list(dataset(labels, tmp_path))
    with LabelStore(labels) as store:
        for graph, row_id in zip(graphs, store.ids(), strict=True):
            wanted = [(s.hamiltonian, s.fock) for s in store.steps_of(row_id)]
            np.testing.assert_allclose(graph.steps, wanted, atol=1e-6)
            # The first Hamiltonian is the reference.
            expected = build_graph(make_mol(store[row_id].geometry().atom()), "sad")
            for name in ("reference", "atomic_density"):
                np.testing.assert_allclose(getattr(graph, name), getattr(expected, name), atol=1e-5)
            c, s = graph.basis_vectors, graph.overlap
            np.testing.assert_allclose(c.T @ s @ c, np.eye(graph.nao), atol=1e-4)
    without = dataset(labels, tmp_path, 0)
    assert without[0].steps is None
    assert [heaviest for heaviest, _ in without.sizes()] == [1, 1, 1, 1]
    with pytest.raises(DatasetError, match="has 2 steps of each SCF, not 3"):
        dataset(labels, tmp_path, 3)


@pytest.mark.parametrize("target", ["fock", "next", "solution"])
def test_the_loss_is_eq_45_of_one_application(labels, tmp_path, template, target):
    model = small_model(template, "sad")
    graphs = list(dataset(labels, tmp_path))[:2]
    batch = collate(graphs, template, model.backbone.cutoff, torch.float64)
    config = TrainConfig(steps=StepsConfig(target=target, n=2))
    module = HamiltonianModule(model, config)
    torch.manual_seed(3)
    n = 1 if target == "next" else 2
    drawn = torch.randint(n, (2,)).tolist()
    torch.manual_seed(3)
    with torch.no_grad():
        found = module._loss_of_steps(batch).item()
        expected = 0.0
        for graph, k in zip(graphs, drawn, strict=True):
            one = collate([graph], template, model.backbone.cutoff, torch.float64)
            f = model.applied_once(one, one.steps[:, k, 0])[0].numpy()
            wanted = {"fock": graph.steps[k, 1], "next": graph.steps[-1, 0],
                      "solution": graph.hamiltonian}[target]  # fmt: skip
            error = f - wanted
            expected += 1e3 * (np.sqrt(np.mean(error**2)) + np.mean(np.abs(error))) / 2
    assert found == pytest.approx(expected, rel=1e-6)


def test_one_application_is_one(labels, tmp_path, template):
    """For a state that is the whole matrix and for one that is not, away from a fixed point."""
    for make in (small_model, small_qhnet):
        model = make(template)
        graphs = list(dataset(labels, tmp_path))[:1]
        batch = collate(graphs, template, model.backbone.cutoff, torch.float64)
        h = batch.steps[:, 0, 0]
        model.configure(replace(model.settings, forward_max_iterations=1, forward_tolerance=0.0))
        with torch.no_grad():
            found = model.applied_once(batch, h)
            injected = model.backbone.injection(batch)
            state = model.backbone.state(h, injected)
            if make is small_model:
                expected = model(batch, initial=h).hamiltonian  # f once, and no more
            else:
                expected = model.backbone.hamiltonian(state, injected)
            # On-site blocks are what QHNet's state holds: those of f(H), by its filter.
            again = model.backbone.hamiltonian(model.backbone.filter(state, injected), injected)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        assert (found - h).abs().max() > 1e-3
        if make is small_qhnet:
            assert (found - again).abs().max() > 1e-6


def test_their_loss_trains_f(labels, tmp_path, template):
    model = small_model(template, "sad")
    config = TrainConfig(steps=StepsConfig(target="fock", n=2))
    module = HamiltonianModule(model, config)
    graphs = list(dataset(labels, tmp_path))
    batch = collate(graphs, template, model.backbone.cutoff, torch.float64)
    module._loss_of_steps(batch).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    model.zero_grad()
    model.backbone.state_is_hamiltonian = False
    with pytest.raises(ConfigError, match="its state_is_hamiltonian has to be True"):
        module._loss_of_steps(batch)


def test_references_are_not_made_again(labels, tmp_path):
    """Those of a store are what its steps say."""
    marked = tmp_path / "marked.store"
    with LabelStore(labels) as source, LabelStore(marked, writable=True, steps=2) as store:
        record = source[source.ids()[0]]
        steps = source.steps_of(record.id)
        start = SCFStep(steps[0].hamiltonian + np.eye(10), steps[0].fock)
        record.provenance, record.steps = None, (start, *steps[1:])
        store.add(record)
    (graph,) = dataset(marked, tmp_path / "marked", 0)
    np.testing.assert_allclose(graph.reference, start.hamiltonian, atol=1e-6)


def test_an_scf_of_few_steps_has_its_last_one_again(labels, tmp_path):
    with LabelStore(labels) as store:
        (first, *_) = store.ids()
        last = store.steps_of(first)[-1]
    few = tmp_path / "few.store"
    with LabelStore(labels) as source, LabelStore(few, writable=True, steps=5) as store:
        store.write_settings(source.settings())
        record = source[first]
        record.provenance, record.steps = None, source.steps_of(first)
        store.add(record)
    (graph,) = dataset(few, tmp_path, 5)
    assert len(graph.steps) == 5
    for hamiltonian, fock in graph.steps[1:]:
        np.testing.assert_allclose(hamiltonian, last.hamiltonian, atol=1e-6)
        np.testing.assert_allclose(fock, last.fock, atol=1e-6)


def config_of(labels, folder, **changes):
    options = {
        "data": DataConfig(databases=[labels], cache=folder / "cache", workers=1),
        "optimizer": OptimizerConfig(warmup_steps=1),
        "steps": StepsConfig(target="fock", n=2),
        "run": RunConfig(
            folder=folder / "run", max_epochs=1, batches_per_epoch=12, batch_size=2,
            accelerator="cpu",
        ),
        "so2net": SO2NetConfig(natural_channels=4, pseudo_channels=2, injection_layers=1,
                               filter_layers=1, invariants=8, radial_functions=8),
    }  # fmt: skip
    return TrainConfig(**(options | changes))


def test_a_training_has_their_loss(labels, tmp_path):
    config = config_of(labels, tmp_path)
    train(config)
    rows = metrics(config)
    losses = [float(row["train/steps"]) for row in rows if row.get("train/steps")]
    assert losses
    assert all(loss > 0 for loss in losses)
    for row in rows:
        if row.get("train/loss"):
            assert float(row["train/loss"]) > float(row["train/steps"])


def test_where_they_cannot_be(labels, tmp_path):
    with pytest.raises(ConfigError, match=r"steps.target must be one of none, fock"):
        TrainConfig(steps=StepsConfig(target="density"))
    with pytest.raises(ConfigError, match="two or more where the target is the next"):
        TrainConfig(steps=StepsConfig(target="next", n=1))
    small = {"channels": 6, "radial_functions": 8, "modules": 1}
    predictor = config_of(labels, tmp_path, backbone="phisnet", options=small)
    with pytest.raises(ConfigError, match="phisnet is a predictor"):
        train(predictor)
