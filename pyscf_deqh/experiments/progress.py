"""How good a start a network is while it learns: error of H and cycles of SCFs from it, by step."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from ..benchmark.acceleration import run_benchmark
from ..benchmark.scf_runs import Method
from ..checkpoint import weights_hash
from ..metrics import UNITS
from ..train.run import export
from .cache import ResultCache
from .comparison import provenance
from .datasets import IN_HOUSE, QH9, Dataset
from .options import Options
from .published import TABLE3
from .report import Report, spread, with_spread
from .trainings import VARIANTS, Training, errors_on_test, run_training

_VARIANT, _INIT = "deqhnet", "minao"
_KEPT = "kept"
_NOTES = (
    "MAE of H of the averaged weights on test molecules, and cycles of PySCF's SCF from the "
    "network alone over those from minao (Table 3's achieved ratio, cycles counted from 0): mean ± "
    "standard deviation over molecules; of SCFs that converged from both.",
    "Seed {seed}; the paper's achieved ratio against minao is that of its training on QH9-stable.",
)


def run(options: Options) -> Report:
    dataset = _dataset(options)
    training = Training(_VARIANT, dataset, options.seeds[0], followed=True)
    kept = _kept(training, options)
    molecules = dataset.geometries("test", options.n or options.size.acceleration_molecules)
    results = {}
    for step, model in kept.items():
        cache = ResultCache(model.parent / f"{model.name}.json", training.settings(options))
        make = partial(errors_on_test, model, dataset, options)
        errors = cache(f"errors, {weights_hash(model)}", make)["mae"]
        method = Method(
            xc=dataset.xc, model=str(model), max_cycles=0, accelerate=False, frugal=False
        )
        path = model.parent / f"{model.name}-scf-{dataset.xc}-{len(molecules)}.json"
        found = run_benchmark(molecules, method, (_INIT,), path, resume=True)
        if found.interrupted:
            raise KeyboardInterrupt
        results[str(step)] = {"mae": spread(errors), "scf": found.to_json()}
    ratio = TABLE3["stable-id"][_INIT]["achieved_ratio"][_VARIANT]
    rows = [_row(step, entry) for step, entry in results.items()]
    rows.append(["paper", "61.42", "{:.3f} ± {:.3f}".format(*ratio), "50"])
    notes = [note.format(seed=training.seed) for note in _NOTES]
    return Report(
        "progress", f"{VARIANTS[_VARIANT].label} as a start while it learns ({dataset.name})",
        (["step", "H", f"achieved, {_INIT}", "SCFs"], rows), results,
        lambda figure: _draw(figure, results), [*notes, *provenance([dataset])],
    )  # fmt: skip


def _dataset(options: Options) -> Dataset:
    found = options.need(IN_HOUSE, *QH9)
    dataset = next(iter(found.values()))
    dataset.check_split("test")
    return dataset


def _kept(training: Training, options: Options) -> dict[int, Path]:
    """Exported models by their training's step, the last one at the end."""
    folder, models = training.folder(options), training.folder(options) / "models"
    every = options.size.keep_every
    keep = ModelCheckpoint(
        folder / "run" / _KEPT, "{step}", every_n_train_steps=every, save_top_k=-1,
        enable_version_counter=False,
    )  # fmt: skip
    last = run_training(training, options, [keep])["steps"]
    found = {}
    for checkpoint in (folder / "run" / _KEPT).glob("step=*.ckpt"):
        step = int(checkpoint.stem.partition("=")[2])
        found[step] = models / f"step-{step}"
        if not (found[step] / "config.json").is_file():
            export(checkpoint, found[step])
    final = found.setdefault(last, models / f"last-{last}")
    if not (final / "config.json").is_file():
        # The weights of this step, as all others are: the training's model are its best.
        export(folder / "run" / "checkpoints" / "last.ckpt", final)
    return dict(sorted(found.items()))


def _row(step: str, entry: dict[str, Any]) -> list[str]:
    summary = entry["scf"]["summaries"][_INIT]
    ratio = summary["achieved_ratio"]
    achieved = f"{ratio['mean']:.3f} ± {ratio['std']:.3f}" if ratio["n"] else "-"
    n = f"{summary['n']} of {len(entry['scf']['rows']) + len(entry['scf']['failures'])}"
    return [step, with_spread(entry["mae"], UNITS["mae"][0], 0), achieved, n]


def _draw(figure: Any, results: dict[str, Any]) -> None:
    factor, unit = UNITS["mae"]
    steps = [int(step) for step in results]
    ratios = [entry["scf"]["summaries"][_INIT]["achieved_ratio"] for entry in results.values()]
    quantities = (
        (f"MAE of H / {unit}", [factor * entry["mae"]["mean"] for entry in results.values()]),
        (f"cycles over those from {_INIT}", [ratio["mean"] for ratio in ratios]),
    )
    for ax, (label, values) in zip(figure.subplots(1, 2), quantities, strict=True):
        ax.plot(steps, values, "o-", markersize=3)
        ax.set_xlabel("training step")
        ax.set_ylabel(label)
    figure.axes[0].set_yscale("log")
    figure.axes[1].axhline(1.0, color="k", linestyle="--", linewidth=0.8)
