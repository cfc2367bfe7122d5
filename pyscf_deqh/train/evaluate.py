"""Errors of a model on a labelled split (A.8)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import load_model
from ..data.dataset import GraphStore, HamiltonianDataset
from ..data.splits import check_rows
from ..graph.batch import GraphBatch, collate
from ..metrics import UNITS, HamiltonianErrors, hamiltonian_errors, sample_deviation


def batch_errors(batch: GraphBatch, predicted: Tensor) -> list[HamiltonianErrors]:
    """Errors of each molecule's predicted Hamiltonian in a labelled batch."""
    sizes = (batch.orbital >= 0).sum(dim=1)
    errors, labels = [], batch.labels[0]
    for b, nao in enumerate(batch.nao.tolist()):
        errors.append(
            hamiltonian_errors(
                predicted[b, :nao, :nao].double().cpu().numpy(),
                labels[b, :nao, :nao].cpu().numpy(),
                batch.overlap[b, :nao, :nao].cpu().numpy(),
                int(batch.n_occupied[b]),
                sizes[batch.molecule == b].cpu().numpy(),
            )
        )
    return errors


def evaluate(
    model: str | Path,
    databases: Sequence[Path],
    split: str,
    cache: Path,
    iterations: int | None = None,
    split_rule: str | None = None,
    split_sizes: Sequence[int] = (),
    max_molecules: int | None = None,
) -> dict[str, list[float]]:
    """Errors of every molecule of a split: one list for each metric, iterations and residual.

    Args:
        model: bundled model or exported folder. It runs on a GPU where PyTorch sees one.
        databases: files of labels, see ``docs/data.md``.
        split: ``train``, ``valid``, ``test`` or ``all``.
        cache: folder of the graphs.
        iterations: limit of the fixed-point iteration, instead of the model's own.
        split_rule, split_sizes: see :class:`~pyscf_deqh.data.dataset.HamiltonianDataset`; by
            default those of the model's training, as far as the model knows them.
        max_molecules: no more than these.

    Raises:
        DatasetError: a file has grown since the model was trained on it, by a split rule that
            draws from all rows.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, spec = load_model(model, device)
    if iterations is not None:
        network.configure(replace(spec.solver, forward_max_iterations=iterations))
    store = GraphStore(cache, spec.reference, spec.basis, spec.other_bases)
    split_rule = split_rule or spec.split_rule or "qm9-id"
    if split_rule == spec.split_rule:
        split_sizes = tuple(split_sizes) or spec.split_sizes
    dataset = HamiltonianDataset(
        databases, split, store, max_molecules, split_rule=split_rule, split_sizes=split_sizes
    )
    if split != "all" and spec.split_rule is not None:
        if (split_rule, tuple(split_sizes)) == (spec.split_rule, spec.split_sizes):
            check_rows(split_rule, spec.split_rows, dataset.rows)
        elif set(spec.split_rows) & set(dataset.rows):
            by = f"{spec.split_rule} {list(spec.split_sizes) or ''}".rstrip()
            warnings.warn(
                f"{model} was trained on a file of that name, split by {by}: rows of "
                f"the {split} split may be of its training",
                stacklevel=2,
            )
    names = [field.name for field in fields(HamiltonianErrors)]
    values: dict[str, list[float]] = {name: [] for name in (*names, "iterations", "residual")}
    for i in tqdm(range(len(dataset)), desc=f"evaluating {split}", unit="mol"):
        batch = collate([dataset[i]], spec.template, spec.backbone.cutoff_bohr).to(device)
        with torch.no_grad():
            solution = network(batch)
        (errors,) = batch_errors(batch, solution.hamiltonian)
        for name in names:
            values[name].append(getattr(errors, name))
        values["iterations"].append(float(solution.iterations[0]))
        values["residual"].append(float(solution.residual[0]))
    return values


def summary(values: dict[str, list[float]]) -> str:
    """Mean and standard deviation over molecules, one line for each metric, in printed units."""
    lines = []
    for name, column in values.items():
        factor, unit = UNITS.get(name, (1.0, ""))
        numbers = factor * np.array(column)
        deviation = sample_deviation(numbers)
        line = f"  {name:22} {numbers.mean():10.4g} +- {deviation:<10.4g} {unit}"
        lines.append(line.rstrip())
    return "\n".join(lines)
