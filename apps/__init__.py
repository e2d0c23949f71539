"""Applied tasks on the shared trunk; ``python -m apps`` lists them, ``apps.load`` opens trained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.core.inference.load import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # on demand: listing the apps must not import torch
        from apps.core.inference.load import load

        return load
    raise AttributeError(f"module 'apps' has no attribute '{name}'")
