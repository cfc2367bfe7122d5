"""A training run from configuration to checkpoint, and from checkpoint to model."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from ..checkpoint import ModelSpec, save_model
from ..errors import CheckpointError, ConfigError, OutputError
from ..files import cannot_write, is_full, write_text, writing
from ..nn.backbones import registered
from .checkpoints import WholeCheckpoints
from .config import TrainConfig
from .module import HamiltonianData, HamiltonianModule, build_model

# Batches that the scales of inputs and outputs are measured on.
_STANDARDIZATION_BATCHES = 25


class _End(L.Callback):
    """Ends a run after its steps, or at the end of the epoch in which its wall-clock limit passes,
    and validates what it ends with: the model is exported from there."""

    @staticmethod
    def _time_is_up(module: Any) -> bool:
        limit = module.config.run.max_minutes
        return bool(limit) and module.seconds >= 60 * limit

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        resumed = trainer.global_step > 0
        trainer.should_stop |= resumed and self._time_is_up(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        run = pl_module.config.run
        stop = bool(run.max_steps) and trainer.global_step >= run.max_steps
        last = trainer.current_epoch + 1 == run.max_epochs
        if trainer.is_last_batch:
            stop = stop or self._time_is_up(pl_module)
        trainer.should_stop |= stop
        if stop or (last and trainer.is_last_batch):
            trainer.check_val_every_n_epoch = 1


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def write_config(config: TrainConfig, path: Path) -> None:
    write_text(path, yaml.safe_dump(_to_plain(asdict(config)), sort_keys=False))


def read_config(path: Path) -> TrainConfig:
    try:
        raw = yaml.safe_load(path.read_text())
        backbone = raw.pop("backbone")
        default = TrainConfig()
        sections = {name: type(getattr(default, name))(**options) for name, options in raw.items()}
        config = TrainConfig(backbone, **sections)
        config.data.databases = [Path(p) for p in config.data.databases]
        config.data.cache, config.run.folder = Path(config.data.cache), Path(config.run.folder)
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"cannot read the configuration of a run, {path}: {error}") from error
    return config


def _kept(config: TrainConfig) -> dict[str, Any]:
    """The options that a run keeps from its first step to its export."""
    sections: dict[str, Any] = {config.backbone: config.model, "solver": config.solver}
    options = {f"{s}.{k}": v for s, part in sections.items() for k, v in asdict(part).items()}
    names = ("basis", "elements", "split_rule", "split_sizes")
    data = {f"data.{k}": getattr(config.data, k) for k in names}
    return {k: _to_plain(v) for k, v in ({"backbone": config.backbone} | options | data).items()}


def _check_resumed(config: TrainConfig, file: Path) -> None:
    old, new = _kept(read_config(file)), _kept(config)
    changed = [f"{k}: {old.get(k)} there, {new.get(k)} now"
               for k in old | new if old.get(k) != new.get(k)]  # fmt: skip
    if changed:
        raise ConfigError(
            f"{file} is of a run with other options ({'; '.join(changed)}); "
            "give the options of that run (its --config), or name another folder"
        )


def _initialize(module: HamiltonianModule, checkpoint: Path) -> None:
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
    except (OSError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot start from {checkpoint}: {error}") from error


def moving_average(
    decay: float,
) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Exponential moving average whose memory grows with the run, up to ``decay``.

    With a constant decay the average of a short run is that of its untrained weights. In place, for
    all parameters at once.
    """

    def update(
        averaged: Sequence[Tensor], current: Sequence[Tensor], n_averaged: Tensor | int
    ) -> None:
        n = int(n_averaged)
        averaged, current = list(averaged), list(current)
        changes = torch._foreach_sub(current, averaged)
        torch._foreach_mul_(changes, 1 - min(decay, (1 + n) / (10 + n)))
        torch._foreach_add_(averaged, changes)

    return update


def _trainer(config: TrainConfig, further: Sequence[L.Callback] = ()) -> L.Trainer:
    run, options = config.run, config.optimizer
    precision: Any = run.precision
    folder = run.folder / "checkpoints"
    callbacks: list[L.Callback] = [
        ModelCheckpoint(folder, "best", monitor="valid/loss", enable_version_counter=False),
        # After every epoch, whether validated or not: that is what --resume goes on from.
        ModelCheckpoint(
            folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
        ),
        TQDMProgressBar(refresh_rate=10),
        _End(),
        *further,
    ]  # fmt: skip
    if options.ema_decay:
        callbacks.append(
            # Parameters only: an average of index buffers truncates 4 * 0.9 + 4 * 0.1 to 3.
            WeightAveraging(use_buffers=False, multi_avg_fn=moving_average(options.ema_decay))
        )
    return L.Trainer(
        default_root_dir=run.folder,
        max_epochs=run.max_epochs,
        max_steps=run.max_steps or -1,
        check_val_every_n_epoch=run.validate_every,
        gradient_clip_val=options.clip,
        accelerator=run.accelerator,
        devices=1,
        precision=precision,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=10,
        logger=[
            # A resumed run logs into new folders: Lightning deletes what it finds in old ones.
            CSVLogger(run.folder, name="csv"),
            TensorBoardLogger(run.folder, name="tensorboard"),
        ],
        callbacks=callbacks,
        plugins=WholeCheckpoints(),
    )


def _check_cuda_graphs(config: TrainConfig) -> None:
    solver, run = config.solver, config.run
    once = solver.gradient == "random-depth" and solver.forward_max_iterations == 1
    captured = registered(config.backbone).network.can_be_captured
    fits = captured and config.model.reference != "none" and once
    if not fits or solver.start != "reference":
        raise ConfigError(
            "run.cuda_graphs: what is captured must not wait for the GPU; so2net with a "
            "reference does not, with solver.gradient random-depth, "
            "solver.forward_max_iterations 1 and solver.start reference"
        )
    if run.precision != "32-true":
        raise ConfigError("run.cuda_graphs: run.precision must be 32-true")
    if run.accelerator == "cpu" or not torch.cuda.is_available():
        raise ConfigError("run.cuda_graphs: there is no CUDA device; set it to false")


def train(
    config: TrainConfig,
    resume: bool = False,
    init: Path | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> None:
    """Run a training, or go on with one.

    Args:
        config: the run. A resumed run must name the same folder.
        resume: go on from ``checkpoints/last.ckpt`` of the run's folder, if there is one.
        init: checkpoint whose weights (and scales) a new run starts from.
        callbacks: further Lightning callbacks, for measurements during the training.

    Raises:
        ConfigError: no databases, a folder that holds another run and ``resume`` is off or the
            model, the solver or the kind of data are others, or CUDA graphs where they cannot be.
        CheckpointError: the last checkpoint is damaged.
        OutputError: the run's folder takes no more data; its last checkpoint is whole.
    """
    run = config.run
    last = run.folder / "checkpoints" / "last.ckpt"
    if not config.data.databases:
        raise ConfigError("data.databases is empty: name at least one QH9 database")
    if last.exists() and not resume:
        raise ConfigError(f"{run.folder} holds a run already: add --resume or name another folder")
    file = run.folder / "config.yaml"
    if last.exists() and file.exists():
        _check_resumed(config, file)
    if run.cuda_graphs:
        _check_cuda_graphs(config)
    if run.threads:
        torch.set_num_threads(run.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(run.seed, verbose=False)
    with writing(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    write_config(config, file)

    module = HamiltonianModule(build_model(config), config)
    backbone = module.model.backbone
    data = HamiltonianData(config, backbone.template, backbone.cutoff)
    data.setup()
    if init is not None:
        _initialize(module, init)
    elif not last.exists():
        backbone.standardize(data.first_batches(_STANDARDIZATION_BATCHES))
    parameters = sum(p.numel() for p in module.parameters())
    sizes = {split: len(part) for split, part in data.parts.items()}
    print(f"{parameters} parameters, {sizes['train']} training and {sizes['valid']} "
          f"validation geometries", flush=True)  # fmt: skip
    trainer = _trainer(config, callbacks)
    # What Lightning says of an existing checkpoint folder and of few batches is meant here.
    warnings.filterwarnings("ignore", message=".*(exists and is not empty|logging interval).*")
    try:
        trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    except OSError as error:
        if not is_full(error):
            raise
        raise OutputError(cannot_write(run.folder, error)) from error  # of a log


def export(run: Path, model: Path, half: bool = False) -> None:
    """Write a run's averaged weights in the ``models/`` format.

    Args:
        run: folder of the run (its best checkpoint is taken), or a checkpoint in it.
        model: folder to make; its name is the model's name.
        half: write the weights in half precision, in half the space.

    Raises:
        CheckpointError: there is no checkpoint yet, or it does not fit the configuration.
    """
    checkpoint = run if run.suffix == ".ckpt" else run / "checkpoints" / "best.ckpt"
    folder = checkpoint.parent.parent
    if not checkpoint.exists():
        raise CheckpointError(f"no checkpoint at {checkpoint}")
    config = read_config(folder / "config.yaml")
    module = HamiltonianModule(build_model(config), config)
    _initialize(module, checkpoint)
    spec = ModelSpec(
        basis=config.data.basis,
        template=module.model.backbone.template,
        backbone=config.model,
        solver=config.solver,
        split_rule=config.data.split_rule,
        split_sizes=tuple(config.data.split_sizes),
    )
    save_model(module.model, spec, model, half)
