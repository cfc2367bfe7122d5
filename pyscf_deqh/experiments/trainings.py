"""One training of one variant on one data set with one seed: to its budget, resumed, evaluated."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Callback

from ..checkpoint import load_model, resolve_model, weights_hash
from ..errors import NumericalError
from ..metrics import HamiltonianErrors
from ..nn.deqh import SolverSettings
from ..nn.qhnet import QHNetConfig
from ..nn.so2net import SO2NetConfig
from ..train.config import (
    ConsistencyConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    StepsConfig,
    TrainConfig,
)
from ..train.evaluate import evaluate
from ..train.run import export, train
from .cache import ResultCache
from .datasets import Dataset
from .options import Options
from .report import spread
from .sizes import Size


@dataclass(frozen=True)
class Variant:
    """A network of the experiments.

    Attributes:
        label: its name in tables.
        backbone: as it is registered.
        options: hyperparameters that make it what it is; sizes are the preset's.
        consistency: loss of self-consistency that is added to the labels'.
        solver, optimizer: what is not the preset's of these sections of a configuration.
        steps: what f of a step of the label's SCF shall be.
    """

    label: str
    backbone: str
    options: dict[str, Any]
    consistency: str = "none"
    solver: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    steps: str = "none"


def _qhnet(label: str, consistent: bool, overlap: bool, loss: str = "none") -> Variant:
    return Variant(label, "qhnet", {"self_consistent": consistent, "overlap": overlap}, loss)


def _solver_step(
    label: str,
    gradient: str,
    iterations: int,
    forward: str = "fixed_point_iter",
    losses: dict[str, float] | None = None,
    **others: str,
) -> Variant:
    """SO2Net with layers and optimizer of the bundled models, whose f is to solve an SCF.

    Args:
        losses: weights of losses, by their names in the optimizer's section.
    """
    solver = {
        "gradient": gradient, "forward": forward, "forward_max_iterations": iterations,
        "backward": forward, "backward_max_iterations": 8, "start": "reference",
    }  # fmt: skip
    optimizer = {
        "method": "muon", "learning_rate": 2e-3, "weight_decay": 1e-3, "rotation_weight": 30.0,
        "ema_decay": 0.995,
    } | (losses or {})  # fmt: skip
    options = {"reference": "sad", "injection_layers": 1}
    return Variant(label, "so2net", options, solver=solver, optimizer=optimizer, **others)


VARIANTS = {
    "qhnet": _qhnet("QHNet", False, False),
    "qhnet+s": _qhnet("QHNet with S", False, True),
    "deqhnet-s": _qhnet("DEQHNet without S", True, False),
    "deqhnet": _qhnet("DEQHNet", True, True),
    "qhnet-amortized": _qhnet("QHNet, amortized", False, False, "amortized"),
    "qhnet-commutator": _qhnet("QHNet, commutator", False, False, "commutator"),
    "phisnet": Variant("PhiSNet", "phisnet", {"self_consistent": False}),
    "deq-phisnet": Variant("PhiSNet with H", "phisnet", {"self_consistent": True}),
    "deeph": Variant("DeepH", "deeph", {}),
    "schnorb": Variant("SchNOrb", "schnorb", {}),
    "so2net": Variant("SO2Net", "so2net", {"reference": "none"}),
    "once": _solver_step("f once", "random-depth", 1),
    "depth": _solver_step("f one to three times", "random-depth", 3),
    "implicit": _solver_step("implicit", "implicit", 8),
    "anderson": _solver_step("implicit, Anderson", "implicit", 8, "anderson"),
    "jacobian": _solver_step("implicit, Jacobian", "implicit", 8, losses={"jacobian_weight": 1.0}),
    "alignment": _solver_step(
        "alignment", "random-depth", 3, losses={"rotation_weight": 0.0, "alignment_weight": 1.0}
    ),
    "solution": _solver_step("steps to the solution", "random-depth", 3, steps="solution"),
    "next": _solver_step("steps to the next one", "implicit", 8, "anderson", steps="next"),
    "fock": _solver_step("steps to their Fock matrix", "implicit", 8, "anderson", steps="fock"),
    "commutator": _solver_step("commutator", "random-depth", 3, consistency="commutator"),
}

# What a learning curve has beside its steps.
_CURVES = ("mae", "mae_occupied_energies", "cosine_similarity")

# Relative, of all of the on-site blocks, which are some 20 hartree for water; the paper gives none.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Training:
    """What distinguishes a training from others of the same options."""

    variant: str
    dataset: Dataset
    seed: int
    forward_iterations: int | None = None  # instead of the recipe's
    followed: bool = False  # whether networks on the way are kept

    @property
    def name(self) -> str:
        kind = f"-{self.forward_iterations}" if self.forward_iterations else ""
        kind += "-followed" if self.followed else ""
        return f"{self.dataset.name}-{self.variant}{kind}-seed{self.seed}"

    def folder(self, options: Options) -> Path:
        return options.out / "trainings" / self.name

    def config(self, options: Options) -> TrainConfig:
        size, recipe = options.size, options.size.recipe(self.dataset.name)
        minutes, steps = options.budget
        variant = VARIANTS[self.variant]
        solver: dict[str, Any] = {
            "forward_max_iterations": self.forward_iterations or recipe.iterations,
            "backward_max_iterations": recipe.iterations,
            "forward_tolerance": _TOLERANCE,
            "backward_tolerance": _TOLERANCE,
            "start": "identity",
        }
        optimizer: dict[str, Any] = {
            "learning_rate": recipe.learning_rate,
            "warmup_steps": size.warmup_steps,
            "weight_decay": 0.01,
            "ema_decay": recipe.ema_decay,
            "rotation_weight": 0.0,
        }
        return TrainConfig(
            **self._network(size),
            data=DataConfig(
                databases=list(self.dataset.databases),
                split_rule=self.dataset.split_rule,
                split_sizes=list(self.dataset.split_sizes),
                basis=self.dataset.bases[0],
                other_bases=list(self.dataset.bases[1:]),
                elements=self.dataset.elements,
                cache=options.out / "cache",
                max_validation=size.max_validation,
            ),
            solver=SolverSettings(**(solver | variant.solver)),
            optimizer=OptimizerConfig(**(optimizer | variant.optimizer)),
            consistency=ConsistencyConfig(loss=variant.consistency),
            steps=StepsConfig(target=variant.steps),
            run=RunConfig(
                folder=self.folder(options) / "run",
                max_epochs=1_000_000,
                max_steps=steps,
                max_minutes=minutes,
                batch_size=recipe.batch_size,
                batches_per_epoch=size.steps_per_epoch,
                validate_every=size.validate_every,
                seed=self.seed,
            ),
        )

    def _network(self, size: Size) -> dict[str, Any]:
        """What a configuration says of the network."""
        variant = VARIANTS[self.variant]
        name = variant.backbone
        chosen = variant.options | size.networks[name] | size.variants.get(self.variant, {})
        if name == "qhnet":
            return {"backbone": name, "qhnet": QHNetConfig(**chosen)}
        if name == "so2net":
            return {"backbone": name, "so2net": SO2NetConfig(**chosen)}
        return {"backbone": name, "options": chosen}

    def settings(self, options: Options) -> dict[str, Any]:
        """All that the result depends on, without places and hardware."""
        settings = json.loads(json.dumps(asdict(self.config(options)), default=str))
        for section, name in (("run", "folder"), ("data", "cache")):
            del settings[section][name]
        for name in {"so2net", "qhnet"} - {settings["backbone"]}:
            del settings[name]
        for name in ("cuda_graphs", "devices", "nodes"):
            del settings["run"][name]
        if settings["steps"]["target"] == "none":
            del settings["steps"]
        if settings["consistency"]["loss"] == "none":
            del settings["consistency"]
        if not settings["data"]["other_bases"]:
            del settings["data"]["other_bases"]
        for name in ("alignment_weight", "jacobian_weight"):
            if not settings["optimizer"][name]:
                del settings["optimizer"][name]
        if settings["optimizer"]["method"] == "adamw":
            del settings["optimizer"]["method"]
        if options.init:
            settings["init"] = weights_hash(options.init)
            if settings["solver"]["forward_max_iterations"] > 1:
                settings["init_state"] = "damped"
        settings["data"]["databases"] = self.dataset.rows
        return settings | {"max_test": options.size.max_test}


def run_training(
    training: Training, options: Options, callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Train, or go on, and evaluate on the test split; what is done already is read.

    Returns:
        Steps, seconds and parameters of the training, its learning curve, and the errors of each
        test molecule.
    """
    folder = training.folder(options)
    cache = ResultCache(folder / "result.json", training.settings(options))

    def make() -> dict[str, Any]:
        training.dataset.check_split("test")
        print(f"{training.name} ({VARIANTS[training.variant].label})", flush=True)
        config, model = training.config(options), folder / "model"
        if not (model / "config.json").is_file():
            init = resolve_model(options.init) if options.init else None
            train(config, resume=True, init=init, callbacks=callbacks)
            export(config.run.folder, model)
        errors = errors_on_test(model, training.dataset, options)
        last = config.run.folder / "checkpoints" / "last.ckpt"
        state = torch.load(last, map_location="cpu", weights_only=True)
        return {
            "steps": int(state["global_step"]),
            "seconds": float(state["seconds"]),
            "parameters": sum(p.numel() for p in load_model(model)[0].parameters()),
            "curve": learning_curve(config.run.folder),
            "test_errors": errors,
        }

    return cache("result", make)


def errors_on_test(model: Path, dataset: Dataset, options: Options) -> dict[str, list[float]]:
    """Those of a model for each test molecule of a data set."""
    return evaluate(
        model, dataset.databases, "test", options.out / "cache",
        split_rule=dataset.split_rule, split_sizes=dataset.split_sizes,
        max_molecules=options.size.max_test or None,
    )  # fmt: skip


def learning_curve(run: Path) -> dict[str, list[float]]:
    """Errors (hartree; cosines) on the validation split by the log of a run's folder.

    Returns:
        ``step``, and one value of each error for each of them.
    """
    logs = run.glob("csv/version_*/metrics.csv")
    found: dict[int, list[float]] = {}
    # A resumed run logs into a new folder, from its last checkpoint on.
    for path in sorted(logs, key=lambda log: int(log.parent.name.rpartition("_")[2])):
        with path.open(newline="") as log:
            for row in csv.DictReader(log):
                if all(row.get(f"valid/{name}") for name in _CURVES):  # it may be cut off
                    found[int(row["step"]) + 1] = [float(row[f"valid/{name}"]) for name in _CURVES]
    steps = sorted(found)
    curve = {name: [found[step][i] for step in steps] for i, name in enumerate(_CURVES)}
    return {"step": [float(step) for step in steps]} | curve


def model_name(model: str | Path) -> str:
    """Short name of a model; that of its training for those trained here.

    Raises:
        CheckpointError: there is no such model.
    """
    folder = resolve_model(model)
    return folder.parent.name if folder.name == "model" else folder.name


def over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Spread over seeds of each metric's mean over the test molecules, and of the steps."""
    names = [*HamiltonianErrors.__dataclass_fields__, "iterations", "residual"]
    out: dict[str, Any] = {
        name: spread(sum(r["test_errors"][name]) / len(r["test_errors"][name]) for r in runs)
        for name in names
    }
    out["steps"] = spread(r["steps"] for r in runs)
    out["seconds"] = spread(r["seconds"] for r in runs)
    out["test_molecules"] = len(runs[0]["test_errors"]["mae"])
    out["parameters"] = runs[0]["parameters"]
    return out


def train_variant(variant: str, dataset: Dataset, options: Options) -> dict[str, Any]:
    """All seeds of one variant: the summary, and each run under ``runs``."""
    runs = {
        str(seed): run_training(Training(variant, dataset, seed), options) for seed in options.seeds
    }
    return over_seeds(list(runs.values())) | {"runs": runs}


def try_variants(
    variants: Sequence[str], dataset: Dataset, options: Options, failures: list[str]
) -> dict[str, dict[str, Any]]:
    """:func:`train_variant` of each; those that diverged are left out, and ``failures`` gets a
    sentence for each."""
    found = {}
    for variant in variants:
        try:
            found[variant] = train_variant(variant, dataset, options)
        except NumericalError as error:
            failures.append(f"{VARIANTS[variant].label} on {dataset.name} failed: {error}")
    return found
