"""How Lightning writes and reads checkpoints here: whole or not at all, and never running code from one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from apps.core.checkpoints.read import read_checkpoint
from apps.core.run.atomic import replace_file
from graftwork.errors import WeightsError


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoints that a crash, a kill or a full disk cannot damage.

    A checkpoint is serialised in memory, written beside the old one, flushed to the disk and renamed over it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: It cannot be written, for instance because the disk is full; an older one is intact.
        """
        replace_file(Path(path), serialised(checkpoint))

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint on the CPU; ``weights_only`` is always on, whatever is asked for."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint file."""
        Path(path).unlink(missing_ok=True)


def serialised(checkpoint: dict[str, Any]) -> memoryview:
    """Bytes of a checkpoint.

    Raises:
        WeightsError: It holds something else than tensors and plain values, and could not be read back safely.
    """
    stream = io.BytesIO()  # torch's own file writer ends the process where the disk is full; bytes in memory cannot
    torch.save(checkpoint, stream)
    wrong = _not_plain(checkpoint)
    if wrong is not None:
        raise WeightsError(f"a checkpoint cannot hold {wrong}; only tensors and plain values can be read back safely")
    return stream.getbuffer()


_PLAIN: tuple[type, ...] = (str, bytes, int, float, bool, complex, type(None))
_ALLOWED: tuple[type, ...] = (torch.Tensor, torch.Size, torch.dtype, torch.device)


def _not_plain(value: Any, place: str = "") -> str | None:
    """Name and place of the first part that is neither tensor nor plain, or None."""
    if type(value) in _PLAIN or isinstance(value, _ALLOWED):
        return None
    if isinstance(value, dict):
        parts = ((f"{place}.{key}" if place else str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple | set):
        parts = ((f"{place}[{number}]", part) for number, part in enumerate(value))
    else:
        return f"{place}, a {type(value).__module__}.{type(value).__qualname__}"
    return next((wrong for name, part in parts if (wrong := _not_plain(part, name)) is not None), None)
