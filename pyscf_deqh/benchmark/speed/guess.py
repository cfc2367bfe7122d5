"""Part ``guess``: the stages of one guess, its network's floor, and one SCF cycle."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from pyscf import gto

from ...checkpoint import load_model
from ...data.geometry import Geometry
from ...fock.cycles import CONVERGED, CycleSettings, Solution
from ...fock.density import density_of
from ...fock.fitted import FittedFock
from ...fock.orbitals import solve_roothaan
from ...fock.problem import Problem
from ...fock.reference import sad_reference
from ...fock.system import System
from ...graph.batch import collate
from ...graph.build import build_graph
from ...guess import Options, make_guess
from ...predict import predict_hamiltonian
from ...starts.network import NetworkStart
from ..scf_runs import Method, run_classical
from .geometries import polyethylene
from .peaks import Peaks, count_work, machine_peaks
from .report import Report
from .samples import geometries_of
from .settings import Settings
from .steps import inference
from .timing import Sample, measure


def run(settings: Settings, report: Report) -> None:
    sizes = settings.sizes
    report.start("guess", f"model {settings.model}, {settings.threads} threads")
    peaks = machine_peaks(sizes.peak_order, sizes.peak_bytes)
    report.add("peak of single-precision matrix products", peaks.flops / 1e9, "GFLOP/s")
    report.add("peak of memory copies, read and written", peaks.bandwidth / 1e9, "GB/s")
    small = geometries_of(sizes.small_atoms)[-1]
    for geometry in (small, polyethylene(sizes.larger_carbons)):
        with report.attempt(f"{len(geometry.numbers)} atoms"):
            _molecule(settings, report, geometry, peaks)


def _molecule(settings: Settings, report: Report, geometry: Geometry, peaks: Peaks) -> None:
    method = Method(model=settings.model, device="cpu")
    mol = method.molecule(geometry)
    label = f"{mol.natm} atoms"
    report.say(label, f"{geometry.name}, {mol.nao} orbitals", nao=int(mol.nao))
    _reference_stages(settings, report, mol, label)
    _network_stages(settings, report, mol, label, peaks)

    mf = method.scf(mol)
    hamiltonian = predict_hamiltonian(mol, settings.model, "cpu").hamiltonian
    problem = Problem.of(mf, mol)
    solution = Solution(problem, hamiltonian)
    orbitals = measure(lambda: density_of(solution, problem), settings.repeats)
    _milliseconds(report, f"{label}: eigenproblem and density", orbitals)

    cycle = _cycle(report, mol, method, label)
    for name, cycles in (
        ("whole guess, network alone", None),
        ("whole guess without corrected cycles after it", CycleSettings(tolerance=CONVERGED)),
        ("whole guess", CycleSettings()),
    ):
        options = Options((NetworkStart(settings.model, "cpu"),), cycles, accelerate=False)
        whole = partial(make_guess, mf, mol, options)
        first = whole()
        report_of = first.report
        guess = measure(whole, settings.repeats)
        note = f"{len(report_of.fitted_gradients)} density-fitted cycles"
        _milliseconds(report, f"{label}: {name}", guess, note)
        report.add(f"{label}: {name} / one SCF cycle", guess.scaled(1 / cycle))


def _milliseconds(report: Report, name: str, seconds: Sample, note: str = "") -> None:
    report.add(name, seconds.scaled(1e3), "ms", note)


def _reference_stages(settings: Settings, report: Report, mol: gto.Mole, label: str) -> None:
    def add(name: str, function: Any) -> None:
        _milliseconds(report, f"{label}: {name}", measure(function, settings.repeats))

    add("overlap", lambda: mol.intor_symmetric("int1e_ovlp"))
    system = System(mol)
    hcore, overlap = system.core_hamiltonian, system.overlap
    add("superposed atomic density", lambda: system.engine.atomic_density(mol, overlap))
    fock, orbitals = sad_reference(system, FittedFock(mol)), np.empty(0)
    stages: dict[str, Callable[[FittedFock], Any]] = {
        "fitted integrals": lambda fitted: fitted.integrals,
        "grid": lambda fitted: fitted.grids,
        "orbitals on the grid": lambda fitted: list(fitted.orbital_values),
        "reference": lambda fitted: sad_reference(system, fitted),
        "Fock matrix of a density-fitted cycle": lambda fitted: fitted(hcore, orbitals, Method.xc),
    }
    orbitals = np.sqrt(2) * solve_roothaan(fock, overlap)[1][:, : mol.nelectron // 2]
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(settings.repeats):
        fitted = FittedFock(mol)
        for name, stage in stages.items():
            started = time.perf_counter()
            stage(fitted)
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        _milliseconds(report, f"{label}: {name}", Sample(tuple(times)))
    add("orbitals of the reference", lambda: solve_roothaan(fock, overlap))


def _network_stages(
    settings: Settings, report: Report, mol: gto.Mole, label: str, peaks: Peaks
) -> None:
    model, spec = load_model(settings.model)
    graph = build_graph(mol, spec.reference)

    def features():
        return collate([graph], spec.template, spec.backbone.cutoff_bohr)

    _milliseconds(report, f"{label}: features", measure(features, settings.repeats))
    batch = features()
    solve = inference(model, batch)
    with torch.no_grad():
        iterations = int(model(batch).iterations[0])
    network = measure(solve, settings.repeats, 2)
    _milliseconds(report, f"{label}: network", network, f"{iterations} iterations")
    work = count_work(solve)
    arithmetic, traffic = work.seconds(peaks)
    floor = max(arithmetic, traffic)
    report.add(f"{label}: network, floor", 1e3 * floor, "ms",
               f"{work.flops / 1e9:.3g} GFLOP take {1e3 * arithmetic:.3g} ms at the peak, "
               f"{work.bytes / 1e6:.3g} MB {1e3 * traffic:.3g} ms",
               flops=work.flops, bytes=work.bytes)  # fmt: skip
    report.add(f"{label}: network / floor", network.scaled(1 / floor))


def _cycle(report: Report, mol: gto.Mole, method: Method, label: str) -> float:
    """Seconds per Fock build of a real SCF, its integrals and everything else included."""
    scf = run_classical(mol, method, "minao")
    seconds = scf.scf_seconds / scf.full_builds
    report.add(f"{label}: one SCF cycle", 1e3 * seconds, "ms",
               f"{method.xc}/{method.basis} from minao: {scf.scf_seconds:.3g} s, "
               f"{scf.full_builds} full Fock builds", fock_builds=scf.full_builds)  # fmt: skip
    return seconds
