"""Disks that take no more data: what was there is kept, the error says what to do, and the same
command ends as an undisturbed one.

By default a limit of file sizes stands in for a full disk: the system refuses in the midst of a
write. The slow tests fill real disks, which Linux lets a user mount in a name space of his own.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import file_size_limit
from pyarrow import parquet
from test_killed import energies, hamiltonians, label, md, positions, suite, train, weights

from pyscf_deqh import CheckpointError, DatasetError, OutputError, load_model
from pyscf_deqh.checkpoint import save_model
from pyscf_deqh.data.formats.qh9 import QH9Database
from pyscf_deqh.data.make.dynamics import ENGINES
from pyscf_deqh.data.make.embed import embed as make_embedded
from pyscf_deqh.data.make.trajectories import simulate, start_geometries
from pyscf_deqh.files import write_json
from pyscf_deqh.train.checkpoints import WholeCheckpoints


def write_rows(folder, n):
    write_json(folder / "rows.json", {"rows": [n] * 10_000})


def write_model(folder, n):
    model, spec = load_model()
    save_model(model, spec, folder / "model", half=bool(n))


def write_checkpoint(folder, n):
    WholeCheckpoints().save_checkpoint({"n": torch.full((10_000,), n)}, folder / "last.ckpt")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", [write_rows, write_model, write_checkpoint])
def test_a_file_that_cannot_be_replaced_stays(write, tmp_path):
    write(tmp_path, 0)
    before = contents(tmp_path)
    with (
        file_size_limit(4096),
        pytest.raises(OutputError, match=rf"cannot write to {tmp_path}.*ulimit.*same command"),
    ):
        write(tmp_path, 1)
    assert contents(tmp_path) == before
    write(tmp_path, 1)
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert after != before


def test_written_files_have_the_permissions_that_a_user_gives_new_ones(tmp_path):
    mask = os.umask(0o022)
    try:
        for write in (write_rows, write_model, write_checkpoint):
            write(tmp_path, 0)
    finally:
        os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in contents(tmp_path)} == {0o644}


def test_a_damaged_checkpoint_is_named(tmp_path):
    write_checkpoint(tmp_path, 0)
    path = tmp_path / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot go on from .*last\.ckpt"):
        WholeCheckpoints().load_checkpoint(path, weights_only=True)


def write_embedded(path):
    make_embedded({"water": "O", "ammonia": "N", "methane": "C"}, path, workers=0, progress=False)


def write_trajectory(path):
    engine = ENGINES["xtb"](interval=1.0, timestep=0.5, equilibration=0.0)
    simulate(start_geometries("water"), path, engine, frames=6, workers=0, progress=False)


@pytest.mark.parametrize("write", [write_embedded, write_trajectory])
def test_geometries_go_on_in_the_midst_of_a_frame(write, tmp_path):
    write(tmp_path / "whole.xyz")
    whole, path = (tmp_path / "whole.xyz").read_bytes(), tmp_path / "a.xyz"
    size = len(whole) * 3 // 5
    with (
        file_size_limit(size),
        pytest.raises(DatasetError, match=r"cannot write to .*a\.xyz.*same command"),
    ):
        write(path)
    assert path.read_bytes() == whole[:size]
    write(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("size", [4096, 12288, 20480])
def test_a_database_whose_tables_did_not_fit_is_made_anew(size, tmp_path):
    path = tmp_path / "a.db"
    with file_size_limit(size), pytest.raises(DatasetError, match=r"disk I/O error\. Look after"):
        QH9Database(path, writable=True)
    with QH9Database(path, writable=True) as database:
        assert len(database) == 0


def can_mount():
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# Once on a disk of the size $1, and again with more space. What is on the disk ends with the name
# space, and is copied.
FULL = """
mount -t tmpfs -o size=$1 tmpfs "$2" && cp -a "$3"/. "$2" && cd "$2" && shift 3
"$@"; code=$?
mount -o remount,size=500m . && [ $code = 2 ] && "$@" && cp -a . ../after
"""


def embed(folder):
    (folder / "a.smi").write_text("".join(f"O water{i}\nN ammonia{i}\n" for i in range(15)))
    return ["pyscf_deqh.data", "embed", "a.smi", "--out", "b.xyz"]


def steps(folder):
    frames = [f"2\nname=h{i}\nH 0 0 0\nH 0 0 {0.7 + 0.02 * i}\n" for i in range(4)]
    (folder / "a.xyz").write_text("".join(frames))
    return ["pyscf_deqh.benchmark", "steps", "dynamics", "--molecules", "a.xyz", "--steps", "2",
            "--json", "rows.json"]  # fmt: skip


def screen(folder):
    frames = [f"2\nname=h{i}\nH 0 0 0\nH 0 0 {0.7 + 0.001 * i}\n" for i in range(60)]
    (folder / "a.xyz").write_text("".join(frames))
    return ["pyscf_deqh.screen", "a.xyz", "--xc", "hf", "--basis", "sto-3g", "--workers", "0",
            "--out", "a.parquet"]  # fmt: skip


def row_energies(folder):
    table = parquet.read_table(folder / "a.parquet", columns=["name", "energy"])
    return {row["name"]: row["energy"] for row in table.to_pylist()}


def last_energies(folder):
    rows = json.loads((folder / "rows.json").read_text())["rows"]
    return {row["name"]: row["deqh"]["energy"] for row in rows}


def train_with_full_logs(folder):
    """Checkpoints and graphs lie on another disk."""
    for name in ("run/checkpoints", "cache"):
        place, elsewhere = folder / name, folder.parent / f"{folder.name}-{name.replace('/', '-')}"
        elsewhere.mkdir()
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(elsewhere)
    return train(folder)


def kilobytes(folder):
    """What a file system of pages takes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(-(-size // 4096) * 4 for size in sizes)


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs mounts of one's own")
@pytest.mark.parametrize("part", [0.1, 0.35, 0.6])
@pytest.mark.parametrize(
    ("command", "content"),
    [(label, hamiltonians), (embed, positions), (md, positions), (train, weights),
     (train_with_full_logs, weights), (suite, energies), (steps, last_energies),
     (screen, row_energies)],
)  # fmt: skip
def test_a_full_disk(command, content, part, tmp_path):
    """Of so large a part of the space that the command takes."""
    whole, empty, disk = (tmp_path / name for name in ("whole", "empty", "disk"))
    for folder in (whole, empty, disk):
        folder.mkdir()
    arguments = [sys.executable, "-m", *command(whole)]
    given = kilobytes(whole)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(arguments, cwd=whole, env=environment, check=True, capture_output=True)
    command(empty)
    size = given + max(part * (kilobytes(whole) - given), 4)
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL, "sh",
         f"{4 * int(size / 4)}k", disk, empty, *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"error: .*(No space|full).*run the same command again", done.stderr)
    if command is not train_with_full_logs:  # TensorBoard's thread prints its own
        assert "Traceback" not in done.stderr
    found, expected = content(tmp_path / "after"), content(whole)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-9)
