"""Weights with their story: safetensors files whose header holds task, configuration, data facts and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from checkpoints.reading import read_weights
from graftwork.errors import WeightsError

HEADER = "graftwork"


def read_safe(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and story of a file; the story is empty in a file of other origin.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    return read_weights(path), read_story(path)


def read_story(path: Path) -> dict[str, Any]:
    """Story of a file: ``task``, ``config``, ``info``, ``metrics``, ``version``; empty in a file of other origin."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        story = json.loads(header.get(HEADER, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"is no complete safetensors file ({error})", where=str(path)) from error
    return story if isinstance(story, dict) else {}


def safe_bytes(state: Mapping[str, Tensor], story: Mapping[str, Any]) -> bytes:
    """A safetensors file of these tensors and this story (plain values only)."""
    # shared and strided tensors are no concern of a reader: each is written on its own
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    return save(tensors, metadata={HEADER: json.dumps(story, ensure_ascii=False)})
