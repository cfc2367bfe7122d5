"""Part ``growth``: time and memory of chains and clusters, and what the cutoff leaves out."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np

from ...checkpoint import load_model
from ...graph.build import build_graph
from ...predict import predict_hamiltonian
from ..scf_runs import Method, run_classical
from .geometries import polyethylene
from .imports import child_environment
from .one_system import SYSTEMS
from .report import Report
from .settings import Settings
from .timing import Sample, growth_exponent

# Largest systems that the exponents beyond the cutoff are fitted to.
_LARGEST = 3
_GROWING = ("network_seconds", "layers_seconds", "density_seconds", "network_bytes")
_TIMES = ("network", "layers", "density", "features", "eigenproblem", "reference")


def fresh_process(what: str, kind: str, n_atoms: int, settings: Settings) -> dict[str, Any]:
    """What :mod:`.one_system` measures, in a new process.

    Raises:
        RuntimeError: the process ended without a result, for want of memory perhaps.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.one_system", what, kind, str(n_atoms),
         str(settings.model), str(settings.threads)],
        capture_output=True, text=True, check=False, env=child_environment(settings.threads),
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"{what} of {n_atoms} atoms: status {done.returncode}, {last}")
    return json.loads(done.stdout.splitlines()[-1])


def run(settings: Settings, report: Report) -> None:
    report.start(
        "growth", f"model {settings.model}, {settings.threads} threads, each system in a process "
        "of its own; kinetic-energy matrices stand in for the references of the network's input",
    )  # fmt: skip
    sizes = [n for n in settings.sizes.growth_atoms if n <= settings.max_atoms]
    for kind in SYSTEMS:
        found: list[dict[str, Any]] = []
        for n in sizes:
            with report.attempt(f"{kind}, {n} atoms"):
                found.append(_system(settings, report, kind, n))
        with report.attempt(f"{kind}, exponents"):
            _exponents(report, kind, found)
        _crossings(report, kind, found)
    with report.attempt("cutoff"):
        cutoff_error(settings, report)


def _system(settings: Settings, report: Report, kind: str, n: int) -> dict[str, Any]:
    # Small systems take so little time that the median of several processes is needed.
    repeats = min(settings.repeats, 3) if n <= settings.sizes.reference_atoms else 1
    runs = [fresh_process("network", kind, n, settings) for _ in range(repeats)]
    if n <= settings.sizes.reference_atoms:
        for done in runs:
            done.update(fresh_process("reference", kind, n, settings))
    first = runs[0]
    name = f"{kind}, {first['n_atoms']} atoms"
    size = f"{first['nao']} orbitals, {first['pairs']} pairs"
    medians = {"n_atoms": first["n_atoms"], "pairs": first["pairs"]}
    for key in (f"{stage}_seconds" for stage in _TIMES):
        if key in first:
            sample = Sample(tuple(done[key] for done in runs))
            medians[key] = sample.median
            note = size if key == "network_seconds" else ""
            report.add(f"{name}: {key.removesuffix('_seconds')}", sample, "s", note)
    for key in ("network_bytes", "reference_bytes", "peak_bytes"):
        if key in first:
            sample = Sample(tuple(done[key] / 2**20 for done in runs))
            medians[key] = sample.median
            note = "of the network's process" if key == "peak_bytes" else "added to the process"
            report.add(f"{name}: {key.removesuffix('_bytes')} memory", sample, "MiB", note)
    return medians


def _exponents(report: Report, kind: str, found: list[dict[str, Any]]) -> None:
    # Pairs grow faster than atoms until a system is much larger than the cutoff.
    columns = [(column, "n_atoms") for column in ("pairs", *_GROWING)]
    columns += [(column, "pairs") for column in ("network_seconds", "network_bytes")]
    for column, size in columns:
        for label, chosen in (("all", found), (f"largest {_LARGEST}", found[-_LARGEST:])):
            chosen = [row for row in chosen if row[column] > 0]
            if len(chosen) < 2:
                continue
            exponent = growth_exponent(
                [row[size] for row in chosen], [row[column] for row in chosen]
            )
            name = f"{column} over {size}" if size == "pairs" else column
            report.add(f"{kind}: exponent of {name}, {label}", exponent, "",
                       f"{chosen[0]['n_atoms']} to {chosen[-1]['n_atoms']} atoms")  # fmt: skip


def _crossings(report: Report, kind: str, found: list[dict[str, Any]]) -> None:
    """From where on something takes longer than the network's layers."""
    for stage in ("reference", "eigenproblem", "density", "features"):
        known = [row for row in found if f"{stage}_seconds" in row]
        slower = [r["n_atoms"] for r in known if r[f"{stage}_seconds"] > r["layers_seconds"]]
        shares = ", ".join(
            f"{r['n_atoms']}: {r[f'{stage}_seconds'] / r['layers_seconds']:.2g}" for r in known
        )
        report.say(f"{kind}: {stage} / layers", shares or "not measured", slower_at=slower)


def cutoff_error(settings: Settings, report: Report) -> None:
    """Difference of a converged Hamiltonian to the reference, and to the prediction, by distance.

    Beyond its cutoff a network leaves pairs as they are in the reference: there the difference to
    the prediction is the cutoff's error.
    """
    method = Method(model=settings.model, device="cpu")
    mol = method.molecule(polyethylene(settings.sizes.error_carbons))
    scf = run_classical(mol, method, "minao")
    _, spec = load_model(settings.model)
    cutoff = spec.backbone.cutoff_bohr
    reference = build_graph(mol, spec.reference).reference
    predicted = predict_hamiltonian(mol, settings.model, "cpu").hamiltonian
    atom = np.repeat(np.arange(mol.natm), np.diff(mol.aoslice_by_atom()[:, 2:])[:, 0])
    positions = mol.atom_coords()[atom]
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    outside = distance >= cutoff
    name = f"C{settings.sizes.error_carbons}"
    report.say(f"{name}: cutoff", f"{cutoff:.3g} bohr, longest distance {distance.max():.3g} bohr, "
               f"{100 * outside.mean():.3g} % of the matrix elements beyond the cutoff; "
               f"SCF converged: {scf.converged}", part_outside=float(outside.mean()))  # fmt: skip
    for what, other in (("reference", reference), ("prediction", predicted)):
        error = np.abs(scf.hamiltonian - other)
        for where, mask in (("inside", ~outside), ("beyond the cutoff", outside)):
            if mask.any():
                report.add(f"{name}: max |H - {what}|, {where}", 1e6 * error[mask].max(),
                           "micro-Eh")  # fmt: skip
                report.add(f"{name}: mean |H - {what}|, {where}", 1e6 * error[mask].mean(),
                           "micro-Eh")  # fmt: skip
