"""Errors of a model on a labelled split (A.8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..ao import OrbitalTemplate
from ..checkpoint import load_model
from ..data.dataset import GraphStore, HamiltonianDataset
from ..graph import GraphBatch, collate
from ..metrics import HamiltonianErrors, hamiltonian_errors


def batch_errors(
    batch: GraphBatch, predicted: Tensor, template: OrbitalTemplate
) -> list[HamiltonianErrors]:
    """Errors of each molecule's predicted Hamiltonian in a labelled batch."""
    sizes = np.array([len(template.slots(z)) for z in template.numbers])
    errors = []
    for b, nao in enumerate(batch.nao.tolist()):
        elements = batch.element[batch.molecule == b].cpu().numpy()
        errors.append(
            hamiltonian_errors(
                predicted[b, :nao, :nao].double().cpu().numpy(),
                batch.hamiltonian[b, :nao, :nao].cpu().numpy(),
                batch.overlap[b, :nao, :nao].cpu().numpy(),
                int(batch.n_occupied[b]),
                sizes[elements],
            )
        )
    return errors


def evaluate(
    model: str | Path,
    databases: Sequence[Path],
    split: str,
    cache: Path,
    iterations: int | None = None,
    split_rule: str = "qm9-id",
    split_sizes: Sequence[int] = (),
) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over the molecules of a split, by metric (hartree).

    Args:
        model: bundled model or exported folder.
        databases: QH9, QH9-dynamic or MD17 files.
        split: ``train``, ``valid``, ``test`` or ``all``.
        cache: folder of the graphs.
        iterations: limit of the fixed-point iteration, instead of the model's own.
        split_rule, split_sizes: see :class:`~pyscf_deqh.data.dataset.HamiltonianDataset`.
    """
    network, spec = load_model(model)
    if iterations is not None:
        network.configure(replace(spec.solver, forward_max_iterations=iterations))
    store = GraphStore(cache, spec.reference, spec.basis)
    dataset = HamiltonianDataset(
        databases, split, store, split_rule=split_rule, split_sizes=split_sizes
    )
    rows: list[list[float]] = []
    names = [field.name for field in fields(HamiltonianErrors)]
    for i in tqdm(range(len(dataset)), desc=f"evaluating {split}", unit="mol"):
        batch = collate([dataset[i]], spec.template, spec.backbone.cutoff_bohr)
        with torch.no_grad():
            solution = network(batch)
        (errors,) = batch_errors(batch, solution.hamiltonian, spec.template)
        rows.append(
            [getattr(errors, name) for name in names]
            + [float(solution.iterations[0]), float(solution.residual[0])]
        )
    table = np.array(rows)
    columns = [*names, "iterations", "residual"]
    return {
        name: (float(column.mean()), float(column.std()))
        for name, column in zip(columns, table.T, strict=True)
    }
