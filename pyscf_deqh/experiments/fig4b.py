"""Fig. 4b: error of H per iteration: PySCF's SCF, and DEQHNet from two starts."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..benchmark.scf_runs import Method, run_classical
from ..checkpoint import load_model, resolve_model, weights_hash
from ..data.geometry import Geometry
from ..graph.batch import collate
from ..graph.build import build_graph
from .cache import ResultCache
from .datasets import IN_HOUSE, Dataset
from .held_out import bundled, data_for_testing
from .iteration import iterates
from .options import Options
from .report import Report, spread, with_spread
from .trainings import Training, model_name

_ITERATIONS = 10
SCF, IDENTITY, MINAO = "PySCF, minao", "DEQHNet, identity", "DEQHNet, minao"
_MICRO = 1e6


def _dataset(options: Options) -> Dataset | None:
    if options.models and (dataset := data_for_testing(options.models[0], options)) is not None:
        return dataset
    if not options.data and options.size.name != "smoke":
        return None
    if options.models and options.size.name != "smoke":
        return options.found.get(IN_HOUSE)  # split as the bundled molecules are
    found = options.need()
    return found.get(IN_HOUSE) or next(iter(found.values()))


def _model(options: Options, dataset: Dataset | None) -> Path | None:
    """The model that was named, else one that the other experiments trained here, else none."""
    if options.models:
        return resolve_model(options.models[0])
    if dataset is not None:
        folder = Training("deqhnet", dataset, options.seeds[0]).folder(options) / "model"
        if (folder / "config.json").is_file():
            return folder
    return None


def _molecules(options: Options, dataset: Dataset | None) -> list[Geometry]:
    n = options.n or options.size.curve_molecules
    return bundled(n) if dataset is None else dataset.geometries("test", n)


def error_curves(geometry: Geometry, method: Method, model: Path | None) -> dict[str, Any]:
    """MAE (hartree) of H^0, H^1, … against the converged H for each way to get there."""
    mol = method.molecule(geometry)
    mf = method.scf(mol)
    start = np.asarray(mf.get_fock(dm=mf.get_init_guess(mol, "minao")))
    scf = run_classical(mol, method, "minao")
    if not scf.converged:
        raise RuntimeError(f"{geometry.name}: the SCF did not converge")

    def error(matrix: np.ndarray) -> float:
        return float(np.abs(matrix - scf.hamiltonian).mean())

    curves: dict[str, Any] = {
        "molecule": geometry.name,
        SCF: [error(fock) for fock in (start, *scf.focks)],
    }
    if model is not None:
        network, spec = load_model(model)
        batch = collate(
            [build_graph(mol, spec.reference)], spec.template, spec.backbone.cutoff_bohr
        )
        for name, initial in ((IDENTITY, np.eye(mol.nao)), (MINAO, start)):
            first = torch.as_tensor(initial, dtype=batch.overlap.dtype)[None]
            with torch.no_grad():
                solved = list(islice(iterates(network, batch, first), _ITERATIONS))
            curves[name] = [error(initial), *(error(h[0].double().numpy()) for h in solved)]
    return curves


def run(options: Options) -> Report:
    dataset = _dataset(options)
    model = _model(options, dataset)
    molecules = _molecules(options, dataset)
    method = Method(xc=dataset.xc if dataset else "b3lyp")
    label = "no model" if model is None else model_name(model)
    settings = {"xc": method.xc, "n": len(molecules), "weights": model and weights_hash(model),
                "dataset": dataset and dataset.name}  # fmt: skip
    cache = ResultCache(options.out / "curves" / f"{label}.json", settings)
    curves = [
        cache(str(i), partial(error_curves, g, method, model))
        for i, g in enumerate(tqdm(molecules, desc="error per iteration", unit="mol"))
    ]
    names = [name for name in (SCF, IDENTITY, MINAO) if name in curves[0]]
    series = {name: _padded([c[name] for c in curves]) for name in names}
    length = max(len(s[0]) for s in series.values())
    rows = []
    for k in range(length):
        cells = [with_spread(spread(values[k] for values in series[name]), _MICRO)
                 if k < len(series[name][0]) else "" for name in names]  # fmt: skip
        rows.append([str(k), *cells])
    notes = [
        f"MAE of H in micro-hartree against the converged Kohn-Sham matrix ({method.xc}/def2-SVP, "
        f"PySCF's default settings); mean ± standard deviation over {len(curves)} molecules "
        f"({dataset.name + ', test split' if dataset else 'bundled QM9 test molecules'}). "
        "Iteration 0 is the start; a converged SCF keeps its last value.",
        "The paper shows one molecule of QH9-dynamic: DEQHNet settles within three iterations, and "
        "more steadily from PySCF's guess.",
    ]
    if model is None:
        notes.append(
            "Only the SCF was run: name a trained DEQHNet with --models to add the others."
        )
    else:
        notes.append(f"Model: {label}.")
    return Report(
        "fig4b", "Fig. 4b: error of H per iteration",
        (["iteration", *names], rows),
        {"model": label, "method": {"xc": method.xc, "basis": method.basis}, "curves": curves},
        lambda figure: _draw(figure, curves, names), notes,
    )  # fmt: skip


def _padded(curves: list[list[float]]) -> list[list[float]]:
    length = max(len(c) for c in curves)
    return [c + [c[-1]] * (length - len(c)) for c in curves]


def _draw(figure, curves: list[dict[str, Any]], names: list[str]) -> None:
    ax = figure.subplots()
    for i, curve in enumerate(curves):
        for c, name in enumerate(names):
            ax.semilogy(
                [_MICRO * e for e in curve[name]], f"C{c}o-" if i == 0 else f"C{c}-",
                alpha=1.0 if i == 0 else 0.2, markersize=3, label=name if i == 0 else None,
            )  # fmt: skip
    ax.set_xlabel("iteration")
    ax.set_ylabel("MAE of H / micro-Eh")
    ax.set_title(curves[0]["molecule"])
    ax.legend()
