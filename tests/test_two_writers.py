"""Two processes that write to one place: the right content, or a refusal that says what to do."""

import errno
import fcntl
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_killed import embed, energies, hamiltonians, label, md, positions, suite, train, weights

from pyscf_deqh import DatasetError, OutputError
from pyscf_deqh.data.dataset import GraphStore
from pyscf_deqh.data.formats.qh9 import QH9Database
from pyscf_deqh.files import only_writer, write_text


def test_one_writer_at_a_time(tmp_path):
    path, lock = tmp_path / "folder" / "a.xyz", tmp_path / "folder" / "a.xyz.lock"
    with only_writer(path):
        assert lock.exists()
        with pytest.raises(OutputError, match=rf"another process writes to {path}: wait for it"):
            only_writer(path).__enter__()
        with only_writer(path.with_name("b.xyz")):
            pass
        assert lock.exists()
    assert not lock.exists()
    lock.touch()  # of a process that was killed
    with only_writer(path):
        pass


def test_a_lock_that_its_owner_removes_meanwhile_is_no_lock(tmp_path, monkeypatch):
    original, path = fcntl.flock, tmp_path / "a"

    def late(handle, operation):
        monkeypatch.undo()
        (tmp_path / "a.lock").unlink()
        original(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with only_writer(path):
        assert (tmp_path / "a.lock").exists()
        with pytest.raises(OutputError):
            only_writer(path).__enter__()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks(code, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_writer(tmp_path / "a"), only_writer(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_each_writer_has_a_file_of_its_own(tmp_path, monkeypatch):
    """Two that replace one file at the same moment: one of both is there, as a whole."""
    original, path = Path.replace, tmp_path / "table.md"

    def other_comes_first(self, target):
        monkeypatch.undo()
        write_text(path, "other\n")
        original(self, target)

    monkeypatch.setattr(Path, "replace", other_comes_first)
    write_text(path, "own\n")
    assert path.read_text() == "own\n"
    assert list(tmp_path.iterdir()) == [path]


def test_settings_are_written_once(tmp_path):
    """Of two that begin a database at the same moment, with other settings perhaps."""
    with (
        QH9Database(tmp_path / "a.db", writable=True) as first,
        QH9Database(tmp_path / "a.db", writable=True) as second,
    ):
        first.write_settings({"xc": "pbe"})
        with pytest.raises(DatasetError, match="has labels of other settings"):
            second.write_settings({"xc": "b3lyp"})
        assert second.settings() == {"xc": "pbe"}


def test_a_store_that_is_locked_is_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("pyscf_deqh.data.dataset._TIMEOUT", 0.1)
    store = GraphStore(tmp_path, "none", "def2-svp")
    store.sizes()
    other = sqlite3.connect(store.path)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DatasetError, match=r"is locked\. Wait for the other process") as caught:
        store.sizes()
    assert "delete" not in str(caught.value)
    other.close()
    assert store.sizes() == {}


def start(arguments, folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=folder, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def ended(process):
    """Its exit status, and what it has said."""
    _, text = process.communicate()
    return process.returncode, text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "content"),
    [(label, hamiltonians), (embed, positions), (md, positions), (train, weights),
     (suite, energies)],
)  # fmt: skip
def test_the_same_command_twice_at_once(command, content, tmp_path):
    """One of both ends well, and what they leave is what one of them alone makes."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    whole.mkdir()
    shared.mkdir()
    assert ended(start(command(whole), whole))[0] == 0
    both = [start(command(shared), shared) for _ in range(2)]
    results = sorted(ended(process) for process in both)
    assert [code for code, _ in results] in ([0, 0], [0, 2])
    for code, text in results:
        assert "Traceback" not in text
        assert code == 0 or re.search("(the other|another) process", text)
    assert ended(start(command(shared), shared))[0] == 0
    found, expected = content(shared), content(whole)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_two_trainings_build_one_cache(tmp_path):
    folders = [tmp_path / name for name in ("alone", "first", "second")]
    for folder in folders:
        folder.mkdir()
        arguments = train(folder)
        config = yaml.safe_load((folder / "run.yaml").read_text())
        config["data"]["cache"] = str(tmp_path / f"cache-{folder.name == 'alone'}")
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
    assert ended(start(arguments, folders[0]))[0] == 0
    both = [start(arguments, folder) for folder in folders[1:]]
    assert [ended(process)[0] for process in both] == [0, 0]
    expected = weights(folders[0])
    for folder in folders[1:]:
        for key, value in weights(folder).items():
            np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-9)


# The system's call for locks, as file systems without them answer it.
NO_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
typedef int (*call)(int, int, ...);
static int answer(const char *name, int file, int command, void *argument) {
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) {
        errno = REFUSAL;
        return -1;
    }
    return ((call)dlsym(RTLD_NEXT, name))(file, command, argument);
}
#define ARGUMENT va_list rest; va_start(rest, command); \\
    void *argument = va_arg(rest, void *); va_end(rest);
int fcntl(int file, int command, ...) { ARGUMENT return answer("fcntl", file, command, argument); }
int fcntl64(int file, int command, ...) {
    ARGUMENT return answer("fcntl64", file, command, argument);
}
int flock(int file, int operation) { errno = REFUSAL; return -1; }
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (sys.platform == "linux" and shutil.which("cc")), reason="needs a C compiler on Linux"
)
@pytest.mark.parametrize("refusal", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks(refusal, tmp_path):
    """Databases are refused, and files that one process alone writes to are written."""
    library, source = tmp_path / "no_locks.so", tmp_path / "no_locks.c"
    source.write_text(NO_LOCKS)
    command = ["cc", "-shared", "-fPIC", f"-DREFUSAL={refusal}", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    for command in (label, train, embed):
        arguments = command(tmp_path)
        code, text = ended(start(arguments, tmp_path, LD_PRELOAD=str(library)))
        if command is embed:
            assert code == 0, text
            assert len(positions(tmp_path)) == 6
        else:
            assert code == 2, text
            assert "Traceback" not in text
            assert re.search("file system has no locks|Look after the disk .*locks", text)
