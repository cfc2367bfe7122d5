"""A training run from configuration to checkpoint, and from checkpoint to model."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from ..checkpoint import ModelSpec, load_model, rows_by_name, save_model
from ..data.splits import check_rows
from ..errors import CheckpointError, ConfigError, DatasetError, OutputError
from ..files import cannot_write, differences, is_full, write_text, writing
from ..graph.basis import template_of
from ..graph.layout import OrbitalTemplate
from ..nn.backbones import name_of, registered
from ..nn.deqh import BackboneConfig, SolverSettings
from .checkpoints import UNREADABLE, WholeCheckpoints
from .config import RunConfig, TrainConfig
from .module import HamiltonianData, HamiltonianModule, build_model

# Molecules that the scales of inputs and outputs are measured on: of the rare elements too.
_STANDARDIZATION_MOLECULES = 1000
# What is left of untrained weights that read the state, where f is applied more than once.
_DAMPED = 0.02


class _Split(NamedTuple):
    """Of a training: rule, sizes, and numbers of rows of the files of each name."""

    rule: str | None
    sizes: Sequence[int]
    rows: Mapping[str, Sequence[int]]


def _compare_splits(source: _Split, ours: _Split) -> None:
    """Warn where weights have seen files that are split in another way here."""
    shared = sorted(ours.rows.keys() & source.rows.keys())
    alike = (source.rule, tuple(source.sizes)) == (ours.rule, tuple(ours.sizes))
    why = "another split rule or other sizes"
    if alike and ours.rule is not None:
        try:
            check_rows(ours.rule, source.rows, ours.rows)
        except DatasetError as error:
            why = str(error)
        else:
            return
    if shared:
        warnings.warn(
            f"the first weights come from a training on {', '.join(shared)}, which may have had "
            f"test rows of this one: {why}",
            stacklevel=2,
        )


class _Start(L.Callback):
    """What each process does before its training, and before WeightAveraging copies the module.

    Args:
        standardize: set scales of inputs and outputs.
        resumed: the run goes on from a checkpoint.
        source: the split of the training that the weights come from.
    """

    def __init__(self, standardize: bool, resumed: bool, source: _Split | None):
        self._standardize, self._resumed, self._source = standardize, resumed, source

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        run, data = pl_module.config.run, trainer.datamodule  # type: ignore[attr-defined]
        strategy = trainer.strategy
        alike = strategy.broadcast(self._resumed) == self._resumed
        if not strategy.reduce_boolean_decision(alike):
            raise ConfigError(f"run.folder, {run.folder}, must be the same folder on all nodes")
        if run.threads:  # after Lightning, which shares the cores out among its processes
            torch.set_num_threads(run.threads)
        if self._standardize:
            if trainer.is_global_zero:
                batches = math.ceil(_STANDARDIZATION_MOLECULES / run.batch_size)
                pl_module.model.backbone.standardize(data.first_batches(batches))
            pl_module.load_state_dict(strategy.broadcast(pl_module.state_dict()))
        if run.precision == "64-true":  # Lightning converts the module later, but no copies of it
            pl_module.double()
        if trainer.is_global_zero:
            if self._source is not None:
                config = pl_module.config.data
                ours = _Split(config.split_rule, config.split_sizes, data.parts["train"].rows)
                _compare_splits(self._source, ours)
            parameters = sum(p.numel() for p in pl_module.parameters())
            sizes = {split: len(part) for split, part in data.parts.items()}
            print(f"{parameters} parameters, {sizes['train']} training and {sizes['valid']} "
                  "validation geometries", flush=True)  # fmt: skip


class _End(L.Callback):
    """Ends a run after its steps, or at the end of the epoch in which its wall-clock limit passes,
    and validates what it ends with: the model is exported from there."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        resumed = trainer.global_step > 0
        trainer.should_stop |= resumed and (self._steps_are_over(trainer, pl_module)
                                            or pl_module.time_used() >= 1)  # fmt: skip

    def _steps_are_over(self, trainer: L.Trainer, pl_module: Any) -> bool:
        # Lightning's own max_steps takes each resumed epoch for one that was begun before.
        limit: int = pl_module.config.run.max_steps
        return bool(limit) and trainer.global_step >= limit

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        run = pl_module.config.run
        stop = self._steps_are_over(trainer, pl_module)
        last = trainer.current_epoch + 1 == run.max_epochs
        if trainer.is_last_batch:
            stop = stop or pl_module.time_used() >= 1
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
    if config.steps.target != "none":
        sections["steps"] = config.steps
    if config.consistency.loss != "none":
        sections["consistency"] = config.consistency
    options = {f"{s}.{k}": v for s, part in sections.items() for k, v in asdict(part).items()}
    options["optimizer.method"] = config.optimizer.method
    names = ("basis", "other_bases", "elements", "split_rule", "split_sizes")
    data = {f"data.{k}": getattr(config.data, k) for k in names}
    return {k: _to_plain(v) for k, v in ({"backbone": config.backbone} | options | data).items()}


def _check_resumed(config: TrainConfig, file: Path) -> None:
    if changed := differences(_kept(read_config(file)), _kept(config)):
        raise ConfigError(
            f"{file} is of a run with other options ({'; '.join(changed)}); "
            "give the options of that run (its --config), or name another folder"
        )


def _initialize(module: HamiltonianModule, checkpoint: Path) -> dict[str, Any]:
    """Take a checkpoint's weights, and return all that is in it."""
    try:
        content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        module.load_state_dict(content["state_dict"])
    except UNREADABLE as error:
        raise CheckpointError(f"cannot start from {checkpoint}: {error}") from error
    return content


def _start_from(module: HamiltonianModule, source: Path) -> _Split | None:
    """Take the weights of a checkpoint, or of a bundled or exported model; how its data were
    split, where that is known.

    Where they have seen f applied once and it is applied more often now, what reads its state is
    damped.
    """
    if source.suffix == ".ckpt":
        file = _config_file(source)
        if not file.is_file():
            _initialize(module, source)
            return None
        run = read_config(file)
        template = template_of(run.data.basis, tuple(run.data.elements))
        _check_network(module, source, run.data.basis, template, run.model)
        rows = rows_by_name(_initialize(module, source).get("rows", {}))
        if run.steps.target == "none":  # or f has seen other states
            _damp_state(module, run.solver)
        return _Split(run.data.split_rule, run.data.split_sizes, rows)
    model, spec = load_model(source)
    _check_network(module, source, spec.basis, spec.template, spec.backbone)
    module.model.backbone.load_state_dict(model.backbone.state_dict())
    _damp_state(module, spec.solver)
    return _Split(spec.split_rule, spec.split_sizes, spec.split_rows)


def _damp_state(module: HamiltonianModule, source: SolverSettings) -> None:
    limit = module.config.solver.forward_max_iterations
    # Of implicit gradients the last application has seen what the solver found.
    once = source.forward_max_iterations == 1 and source.gradient == "random-depth"
    if once and limit > 1 and source.start == "reference":
        module.model.backbone.damp_state(_DAMPED)


def _config_file(checkpoint: Path) -> Path:
    """That of a checkpoint's run."""
    return checkpoint.parent.parent / "config.yaml"


def _check_network(
    module: HamiltonianModule,
    source: Path,
    basis: str,
    template: OrbitalTemplate,
    backbone: BackboneConfig,
) -> None:
    config = module.config
    there = _described(basis, template, backbone)
    ours = _described(config.data.basis, module.model.backbone.template, config.model)
    if changed := differences(there, ours):
        raise ConfigError(
            f"cannot start from {source}, another network ({'; '.join(changed)}): give its options"
        )


def _described(basis: str, template: OrbitalTemplate, backbone: BackboneConfig) -> dict[str, Any]:
    kind = name_of(backbone)
    options = {f"{kind}.{key}": value for key, value in backbone.to_config().items()}
    return {
        "backbone": kind, "data.basis": basis, "data.elements": list(template.numbers), **options,
    }  # fmt: skip


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


def _strategy(run: RunConfig) -> str | DDPStrategy:
    if run.devices * run.nodes == 1:
        return "auto"
    # A step of depth one leaves parameters unused. Buffers do not change.
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)


def _trainer(config: TrainConfig, further: Sequence[L.Callback] = ()) -> L.Trainer:
    run, options = config.run, config.optimizer
    precision: Any = run.precision
    folder = run.folder / "checkpoints"
    # Without labels in the training their loss is no criterion: orbitals' energies are left open.
    best = "valid/loss" if config.consistency.labels else "valid/orbital_rotation"
    callbacks: list[L.Callback] = [
        ModelCheckpoint(folder, "best", monitor=best, enable_version_counter=False),
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
        check_val_every_n_epoch=run.validate_every,
        gradient_clip_val=options.clip,
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.nodes,
        strategy=_strategy(run),
        use_distributed_sampler=False,
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
    if config.consistency.loss != "none":
        raise ConfigError("run.cuda_graphs: fitted Fock matrices wait for the GPU; set it to false")
    if config.steps.target != "none":
        raise ConfigError("run.cuda_graphs: steps of SCFs are drawn at random; set it to false")
    if config.optimizer.jacobian_weight:
        raise ConfigError("run.cuda_graphs: vectors are drawn for the Jacobian; set it to false")
    if run.devices * run.nodes > 1:
        raise ConfigError("run.cuda_graphs: on one device only; set it to false")
    if run.accelerator == "cpu" or not torch.cuda.is_available():
        raise ConfigError("run.cuda_graphs: there is no CUDA device; set it to false")


def _check_processes(run: RunConfig) -> None:
    processes = run.devices * run.nodes
    if run.devices < 1 or run.nodes < 1:
        raise ConfigError("run.devices and run.nodes: at least 1")
    if run.batch_size < processes:
        raise ConfigError(
            f"run.batch_size, {run.batch_size}, is that of all processes together: at least "
            f"{processes}, the number of processes (run.devices * run.nodes)"
        )


def _check_started(run: RunConfig, trainer: L.Trainer) -> None:
    torchrun = TorchElasticEnvironment
    started = torchrun().world_size() if torchrun.detect() else trainer.world_size
    if started != run.devices * run.nodes:
        raise ConfigError(
            f"{started} processes were started, but run.devices ({run.devices}, on each node) * "
            f"run.nodes ({run.nodes}) is another number: set what torchrun or srun starts"
        )


def train(
    config: TrainConfig,
    resume: bool = False,
    init: Path | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> None:
    """Run a training, or go on with one.

    With several processes, Lightning starts those of its node by the command line of this one,
    unless torchrun or srun has started them.

    Args:
        config: the run. A resumed run must name the same folder.
        resume: go on from ``checkpoints/last.ckpt`` of the run's folder, if there is one.
        init: whose weights (and scales) a new run starts from: a checkpoint (``.ckpt``), or a
            bundled model's name or an exported folder of the same network.
        callbacks: further Lightning callbacks, for measurements during the training.

    Raises:
        ConfigError: no databases, a folder that holds another run and ``resume`` is off or the
            model, the solver or the kind of data are others, CUDA graphs where they cannot be,
            more processes than molecules in a batch or than were started, or ``init`` is another
            network.
        CheckpointError: the last checkpoint or ``init`` is damaged or missing.
        DatasetError: labels cannot be used; a file has grown since the training that is resumed,
            by a split rule that draws from all rows.
        NumericalError: the training diverged.
        OutputError: the run's folder takes no more data; its last checkpoint is whole.
    """
    run = config.run
    last = run.folder / "checkpoints" / "last.ckpt"
    if not config.data.databases:
        raise ConfigError("data.databases is empty: name at least one file of labels")
    if last.exists() and not resume:
        raise ConfigError(f"{run.folder} holds a run already: add --resume or name another folder")
    file = run.folder / "config.yaml"
    if last.exists() and file.exists():
        _check_resumed(config, file)
    _check_processes(run)
    if run.cuda_graphs:
        _check_cuda_graphs(config)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    L.seed_everything(run.seed, verbose=False)
    model = build_model(config)
    solver = config.solver
    if solver.gradient == "implicit" and solver.forward_max_iterations == 1 and (
        model.backbone.self_consistent
    ):  # fmt: skip
        raise ConfigError(
            "solver.gradient: with implicit gradients f is applied once more after the solver, so "
            "that a single iteration trains f(f(H)) where f(H) is used: take random-depth"
        )
    if config.steps.target != "none" and not model.backbone.self_consistent:
        raise ConfigError(f"steps.target: {config.backbone} is a predictor, to which H is no input")
    if config.optimizer.jacobian_weight and not model.backbone.self_consistent:
        raise ConfigError(
            f"optimizer.jacobian_weight: {config.backbone} is a predictor, to which H is no input"
        )
    module = HamiltonianModule(model, config)
    source = None if init is None else _start_from(module, init)
    resumed = last.exists()
    start = _Start(not resumed and init is None, resumed, source)
    try:
        trainer = _trainer(config, [start, *callbacks])
    except MisconfigurationException as error:
        raise ConfigError(f"run.accelerator, run.precision or run.devices: {error}") from error
    _check_started(run, trainer)
    if trainer.is_global_zero:
        with writing(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)
        write_config(config, file)
    else:
        warnings.simplefilter("ignore")
    # What Lightning says of an existing checkpoint folder and of few batches is meant here, and
    # PyTorch 2.13 has another name for broadcast_buffers.
    meant = ".*(exists and is not empty|logging interval|broadcast_buffers).*"
    warnings.filterwarnings("ignore", message=meant)
    backbone = module.model.backbone
    data = HamiltonianData(config, backbone.template, backbone.cutoff)
    try:
        trainer.fit(module, data, ckpt_path=last if resumed else None, weights_only=True)
    except BaseException as error:
        # Processes that Lightning has started here would wait for this one.
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)
        if isinstance(error, OSError) and is_full(error):
            raise OutputError(cannot_write(run.folder, error)) from error  # of a log
        raise


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
    if not checkpoint.exists():
        raise CheckpointError(f"no checkpoint at {checkpoint}")
    config = read_config(_config_file(checkpoint))
    module = HamiltonianModule(build_model(config), config)
    content = _initialize(module, checkpoint)
    spec = ModelSpec(
        basis=config.data.basis,
        template=module.model.backbone.template,
        backbone=config.model,
        solver=config.solver,
        split_rule=config.data.split_rule,
        split_sizes=tuple(config.data.split_sizes),
        split_rows=rows_by_name(content.get("rows", {})),
        other_bases=tuple(config.data.other_bases),
    )
    save_model(module.model, spec, model, half)
