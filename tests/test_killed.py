"""SIGKILL at random moments: the same command, again and again, ends with what it makes otherwise.

Ten of them for each command that goes on where it was stopped. A short form is in test_label.py.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from pyscf_deqh.data.formats import open_labels
from pyscf_deqh.data.formats.qh9 import QH9Database
from pyscf_deqh.data.record import Record
from pyscf_deqh.data.xyz import read_xyz

pytestmark = pytest.mark.slow
KILLS = 10
WATERS = "".join(
    f"3\nname=w{i}\nO 0 0 0\nH 0 {0.75 + 0.01 * i} 0.6\nH 0 -0.76 0.6\n" for i in range(6)
)
SMILES = "CC ethane\nCO methanol\nC#N prussic acid\nCC=O acetaldehyde\nC1CC1 ring\nNC=O formamide\n"


def label(folder):
    (folder / "a.xyz").write_text(WATERS)
    return ["pyscf_deqh.data", "label", "a.xyz", "--out", "a.db", "--xc", "pbe", "--workers", "1"]


def hamiltonians(folder):
    with QH9Database(folder / "a.db") as database:
        return {i: database[i].hamiltonian for i in database.ids()}


def convert(folder):
    numbers, positions = np.array([8, 1, 1]), np.array([[0, 0, 0], [0, 0.75, 0.6], [0, -0.76, 0.6]])
    matrices = np.random.default_rng(0).normal(size=(4, 24, 24))
    matrices = matrices + matrices.transpose(0, 2, 1)
    with QH9Database(folder / "a.db", writable=True) as database:
        database.add_all(Record(i, numbers, positions, matrices[i % 4]) for i in range(20000))
    return ["pyscf_deqh.data", "convert", "a.db", "a.store"]


def converted(folder):
    with open_labels(folder / "a.store") as store:
        assert store.failures() == {}
        return {record.id: record.hamiltonian for record in store}


def embed(folder):
    (folder / "a.smi").write_text(SMILES)
    return ["pyscf_deqh.data", "embed", "a.smi", "--out", "b.xyz"]


def positions(folder):
    return {i: geometry.positions for i, geometry in enumerate(read_xyz(folder / "b.xyz"))}


def md(folder):
    return ["pyscf_deqh.data", "md", "water", "--frames", "40", "--out", "b.xyz"]


def train(folder):
    labelled = folder.parent / "labels"
    if not labelled.is_dir():
        labelled.mkdir()
        run(label(labelled), labelled).wait()
    network = {"natural_channels": 4, "pseudo_channels": 2, "injection_layers": 1,
               "filter_layers": 1, "invariants": 8, "radial_functions": 8}  # fmt: skip
    config = {
        "backbone": "so2net", "so2net": network,
        "data": {"databases": [str(labelled / "a.db")], "elements": [1, 8], "cache": "cache",
                 "split_rule": "md17", "split_sizes": [3, 2]},
        "solver": {"forward_max_iterations": 2, "gradient": "random-depth"},
        "run": {"folder": "run", "max_epochs": 30, "batch_size": 2, "threads": 1},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return ["pyscf_deqh.train", "--config", "run.yaml", "--resume"]


def weights(folder):
    path = folder / "run" / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == 29
    return {name: value.numpy() for name, value in state["state_dict"].items()}


def suite(folder):
    return ["pyscf_deqh.benchmark", "suite", "--sets", "counterpoise", "--n", "1", "--out", "rows"]


def energies(folder):
    (path,) = (folder / "rows").glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    return {row["name"]: np.array([row["deqh"]["energy"], row["deqh"]["full_builds"]])
            for row in rows}  # fmt: skip


def run(arguments, folder):
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "content"),
    [(label, hamiltonians), (convert, converted), (embed, positions), (md, positions),
     (train, weights), (suite, energies)],
)  # fmt: skip
def test_a_killed_command_ends_as_an_undisturbed_one(command, content, tmp_path):
    whole, rng, killed = tmp_path / "whole", random.Random(0), 0
    whole.mkdir()
    arguments, started = command(whole), time.monotonic()
    assert run(arguments, whole).wait() == 0
    seconds, expected = time.monotonic() - started, content(whole)
    folder = None
    while killed < KILLS:
        if folder is None:
            folder = tmp_path / f"killed{killed}"
            folder.mkdir()
            command(folder)
        process = run(arguments, folder)
        try:
            assert process.wait(rng.uniform(0.2, 1.0) * seconds) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        if process.returncode == 0 or killed == KILLS:
            assert run(arguments, folder).wait() == 0
            found = content(folder)
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-9)
            folder = None
