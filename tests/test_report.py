"""The report says what happened."""

import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import pytest
from conftest import WATER, make_mol
from pyscf import dft, scf

from pyscf_deqh import Report, deqh_guess, init_guess_by_deqh, load_model


def test_report_of_a_guess(tmp_path):
    log = tmp_path / "log"
    mol = make_mol(WATER, verbose=4, output=str(log))
    mf = dft.RKS(mol, xc="pbe")
    assert mf.deqh_report is None
    mf.apply(deqh_guess).get_init_guess(key="deqh")
    report = mf.deqh_report
    assert isinstance(report, Report)
    assert (report.start, report.model, report.device) == ("network", "b3lyp-def2svp", "cpu")
    assert report.iterations == 1
    assert len(report.fitted_gradients) >= 1
    # In the reference and in each cycle.
    assert report.fitted_builds == len(report.fitted_gradients) + 1
    seconds = report.seconds
    stages = (seconds.start, seconds.integrals, seconds.network, seconds.cycles, seconds.density)
    assert all(value > 0 for value in stages)
    assert sum(stages) == pytest.approx(seconds.total, rel=0.02)
    assert report.notes == ()
    assert report.fallback is None
    mol.stdout.flush()
    assert f"Initial guess from DEQH {report}" in log.read_text()
    assert f"{len(report.fitted_gradients)} density-fitted cycles on cpu; " in str(report)


def test_report_of_a_solved_fixed_point():
    """The solver's own end: the residual is below its tolerance, or the limit is reached."""
    model = "b3lyp-def2svp-equilibrium"
    settings = load_model(model)[1].solver
    _, report = init_guess_by_deqh(make_mol(WATER), xc="b3lyp", model=model, return_report=True)
    assert 1 < report.iterations <= settings.forward_max_iterations
    assert report.residual > 0
    below = report.residual < settings.forward_tolerance
    assert below or report.iterations == settings.forward_max_iterations
    text = f"iterations {report.iterations}, residual {report.residual:.1e}; "
    assert f"model {model}: {text}" in str(report)


def test_reports_of_other_ways():
    mol = make_mol(WATER, basis="cc-pvdz")
    _, report = init_guess_by_deqh(mol, xc="hf", return_report=True)
    assert report.notes == ("made in def2-svp and projected",)
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, max_cycles=0)
    mf.get_init_guess(key="deqh")
    report = mf.deqh_report
    assert report.fitted_gradients == ()
    mf = scf.RHF(make_mol("Ne 0 0 0"))
    mf.init_guess = "deqh"
    mf.get_init_guess(key="deqh")
    (note,) = mf.deqh_report.notes
    assert note.startswith("atoms, because the model does not know the element of atom 0 (Ne)")
    assert str(mf.deqh_report).startswith("atoms; ")
    mf.apply(deqh_guess, start="network", on_unsupported="minao").kernel()
    assert mf.deqh_report.fallback.startswith("UnsupportedMoleculeError: the model does not know")
    assert "minao's density, because UnsupportedMoleculeError" in str(mf.deqh_report)


def test_no_verdict_but_one(monkeypatch, tmp_path):
    """A guess that came to nothing is minao's, in the report, in the log and in fact."""
    from pyscf_deqh.fock import cycles

    monkeypatch.setattr(cycles, "LOST", 1e-9)
    log = tmp_path / "log"
    mol = make_mol(WATER, verbose=3, output=str(log))
    mf = scf.RHF(mol).apply(deqh_guess)
    mf.get_init_guess(key="deqh")
    report = mf.deqh_report
    assert report.fallback.startswith("the orbital gradient is still")
    mol.stdout.flush()
    assert f"{report.fallback}: the minao guess is used instead" in log.read_text()


def test_reports_travel_with_the_object():
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess).run()
    copy = ForkingPickler.loads(ForkingPickler.dumps(mf))
    assert copy.deqh_report == mf.deqh_report
    assert copy.kernel() == pytest.approx(mf.e_tot, abs=1e-8)
    assert mf.copy().deqh_report == mf.deqh_report


def test_an_object_brings_the_package_along(tmp_path):
    """Into a process that has not imported it."""
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, start="network").run()
    (tmp_path / "mf").write_bytes(ForkingPickler.dumps(mf))
    code = (
        "import pickle, sys; mf = pickle.load(open(sys.argv[1], 'rb')); energy = mf.kernel()\n"
        "assert mf.deqh_report.fallback is None and mf.deqh_cycles; print(repr(float(energy)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "mf"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(mf.e_tot, abs=1e-8)


def test_the_name_of_the_first_version_warns():
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess)
    with pytest.warns(FutureWarning, match="exact_build is now accelerate"):
        mf.apply(deqh_guess, exact_build=False)
    assert mf.run().deqh_cycles == ()
