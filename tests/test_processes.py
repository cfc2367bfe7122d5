"""Trainings on two processes: the numbers of one process, whoever starts them, and their ends."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import last, metrics
from worker_functions import train_on

from pyscf_deqh.errors import ConfigError
from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.train.module import HamiltonianData, SizeBatches
from pyscf_deqh.train.run import train, write_config

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture
def config(config):
    """Uneven parts: three molecules a batch, five to validate. The learning rate is constant, so
    that an epoch does not depend on how many follow."""
    config.data = replace(config.data, split_rule="md17", split_sizes=[12, 5])
    config.solver = replace(config.solver, gradient="random-depth")
    config.optimizer = replace(config.optimizer, final_fraction=1.0, warmup_steps=1)
    config.run = replace(
        config.run, batch_size=3, batches_per_epoch=5, precision="64-true", threads=1
    )
    return config


def in_folder(config, folder, **options):
    return replace(config, run=replace(config.run, folder=folder, **options))


def command(config, *launcher):
    """The command line of a training, written into its folder."""
    config.run.folder.mkdir(exist_ok=True)
    file = config.run.folder / "given.yaml"
    write_config(config, file)
    return [sys.executable, "-m", *launcher, "pyscf_deqh.train", "--config", str(file)]


def run(arguments):
    """Ends when all processes have: they hold its output."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=env)


def validations(config):
    return [{name: float(value) for name, value in row.items() if name.startswith("valid/")}
            for row in metrics(config) if row["valid/loss"]]  # fmt: skip


def assert_same(found, expected):
    """Weights and averages at the end, and what was logged on the way."""
    for key in ("current_model_state", "state_dict"):
        weights = last(found, key)
        for name, value in last(expected, key).items():
            assert value.dtype == torch.float64 or not value.is_floating_point()
            torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-9)
    assert len(validations(found)) == len(validations(expected)) == 2
    for mine, theirs in zip(validations(found), validations(expected), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-8)
    mine, theirs = ([row for row in metrics(c) if row.get("train/loss")][-1]
                    for c in (found, expected))  # fmt: skip
    assert mine["step"] == theirs["step"] == "9"
    assert float(mine["train/loss"]) == pytest.approx(float(theirs["train/loss"]), rel=1e-8)


@pytest.fixture(scope="module")
def folder_of_whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(config, folder_of_whole):
    """Two epochs in one process, trained once."""
    undisturbed = in_folder(config, folder_of_whole / "run")
    if not undisturbed.run.folder.exists():
        train(undisturbed)
    return undisturbed


def test_two_processes_go_on_in_one(config, whole, tmp_path):
    """Lightning starts them, and the clock ends them after an epoch."""
    two = in_folder(config, tmp_path / "two", devices=2, max_epochs=1000, max_minutes=1e-4)
    done = run(command(two))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("12 training and 5 validation geometries") == 1
    assert last(two, "epoch") == 0
    assert len(list(two.run.folder.glob("*/version_*"))) == 2
    assert len(list(two.run.folder.glob("tensorboard/*/events*"))) == 1
    train(in_folder(config, two.run.folder), resume=True)
    assert_same(two, whole)


def test_one_process_goes_on_in_two(config, whole, tmp_path):
    """torchrun starts them, with a file for the output of each."""
    train(in_folder(config, tmp_path / "two", max_epochs=1))
    two = in_folder(config, tmp_path / "two", devices=2)
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--redirects", "3",
                "--log-dir", str(tmp_path / "log"), "-m"]  # fmt: skip
    done = run([*command(two, *launcher), "--resume"])
    assert done.returncode == 0, done.stderr
    outputs = {file.parent.name + file.name: file.read_text()
               for file in (tmp_path / "log").rglob("*.log")}  # fmt: skip
    assert "5 validation geometries" in outputs["0stdout.log"]
    assert outputs["1stdout.log"] == outputs["1stderr.log"] == ""
    assert_same(two, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "tolerance"), [("so2net", 1e-8), ("qhnet", 1e-3)])
def test_implicit_gradients_are_those_of_one_process(config, tmp_path, backbone, tolerance):
    """QHNet makes 1e-4 of a change of 1e-15 in a matrix, in its gradients."""
    config.solver = replace(config.solver, gradient="implicit")
    if backbone == "qhnet":
        config.backbone = backbone
        config.solver = replace(config.solver, start="identity")
        config.qhnet = replace(config.qhnet, layers=4, channels=8, bottleneck_channels=4,
                               radial_functions=8, heads=2, head_channels=(4, 2, 1))  # fmt: skip
    one, two = in_folder(config, tmp_path / "one"), in_folder(config, tmp_path / "two", devices=2)
    train(one)
    assert run(command(two)).returncode == 0
    for mine, theirs in zip(validations(two), validations(one), strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)


@pytest.mark.slow
def test_two_nodes_make_graphs_in_folders_of_their_own(config, whole, tmp_path):
    two = in_folder(config, tmp_path / "two", nodes=2)
    nodes = []
    for rank in range(2):
        launcher = ["torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank),
                    "--nproc-per-node", "1", "--master-port", "29517", "-m"]  # fmt: skip
        cache = ["--data.cache", str(tmp_path / f"cache{rank}")]
        nodes.append(subprocess.Popen([*command(two, *launcher), *cache]))
    assert [node.wait(300) for node in nodes] == [0, 0]
    assert_same(two, whole)


@pytest.mark.slow
def test_a_slurm_job(config, whole, tmp_path):
    two = in_folder(config, tmp_path / "two", devices=2)
    names = {"JOB_ID": "4242", "JOB_NAME": "deqh", "NTASKS": "2", "NTASKS_PER_NODE": "2",
             "NODEID": "0", "NNODES": "1", "NODELIST": "localhost"}  # fmt: skip
    tasks = []
    for rank in range(2):
        slurm = names | {"PROCID": str(rank), "LOCALID": str(rank)}
        env = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
        tasks.append(subprocess.Popen(command(two), env=env))
    assert [task.wait(300) for task in tasks] == [0, 0]
    assert_same(two, whole)


@pytest.mark.slow
@pytest.mark.parametrize("happens", ["clocks", "one-fails"])
def test_processes_end_together(config, happens):
    """By the first one's clock, though the other's stands still; or by an error of one of them."""
    config.run = replace(config.run, devices=2, max_epochs=1000, max_minutes=1e-4)
    context = get_context("spawn")
    processes = [context.Process(target=train_on, args=(rank, config, happens)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert codes == [0, 0] if happens == "clocks" else None not in codes and 0 not in codes


@pytest.mark.slow
@pytest.mark.parametrize("error", ["diverged", "no database", "damaged row"])
def test_errors_end_both_processes(config, labelled, tmp_path, error):
    config.run = replace(config.run, devices=2)
    message = {"diverged": "smaller optimizer", "no database": "no database at",
               "damaged row": "id 0: "}[error]  # fmt: skip
    if error == "diverged":
        config.backbone = "qhnet"
        config.qhnet = replace(config.qhnet, self_consistent=False, layers=4, channels=4,
                               head_channels=(2, 1))  # fmt: skip
        config.optimizer = replace(config.optimizer, learning_rate=1e30, rotation_weight=0.0)
    else:
        config.data = replace(config.data, databases=[tmp_path / "b.db"], cache=tmp_path)
    if error == "damaged row":
        damage(labelled / "a.db", tmp_path / "b.db")
    done = run(command(config))
    assert done.returncode in (2, -signal.SIGKILL)
    assert message in done.stderr


def damage(database, copy):
    shutil.copy(database, copy)
    with sqlite3.connect(copy) as connection:
        connection.execute("UPDATE data SET Ham = 'abc'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "at least 1"),
        ({"devices": 2, "nodes": 2}, "run.batch_size, 3, .* at least 4"),
        ({"devices": 3, "accelerator": "gpu"}, "run.devices: "),
        ({"devices": 2, "cuda_graphs": True, "precision": "32-true"}, "one device only"),
    ],
)
def test_what_cannot_run_is_refused(config, options, message):
    config.solver = replace(config.solver, forward_max_iterations=1)
    config.run = replace(config.run, **options)
    with pytest.raises(ConfigError, match=message):
        train(config)
    assert not config.run.folder.exists()


def test_torchrun_must_start_as_many_as_the_configuration_says(config, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started"):
        train(config)


def data_of(config, rank, ranks):
    data = HamiltonianData(config, template_of("def2-svp", (1, 9)), 10.0)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)
    data.setup()
    return data


def test_each_molecule_is_validated_by_one_process(config):
    found = []
    for rank in range(2):
        for batch in data_of(config, rank, 2).val_dataloader():
            found += batch.edge_vector.norm(dim=1)[::2].tolist()
    config.run = replace(config.run, batch_size=5)
    (whole,) = data_of(config, 0, 1).val_dataloader()
    assert sorted(found) == sorted(whole.edge_vector.norm(dim=1)[::2].tolist())
    with pytest.raises(ConfigError, match=r"split 'valid' has fewer molecules \(5\)"):
        data_of(config, 0, 6)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_each_process_has_its_part_of_every_batch(ranks):
    sizes = np.random.default_rng(0).integers(50, 250, 103)
    whole = list(SizeBatches(sizes, 8, seed=3))
    parts = [list(SizeBatches(sizes, 8, 3, rank=rank, ranks=ranks)) for rank in range(ranks)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(i for share in shares for i in share) == sorted(batch)
        lengths = [len(share) for share in shares]
        assert min(lengths) >= 1
        assert max(lengths) - min(lengths) <= 1
