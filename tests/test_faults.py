"""Whatever fails in a guess, by name the SCF runs from minao and says so; explicit calls raise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import WATER, make_mol
from pyscf import scf

from pyscf_deqh import NotEnoughMemoryError, NumericalError, deqh_guess, init_guess_by_deqh, plugin
from pyscf_deqh import guess as guess_module
from pyscf_deqh.engine import Engine, host
from pyscf_deqh.fock import corrector, cycles, fitted, problem
from pyscf_deqh.graph import build
from pyscf_deqh.nn.deqh import DEQH
from pyscf_deqh.starts.network import NetworkStart

# What is called in each stage.
STAGES = {
    "problem": (problem.Shells, "of"),
    "PySCF's integrals": (Engine, "make_integrals"),
    "start: reference": (build, "sad_reference"),
    "start: fitted integrals": (host, "_inverse_root"),
    "start: grid": (Engine, "grids"),
    "start: network": (DEQH, "forward"),
    "density-fitted cycles": (cycles, "_density_fitted_cycles"),
    "density": (guess_module, "density_of"),
}
ERRORS = {
    "linear algebra": (np.linalg.LinAlgError("singular matrix"), NumericalError),
    "memory": (MemoryError("unable to allocate 1 TiB"), NotEnoughMemoryError),
    "PyTorch's memory": (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        NotEnoughMemoryError,
    ),
    "value": (ValueError("array must not contain infs or NaNs"), ValueError),
    "key": (KeyError("no such entry"), KeyError),
}


@pytest.fixture(scope="module")
def minao():
    """Energy and density from PySCF's own guess."""
    mf = scf.RHF(make_mol(WATER))
    return mf.kernel(), mf.get_init_guess(key="minao")


def run_by_name(tmp_path, verbose=3):
    """An SCF object, after its SCF, and its log."""
    log = tmp_path / "log"
    mol = make_mol(WATER, verbose=verbose, output=str(log))
    mf = scf.RHF(mol)
    mf.init_guess = "deqh"
    mf.kernel()
    mol.stdout.close()
    return mf, log.read_text()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("stage", STAGES)
def test_errors(stage, error, monkeypatch, tmp_path, minao):
    raised, own = ERRORS[error]

    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr(*STAGES[stage], fail)
    mf, log = run_by_name(tmp_path)
    assert mf.converged
    assert mf.e_tot == pytest.approx(minao[0], abs=1e-8)
    report, message = mf.deqh_report, str(raised)
    if own is NotEnoughMemoryError and stage == "density-fitted cycles":
        # What has been reached by then is a start nevertheless.
        (note,) = report.notes
        assert note == f"density-fitted cycles left out: {message}"
        assert f"DEQH guess: {note}" in log
        assert report.fallback is None
        again = scf.RHF(make_mol(WATER)).apply(deqh_guess).kernel()
        assert again == pytest.approx(minao[0], abs=1e-8)
        return
    assert report.fallback.startswith(own.__name__)
    assert message in report.fallback
    assert f"No DEQH guess: {own.__name__}: " in log
    assert "The minao guess is used instead." in log
    assert "Traceback" not in log
    with pytest.raises(own) as caught:
        scf.RHF(make_mol(WATER)).apply(deqh_guess).kernel()
    assert message in str(caught.value)
    if stage != "PySCF's integrals":  # there is no SCF that would hold them
        with pytest.raises(own):
            init_guess_by_deqh(make_mol(WATER))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", [(fitted.FittedFock, "differences"), (corrector, "refine")])
def test_errors_in_corrected_cycles_leave_pyscfs_own(place, error, monkeypatch, tmp_path, minao):
    def fail(*args, **kwargs):
        raise ERRORS[error][0]

    monkeypatch.setattr(*place, fail)
    mf, log = run_by_name(tmp_path)
    assert mf.converged
    assert mf.e_tot == pytest.approx(minao[0], abs=1e-8)
    assert mf.deqh_report.fallback is None
    assert f"No corrected cycles: {ERRORS[error][1].__name__}: " in log
    assert log.count("PySCF's DIIS goes on") == 1
    assert "Traceback" not in log


def nan_of(original):
    """A function whose arrays are all NaN."""

    def nan(*args, **kwargs):
        result = original(*args, **kwargs)
        if isinstance(result, tuple):
            return (result[0] * np.nan, *result[1:])
        if hasattr(result, "hamiltonian"):
            return replace(result, hamiltonian=result.hamiltonian * np.nan)
        return result * np.nan  # a matrix

    return nan


NAN = {
    "reference": STAGES["start: reference"],
    "fitted integrals": STAGES["start: fitted integrals"],
    "network": STAGES["start: network"],
    "fitted Fock matrices": (fitted.FittedFock, "__call__"),
}


@pytest.mark.parametrize("stage", NAN)
def test_nan(stage, monkeypatch, tmp_path, minao):
    place, name = NAN[stage]
    monkeypatch.setattr(place, name, nan_of(getattr(place, name)))
    with pytest.raises(NumericalError, match="NaN"):
        scf.RHF(make_mol(WATER)).apply(deqh_guess).get_init_guess(key="deqh")
    mf, log = run_by_name(tmp_path)
    assert mf.converged
    assert mf.e_tot == pytest.approx(minao[0], abs=1e-8)
    assert mf.deqh_report.fallback.startswith("NumericalError")
    assert "minao guess is used instead" in log


def test_nan_in_the_density(monkeypatch, tmp_path, minao):
    monkeypatch.setattr(scf.hf.SCF, "make_rdm1", nan_of(scf.hf.SCF.make_rdm1))
    mf = scf.RHF(make_mol(WATER))
    with pytest.raises(NumericalError, match="nan instead of 10 electrons"):
        mf.apply(deqh_guess).get_init_guess(key="deqh")
    del mf._deqh
    np.testing.assert_allclose(mf.get_init_guess(key="deqh"), minao[1], atol=1e-10)


def test_on_unsupported_minao_is_for_all_failures(monkeypatch, minao):
    monkeypatch.setattr(DEQH, "forward", lambda *args: 1 / 0)
    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, on_unsupported="minao")
    assert mf.kernel() == pytest.approx(minao[0], abs=1e-8)
    assert mf.deqh_report.fallback == "ZeroDivisionError: division by zero"


def test_traceback_is_in_the_log_at_debug_level(monkeypatch, tmp_path):
    monkeypatch.setattr(DEQH, "forward", lambda *args: 1 / 0)
    _, log = run_by_name(tmp_path, verbose=5)
    assert "Traceback (most recent call last)" in log
    assert "ZeroDivisionError: division by zero" in log


def test_a_missing_package_stops_no_run(monkeypatch, minao):
    """PyTorch, say: it is imported by the first guess."""
    monkeypatch.setattr(plugin, "_options", lambda **options: exec("import no_such_package"))
    mf = scf.RHF(make_mol(WATER))
    mf.init_guess = "deqh"
    assert mf.kernel() == pytest.approx(minao[0], abs=1e-8)
    assert mf.deqh_report.fallback.startswith("ModuleNotFoundError")


def test_linear_algebra_of_pytorch_fails_alike(monkeypatch):
    def fail(*args):
        torch.linalg.cholesky(-torch.eye(2))

    monkeypatch.setattr(DEQH, "forward", fail)
    with pytest.raises(NumericalError, match="cholesky"):
        init_guess_by_deqh(make_mol(WATER))


def test_a_gpu_without_memory_for_cycles_hands_over_to_the_cpu(monkeypatch):
    """Without a GPU: what it would compute says that it is on one."""
    original, start = cycles._density_fitted_cycles, NetworkStart.__call__

    def on_gpu(self, problem):
        point = start(self, problem)
        point.fitted.device = torch.device("cuda")
        return point

    def full(*args):
        if any(getattr(arg, "device", None) == torch.device("cuda") for arg in args):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args)

    mf = scf.RHF(make_mol(WATER))
    expected = guess_module.make_guess(mf, mf.mol, guess_module.Options())
    monkeypatch.setattr(NetworkStart, "__call__", on_gpu)
    monkeypatch.setattr(cycles, "_density_fitted_cycles", full)
    found = guess_module.make_guess(mf, mf.mol, guess_module.Options())
    assert found.report.notes == ("cuda ran out of memory: cycles on the CPU",)
    np.testing.assert_allclose(found.density_matrix, expected.density_matrix, atol=1e-5)


def test_an_interrupt_is_none_of_these(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(DEQH, "forward", interrupt)
    mf = scf.RHF(make_mol(WATER))
    with pytest.raises(KeyboardInterrupt):
        mf.get_init_guess(key="deqh")
    monkeypatch.undo()
    assert mf.get_init_guess(key="deqh") is not None
