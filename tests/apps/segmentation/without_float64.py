"""Tensors as on a device that knows no float64, as GPUs of Apple are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Elsewhere(Tensor):
    """A tensor that refuses to be float64 until ``cpu()`` brings it to where there is."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.cpu:
                return result.as_subclass(Tensor)
            for leaf in tree_leaves(result):
                if isinstance(leaf, Elsewhere) and leaf.dtype == torch.float64:
                    raise TypeError("Cannot convert a tensor to float64 as this device does not support it")
        return result


def moved(tensor: Tensor) -> Tensor:
    """The tensor there."""
    if tensor.dtype == torch.float64:
        raise TypeError("Cannot move a float64 tensor to a device that does not support it")
    return tensor.as_subclass(Elsewhere)
