"""Lightning modules: what is optimized, and the data it is optimized on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from ..checkpoint import rows_by_name
from ..data.dataset import GraphStore, HamiltonianDataset
from ..data.splits import check_rows
from ..errors import ConfigError, NumericalError, own_errors
from ..graph.basis import check_room, template_of
from ..graph.batch import GraphBatch, collate
from ..graph.layout import OrbitalTemplate
from ..graph.onsite import onsite_overlaps
from ..metrics import HamiltonianErrors
from ..nn.backbones import build_backbone
from ..nn.deqh import DEQH
from .config import TrainConfig
from .consistency import SelfConsistency
from .cuda_graphs import CapturedGradients, Parts
from .evaluate import batch_errors
from .loss import MILLI, element_loss, hamiltonian_loss
from .optimizer import optimizer_of


def build_model(config: TrainConfig) -> DEQH:
    """An untrained model for the elements and basis of ``config``."""
    template = template_of(config.data.basis, tuple(config.data.elements))
    for basis in config.data.other_bases:
        check_room(template, basis)
    backbone = build_backbone(
        template, config.model, lambda: onsite_overlaps(config.data.basis, template)
    )
    return DEQH(backbone, config.solver)


class SizeBatches(Sampler[list[int]]):
    """Random batches of molecules of similar size, which need little padding.

    A random order is cut into pools of some batches; each pool is sorted by size. The order depends
    on seed and epoch alone, so that resumed runs repeat it.

    Args:
        sizes: of the molecules, in any unit; or tuples, of which the first member counts most.
        batch_size: molecules per batch; the last, incomplete one of a pass is left out unless it is
            the only one, because its molecules would get a larger weight.
        seed: of the order.
        length: batches of an epoch, part of a pass or several; 0 for one pass.
        rank, ranks: which process of how many this is; it has its part of every batch.
    """

    _POOL = 12  # batches

    def __init__(
        self,
        sizes: Sequence[int] | Sequence[tuple[int, ...]],
        batch_size: int,
        seed: int,
        length: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        if not len(sizes):
            raise ValueError("there are no molecules to make batches of")
        self.sizes = np.asarray(sizes).reshape(len(sizes), -1)
        self.batch_size, self.seed = batch_size, seed
        self._per_pass = max(len(self.sizes) // batch_size, 1)
        self._length = length or self._per_pass
        # Neighbours in size go to different processes, which have about the same work.
        self._part = slice(rank, None, ranks)
        self.epoch = 0

    @property
    def sampler(self) -> SizeBatches:
        """Lightning tells the epoch to the sampler that it supposes inside a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        left = self._length
        while left > 0:
            batches = self._one_pass(rng)[:left]
            yield from (batch[self._part] for batch in batches)
            left -= len(batches)

    def _one_pass(self, rng: np.random.Generator) -> list[list[int]]:
        order = rng.permutation(len(self.sizes))[: self._per_pass * self.batch_size]
        pool = self._POOL * self.batch_size
        batches = []
        for first in range(0, len(order), pool):
            chosen = order[first : first + pool]
            chosen = chosen[np.lexsort(self.sizes[chosen].T[::-1])]
            batches += [
                chosen[i : i + self.batch_size] for i in range(0, len(chosen), self.batch_size)
            ]
        return [batches[position].tolist() for position in rng.permutation(len(batches))]


class HamiltonianData(L.LightningDataModule):
    """Training and validation molecules, of which each process has its part.

    Attributes:
        parts: the datasets by split, once they are open.
    """

    def __init__(self, config: TrainConfig, template: OrbitalTemplate, cutoff: float):
        super().__init__()
        self.config = config
        self.parts: dict[str, HamiltonianDataset] = {}
        self.prepare_data_per_node = False
        self._template = template
        self._collate = partial(collate, template=template, cutoff=cutoff)
        self._pin = config.run.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def _process(self) -> tuple[int, int]:
        """Which process of how many this is."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def prepare_data(self) -> None:
        """Make missing graphs: in the first process, while all others wait."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        rank, ranks = self._process
        data = self.config.data
        steps = self.config.steps
        limits = {"train": data.max_molecules, "valid": data.max_validation}
        self.parts = {
            split: HamiltonianDataset(
                data.databases,
                split,
                GraphStore(
                    data.cache,
                    self.config.model.reference,
                    data.basis,
                    data.other_bases,
                    steps.n if split == "train" and steps.target != "none" else 0,
                ),
                limit or None,
                data.workers or None,
                progress=rank == 0,
                split_rule=data.split_rule,
                split_sizes=data.split_sizes,
            )
            for split, limit in limits.items()
        }
        for split, part in self.parts.items():
            if len(part) < ranks:
                raise ConfigError(
                    f"split {split!r} has fewer molecules ({len(part)}) than there are processes "
                    f"({ranks}): take fewer of them (run.devices * run.nodes)"
                )

    def _loader(
        self, dataset: Dataset[Any], few_shapes: bool = False, **options: Any
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            collate_fn=partial(self._collate, few_shapes=few_shapes),
            num_workers=self.config.data.loaders,
            persistent_workers=self.config.data.loaders > 0,
            pin_memory=self._pin,
            **options,
        )

    def transfer_batch_to_device(
        self, batch: GraphBatch, device: torch.device, dataloader_idx: int
    ) -> GraphBatch:
        return batch.to(device)

    def _batches(self, length: int, rank: int, ranks: int) -> SizeBatches:
        run = self.config.run
        # Blocks have room for the shells of a batch's elements.
        sizes = [
            (len(self._template.slots(heaviest)), size)
            for heaviest, size in self.parts["train"].sizes()
        ]
        return SizeBatches(sizes, run.batch_size, run.seed, length, rank, ranks)

    def train_dataloader(self) -> DataLoader[Any]:
        run = self.config.run
        batches = self._batches(run.batches_per_epoch, *self._process)
        if self.trainer is not None:  # which tells it too late where processes load batches ahead
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            batches.set_epoch(epochs.processed)
        return self._loader(self.parts["train"], run.cuda_graphs, batch_sampler=batches)

    def first_batches(self, n: int) -> Iterator[GraphBatch]:
        """The first n batches of a pass, of all processes, without additional atoms and pairs."""
        loader = self._loader(self.parts["train"], batch_sampler=self._batches(0, 0, 1))
        return islice(loader, n)

    def val_dataloader(self) -> DataLoader[Any]:
        rank, ranks = self._process
        part = self.parts["valid"]
        share = Subset(part, range(rank, len(part), ranks))
        return self._loader(share, batch_size=math.ceil(self.config.run.batch_size / ranks))


class HamiltonianModule(L.LightningModule):
    """Solves, compares, and steps."""

    def __init__(self, model: DEQH, config: TrainConfig):
        super().__init__()
        self.model = model
        self.config = config
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._captured: CapturedGradients | None = None
        self._consistency: SelfConsistency | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, earlier parts of a resumed run included."""
        return self._seconds_before + time.monotonic() - self._started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seconds"] = self.seconds
        checkpoint["rows"] = self._rows

    @property
    def _rows(self) -> dict[str, list[int]]:
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        rows: dict[str, list[int]] = datamodule.parts["train"].rows
        return rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        before = rows_by_name(checkpoint.get("rows", {}))
        check_rows(self.config.data.split_rule, before, self._rows)
        self._seconds_before = checkpoint.get("seconds", 0.0)
        self._started = time.monotonic()  # what came before was preparation

    def prepare_data(self) -> None:
        """After the first process of all, that of each node makes graphs that a folder of the
        node's own still lacks."""
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        datamodule.setup()

    def on_train_start(self) -> None:
        self._started = time.monotonic()
        if self.config.consistency.loss != "none":
            self._consistency = self._self_consistency()
        if self.config.run.cuda_graphs:
            self._captured = CapturedGradients(self._loss, self.parameters())

    def on_train_end(self) -> None:
        self._captured = None

    def time_used(self) -> float:
        """Part of the wall-clock limit that is over, 0 without one; by the first process's clock,
        so that all processes decide alike. All of them have to ask."""
        limit = 60 * self.config.run.max_minutes
        return self.trainer.strategy.broadcast(self.seconds / limit) if limit else 0.0

    def progress(self) -> float:
        """Part of the run that is done, 0 to 1, by epochs or by the clock, whichever is ahead."""
        steps = self.trainer.estimated_stepping_batches
        steps = min(steps, self.config.run.max_steps or steps)
        done = self.global_step / max(steps, 1)
        return min(max(done, self.time_used()), 1.0)

    def learning_rate_factor(self) -> float:
        options, progress = self.config.optimizer, self.progress()
        done = (self.global_step + 1) / max(options.warmup_steps, 1)
        # In a run that time limits to few steps by a part of it.
        warmup = min(1.0, max(done, self.time_used() / _WARMUP))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return warmup * (options.final_fraction + (1 - options.final_fraction) * cosine)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Lightning does not clip gradients of mixed precision for a fused optimizer.
        fused = self.config.run.precision == "32-true"
        return optimizer_of(self.parameters(), self.config.optimizer, fused)

    @property
    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the one optimizer."""
        optimizer: Any = self.optimizers()
        groups: list[dict[str, Any]] = optimizer.param_groups
        return groups

    def on_train_batch_start(self, batch: GraphBatch, batch_idx: int) -> None:
        # The depth of each step is drawn at random; a resumed run must draw the same ones.
        torch.manual_seed(1_000_003 * self.config.run.seed + self.global_step)
        rate = self.config.optimizer.learning_rate * self.learning_rate_factor()
        for group in self._groups:
            group["lr"] = rate

    def _self_consistency(self) -> SelfConsistency:
        options, data = self.config.consistency, self.config.data
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        xc = options.xc or datamodule.parts["train"].xc
        if not xc:
            raise ConfigError("the labels' functional is not known: give it as consistency.xc")
        numbers = self.model.backbone.template.numbers
        return SelfConsistency(options.loss, xc, data.basis, numbers)

    def _loss(self, batch: GraphBatch) -> Parts:
        solution = self.model(batch)
        parts = self._hamiltonian_loss(solution.hamiltonian, batch)
        if self._consistency is not None:
            options = self.config.consistency
            own = self._consistency(solution.hamiltonian, batch).mean()
            labels = parts["loss"] if options.labels else 0.0
            parts |= {"loss": labels + options.weight * own, "consistency": own.detach()}
        if weight := self.config.optimizer.jacobian_weight:
            of_f = self.model.jacobian_norm(batch, solution.hamiltonian)
            parts |= {"loss": parts["loss"] + weight * of_f, "jacobian": of_f.detach()}
        if self.config.steps.target != "none":
            of_steps = self._loss_of_steps(batch)
            weighted = parts["loss"] + self.config.steps.weight * of_steps
            parts |= {"loss": weighted, "steps": of_steps.detach()}
        iterations, residual = solution.iterations.float().mean(), solution.residual.mean()
        return parts | {"iterations": iterations, "residual": residual}

    def _hamiltonian_loss(self, predicted: Tensor, batch: GraphBatch) -> Parts:
        weights = self.config.optimizer
        return hamiltonian_loss(predicted, batch, weights.rotation_weight, weights.alignment_weight)

    def _loss_of_steps(self, batch: GraphBatch) -> Tensor:
        """Eq. 45 of f at one step of each molecule's SCF, milli-hartree."""
        steps, target = batch.steps, self.config.steps.target
        assert steps is not None
        n = steps.shape[1] - (target == "next")
        drawn = torch.randint(n, (batch.n_molecules,)).to(steps.device)
        rows = torch.arange(batch.n_molecules, device=steps.device)
        hamiltonian, fock = steps[rows, drawn].unbind(1)
        wanted = {"fock": lambda: fock, "next": lambda: steps[rows, drawn + 1, 0],
                  "solution": lambda: batch.labels[0]}[target]()  # fmt: skip
        found = self.model.applied_once(batch, hamiltonian)
        if torch.is_grad_enabled() and not found.requires_grad:
            raise ConfigError(
                f"steps.target: f is no part of {type(self.model.backbone).__name__}.hamiltonian; "
                "its state_is_hamiltonian has to be True"
            )
        return MILLI * element_loss(found - wanted, batch.nao).mean()

    def _over_processes(self, parts: Parts, n_molecules: int) -> tuple[Parts, Tensor]:
        """Means over the molecules of all processes, from those of this one.

        Returns:
            The means, and the factor of this process's loss. DDP averages gradients over
            processes; with the factor that is the gradient of the mean over all molecules.
        """
        sums = torch.stack([n_molecules * value.detach().double() for value in parts.values()])
        sums = torch.cat([sums, sums.new_full((1,), n_molecules)])
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        means = dict(zip(parts, sums[:-1] / sums[-1], strict=True))
        return means, n_molecules * self.trainer.world_size / sums[-1]

    def training_step(self, batch: GraphBatch, batch_idx: int) -> Tensor:
        with own_errors():  # eigenvectors of NaN, say
            parts = self._captured(batch) if self._captured else self._loss(batch)
        loss = parts["loss"]
        if self.trainer.world_size > 1:
            parts, factor = self._over_processes(parts, batch.n_molecules)
            loss = loss * factor.to(loss)
        if not torch.isfinite(parts["loss"]):
            raise NumericalError(
                f"the training diverged at step {self.global_step}: the loss is NaN or infinite; "
                "start again with a smaller optimizer.learning_rate or more optimizer.warmup_steps"
            )
        for name, value in parts.items():
            shown = name not in ("iterations", "residual")
            self.log(f"train/{name}", value, prog_bar=shown, batch_size=batch.n_molecules)
        self.log("learning_rate", self._groups[0]["lr"])
        return loss

    # A replayed graph has computed the gradients already, into tensors that it goes on to use.

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if self._captured is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._captured is None:
            super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: GraphBatch, batch_idx: int) -> None:
        solution = self.model(batch)
        loss = self._hamiltonian_loss(solution.hamiltonian, batch)["loss"]
        errors = batch_errors(batch, solution.hamiltonian)
        names = [field.name for field in fields(HamiltonianErrors)]
        values: dict[str, Any] = {"loss": loss} | {
            name: float(np.mean([getattr(e, name) for e in errors])) for name in names
        }
        values["iterations"] = solution.iterations.float().mean()
        values["residual"] = solution.residual.mean()
        # Lightning averages numbers of molecules over processes and cuts fractions off; multiples
        # of the number of processes have none.
        size = batch.n_molecules * self.trainer.world_size
        for name, value in values.items():
            self.log(
                f"valid/{name}", value, prog_bar=name in _SHOWN, batch_size=size, sync_dist=True
            )


_WARMUP = 0.05  # largest part of a run that time limits
_SHOWN = ("loss", "mae", "orbital_rotation")
