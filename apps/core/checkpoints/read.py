"""Weights and checkpoints, read without ever running code from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.errors import WeightsError

ENTRY = "graftwork"
"""Key of a checkpoint under which we keep what Lightning does not know."""

OFFICIAL, FROM_ZOO = "official:", "zoo:"

# sections and keys that belong to the machine or the folder of a run, not to its weights
_ELSEWHERE = ("run", "log")
MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "compile", "threads")


@dataclass(frozen=True)
class WeightsMeta:
    """What is known about weights.

    Args:
        path: The file.
        official: Whether they follow the names of the paper's own code; a key map translates them then.
        task: Task of the run that wrote them; empty for a file of other origin.
        config: Raw configuration of that run.
        info: Facts about its data, as the app's module takes them.
        metrics: Last validation metrics.
        step: Optimiser steps taken.
        epochs: Whole epochs done.
    """

    path: Path
    official: bool = False
    task: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    epochs: int = 0


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint as Lightning wrote it, on the CPU.

    Raises:
        WeightsError: The file is missing, damaged, holds Python objects (which are never loaded), or is no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds
        from checkpoints.reading import read_weights

        read_weights(path)  # raises with the sentence that fits: missing, damaged, or code refused
        raise WeightsError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise WeightsError(
            "is no checkpoint of a run", where=str(path), mend="Give last.ckpt or best.ckpt of a run folder"
        )
    return content


def weights_path(spec: str | Path) -> Path:
    """The file that ``PATH``, a run folder, ``official:PATH`` or ``zoo:NAME`` means.

    Raises:
        WeightsError: There is no such file.
    """
    text = str(spec)
    if text.startswith(FROM_ZOO):
        from checkpoints.zoo import local_file

        return local_file(text.removeprefix(FROM_ZOO))
    path = Path(text.removeprefix(OFFICIAL)).expanduser()
    return _in_folder(path) if path.is_dir() else path


def _in_folder(path: Path) -> Path:
    """Best, else last checkpoint of a run folder or of its checkpoint folder."""
    for folder in (path / "checkpoints", path):
        for name in ("best.ckpt", "last.ckpt"):
            if (folder / name).is_file():
                return folder / name
    raise WeightsError("holds no checkpoint", where=str(path), mend="Give a run folder of fit, or a weights file")


def resolve_weights(spec: str | Path, task: str = "") -> tuple[dict[str, Tensor], WeightsMeta]:
    """Tensors by name, and what is known about them.

    Args:
        spec: ``PATH`` of a checkpoint, a safetensors file or a plain state dict; a run folder; ``official:PATH``;
            ``zoo:NAME``.
        task: The task that asks; empty takes weights of any task.

    Raises:
        WeightsError: The file is missing, damaged, unsafe, or of another task.
    """
    path = weights_path(spec)
    from checkpoints.reading import read_weights

    if str(spec).startswith(OFFICIAL):
        return read_weights(path), WeightsMeta(path, official=True)
    if path.suffix == ".safetensors":
        from checkpoints.safe import read_safe

        state, story = read_safe(path)
        return state, _meta(path, story, task)
    entry = _entry(path)
    if entry:  # a checkpoint of ours: taken as it is, also where the model has no weights at all
        return read_checkpoint(path)["state_dict"], _meta(path, entry, task)
    return read_weights(path), _meta(path, entry, task)


def _entry(path: Path) -> Mapping[str, Any]:
    """Our entry of a PyTorch file; empty in a file of other origin, and in one that ``read_weights`` will refuse."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # missing, damaged, unsafe, or of the old format, which cannot be mapped; ours never are
        return {}
    entry = content.get(ENTRY, {}) if isinstance(content, dict) else {}
    return entry if isinstance(entry, Mapping) else {}


def _meta(path: Path, story: Mapping[str, Any], task: str) -> WeightsMeta:
    found = str(story.get("task", ""))
    if task and found and found != task:
        raise WeightsError(
            f"holds weights of '{found}', not of '{task}'", where=str(path), mend=f"Use python -m apps.{found}"
        )
    return WeightsMeta(
        path,
        task=found,
        config=story.get("config") or {},
        info=story.get("info"),
        metrics=story.get("metrics") or {},
        step=int(story.get("step", 0)),
        epochs=int((story.get("place") or {}).get("epoch", 0)),
    )


def stored_meta(spec: str | Path, task: str = "") -> WeightsMeta:
    """What is known about weights, without their tensors; see :func:`resolve_weights`."""
    path = weights_path(spec)
    if str(spec).startswith(OFFICIAL):
        return WeightsMeta(path, official=True)
    if path.suffix == ".safetensors":
        from checkpoints.safe import read_story

        return _meta(path, read_story(path), task)
    entry = _entry(path)
    if not entry:
        from checkpoints.reading import read_weights

        read_weights(path)  # says what is wrong with a file that is missing, damaged or unsafe
    return _meta(path, entry, task)


def stored_config(spec: str | Path, task: str = "") -> dict[str, Any] | None:
    """Raw configuration kept in weights, without what belongs to the run's folder or machine; None if there is none.

    Args:
        spec: See :func:`resolve_weights`.
        task: The task that asks; weights of another one are refused.

    Raises:
        WeightsError: The file is missing, damaged, unsafe, or of another task.
    """
    config = {key: value for key, value in stored_meta(spec, task).config.items() if key not in _ELSEWHERE}
    if isinstance(config.get("trainer"), Mapping):
        config["trainer"] = {key: value for key, value in config["trainer"].items() if key not in MACHINE}
    return config or None
