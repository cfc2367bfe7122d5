"""The examples, in a short form."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pyscf import dft, gto
from pyscf.tools import molden
from pyscf.tools.cubegen import Cube

EXAMPLES = Path(__file__).parents[1] / "examples"
WATER = "3\nwater\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"


def run(name, folder, *arguments):
    """What a script prints, on a coarse grid and with the same velocities each time."""
    settings = folder / "pyscf_conf.py"
    settings.write_text("SEED = 1\ndft_gen_grid_Grids_level = 1\n")
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600,
        env=os.environ | {"PYSCF_CONFIG_FILE": str(settings)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_screening_stops_at_no_molecule(tmp_path):
    (tmp_path / "molecules.xyz").write_text(
        WATER + "1\nargon\nAr 0 0 0\n" + "1\nhydrogen\nH 0 0 0\n"
    )
    assert run("screening.py", tmp_path, "molecules.xyz").count("hartree, ") == 3


def test_exported_orbitals_and_densities(tmp_path):
    (tmp_path / "water.xyz").write_text(WATER)
    assert "3 atoms, 24 orbitals" in run("export.py", tmp_path, "water.xyz")
    mol, energies, coefficients, occupations = molden.load(str(tmp_path / "network.molden"))[:4]
    overlap = mol.intor("int1e_ovlp")
    np.testing.assert_allclose(coefficients.T @ overlap @ coefficients, np.eye(24), atol=1e-5)
    assert occupations.sum() == 10
    assert (np.diff(energies) > 0).all()
    cube = Cube(gto.M(atom=str(tmp_path / "water.xyz"), basis="def2-svp"))
    density = cube.read(str(tmp_path / "network.cube"))
    change = cube.read(str(tmp_path / "change.cube"))
    volume = np.prod(
        [np.linalg.norm(axis) for axis in cube.box / np.array([cube.nx, cube.ny, cube.nz])]
    )
    assert abs(density.sum() * volume - 10) < 0.5
    assert abs(change.sum() * volume) < 0.5


def test_dynamics(tmp_path):
    printed = run("dynamics.py", tmp_path, "2")
    assert printed.count("frame ") == 2
    assert printed.count("start previous") == 1
    assert float(printed.rsplit("smallest ")[1].split()[0]) < 1e-3


def test_optimization(tmp_path):
    pytest.importorskip("geometric")
    lines = run("optimize.py", tmp_path, "1").splitlines()
    points = [line for line in lines if line.startswith("point ")]
    assert "start network, 4 Fock" in points[0]
    assert re.search("start previous, [345] Fock matrices", points[-1])
    assert any("2 points, " in line for line in lines)


@pytest.mark.slow
def test_first_steps(tmp_path):
    printed = run("first_steps.py", tmp_path)
    minao, deqh = (int(n) for n in re.findall(r": (\d+) cycles", printed))
    assert deqh < minao / 2
    assert float(printed.rsplit("difference: ")[1].split()[0]) < 1e-8


@pytest.mark.usefixtures("coarse_grids")
def test_a_cluster(tmp_path):
    argon = "1\nname=argon\nAr 0 0 0\n"
    (tmp_path / "a.xyz").write_text(WATER.replace("water", "name=water") + argon)
    printed = run("cluster.py", tmp_path, "a.xyz", "a.parquet")
    assert "2 molecules now, 0 without a result" in printed
    mf = dft.RKS(gto.M(atom=str(tmp_path / "a.xyz"), basis="def2-svp"), xc="pbe").run()
    energy = float(printed.partition("water: ")[2].split()[0])
    assert energy == pytest.approx(mf.e_tot, abs=1e-8)
