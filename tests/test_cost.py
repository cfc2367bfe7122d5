"""SCFs that take less time than a guess are left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import WATER, make_mol
from pyscf import dft, gto, scf
from pyscf.scf import diis

from pyscf_deqh import deqh_guess
from pyscf_deqh.fock import cost

O2 = "O 0 0 0; O 0 0 1.2"
RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.fixture
def as_for_users(monkeypatch):
    for module in ("pyscf_deqh.guess", "pyscf_deqh.plugin", "pyscf_deqh.fock.diis"):
        monkeypatch.setattr(f"{module}.too_cheap", cost.too_cheap)
    monkeypatch.setattr(cost, "rates", cost.Rates)


@pytest.mark.parametrize("by", ["name", "function"])
def test_small_scfs_are_pyscfs_own(by, as_for_users, monkeypatch):
    mf, plain = (scf.RHF(make_mol(O2, basis="cc-pvdz")) for _ in range(2))
    mf = mf.apply(deqh_guess) if by == "function" else mf.set(init_guess="deqh")
    assert mf.kernel() == pytest.approx(plain.kernel(), abs=1e-10)
    assert mf.cycles == plain.cycles
    assert mf.DIIS is diis.SCF_DIIS
    assert mf.diis_start_cycle == plain.diis_start_cycle
    assert "nothing to save" in mf.deqh_report.fallback
    monkeypatch.setattr(cost, "rates", lambda: cost.Rates(fixed=0.0))
    mf.get_init_guess(key="deqh")
    assert mf.deqh_report.fallback is None
    assert mf.DIIS is not diis.SCF_DIIS


def test_a_start_of_diis_that_the_user_has_chosen_since_stays(as_for_users):
    mf = scf.RHF(make_mol(O2, basis="cc-pvdz")).apply(deqh_guess)
    mf.diis_start_cycle = 3
    plain = scf.RHF(mf.mol).set(diis_start_cycle=3)
    assert mf.kernel() == pytest.approx(plain.kernel(), abs=1e-10)
    assert (mf.diis_start_cycle, mf.cycles) == (3, plain.cycles)


def test_from_a_density_of_the_users_too(as_for_users):
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess)
    mf.kernel(dm0=np.asarray(mf.get_init_guess(key="minao")))
    assert mf.converged
    assert all(np.isnan(cycle.gradient) for cycle in mf.deqh_cycles)


def test_points_of_small_scans_go_on_as_in_pyscf(as_for_users):
    mols = [make_mol(f"O 0 0 0; O 0 0 {r}", basis="cc-pvdz") for r in (1.2, 1.25)]
    scanner = scf.RHF(mols[0]).apply(deqh_guess).as_scanner()
    plain = scf.RHF(mols[0]).as_scanner()
    for mol in mols:
        assert scanner(mol) == pytest.approx(plain(mol), abs=1e-10)
        assert scanner.cycles == plain.cycles


def test_a_chosen_start_is_made(as_for_users):
    mf = scf.RHF(make_mol(O2, basis="cc-pvdz")).apply(deqh_guess, start="network")
    mf.kernel()
    assert mf.deqh_report.fallback is None


def test_what_takes_longer():
    """Estimates rise with all that makes a Fock matrix dearer."""
    small, large = make_mol(WATER), make_mol()
    hf, ks = scf.RHF(large), dft.RKS(large, xc="pbe")
    seconds = cost.seconds_of_matrix
    assert seconds(scf.RHF(small)) < seconds(hf) < seconds(ks)
    assert seconds(ks) < seconds(dft.RKS(large, xc="m06l"))
    direct = scf.RHF(large)
    direct.max_memory = 1
    assert seconds(hf) < seconds(direct)
    fitted = dft.RKS(large, xc="pbe").density_fit()
    assert seconds(fitted) < seconds(dft.RKS(large, xc="b3lyp").density_fit())
    coarse = dft.RKS(large, xc="pbe")
    coarse.grids.level = 0
    assert seconds(coarse) < seconds(ks)
    ks.grids.build()
    assert seconds(ks) == pytest.approx(seconds(dft.RKS(large, xc="pbe")), rel=0.2)


def test_rates_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    read = cost.rates.__wrapped__
    assert read() == cost.Rates()
    cost.rates_file().parent.mkdir()
    cost.rates_file().write_text(json.dumps({"grid": 1e-7}))
    assert read() == cost.Rates(grid=1e-7)
    for nonsense in ("", "[]", '{"grid": -1}', '{"grid": "a"}', '{"speed": 1}'):
        cost.rates_file().write_text(nonsense)
        assert read() == cost.Rates()


def test_pytorch_is_loaded_once_it_pays(monkeypatch):
    monkeypatch.setattr(cost, "_forgone", cost._Forgone())
    monkeypatch.setattr(cost, "rates", lambda: cost.Rates(fixed=0.0, imports=1.0, matrix=0.1))
    monkeypatch.delitem(sys.modules, "torch")
    mf = scf.RHF(make_mol("He 0 0 0"))
    saving = 4.5 * cost.seconds_of_matrix(mf)
    assert 1 / 3 < saving < 1 / 2
    found = []
    for _ in range(3):
        found.append(cost.too_cheap(mf))
        assert "loading PyTorch" in cost.too_cheap(mf, again=True)  # counts nothing
    assert [reason is None for reason in found] == [False, False, True]


def test_small_scfs_load_no_pytorch():
    code = (
        "import sys, pyscf_deqh; from pyscf import gto, scf\n"
        "mf = scf.RHF(gto.M(atom='O 0 0 0; O 0 0 1.2', verbose=0)).apply(pyscf_deqh.deqh_guess)\n"
        "mf.kernel(); assert mf.converged; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class _OnGPU:
    """What of a gpu4pyscf object the estimate looks at."""

    def __init__(self, row):
        highest = {"def2-svp": 2, "def2-tzvp": 3}[row["basis"]]
        shells = np.zeros((1, 8), int)
        shells[0, gto.ANG_OF] = highest
        self.mol = SimpleNamespace(natm=row["atoms"], nao=row["orbitals"], _bas=shells)
        self.with_df = object() if row["mode"] != "direct" else None


# Whole SCFs from its own guess on an H200, and what became of the guess there.
MEASURED = json.loads((RESULTS / "gpu4pyscf-h200.json").read_text())["rows"]


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row['orbitals']} {row['mode']}")
def test_estimates_on_a_gpu_are_near_what_was_measured(row, monkeypatch):
    monkeypatch.setattr(cost, "engine_of", lambda mf: "gpu")
    mf = _OnGPU(row)
    measured = row["minao_seconds"] / (row["minao_cycles"] + 1)
    assert cost.seconds_of_matrix(mf) == pytest.approx(measured, rel=0.35)
    assert (cost.too_cheap(mf) is None) == (row["start"] == "network")
