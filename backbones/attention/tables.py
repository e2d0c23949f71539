"""Tables of indices that depend on sizes only: built once, kept, and safe to keep."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from typing import TypeVar

import torch

from backbones.attention.dispatch import eager

T = TypeVar("T")


def table(maxsize: int = 256) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorator for functions that build tensors from hashable arguments, the device among them.

    Results are shared, so nobody may change them, and their functions must not draw random numbers. Nothing is kept
    while a graph is traced: it would hold the tracer's tensors, which are no numbers. What is kept is made outside of
    inference mode, whose tensors no later training could use.

    Args:
        maxsize: Results to keep, the least recently used goes first.
    """

    def decorate(build: Callable[..., T]) -> Callable[..., T]:
        kept = lru_cache(maxsize)(build)

        @wraps(build)
        def look_up(*args: Hashable) -> T:
            if not eager():
                return build(*args)
            with torch.inference_mode(False):
                return kept(*args)

        return look_up

    return decorate
