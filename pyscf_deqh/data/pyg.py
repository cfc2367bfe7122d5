"""Molecules as data of PyTorch Geometric (PyG), whose loaders, samplers and transforms then serve.

A network's own batches are made of :class:`~pyscf_deqh.graph.batch.MolecularGraph`; the way there
and back loses nothing. Needs the extra ``pyg``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch_geometric.data import Batch, Data
from torch_geometric.data import Dataset as PyGDataset

from ..graph.batch import MolecularGraph
from .dataset import HamiltonianDataset

# Rows of all of them are orbitals.
MATRICES = (
    "overlap", "reference", "atomic_density", "basis_vectors", "hamiltonian", "target_orbitals",
)  # fmt: skip


def to_data(graph: MolecularGraph) -> Data:
    """A molecule for PyG.

    Matrices are flat, so that PyG's loaders can join those of molecules of different sizes.

    Returns:
        ``z`` (N,) atomic numbers, ``pos`` (N, 3) in bohr, ``n_occupied``, ``nao``, and all arrays
        of the graph under their names, flat, in hartree; labels only where it has them.
    """
    arrays = {f.name: getattr(graph, f.name) for f in fields(graph)}
    arrays["z"], arrays["pos"] = arrays.pop("numbers"), arrays.pop("positions")
    n_occupied = arrays.pop("n_occupied")
    tensors = {
        name: torch.from_numpy(array if name == "pos" else array.reshape(-1))
        for name, array in arrays.items()
        if array is not None
    }
    return Data(n_occupied=n_occupied, nao=graph.nao, **tensors)


def from_data(data: Data) -> MolecularGraph:
    """The molecule of :func:`to_data`."""
    values = {name: value for name, value in data.to_dict().items() if torch.is_tensor(value)}
    arrays = {name: value.numpy(force=True) for name, value in values.items()}
    shapes = {"shells": (-1, 2), "steps": (-1, 2, int(data.nao), int(data.nao))}
    for name in shapes.keys() & arrays.keys():
        arrays[name] = arrays[name].reshape(shapes[name])
    known = {f.name for f in fields(MolecularGraph)}
    return MolecularGraph(
        numbers=arrays["z"],
        positions=arrays["pos"],
        n_occupied=int(data.n_occupied),
        **{
            name: array.reshape(int(data.nao), -1) if name in MATRICES else array
            for name, array in arrays.items()
            if name in known - {"n_occupied"}
        },
    )


def graphs_of(batch: Batch) -> list[MolecularGraph]:
    """The molecules of a batch of PyG's, for :func:`~pyscf_deqh.graph.batch.collate`."""
    return [from_data(data) for data in batch.to_data_list()]


class PyGHamiltonians(PyGDataset):
    """Labelled molecules as a dataset of PyG.

    They stay in the graph store, as safetensors in SQLite: nothing is pickled.

    Args:
        molecules: the dataset.
        transform: of each molecule (see :func:`to_data`) when it is read.
    """

    def __init__(
        self, molecules: HamiltonianDataset, transform: Callable[[Data], Data] | None = None
    ):
        super().__init__(transform=transform)
        self.molecules = molecules

    def len(self) -> int:
        return len(self.molecules)

    def get(self, idx: int) -> Data:
        return to_data(self.molecules[idx])
