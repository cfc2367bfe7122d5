"""PyG's own storage for the same molecules, to compare the graph store with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch_geometric.data import Data, OnDiskDataset

from ...data.pyg import MATRICES

_REALS = ("pos", *MATRICES, "target_energies")
# Given a schema, nothing is pickled.
_SCHEMA = {
    "z": {"dtype": torch.int32, "size": (-1,)},
    **{name: {"dtype": torch.float32, "size": (-1,)} for name in _REALS},
    "pos": {"dtype": torch.float32, "size": (-1, 3)},
    "n_occupied": int,
    "nao": int,
}


class OnDiskHamiltonians(OnDiskDataset):
    """Labelled molecules, as :func:`~pyscf_deqh.data.pyg.to_data` makes them, in single precision.

    Args:
        root: folder of the database.
    """

    def __init__(self, root: str | Path):
        super().__init__(str(root), schema=_SCHEMA, log=False)

    def serialize(self, data: Data) -> dict:
        return {
            name: getattr(data, name).float() if name in _REALS else getattr(data, name)
            for name in _SCHEMA
        }

    def deserialize(self, data: dict) -> Data:
        return Data(**data)
