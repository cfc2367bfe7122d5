"""Labels: PySCF's own, interrupted and resumed, and what is refused."""

import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyscf import dft, gto, scf
from test_data import FAST, helium, hydrogen, write_xyz
from worker_functions import die_on_two

from pyscf_deqh import ConfigError, DatasetError, UnsupportedMoleculeError
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.dataset import GraphStore, HamiltonianDataset
from pyscf_deqh.data.formats.qh9 import QH9Database
from pyscf_deqh.data.formats.store import LabelStore
from pyscf_deqh.data.geometry import Geometry, read_geometries
from pyscf_deqh.data.make import label as label_module
from pyscf_deqh.data.make.convert import convert
from pyscf_deqh.data.make.label import LabelSettings, label, solve

pytestmark = pytest.mark.usefixtures("quick_workers")


def test_labels_equal_pyscf(tmp_path, spawned_workers):
    geometry = Geometry(
        np.array([8, 1, 1], np.int32), np.array([r for _, r in WATER]), {"qm9_id": "3"}
    )
    written, failures = label([geometry], tmp_path / "a.db", workers=1, progress=False)
    assert (written, failures) == (1, {})
    mf = dft.RKS(make_mol(WATER), xc="b3lyp").run()
    with QH9Database(tmp_path / "a.db") as database:
        record = database[30]
        assert database.settings()["xc"] == "b3lyp"
        assert "pyscf_version" in database.settings()
    np.testing.assert_allclose(record.hamiltonian, mf.get_fock(), atol=2e-5)
    assert record.meta["energy"] == pytest.approx(mf.e_tot, abs=1e-8)


def test_failures_are_listed_and_resumed(tmp_path):
    """A basis without helium fails; an iteration limit of one cycle converges nobody."""
    geometries = [hydrogen(id="1"), helium(id="2")]
    one_cycle = LabelSettings(xc="hf", max_cycle=1)
    written, failures = label(geometries, tmp_path / "a.db", one_cycle, 2, progress=False)
    assert written == 0
    assert "not converged" in failures[1]
    written, failures = label(geometries, tmp_path / "a.db", one_cycle, 0, progress=False)
    assert set(failures) == {1, 2}
    geometries = [hydrogen(id="1"), Geometry(np.array([3]), np.zeros((1, 3)), {"id": "2"})]
    written, failures = label(geometries, tmp_path / "b.db", FAST, 0, progress=False)
    assert written == 1
    assert list(failures) == [2]
    assert "spin" in failures[2]


def test_other_settings_are_refused(tmp_path):
    label([hydrogen(id="1")], tmp_path / "a.db", FAST, 0, progress=False)
    other = LabelSettings(xc="hf", conv_tol=1e-8, basis="sto-3g")
    with pytest.raises(DatasetError, match=r"other settings .*basis"):
        label([hydrogen(id="1")], tmp_path / "a.db", other, 0, progress=False)


def test_repeated_ids_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="same id"):
        label([hydrogen(id="1"), hydrogen(id="1")], tmp_path / "a.db", FAST, progress=False)


def _bonds(path, *lengths):
    path.write_text("".join(f"2\n\nH 0 0 0\nH 0 0 {length}\n" for length in lengths))
    return path


def test_rows_without_an_id_go_by_their_place_in_the_file(tmp_path):
    """Also where a random part of the file is labelled first."""
    xyz, out = _bonds(tmp_path / "a.xyz", 0.7, 0.72, 0.74, 0.76), tmp_path / "a.db"
    command = ["label", str(xyz), "--out", str(out), "--xc", "hf", "--workers", "0"]
    assert main([*command, "--n", "2"]) == 0
    assert main(command) == 0
    with QH9Database(out) as database:
        lengths = [database[i].positions[1, 2] for i in range(4)]
    assert lengths == [0.7, 0.72, 0.74, 0.76]


def test_rows_of_other_geometries_are_not_taken_for_these(tmp_path, capsys):
    out = tmp_path / "a.db"
    label(read_geometries(_bonds(tmp_path / "a.xyz", 0.7)), out, FAST, 0, progress=False)
    with pytest.raises(DatasetError, match="another geometry with id 0"):
        label(read_geometries(_bonds(tmp_path / "b.xyz", 0.8)), out, FAST, 0, progress=False)
    command = ["label", str(tmp_path / "b.xyz"), "--out", str(out), "--exclude", str(out)]
    assert main(command) == 2
    assert "--exclude needs qm9_id" in capsys.readouterr().err


def test_published_labels_say_not_which_molecules_to_exclude(tmp_path, capsys):
    """QH9's ids are none of QM9's."""
    published = tmp_path / "published.db"
    with QH9Database(published, writable=True):
        pass
    xyz = write_xyz(tmp_path / "a.xyz", 4)
    command = ["label", str(xyz), "--out", str(tmp_path / "b.db"), "--exclude", str(published)]
    assert main(command) == 2
    assert "number their molecules in their own way" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["spin", "ghosts"])
def test_open_shells_and_ghost_atoms_are_refused(key):
    with pytest.raises(DatasetError, match=f"{key}=1"):
        solve(hydrogen(0.74, **{key: "1"}), FAST)


@pytest.mark.parametrize("key", ["id", "qm9_id"])
def test_numbers_in_comments_that_are_none(tmp_path, key):
    with pytest.raises(DatasetError, match=f"{key}=mol_12 .* no whole number"):
        label([hydrogen(**{key: "mol_12"})], tmp_path / "a.db", FAST, 0, progress=False)


def test_a_bad_temperature_fails_its_molecule_alone(tmp_path):
    geometries = [hydrogen(id="1", temperature="300K"), hydrogen(id="2")]
    written, failures = label(geometries, tmp_path / "a.db", FAST, 0, progress=False)
    assert written == 1
    assert "300K" in failures[1]


def test_ions(tmp_path):
    """Their labels and graphs are those of the ion; QH9's schema cannot hold them."""
    ion = Geometry(
        np.array([8, 1], np.int32), np.array([[0, 0, 0], [0, 0, 0.97]]),
        {"charge": "-1", "id": "4"},
    )  # fmt: skip
    written, failures = label([hydrogen(id="1"), ion], tmp_path / "a.db", FAST, 0, progress=False)
    assert written == 1
    assert "charge -1" in failures[4]
    assert "no place for it, a label store has" in failures[4]
    out = tmp_path / "a.store"
    assert label([ion], out, FAST, workers=0, progress=False) == (1, {})
    mol = gto.M(atom=ion.atom(), basis="def2-svp", charge=-1, verbose=0)
    mf = scf.RHF(mol).run()
    with LabelStore(out) as store:
        record = store[4]
        assert record.charge == record.geometry().charge == -1
    assert record.meta["energy"] == pytest.approx(mf.e_tot, abs=1e-8)
    np.testing.assert_allclose(record.hamiltonian, mf.get_fock(), atol=2e-5)
    neutral = Geometry(ion.numbers, ion.positions, {"id": "4"})
    with pytest.raises(DatasetError, match="another geometry with id 4"):
        label([neutral], out, FAST, workers=0, progress=False)
    with pytest.raises(DatasetError, match="no place for the charge of id 4"):
        convert(out, tmp_path / "b.db", progress=False)
    graphs = GraphStore(tmp_path / "cache", "none", "def2-svp")
    (graph,) = HamiltonianDataset([out], "all", graphs, workers=1, progress=False)
    assert graph.n_occupied == 5


def test_open_shells_are_refused(tmp_path):
    oxygen = Geometry(np.array([8], np.int32), np.zeros((1, 3)), {"spin": "2"})
    _, failures = label([oxygen], tmp_path / "a.db", FAST, workers=0, progress=False)
    assert "spin=2: only closed shells" in failures[0]


@pytest.mark.parametrize(
    ("xc", "what"), [("wb97m_v", "nonlocal correlation"), ("b3lyp-d3bj", "dispersion correction")]
)
def test_fitted_labels_of_functionals_with_more_than_a_grid_are_refused(tmp_path, xc, what):
    settings = LabelSettings(xc=xc, density_fit=True)
    with pytest.raises(ConfigError, match=what):
        label([hydrogen(id="1")], tmp_path / "a.db", settings, 0, progress=False)


@pytest.mark.parametrize("settings", [{"xc": "b3lpy"}, {"basis": "def2-spv"}])
def test_a_method_that_does_not_exist_fixes_no_file(tmp_path, settings):
    out, geometry = tmp_path / "a.db", [hydrogen(id="1")]
    with pytest.raises(ConfigError, match=next(iter(settings.values()))):
        label(geometry, out, LabelSettings(**settings), 0, progress=False)
    assert label(geometry, out, FAST, 0, progress=False)[0] == 1


def test_two_processes_that_write_the_same_rows(tmp_path, monkeypatch):
    label([hydrogen(id="1")], tmp_path / "a.db", FAST, 0, progress=False)
    # As before the other process wrote.
    monkeypatch.setattr(QH9Database, "ids", lambda self: [])
    with pytest.raises(DatasetError, match="another process writes"):
        label([hydrogen(id="1")], tmp_path / "a.db", FAST, 0, progress=False)


KILLED = """
import os, signal, sys
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.formats.qh9 import QH9Database

def add_all(self, records):
    original(self, records)
    if len(self) == 3:
        os.killpg(0, signal.SIGKILL)

if __name__ == "__main__":  # workers import this, too
    original, QH9Database.add_all = QH9Database.add_all, add_all
    main(sys.argv[1:])
"""


def test_labelling_survives_a_kill(tmp_path):
    """SIGKILL to the whole group after a row; the same command then completes the database."""
    xyz, out, script = write_xyz(tmp_path / "a.xyz", 8), tmp_path / "a.db", tmp_path / "killed.py"
    script.write_text(KILLED)
    command = ["label", str(xyz), "--out", str(out), "--xc", "hf", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, str(script), *command],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.wait() == -signal.SIGKILL
    with QH9Database(out) as database:
        assert len(database) == 3
    assert main(command) == 0
    with QH9Database(out) as database:
        assert len(database) == 8
        assert all(np.isfinite(r.hamiltonian).all() for r in database)


def test_a_dying_worker_fails_its_molecule_alone(tmp_path, monkeypatch):
    """Every other molecule is labelled all the same."""
    monkeypatch.setattr(label_module, "_work", die_on_two)
    geometries = [hydrogen(0.7 + 0.01 * i, id=str(i)) for i in range(5)]
    written, failures = label(geometries, tmp_path / "a.db", FAST, 2, progress=False)
    assert written == 4
    assert list(failures) == [2]
    assert "died" in failures[2]


def test_full_disk_keeps_what_is_written(tmp_path, monkeypatch):
    """SQLite's own page limit stands in for a full disk: the same error from the same place."""
    original = QH9Database.__init__

    def small(self, path, writable=False):
        original(self, path, writable)
        if writable:
            self._connection.execute("PRAGMA max_page_count = 14")

    monkeypatch.setattr(QH9Database, "__init__", small)
    geometries = [hydrogen(0.7 + 0.01 * i, id=str(i)) for i in range(40)]
    with pytest.raises(DatasetError, match=r"full.*rows in it are kept"):
        label(geometries, tmp_path / "a.db", FAST, 0, progress=False)
    monkeypatch.undo()
    with QH9Database(tmp_path / "a.db") as database:
        n = len(database)
    assert 0 < n < 40
    written, _ = label(geometries, tmp_path / "a.db", FAST, 0, progress=False)
    assert written == 40 - n


def test_command_line(tmp_path, capsys):
    xyz = write_xyz(tmp_path / "a.xyz", 20)
    out = str(tmp_path / "a.db")
    base = ["label", str(xyz), "--out", out, "--xc", "hf", "--workers", "0"]
    assert main([*base, "--split", "test"]) == 0
    with QH9Database(out) as database:
        assert database.ids() == [70, 170]
    assert main([*base, "--qm9-ids", "3", "5", "--exclude", out]) == 0
    assert main(["info", out]) == 0
    printed = capsys.readouterr().out
    assert "4 molecules, 0 failures" in printed
    assert "basis: def2-svp" in printed
    assert main(["info", str(tmp_path / "none.db")]) == 2
    assert main([*base, "--density-fit", "--grid-level", "1"]) == 2
    assert "grid of its own" in capsys.readouterr().err


def test_databases_of_others_stay_as_they_are(tmp_path):
    path = tmp_path / "published.db"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE data (id INTEGER NOT NULL PRIMARY KEY, N, Z BLOB, pos BLOB, Ham BLOB)"
        )
    content = path.read_bytes()
    with pytest.raises(DatasetError, match="was not made by this package"):
        QH9Database(path, writable=True)
    assert path.read_bytes() == content


def test_elements_with_effective_core_potentials_are_refused():
    atoms = Geometry(np.array([1, 53], np.int32), np.array([[0, 0, 0], [0, 0, 1.61]]), {})
    with pytest.raises(UnsupportedMoleculeError, match="effective core potential for I"):
        solve(atoms, LabelSettings(xc="hf"))


def test_steps_of_the_scf(tmp_path, capsys):
    """Each Fock matrix is PySCF's of the density that the Hamiltonian's orbitals make, to what the
    fitted integrals are off."""
    water = Geometry(
        np.array([8, 1, 1], np.int32), np.array([r for _, r in WATER]), {"id": "4"}
    )  # fmt: skip
    settings = LabelSettings(xc="hf", conv_tol=1e-8, density_fit=True)
    out = tmp_path / "a.store"
    assert label([water], out, settings, workers=0, progress=False, steps=3) == (1, {})
    mf = scf.RHF(gto.M(atom=water.atom(), basis="def2-svp", verbose=0)).run()
    with LabelStore(out) as store:
        path, record = store.steps_of(4), store[4]
    assert len(path) == store.steps == 3
    distances = []
    for step in path:
        orbitals = mf.eig(step.hamiltonian, mf.get_ovlp())[1][:, :5]
        expected = mf.get_fock(dm=2 * orbitals @ orbitals.T)
        assert np.abs(step.fock - expected).mean() < 1e-3 < np.abs(expected).mean() / 100
        distances.append(np.abs(step.hamiltonian - record.hamiltonian).max())
    assert distances[0] > 10 * distances[2] > 0
    with pytest.raises(ConfigError, match="no place for steps of an SCF"):
        label([water], tmp_path / "a.db", settings, workers=0, progress=False, steps=3)
    assert not (tmp_path / "a.db").exists()
    xyz = tmp_path / "a.xyz"
    xyz.write_text("2\n\nH 0 0 0\nH 0 0 0.7\n")
    command = ["label", str(xyz), "--out", str(out), "--xc", "hf", "--conv-tol", "1e-8",
               "--density-fit", "--workers", "0"]  # fmt: skip
    assert main([*command, "--steps", "2"]) == 2
    assert "holds 3 steps of each SCF, not 2" in capsys.readouterr().err
    assert main(command) == 2
    assert main([*command, "--steps", "3"]) == 0
