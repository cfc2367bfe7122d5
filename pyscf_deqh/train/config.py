"""Configuration of a training run; every field can be set in YAML and on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ..errors import ConfigError
from ..nn.backbones import config_from, registered
from ..nn.deqh import BackboneConfig, SolverSettings
from ..nn.qhnet import QHNetConfig
from ..nn.so2net import SO2NetConfig

CONSISTENCY_LOSSES = ("amortized", "commutator")
OPTIMIZERS = ("adamw", "muon")
STEP_TARGETS = ("fock", "next", "solution")

# No ``Any``: jsonargparse would make an object of any class that a file names in one.
_Plain: TypeAlias = bool | int | float | str
OptionValue: TypeAlias = _Plain | list[_Plain] | None


@dataclass
class DataConfig:
    """Which molecules to train on.

    Attributes:
        databases: files of labels, see ``docs/data.md``.
        split_rule: ``qm9-id`` (by molecule, ``qm9_id % 10``: 7 test, 3 validation, else train) or
            a published rule: ``qh9-stable-id``, ``qh9-stable-ood``, ``qh9-dynamic-geo``,
            ``qh9-dynamic-mol``, ``md17``.
        split_sizes: of ``md17``: training, validation and perhaps test rows; empty: published.
        basis: basis set of the labels.
        other_bases: basis sets of further labels, with shells that the first one has, too.
        elements: atomic numbers that the model shall know.
        cache: folder of the graphs that are made from the databases.
        max_molecules: limit of the training set (learning curves); 0 for all.
        max_validation: limit of the validation set; 0 for all.
        workers: processes that make graphs (0: all cores).
        loaders: processes that load batches beside the training.
    """

    databases: list[Path] = field(default_factory=list)
    split_rule: str = "qm9-id"
    split_sizes: list[int] = field(default_factory=list)
    basis: str = "def2-svp"
    other_bases: list[str] = field(default_factory=list)
    elements: list[int] = field(default_factory=lambda: [1, 6, 7, 8, 9])
    cache: Path = Path("data/cache")
    max_molecules: int = 0
    max_validation: int = 0
    workers: int = 0
    loaders: int = 0


@dataclass
class OptimizerConfig:
    """An optimizer with linear warm-up and cosine decay.

    Attributes:
        method: ``adamw``, or ``muon`` for matrices of weights with AdamW for the rest.
        learning_rate: after warm-up.
        final_fraction: of the learning rate, at the end.
        warmup_steps: steps of linear growth.
        weight_decay: the optimizer's.
        clip: largest gradient norm.
        ema_decay: of the exponential moving average of the weights, which is what is validated
            and exported; 0 turns it off.
        rotation_weight: weight of the orbital rotation in the loss, in mEh.
        alignment_weight: factor of the error in the true orbitals (wavefunction alignment).
        jacobian_weight: weight of the squared norm of f's Jacobian at the solution, by the number
            of a state's elements, in mEh (Bai, Koltun and Kolter, ICML 2021). f contracts more.
    """

    method: str = "adamw"
    learning_rate: float = 2e-3
    final_fraction: float = 0.01
    warmup_steps: int = 200
    weight_decay: float = 1e-3
    clip: float = 5.0
    ema_decay: float = 0.998
    rotation_weight: float = 10.0
    alignment_weight: float = 0.0
    jacobian_weight: float = 0.0


@dataclass
class ConsistencyConfig:
    """A loss of self-consistency, see :mod:`pyscf_deqh.train.consistency`.

    Attributes:
        loss: ``amortized`` or ``commutator``; ``none`` trains on labels alone.
        weight: its factor.
        labels: whether the loss of the labels counts too.
        xc: functional, as PySCF has it; that of the labels if it is empty.
    """

    loss: str = "none"
    weight: float = 1.0
    labels: bool = True
    xc: str = ""


@dataclass
class StepsConfig:
    """Steps of the labels' SCFs as further examples for f, where label stores keep them: one of
    each molecule is drawn in each training step.

    Attributes:
        target: what f of a step's Hamiltonian shall be: ``fock``, the Fock matrix of its density,
            so that f is the SCF's own map; ``next``, the Hamiltonian that the SCF went on with
            (DIIS); ``solution``, the label. ``none`` trains on the labels alone.
        weight: of their loss, Eq. 45, beside the labels'.
        n: steps of each SCF, from its beginning.
    """

    target: str = "none"
    weight: float = 1.0
    n: int = 4


@dataclass
class RunConfig:
    """Length, place and precision of a run.

    Attributes:
        folder: checkpoints and logs.
        max_epochs, max_steps: end of the run and of the learning-rate schedule, whichever comes
            first; no limit of steps if 0.
        max_minutes: wall-clock limit, resumed time included (0: none). The learning rate follows
            the clock where that is ahead of the epochs, so that a limited run ends annealed.
        batch_size: molecules per step, of all processes together.
        batches_per_epoch: length of an epoch, part of a pass over the data or several; 0 for one.
        validate_every: epochs between validations.
        seed: of weights and order of the data.
        threads: of PyTorch on the CPU; 0 leaves its default.
        accelerator, precision: as in Lightning.
        devices: processes on each node, each with a GPU of its own where there are GPUs.
        nodes: computers that train together. All of them need the same ``folder``.
        cuda_graphs: replay captured steps, for a GPU that waits for its host; some gigabytes of
            memory more. For SO2Net with a reference and one application of f.
    """

    folder: Path = Path("runs/default")
    max_epochs: int = 100
    max_steps: int = 0
    max_minutes: float = 0.0
    batch_size: int = 8
    batches_per_epoch: int = 0
    validate_every: int = 1
    seed: int = 0
    threads: int = 0
    accelerator: str = "auto"
    precision: str = "32-true"
    devices: int = 1
    nodes: int = 1
    cuda_graphs: bool = False


@dataclass
class TrainConfig:
    """A whole training run.

    Attributes:
        backbone: ``so2net`` or ``qhnet``, of whose sections the other is ignored, or the name of
            another one that is registered: ``phisnet``, ``deeph``, ``schnorb``, or another
            package's.
        options: hyperparameters of such another backbone.
    """

    backbone: str = "so2net"
    so2net: SO2NetConfig = field(default_factory=SO2NetConfig)
    qhnet: QHNetConfig = field(default_factory=QHNetConfig)
    options: dict[str, OptionValue] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverSettings = field(
        default_factory=lambda: SolverSettings(forward_max_iterations=3, backward_max_iterations=3)
    )
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    steps: StepsConfig = field(default_factory=StepsConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.consistency.loss not in ("none", *CONSISTENCY_LOSSES):
            kinds = ", ".join(("none", *CONSISTENCY_LOSSES))
            raise ConfigError(f"consistency.loss must be one of {kinds}")
        if self.optimizer.method not in OPTIMIZERS:
            raise ConfigError(f"optimizer.method must be one of {', '.join(OPTIMIZERS)}")
        if self.steps.target not in ("none", *STEP_TARGETS):
            raise ConfigError(f"steps.target must be one of {', '.join(('none', *STEP_TARGETS))}")
        if self.steps.target != "none" and self.steps.n < 1 + (self.steps.target == "next"):
            raise ConfigError("steps.n: one or more, and two or more where the target is the next")
        if self.consistency.loss == "none" and not self.consistency.labels:
            raise ConfigError("consistency: without a loss and without labels there is nothing to "
                              "train on")  # fmt: skip
        if self.consistency.loss != "none" and self.data.other_bases:
            raise ConfigError("consistency: its Fock matrices are in data.basis alone, without "
                              "data.other_bases")  # fmt: skip
        own = registered(self.backbone).config in (SO2NetConfig, QHNetConfig)
        if own and self.options:
            raise ConfigError(f"options: {self.backbone}'s are in the section of its name")

    @property
    def model(self) -> BackboneConfig:
        """Hyperparameters of the chosen backbone.

        Raises:
            ConfigError: options that a backbone of another package does not have.
        """
        if registered(self.backbone).config in (SO2NetConfig, QHNetConfig):
            own: BackboneConfig = getattr(self, self.backbone)
            return own
        try:
            return config_from(self.backbone, self.options)
        except TypeError as error:
            raise ConfigError(f"options of {self.backbone}: {error}") from error
