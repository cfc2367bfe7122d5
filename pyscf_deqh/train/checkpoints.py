"""Checkpoints of a run on disk."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ..errors import CheckpointError
from ..files import replacing, writing

# What PyTorch raises for a file that is no checkpoint, or a damaged one, and its content for the
# damage that it does not notice.
UNREADABLE = (
    OSError, EOFError, RuntimeError, pickle.UnpicklingError, struct.error, TypeError, ValueError,
    LookupError, AttributeError,
)  # fmt: skip


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that replace the last one as a whole or not at all.

    Lightning writes to the folder of temporary files and moves the file from there, which between
    two disks is a copy: a kill or a full disk in the midst of it takes the last checkpoint along.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Raises OutputError: it cannot be written."""
        path = Path(path)
        content = io.BytesIO()  # PyTorch's own writer does not say why a disk refuses
        torch.save(checkpoint, content)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(content.getbuffer())

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Raises CheckpointError: it is damaged."""
        try:
            loaded: dict[str, Any] = super().load_checkpoint(path, *args, **options)
        except UNREADABLE as error:
            raise CheckpointError(
                f"cannot go on from {path}: {error}. Delete it, and go on from another checkpoint "
                "of the run, if there is one, with --init"
            ) from error
        return loaded
