"""Optimizations and dynamics with the guess and without."""

import json
import sys

import numpy as np
import pytest
from pyscf import gto, scf
from pyscf.hessian import thermo
from pyscf.lib.exceptions import BasisNotFoundError

from pyscf_deqh import ConfigError
from pyscf_deqh.benchmark import steps, trajectories
from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.steps_report import is_worse, table
from pyscf_deqh.data.geometry import Geometry

BUTANE = """14
name=butane
C  1.9600  0.1000  0.0000
C  0.5400 -0.5400  0.0000
C -0.5400  0.5400  0.0000
C -1.9600 -0.1000  0.0000
H  2.7200 -0.6800  0.0000
H  2.1000  0.7300  0.8800
H  2.1000  0.7300 -0.8800
H  0.4300 -1.1700  0.8800
H  0.4300 -1.1700 -0.8800
H -0.4300  1.1700  0.8800
H -0.4300  1.1700 -0.8800
H -2.7200  0.6800  0.0000
H -2.1000 -0.7300  0.8800
H -2.1000 -0.7300 -0.8800
"""
XYZ = "3\nname=water\nO 0 0 0.15\nH 0 0.8 -0.45\nH 0 -0.8 -0.45\n"


@pytest.fixture(autouse=True)
def a_short_warm_up(monkeypatch):
    hydrogen = Geometry(np.array([1, 1]), np.array([[0, 0, 0], [0, 0, 0.74]]), {"name": "H2"})
    monkeypatch.setattr(steps, "WATER", hydrogen)


@pytest.fixture
def molecules(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(XYZ)
    return path


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two molecules of one name, for runs that are made up."""
    monkeypatch.setattr(steps, "warm_up", lambda *args: None)
    path = tmp_path / "two.xyz"
    path.write_text(2 * XYZ)
    return path


def run(kind, molecules, out, *options):
    return main(["steps", kind, "--molecules", str(molecules), "--json", str(out),
                 "--xc", "hf", "--basis", "def2-svp", *options])  # fmt: skip


def test_optimizations_end_in_the_same_minimum(molecules, tmp_path, capsys):
    pytest.importorskip("geometric")
    out = tmp_path / "a.json"
    assert run("optimize", molecules, out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    plain, deqh = row["minao"], row["deqh"]
    assert plain["converged"]
    assert deqh["converged"]
    assert deqh["energy"] == pytest.approx(plain["energy"], abs=1e-6)
    assert len(deqh["builds"]) == len(plain["builds"]) > 3
    assert sum(deqh["builds"]) < 0.6 * sum(plain["builds"])
    for name in ("minao", "deqh"):
        assert 0 < row[name]["scf_seconds"] < row[name]["seconds"]
    assert "| mean of 1 |" in capsys.readouterr().out


def test_dynamics_and_resumption(molecules, tmp_path, capsys):
    out = tmp_path / "a.json"
    assert run("dynamics", molecules, out, "--steps", "4") == 0
    content = json.loads(out.read_text())
    (row,) = content["rows"]
    for name in ("minao", "deqh"):
        energies = row[name]["energies"]
        assert len(energies) == 4
        assert max(energies) - min(energies) < 1e-3
    assert row["deqh"]["energies"] == pytest.approx(row["minao"]["energies"], abs=1e-6)
    assert sum(row["deqh"]["builds"]) < 0.6 * sum(row["minao"]["builds"])
    capsys.readouterr()
    picture = tmp_path / "a.png"
    assert run("dynamics", molecules, out, "--steps", "4", "--plot", str(picture)) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert json.loads(out.read_text()) == content
    assert run("dynamics", molecules, out, "--steps", "5") == 2
    assert "name another file" in capsys.readouterr().err
    out.write_text("{}")
    assert run("dynamics", molecules, out, "--steps", "4") == 2


def test_numerical_hessians(tmp_path, capsys):
    pytest.importorskip("pyscf.tools.finite_diff")
    path, out = tmp_path / "a.xyz", tmp_path / "a.json"
    path.write_text("2\nname=HF\nF 0 0 0\nH 0 0.2 0.9\n")
    assert run("hessian", path, out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    mf = scf.RHF(gto.M(atom="F 0 0 0; H 0 0.2 0.9", basis="def2-svp", verbose=0)).run()
    analytic = thermo.harmonic_analysis(mf.mol, mf.Hessian().kernel())["freq_wavenumber"]
    expected = np.asarray(analytic).real - np.asarray(analytic).imag
    for name in ("minao", "deqh"):
        np.testing.assert_allclose(row[name]["frequencies"], expected, atol=2.0)
    assert len(row["deqh"]["builds"]) == len(row["minao"]["builds"]) == 12
    assert sum(row["deqh"]["builds"]) < 0.6 * sum(row["minao"]["builds"])
    assert "frequencies, 1/cm" in capsys.readouterr().out


@pytest.mark.slow
def test_relaxed_scans(tmp_path, monkeypatch):
    pytest.importorskip("geometric")
    monkeypatch.setattr(trajectories, "_SCAN_POINTS", 2)
    path, out = tmp_path / "a.xyz", tmp_path / "a.json"
    path.write_text(BUTANE)
    assert run("torsion", path, out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    angles = [
        trajectories._dihedral(np.array(row[name]["positions"])[[0, 1, 2, 3]])
        for name in ("minao", "deqh")
    ]
    assert angles[0] == pytest.approx(angles[1], abs=0.5)
    assert row["deqh"]["energy"] == pytest.approx(row["minao"]["energy"], abs=1e-5)
    assert sum(row["deqh"]["builds"]) < 0.6 * sum(row["minao"]["builds"])


def test_the_bond_that_is_turned():
    """Butane's middle one, in whatever order; none of a ring, or between lone atoms."""
    _, _, *lines = BUTANE.splitlines()
    mol = gto.M(atom="\n".join(lines), verbose=0)
    assert trajectories.rotatable(mol) == (0, 1, 2, 3)
    assert trajectories._dihedral(mol.atom_coords()[[0, 1, 2, 3]]) == pytest.approx(180.0)
    turned = gto.M(atom="\n".join(reversed(lines)), verbose=0)
    assert trajectories.rotatable(turned) == (10, 11, 12, 13)
    ring = [("C", (1.1 * np.cos(a), 1.1 * np.sin(a), 0)) for a in np.arange(4) * np.pi / 2]
    for atoms in (ring, "C 0 0 0; C 0 0 1.53", "O 0 0 0"):
        with pytest.raises(ConfigError, match="no bond"):
            trajectories.rotatable(gto.M(atom=atoms, spin=None, verbose=0))


@pytest.mark.parametrize("angle", [-120.0, -1.0, 0.0, 37.0, 90.0])
def test_dihedrals(angle):
    a = np.radians(angle)
    positions = [[1, 0, 0], [0, 0, 0], [0, 0, 1.5], [np.cos(a), np.sin(a), 1.5]]
    assert trajectories._dihedral(np.array(positions)) == pytest.approx(angle, abs=1e-9)


def test_benchmarks_of_optimizers(monkeypatch, capsys, tmp_path):
    pytest.importorskip("berny.benchmarks")
    geometries = steps._geometries("baker")
    assert len(geometries) == 30
    assert {len(g.numbers) for g in geometries if g.name == "furan"} == {9}
    cation = next(g for g in steps._geometries("birkholz") if g.name == "inosine_cation")
    assert cation.whole_number("charge") == 1
    monkeypatch.setitem(sys.modules, "berny.benchmarks", None)
    assert run("optimize", "baker", tmp_path / "a.json") == 2
    assert "pip install" in capsys.readouterr().err


def test_trajectories_are_as_good_as_pyscfs(molecules, tmp_path, capsys):
    found = {}
    for kind in ("replay", "reversal"):
        out = tmp_path / f"{kind}.json"
        assert run(kind, molecules, out, "--steps", "2") == 0
        (row,) = json.loads(out.read_text())["rows"]
        found[kind] = [row[name]["measures"] for name in ("minao", "deqh")]
        for side in ("minao", "deqh"):
            errors = np.array(row[side].get("energy_errors", []))
            assert len(errors) == (2 if kind == "replay" else 0)
            if len(errors):
                mean = row[side]["measures"]["error of energies, hartree"]
                assert np.sqrt(np.mean(errors**2)) == pytest.approx(mean)
        printed = capsys.readouterr().out
        assert all(quantity in printed for quantity in found[kind][0])
    plain, deqh = found["replay"]
    for quantity, limit in (("energies, hartree", 1e-9), ("forces, hartree/bohr", 2e-6)):
        assert deqh[f"error of {quantity}"] < max(plain[f"error of {quantity}"], limit)
    plain, deqh = (measures["deviation, angstrom"] for measures in found["reversal"])
    assert deqh < max(plain, 1e-5)


def test_table_by_hand():
    def half(factor, energy):
        builds, positions = [10, 10 * factor], [[0, 0, 0], [0, 0, 2 * factor]]
        seconds = {"seconds": 4.0 * factor, "scf_seconds": 2.0 * factor**2}
        ended = {"converged": True, "positions": positions}
        return seconds | ended | {"builds": builds, "energy": energy}

    rows = [{"name": "a", "nao": 7, "minao": half(1, -1.0), "deqh": half(0.5, -1.000002)}]
    line, mean, total = table(rows).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["a", "7", "2", "2", "10.0", "7.5", "0.500", "0.250", "-2.00", "0.5292"]
    for text in (mean, total):
        assert "| 0.500 | 0.250 |" in text
    rows.append({"name": "c", "nao": 7, "minao": half(3, -1.0), "deqh": half(3, -1.0)})
    # Mean 0.75 of 0.5 and 1; seconds 2 + 12 over 4 + 12; of the SCFs 0.5 + 18 over 2 + 18.
    *_, mean, total = table(rows).splitlines()
    assert "0.750 ± 0.354" in mean
    assert "| 0.875 | 0.925 |" in total
    del rows[1]
    rows.append({"name": "b", "nao": 7, "minao": half(1, -1.0), "deqh": half(0.7, -1.0)})
    rows[1]["deqh"]["converged"] = False
    *_, line, mean, _ = table(rows).splitlines()
    assert "b (not converged: deqh)" in line
    assert "mean of 1 " in mean
    assert "| 0.500 |" in mean


def test_runs_that_come_to_no_end_are_rows_too(molecules, tmp_path, capsys, monkeypatch):
    """PySCF's dynamics ends with an error at an SCF that does not converge."""

    def fails_from_minao(mol, method, guess, steps):
        if not guess:
            raise RuntimeError("Gradients not converged")
        found = trajectories._Counted(mol, method, guess)
        found.scanner.base.max_cycle = 1
        found.scanner(mol)
        return found.row(1.0, converged=True, energy=-1.0, positions=mol.atom_coords().tolist())

    monkeypatch.setitem(steps.RUNS, "dynamics", fails_from_minao)
    out = tmp_path / "a.json"
    assert run("dynamics", molecules, out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["minao"] == {"converged": False, "error": "Gradients not converged"}
    assert row["deqh"]["scfs_not_converged"] == 1
    assert "water (not converged: minao, 1 SCFs, deqh)" in capsys.readouterr().out


def test_molecules_of_the_same_name_are_all_run(two, molecules, tmp_path, monkeypatch):
    names = []

    def only_name(geometry, name, *args):
        names.append(name)
        failed = {"converged": False, "error": "not run"}
        return {"name": name, "nao": 1, "minao": failed, "deqh": failed}

    monkeypatch.setattr(steps, "run_molecule", only_name)
    assert run("dynamics", two, tmp_path / "a.json") == 1  # none came to an end
    assert sorted(names) == ["water", "water 0", "water 1"]  # the first one warms up
    assert run("dynamics", two, tmp_path / "a.json") == 1
    assert len(names) == 3
    assert run("dynamics", molecules, tmp_path / "a.json") == 2  # of other molecules


def test_a_molecule_that_fails_does_not_stop_the_others(two, tmp_path, monkeypatch, capsys):
    """It gets another chance, and names do not depend on how many are run."""
    names = []

    def only_name(geometry, name, *args):
        names.append(name)
        if len(names) == 2:  # the one after that which warms up
            raise BasisNotFoundError("no such basis set")
        side = {"converged": True, "builds": [3], "seconds": 1.0, "scf_seconds": 1.0,
                "energy": -1.0, "positions": [[0.0, 0.0, 0.0]]}  # fmt: skip
        return {"name": name, "nao": 1, "minao": side, "deqh": side}

    monkeypatch.setattr(steps, "run_molecule", only_name)
    out = tmp_path / "a.json"
    assert run("dynamics", two, out, "--n", "1") == 1
    assert "BasisNotFoundError: no such basis set" in capsys.readouterr().err
    assert run("dynamics", two, out) == 0
    assert sorted(names[2:]) == ["water", "water 0", "water 1"]
    assert names[1] == names[3]
    assert len(json.loads(out.read_text())["rows"]) == 2


def test_runs_with_more_that_did_not_converge_are_worse():
    side = {"converged": True, "scfs_not_converged": 1}
    assert not is_worse({"minao": side, "deqh": side})
    assert is_worse({"minao": side, "deqh": side | {"scfs_not_converged": 2}})
    assert is_worse({"minao": side, "deqh": side | {"converged": False}})
    assert is_worse({"minao": side, "deqh": {"converged": False, "error": "not run"}})
    lost = side | {"converged": False}
    assert not is_worse({"minao": lost, "deqh": lost})


def test_the_set_of_trajectories():
    names = {g.info["name"]: len(g.numbers) for g in steps._geometries("dynamics")}
    assert names == {"water hexamer": 18, "aspirin": 21, "alanine dipeptide": 22}
