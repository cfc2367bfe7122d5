"""Screening: rows against PySCF's own SCFs, and a table that loses none."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyarrow import parquet
from pyscf import dft, scf
from test_data import hydrogen

from pyscf_deqh import ConfigError, DatasetError, OutputError
from pyscf_deqh.benchmark.scf_runs import Method
from pyscf_deqh.checkpoint import DEFAULT_MODEL, resolve_model
from pyscf_deqh.data.geometry import Geometry
from pyscf_deqh.screen import COLUMNS, fingerprint, main, screen
from pyscf_deqh.table import RowTable

pytestmark = pytest.mark.usefixtures("coarse_grids")

SMALL = Method(xc="hf", basis="sto-3g")


def rows_of(path):
    return {row["id"]: row for row in parquet.read_table(path).to_pylist()}


def run(geometries, out, method=SMALL, **options):
    return screen(geometries, out, method, workers=0, progress=False, **options)


def test_rows_are_pyscfs(tmp_path):
    water = Geometry(np.array([8, 1, 1]), np.array([r for _, r in WATER]), {"name": "water"})
    cation = Geometry(water.numbers, water.positions, {"charge": "1"})
    out = tmp_path / "a.parquet"
    assert run([water, cation], out, Method()) == {"written": 2, "failed": 0, "not_converged": 0}
    rows = rows_of(out)
    mf = dft.RKS(make_mol(WATER), xc="b3lyp").run()
    row = rows[0]
    assert row["energy"] == pytest.approx(mf.e_tot, abs=1e-8)
    np.testing.assert_allclose(row["dipole"], mf.dip_moment(verbose=0), atol=1e-4)
    np.testing.assert_allclose(row["charges"], mf.mulliken_pop(verbose=0)[1], atol=1e-4)
    assert row["gap"] == pytest.approx(mf.mo_energy[5] - mf.mo_energy[4], abs=1e-5)
    assert row["homo"] == pytest.approx(mf.mo_energy[4], abs=1e-5)
    assert (row["name"], row["formula"], row["orbitals"]) == ("water", "H2O", mf.mol.nao)
    assert row["converged"]
    assert row["start"] == "network"
    assert row["full_builds"] < mf.cycles + 2
    open_shell = dft.UKS(make_mol(WATER, charge=1, spin=1), xc="b3lyp").run()
    row = rows[1]
    assert row["energy"] == pytest.approx(open_shell.e_tot, abs=1e-8)
    assert row["spin_square"] == pytest.approx(open_shell.spin_square()[0], abs=1e-4)
    homo, lumo = (max(e[n - 1] for e, n in zip(open_shell.mo_energy, (5, 4), strict=True)),
                  min(e[n] for e, n in zip(open_shell.mo_energy, (5, 4), strict=True)))  # fmt: skip
    assert (row["homo"], row["lumo"]) == pytest.approx((homo, lumo), abs=1e-4)


def test_one_fock_matrix_instead_of_an_scf(tmp_path):
    water = Geometry(np.array([8, 1, 1]), np.array([r for _, r in WATER]), {})
    xyz, out = tmp_path / "a.xyz", tmp_path / "a.parquet"
    xyz.write_text("3\n\n" + "".join(f"{s} {x} {y} {z}\n" for s, (x, y, z) in WATER))
    command = [str(xyz), "--out", str(out), "--workers", "0"]
    assert main([*command, "--single-build"]) == 0
    (row,) = rows_of(out).values()
    mf = dft.RKS(make_mol(WATER), xc="b3lyp").run(conv_tol=1e-11)
    assert row["converged"] is None
    assert abs(row["energy"] - mf.e_tot) < row["energy_error"] < 1e-6
    assert (row["cycles"], row["full_builds"]) == (0, 1)
    assert row["gap"] == pytest.approx(mf.mo_energy[5] - mf.mo_energy[4], abs=1e-4)
    with pytest.raises(DatasetError, match="single_build: True there, False now"):
        run([water], out, Method())


@pytest.mark.parametrize("basis", ["Def2-SVP", "lanl2dz"])
def test_basis_sets_of_valence_electrons_bring_their_potentials(basis):
    """However the name is spelled, and whatever the element."""
    numbers, positions = np.array([11, 53]), np.array([[0.0, 0, 0], [0, 0, 2.7]])
    mol = Method(basis=basis).molecule(Geometry(numbers, positions))
    cores = {"Def2-SVP": (0, 28), "lanl2dz": (10, 46)}[basis]
    assert tuple(numbers - mol.atom_charges()) == cores


def test_one_electron_is_solved_without_a_guess(tmp_path):
    out = tmp_path / "a.parquet"
    geometry = Geometry(np.array([1]), np.zeros((1, 3)), {})
    assert run([geometry], out, Method(xc="hf", basis="sto-3g"))["failed"] == 0
    (row,) = rows_of(out).values()
    assert row["energy"] == pytest.approx(-0.46658, abs=1e-5)  # hartree, of this basis set
    assert row["start"] == "PySCF's"


def test_rows_of_looser_thresholds_are_of_another_method(tmp_path):
    out = tmp_path / "a.parquet"
    loose = Method(xc="hf", basis="sto-3g", conv_tol=1e-5)
    run([hydrogen()], out, loose)
    with pytest.raises(DatasetError, match="conv_tol: 1e-05 there, None now"):
        run([hydrogen()], out)


def test_a_model_of_ones_own_is_found_from_everywhere(tmp_path, monkeypatch):
    """Workers may be in other folders."""
    asked = []

    def row(geometry, method, single):
        asked.append(method.model)
        return {"error": None}

    monkeypatch.setattr("pyscf_deqh.screen.one_molecule", row)
    monkeypatch.chdir(resolve_model(DEFAULT_MODEL).parent)
    for model in (DEFAULT_MODEL, f"./{DEFAULT_MODEL}"):
        method = Method(xc="hf", basis="sto-3g", model=model)
        run([hydrogen()], tmp_path / f"{len(asked)}.parquet", method)
    assert asked == [DEFAULT_MODEL, resolve_model(DEFAULT_MODEL)]


def test_an_output_is_extended(tmp_path):
    out = tmp_path / "a.parquet"
    geometries = [hydrogen(0.7 + 0.01 * i) for i in range(5)]
    assert run(geometries[:2], out)["written"] == 2
    before = rows_of(out)
    assert run(geometries, out)["written"] == 3
    assert run(geometries, out)["written"] == 0
    after = rows_of(out)
    assert list(after) == list(range(5))
    assert {i: after[i] for i in before} == before
    assert not (tmp_path / "a.parquet.journal").exists()
    with pytest.raises(DatasetError, match="another geometry with id 0"):
        run([hydrogen(0.9)], out)
    with pytest.raises(DatasetError, match=r"other settings .*basis: sto-3g there, def2-svp now"):
        run(geometries, out, Method(xc="hf"))
    with pytest.raises(ConfigError, match="parquet"):
        run(geometries, tmp_path / "a.csv")
    assert rows_of(out) == after


def test_failures_are_rows_and_can_be_tried_again(tmp_path, monkeypatch, capsys):
    out = tmp_path / "a.parquet"
    unknown = Geometry(np.array([1, 1]), np.zeros((2, 3)), {"id": "7", "name": "one place"})
    found = run([hydrogen(id="1"), unknown], out)
    assert found == {"written": 2, "failed": 1, "not_converged": 0}
    row = rows_of(out)[7]
    assert row["energy"] is None
    assert "Error" in row["error"]
    assert run([hydrogen(id="1"), unknown], out)["written"] == 0
    assert run([hydrogen(id="1"), unknown], out, retry_failed=True)["written"] == 1


def test_not_converged_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(scf.hf.SCF, "max_cycle", 1)
    monkeypatch.setattr(scf.hf.SCF, "conv_tol", 1e-14)
    water = Geometry(np.array([8, 1, 1]), np.array([r for _, r in WATER]), {})
    assert run([water], tmp_path / "a.parquet")["not_converged"] == 1


KILLED = """
import os, signal, sys
from pyscf_deqh.screen import main
from pyscf_deqh.table import RowTable

def add(self, row):
    original(self, row)
    if row["id"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

original, RowTable.add = RowTable.add, add
main(sys.argv[1:])
"""


def test_a_kill_loses_nothing_that_was_written(tmp_path):
    """The same command then ends with the content of an undisturbed run."""
    lines = "".join(f"2\n\nH 0 0 0\nH 0 0 {0.7 + 0.002 * i}\n" for i in range(8))
    (tmp_path / "a.xyz").write_text(lines)
    command = [
        str(tmp_path / "a.xyz"),
        "--xc",
        "hf",
        "--basis",
        "sto-3g",
        "--workers",
        "0",
        "--out",
    ]
    out, journal = tmp_path / "a.parquet", tmp_path / "a.parquet.journal"
    killed = [sys.executable, "-c", KILLED, *command, str(out)]
    assert subprocess.run(killed, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    kept = journal.read_text()
    assert len(kept.splitlines()) >= 4
    with journal.open("a") as file:
        file.write(kept.splitlines()[-1][:30])  # a row that was being written
    assert not out.exists()
    assert main([*command, str(out)]) == 0
    assert main([*command, str(tmp_path / "b.parquet")]) == 0
    found, expected = rows_of(out), rows_of(tmp_path / "b.parquet")
    for line in kept.splitlines()[1:]:
        row = json.loads(line)
        assert found[row["id"]]["seconds"] == row["seconds"]
    assert found.keys() == expected.keys() == set(range(8))
    for row_id, row in found.items():
        other = expected[row_id]
        assert all(row[name] == other[name] for name in ("name", "geometry", "formula", "error"))
        assert row["energy"] == pytest.approx(other["energy"], abs=1e-8)


def table(path):
    return RowTable(path, COLUMNS, {"xc": "hf"})


def test_two_processes_do_not_write_one_table(tmp_path):
    with (
        table(tmp_path / "a.parquet"),
        pytest.raises(OutputError, match="another process writes"),
        table(tmp_path / "a.parquet"),
    ):
        pass


def test_strange_files_are_refused_and_stay(tmp_path):
    path, journal = tmp_path / "a.parquet", tmp_path / "a.parquet.journal"
    path.write_bytes(b"PAR1 or not")
    with pytest.raises(DatasetError, match="no Parquet file"), table(path):
        pass
    assert path.read_bytes() == b"PAR1 or not"
    path.unlink()
    journal.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DatasetError, match="is damaged"), table(path):
        pass
    journal.write_text('{"xc": "hf"}\n{"id": 1}\nnonsense\n')
    with pytest.raises(DatasetError, match="is damaged"), table(path):
        pass
    assert "nonsense" in journal.read_text()
    journal.unlink()
    other = RowTable(path, {"id": "int64"}, {"xc": "hf"})
    with other:
        other.add({"id": 1})
    with pytest.raises(DatasetError, match="not made by this command"), table(path):
        pass


def test_an_error_in_the_middle_keeps_the_rows(tmp_path):
    def interrupted():
        with table(tmp_path / "a.parquet") as rows:
            rows.add({"id": 3, "name": "kept"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert rows_of(tmp_path / "a.parquet")[3]["name"] == "kept"


def test_settings_of_no_rows_bind_nobody(tmp_path):
    path = tmp_path / "a.parquet"
    path.with_name("a.parquet.journal").write_text('{"xc": "pbe"}\n')  # killed before a row
    with table(path) as rows:
        rows.add({"id": 1})
    assert list(rows_of(path)) == [1]

    def interrupted():
        with table(tmp_path / "b.parquet"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / "b.parquet").exists()


def test_what_does_not_fit_is_refused_before_it_is_kept(tmp_path):
    def add(row):
        with table(tmp_path / "a.parquet") as rows:
            rows.add({"id": 1, "name": "fits"})
            rows.add(row)

    for row in ({"id": 2**64}, {"id": 2, "error": "\udcff"}):
        with pytest.raises(DatasetError, match="does not fit"):
            add(row)
        assert list(rows_of(tmp_path / "a.parquet")) == [1]
    with pytest.raises(DatasetError, match="too large"):
        run([hydrogen(id=str(2**64))], tmp_path / "b.parquet")


def test_a_link_stays_a_link(tmp_path):
    place, link = tmp_path / "there" / "a.parquet", tmp_path / "a.parquet"
    place.parent.mkdir()
    link.symlink_to(place)
    with table(link) as rows:
        rows.add({"id": 1})
    assert link.is_symlink()
    assert list(rows_of(place)) == [1]


def test_fingerprints():
    one = fingerprint(hydrogen(0.74))
    assert fingerprint(hydrogen(0.74 + 1e-9)) == one
    assert len({one, fingerprint(hydrogen(0.75)), fingerprint(hydrogen(0.74, charge="1"))}) == 3


def test_command_line(tmp_path, capsys):
    (tmp_path / "a.xyz").write_text("2\n\nH 0 0 0\nH 0 0 .74\n")
    command = [str(tmp_path / "a.xyz"), "--xc", "hf", "--workers", "0", "--out"]
    assert main([*command, str(tmp_path / "a.parquet")]) == 0
    assert "1 molecules now; of all in it 0 not converged, 0 without" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "a.csv")]) == 2
    assert main([str(tmp_path / "none.xyz"), "--out", str(tmp_path / "b.parquet")]) == 2
