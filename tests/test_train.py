"""A whole training on hydrogen and small molecules: limits, resuming, export, use in PySCF."""

import importlib.util
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from conftest import last, make_mol, metrics, small_model
from pyscf import scf

from pyscf_deqh import deqh_guess
from pyscf_deqh.benchmark.speed.samples import batch_of, geometries_of, labelled_graphs, untrained
from pyscf_deqh.checkpoint import load_model, rows_by_name
from pyscf_deqh.data.formats import open_for_writing
from pyscf_deqh.errors import CheckpointError, ConfigError, DatasetError, NumericalError
from pyscf_deqh.nn.backbones import _REGISTERED
from pyscf_deqh.nn.qhnet import QHNetConfig
from pyscf_deqh.train import evaluate as evaluate_module
from pyscf_deqh.train.__main__ import main
from pyscf_deqh.train.config import OptimizerConfig, TrainConfig
from pyscf_deqh.train.cuda_graphs import CapturedGradients
from pyscf_deqh.train.evaluate import evaluate
from pyscf_deqh.train.loss import hamiltonian_loss
from pyscf_deqh.train.module import HamiltonianData, HamiltonianModule, SizeBatches, build_model
from pyscf_deqh.train.run import (
    _start_from,
    export,
    moving_average,
    read_config,
    train,
    write_config,
)

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.mark.parametrize(
    ("gradient", "optimizer"),
    [
        pytest.param("implicit", "adamw", marks=pytest.mark.slow),
        ("random-depth", "adamw"),
        ("random-depth", "muon"),
    ],
)
def test_resuming_gives_the_same_run(config, tmp_path, gradient, optimizer):
    """Two epochs at once, and two with a stop between: same weights, averages and order of data."""
    config.solver = replace(config.solver, gradient=gradient)
    config.optimizer = replace(config.optimizer, method=optimizer)
    _check_resumed_is_whole(config, tmp_path)


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("data", {"loaders": 1}),
        ("run", {"max_epochs": 1000, "batches_per_epoch": 3, "max_steps": 7}),
        ("run", {"max_epochs": 3, "validate_every": 2}),
    ],
)
def test_resuming_gives_the_same_run_however_it_is_made_and_ends(
    config, tmp_path, section, changes
):
    """Loading ahead, an end by steps within an epoch, and an epoch that is not validated."""
    config.solver = replace(config.solver, gradient="random-depth")
    _check_resumed_is_whole(
        replace(config, **{section: replace(getattr(config, section), **changes)}), tmp_path
    )


def _check_resumed_is_whole(config, tmp_path):
    train(config)
    halves = replace(config, run=replace(config.run, folder=tmp_path / "halves"))
    _train_one_epoch_then_stop(halves)
    assert last(halves, "epoch") == 0
    train(halves, resume=True)
    for key in ("epoch", "global_step"):
        assert last(halves, key) == last(config, key)
    for key in ("state_dict", "current_model_state"):
        resumed = last(halves, key)
        for name, value in last(config, key).items():
            torch.testing.assert_close(value, resumed[name], rtol=0, atol=0)


def _train_one_epoch_then_stop(config):
    """As a kill right after the first epoch's checkpoint would: the limit of epochs stays two."""
    import lightning as L

    class Kill(L.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    from pyscf_deqh.train import run

    original = run._trainer

    def trainer(*args):
        built = original(*args)
        built.callbacks.insert(0, Kill())
        return built

    run._trainer = trainer
    try:
        train(config)
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        run._trainer = original


def test_another_packages_backbone_is_trained_and_predicts(config, tmp_path, monkeypatch):
    example = Path(__file__).parents[1] / "examples" / "own_backbone.py"
    spec = importlib.util.spec_from_file_location("own_backbone", example)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_backbone", module)
    spec.loader.exec_module(module)
    mine = replace(config, backbone="scaled-blocks", options={"width": 8})
    path = tmp_path / "config.yaml"
    write_config(mine, path)
    assert read_config(path).model == module.ScaledBlocksConfig(width=8)
    train(mine)
    export(mine.run.folder, tmp_path / "model")
    mf = scf.RHF(make_mol("H 0 0 0; F 0 0 0.93"))
    mf.apply(deqh_guess, model=tmp_path / "model").run()
    assert mf.converged
    assert mf.deqh_report.fallback is None
    with pytest.raises(ConfigError, match="options of scaled-blocks: "):
        assert replace(mine, options={"depth": 8}).model
    with pytest.raises(ConfigError, match="options: so2net's are in the section"):
        replace(config, options={"width": 8})
    del _REGISTERED["scaled-blocks"]
    with pytest.raises(CheckpointError, match="'scaled-blocks' is not one of"):
        load_model(tmp_path / "model")


def test_training_learns_and_its_model_starts_an_scf(config, tmp_path):
    config.run.max_epochs = 12
    config.optimizer = replace(config.optimizer, learning_rate=1e-2)
    config.solver = replace(config.solver, gradient="random-depth")
    train(config)
    rows = metrics(config)
    losses = [float(r["valid/loss"]) for r in rows if r["valid/loss"]]
    assert losses[-1] < 0.6 * losses[0]
    assert any((config.run.folder / "tensorboard").iterdir())
    export(config.run.folder, tmp_path / "model")
    mf = scf.RHF(make_mol("H 0 0 0; F 0 0 .95")).apply(deqh_guess, model=tmp_path / "model")
    assert mf.kernel() == pytest.approx(scf.RHF(mf.mol).kernel(), abs=1e-8)


@pytest.mark.parametrize(
    ("consistent", "overlap"),
    [
        (True, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_qhnet_and_its_ablations_learn(config, tmp_path, consistent, overlap):
    config.backbone = "qhnet"
    config.qhnet = QHNetConfig(
        self_consistent=consistent, overlap=overlap, layers=4, channels=8, bottleneck_channels=4,
        radial_functions=8, heads=2, head_channels=(4, 2, 1),
    )  # fmt: skip
    config.solver = replace(config.solver, start="identity")
    config.optimizer = replace(config.optimizer, learning_rate=1e-2, rotation_weight=0.0)
    # Long epochs: a checkpoint of some hundred tensors takes as long as a step.
    config.run.max_epochs, config.run.batches_per_epoch = 4, 8
    train(config)
    rows = metrics(config)
    losses = [float(r["valid/loss"]) for r in rows if r["valid/loss"]]
    assert losses[-1] < 0.5 * losses[0]
    assert read_config(config.run.folder / "config.yaml") == config
    export(config.run.folder, tmp_path / "model")
    _, spec = load_model(tmp_path / "model")
    assert spec.backbone == config.qhnet


def test_wall_clock_limit_ends_with_a_usable_checkpoint(config, tmp_path):
    config.run.max_epochs, config.run.max_minutes = 1000, 1e-3
    train(config)
    assert last(config, "epoch") < 5
    export(config.run.folder, tmp_path / "model")


def test_limit_of_steps_and_further_callbacks(config):
    class Count(L.Callback):
        steps = 0

        def on_train_batch_end(self, trainer, module, *args):
            self.steps = trainer.global_step

    config.run.max_epochs, config.run.max_steps = 1000, 7
    count = Count()
    train(config, callbacks=[count])
    assert count.steps == last(config, "global_step") == 7


def test_command_line_overrides_the_file(config, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    write_config(config, path)
    assert read_config(path) == config
    folder = tmp_path / "other"
    code = main(["--config", str(path), "--run.folder", str(folder), "--run.max_epochs", "1",
                 "--so2net.filter_layers", "2"])  # fmt: skip
    assert code == 0
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["so2net"]["filter_layers"] == 2
    assert written["so2net"]["natural_channels"] == 4
    assert main(["export", str(folder), str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "model.safetensors").exists()
    database, cache = str(config.data.databases[0]), str(config.data.cache)
    evaluate = ["evaluate", str(tmp_path / "model"), database, "--cache", cache]
    assert main([*evaluate, "--split", "test", "--iterations", "1"]) == 0
    printed = capsys.readouterr().out
    assert "2 geometries" in printed
    assert re.search(r"mae_homo +[\d.e+-]+ \+- [\d.e+-]+ +micro-Eh\n", printed)
    assert re.search(r"cosine_similarity +[\d.e+-]+ \+- [\d.e+-]+ +10\^-2\n", printed)


def test_a_new_run_can_start_from_other_weights(config, tmp_path):
    train(config)
    start = config.run.folder / "checkpoints" / "last.ckpt"
    other = replace(config, run=replace(config.run, folder=tmp_path / "b", max_epochs=1))
    other.optimizer = replace(other.optimizer, learning_rate=0.0)
    train(other, init=start)
    first = last(config)
    for name, value in last(other, "current_model_state").items():
        torch.testing.assert_close(value, first[name])


@pytest.mark.parametrize("kind", ["checkpoint", "model"])
def test_what_f_applied_once_has_not_learned_is_damped(config, tmp_path, kind):
    config.so2net = replace(config.so2net, reference="sad")
    config.solver = replace(config.solver, forward_max_iterations=1, gradient="random-depth")
    train(config)
    export(config.run.folder, tmp_path / "model")
    source = tmp_path / "model"
    if kind == "checkpoint":
        source = config.run.folder / "checkpoints" / "last.ckpt"
    found = {}
    for n in (1, 2):
        module = HamiltonianModule(build_model(config), config)
        module.config = replace(config, solver=replace(config.solver, forward_max_iterations=n))
        _start_from(module, source)
        found[n] = module.model.backbone.state_dict()
    changed = {name for name, value in found[1].items() if not torch.equal(value, found[2][name])}
    assert {name.partition(".")[0] for name in changed} == {
        "state_atoms", "state_pairs", "state_charges", "state_shift"
    }  # fmt: skip
    for name in changed - {"state_shift"}:
        torch.testing.assert_close(found[2][name], 0.02 * found[1][name])


def test_a_new_run_can_start_from_an_exported_model(config, tmp_path):
    """Steps of no length leave what was exported, the average of the first run."""
    train(config)
    export(config.run.folder, tmp_path / "model")
    other = replace(config, run=replace(config.run, folder=tmp_path / "b", max_epochs=1))
    other.optimizer = replace(other.optimizer, learning_rate=0.0)
    train(other, init=tmp_path / "model")
    export(tmp_path / "b", tmp_path / "again")
    first, second = (load_model(tmp_path / f)[0].state_dict() for f in ("model", "again"))
    torch.testing.assert_close(second, first)
    other = replace(config, run=replace(config.run, folder=tmp_path / "c"))
    with pytest.raises(ConfigError, match=r"another network .*so2net\.natural_channels: 32 there"):
        train(other, init=Path("b3lyp-def2svp"))
    other.data = replace(config.data, elements=[1, 8])
    with pytest.raises(ConfigError, match=r"another network .*data\.elements"):
        train(other, init=config.run.folder / "checkpoints" / "last.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="cannot start from"):
        train(other, init=tmp_path / "list.ckpt")


def test_the_average_follows_a_short_run():
    """Constant weights are their own average; the memory of a drift is at most that of decay."""
    average = moving_average(0.99)
    value = [torch.tensor([1.0])]
    for n in range(5):
        average(value, [torch.tensor([3.0])], n)
    assert value[0] > 2.9
    drift = [torch.tensor([0.0])]
    for n in range(2000):
        average(drift, [torch.tensor([float(n)])], n)
    assert 1999 - drift[0].item() == pytest.approx(0.99 / 0.01, rel=0.02)


def test_divergence_is_reported(config):
    config.backbone = "qhnet"
    config.qhnet = QHNetConfig(self_consistent=False, layers=4, channels=4, head_channels=(2, 1))
    config.optimizer = replace(config.optimizer, learning_rate=1e30, rotation_weight=0.0)
    with pytest.raises(NumericalError, match="smaller optimizer"):
        train(config)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replayed_gradients_are_those_of_an_eager_pass():
    """In double precision, for batches that have not been captured."""
    options = {"natural_channels": 4, "pseudo_channels": 2, "injection_layers": 1,
               "filter_layers": 1, "invariants": 8, "radial_functions": 8}  # fmt: skip
    model = untrained("so2net", options, "cuda").double().train()
    model.configure(replace(model.settings, forward_max_iterations=1))
    graphs = labelled_graphs(geometries_of(10)[:1])
    batches = []
    for i in range(3):
        noise = np.random.default_rng(i).normal(scale=1e-3, size=graphs[0].reference.shape)
        changed = replace(graphs[0], reference=graphs[0].reference + noise + noise.T)
        batches.append(batch_of(model, [changed], 2, torch.float64, few_shapes=True).to("cuda"))

    def loss(batch):
        return hamiltonian_loss(model(batch).hamiltonian, batch, 10.0)

    captured = CapturedGradients(loss, model.parameters())
    replayed = []
    for batch in batches:  # before any eager pass, whose gradients belong to another stream
        value = captured(batch)["loss"].clone()
        replayed.append((value, [p.grad.clone() for p in model.parameters()]))
    for batch, (value, gradients) in zip(batches, replayed, strict=True):
        model.zero_grad()
        expected = loss(batch)["loss"]
        expected.backward()
        torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=0)
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            eager = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(gradient, eager, rtol=1e-7, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replayed_steps_are_the_same_training(config, tmp_path):
    """By its validation: Adam turns gradients of nothing but rounding into whole steps, and padded
    batches round otherwise."""
    config.solver = replace(config.solver, gradient="random-depth", forward_max_iterations=1)
    config.run.accelerator = "gpu"
    train(config)
    captured = replace(config, run=replace(config.run, folder=tmp_path / "b", cuda_graphs=True))
    train(captured)
    for name in ("valid/loss", "valid/mae"):
        found = [[float(row[name]) for row in metrics(c) if row[name]] for c in (captured, config)]
        assert len(found[0]) == config.run.max_epochs
        np.testing.assert_allclose(*found, rtol=5e-3)


@pytest.mark.parametrize(("section", "values", "message"), [
    ("solver", {"forward_max_iterations": 2}, "must not wait"),
    ("optimizer", {"jacobian_weight": 1.0}, "drawn for the Jacobian"),
    ("run", {}, "no CUDA device"),
])  # fmt: skip
def test_cuda_graphs_are_refused_where_they_cannot_be(config, section, values, message):
    config.solver = replace(config.solver, gradient="random-depth", forward_max_iterations=1)
    config.run.cuda_graphs = True
    with pytest.raises(ConfigError, match=message):
        train(replace(config, **{section: replace(getattr(config, section), **values)}))


@pytest.mark.parametrize("labels", [True, False])
def test_the_norm_of_the_jacobian_is_part_of_the_loss(template, labels):
    model = small_model(template, "sad").train()
    batch = batch_of(model, labelled_graphs(geometries_of(10)[:1]), 1, torch.float64)
    losses = []
    for weight in (0.0, 3.0):
        config = TrainConfig(optimizer=OptimizerConfig(jacobian_weight=weight))
        module = HamiltonianModule(model, config)
        if not labels:
            config.consistency.labels = False
            module._consistency = lambda predicted, batch: predicted.square().mean((1, 2))
        losses.append(module._loss(batch))
    parts = losses[1]
    expected = losses[0]["loss"] + 3.0 * parts["jacobian"]
    torch.testing.assert_close(parts["loss"], expected)
    assert parts["jacobian"] > 0
    ours, without = (
        torch.autograd.grad(part["loss"], list(model.parameters()), allow_unused=True)
        for part in reversed(losses)
    )
    assert any(
        g is not None and not torch.allclose(g, h) for g, h in zip(ours, without, strict=True)
    )


def test_bad_input(config, tmp_path):
    predictor = replace(config, backbone="deeph")
    predictor.optimizer = replace(config.optimizer, jacobian_weight=1.0)
    with pytest.raises(ConfigError, match="deeph is a predictor"):
        train(predictor)
    with pytest.raises(ConfigError, match="at least one file of labels"):
        train(replace(config, data=replace(config.data, databases=[])))
    with pytest.raises(DatasetError, match="no database"):
        train(replace(config, data=replace(config.data, databases=[Path("none.db")])))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        export(config.run.folder, tmp_path / "model")
    train(replace(config, run=replace(config.run, max_epochs=1)))
    with pytest.raises(ConfigError, match="--resume"):
        train(config)
    file = config.run.folder / "config.yaml"
    written = file.read_text()
    for section, change in {
        "so2net": {"filter_layers": 2}, "solver": {"forward_max_iterations": 5},
        "data": {"split_rule": "qh9-stable-id"}, "optimizer": {"method": "muon"},
    }.items():  # fmt: skip
        changed = replace(getattr(config, section), **change)
        with pytest.raises(ConfigError, match=f"other options .*{next(iter(change))}: "):
            train(replace(config, **{section: changed}), resume=True)
    assert file.read_text() == written
    with pytest.raises(ConfigError, match="must be one of adamw, muon"):
        replace(config, optimizer=OptimizerConfig("sgd"))
    other = replace(config, run=replace(config.run, folder=tmp_path / "c"))
    with pytest.raises(CheckpointError, match="cannot start from"):
        train(other, init=tmp_path / "none.ckpt")


def test_every_epoch_has_batches_of_its_own(config):
    seen: dict[int, list[float]] = {}

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            seen.setdefault(trainer.current_epoch, []).append(float(batch.edge_vector.norm()))

    config.run.max_epochs = 3
    train(config, callbacks=[Watch()])
    assert len(seen) == 3
    assert seen[0] != seen[1] != seen[2]


def test_batches_hold_molecules_of_similar_size():
    sizes = np.random.default_rng(0).integers(50, 250, 103).tolist()
    batches = SizeBatches(sizes, 8, seed=3)
    first = list(batches)
    assert len(first) == len(batches) == 12
    used = [i for batch in first for i in batch]
    assert all(len(batch) == 8 for batch in first)
    assert len(set(used)) == len(used) == 96
    spread = np.mean([np.ptp([sizes[i] for i in batch]) for batch in first])
    assert spread < 0.25 * np.ptp(sizes)
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first
    assert [len(b) for b in SizeBatches([3, 1, 2], 8, seed=0)] == [3]


def test_batches_hold_molecules_of_similar_elements():
    sizes = [(5 + 9 * (i % 4 == 0), i) for i in range(96)]
    batches = list(SizeBatches(sizes, 8, seed=3))
    of_one_kind = [len({sizes[i][0] for i in batch}) == 1 for batch in batches]
    assert sum(of_one_kind) >= len(batches) - 1  # one batch may hold both


@pytest.mark.parametrize("length", [5, 12, 30])
def test_epochs_can_be_parts_of_a_pass_or_several(length):
    batches = SizeBatches(list(range(103)), 8, seed=3, length=length)
    epoch = list(batches)
    assert len(epoch) == len(batches) == length
    for first in range(0, length, 12):  # within each pass no molecule comes twice
        used = [i for batch in epoch[first : first + 12] for i in batch]
        assert len(set(used)) == len(used)
    assert list(batches) == epoch
    assert length <= 12 or epoch[:12] != epoch[12:24]


def test_a_file_of_options_makes_no_objects(tmp_path):
    """A configuration may come from a stranger."""
    marker = tmp_path / "marker"
    path = tmp_path / "config.yaml"
    call = f"{{class_path: subprocess.Popen, init_args: {{args: [touch, {marker}]}}}}"
    path.write_text(f"options: {{x: {call}}}\n")
    with pytest.raises(SystemExit):
        main(["--config", str(path)])
    assert not marker.exists()


def test_one_iteration_has_no_implicit_gradient(config):
    """f is applied once more after the solver: f(f(H)) would learn, and f(H) be used."""
    config.solver = replace(config.solver, forward_max_iterations=1, gradient="implicit")
    with pytest.raises(ConfigError, match="take random-depth"):
        train(config)
    assert not (config.run.folder / "checkpoints").exists()


@pytest.mark.parametrize("limit", ["steps", "validation", "clock"])
def test_what_a_run_ends_with_is_validated_and_exported(config, tmp_path, limit):
    """Steps that end within an epoch, epochs between validations, and a clock between them."""
    if limit == "steps":
        config.run.max_epochs, config.run.batches_per_epoch, config.run.max_steps = 9, 4, 6
    elif limit == "validation":
        config.run.max_epochs, config.run.validate_every = 3, 2
    else:
        config.run.max_epochs, config.run.validate_every = 1000, 7
        config.run.max_minutes = 1e-3
    train(config)
    steps = last(config, "global_step")
    assert steps == 6 or limit != "steps"
    assert int([row for row in metrics(config) if row["valid/loss"]][-1]["step"]) == steps - 1
    export(config.run.folder, tmp_path / "model")
    assert load_model(tmp_path / "model")[1].split_rule == "qm9-id"
    if limit == "clock":
        train(config, resume=True)
        assert last(config, "global_step") == steps


def test_a_resumed_run_keeps_its_split(config, tmp_path):
    database = tmp_path / "own.db"
    shutil.copy(config.data.databases[0], database)
    config.data = replace(config.data, databases=[database], split_rule="md17", split_sizes=[12, 4])
    train(config)
    with pytest.raises(ConfigError, match=r"data\.split_sizes"):
        train(replace(config, data=replace(config.data, split_sizes=[10, 4])), resume=True)
    export(config.run.folder, tmp_path / "model")
    evaluate(tmp_path / "model", [database], "test", config.data.cache, max_molecules=1)
    # The rule's own sizes, and not those of the training, would draw test rows from that.
    named = {"split_rule": "md17", "max_molecules": 3}
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        original = evaluate_module.HamiltonianDataset
        patch.setattr(
            evaluate_module,
            "HamiltonianDataset",
            lambda *args, **options: asked.append(options) or original(*args, **options),
        )
        evaluate(tmp_path / "model", [database], "test", config.data.cache, **named)
        assert tuple(asked[0]["split_sizes"]) == (12, 4)
        with pytest.warns(UserWarning, match=r"split by md17 \[12, 4\]: rows of the test split"):
            evaluate(
                tmp_path / "model",
                [database],
                "test",
                config.data.cache,
                split_sizes=[8, 4],
                **named,
            )
    with open_for_writing(database) as file:
        file.add(replace(file[file.ids()[0]], id=10_000))
    with pytest.raises(DatasetError, match=r"own\.db has \d+ rows, at the training it had"):
        train(config, resume=True)
    with pytest.raises(DatasetError, match="test rows in training"):
        evaluate(tmp_path / "model", [database], "test", config.data.cache)
    assert rows_by_name({"a.db": 5, "b.db": [6, 7]}) == {"a.db": [5], "b.db": [6, 7]}
    new = replace(config, run=replace(config.run, folder=tmp_path / "new", max_steps=1))
    with pytest.warns(UserWarning, match=r"training on own\.db, .* at the training it had"):
        train(new, init=tmp_path / "model")
    evaluate(tmp_path / "model", [database], "all", config.data.cache, max_molecules=1)


def test_scales_are_of_many_molecules_however_short_an_epoch(config, monkeypatch):
    """Those of an element that the first batches lack would be zero."""
    found = []
    original = HamiltonianData.first_batches

    def first_batches(data, n):
        found.extend(batch.n_molecules for batch in original(data, n))
        return original(data, n)

    monkeypatch.setattr(HamiltonianData, "first_batches", first_batches)
    config.run.batches_per_epoch, config.run.max_epochs = 1, 1
    train(config)
    assert sum(found) > config.run.batch_size


@pytest.mark.parametrize("steps", [0, 200])
def test_the_warm_up_takes_the_steps_it_is_given(config, steps):
    """A part of them in a run that time limits to few steps."""
    config.optimizer.warmup_steps, config.run.max_epochs = 100, 1000
    config.run.max_steps, config.run.max_minutes = steps, 0.0 if steps else 1.0
    module = HamiltonianModule(build_model(config), config)
    clock = SimpleNamespace(broadcast=lambda value: value)
    module._trainer = SimpleNamespace(
        global_step=10, estimated_stepping_batches=100_000, strategy=clock
    )
    module._seconds_before = 6.0
    factor = module.learning_rate_factor()
    assert factor == pytest.approx(0.11, rel=0.02) if steps else factor > 0.9
