"""Neighborhood attention by the compiled kernels of natten: CUDA only, imported on the first call that could use them.

They know no bias, so that models with a table of biases, as all official ones are, run the tiled form instead.

Source: natten 0.21.7, ``natten.na2d``; layout [B, H, W, h, c] like ours. Its flex kernels are left out: they are for
other devices, and eager ones materialise all logits.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from backbones.attention.neighborhood import NeighborhoodRequest, literal_attention

HALF = (torch.float16, torch.bfloat16)
INSTALL = "not installed: pip install 'graftwork[natten]'"
KERNELS = ("blackwell-fna", "hopper-fna", "cutlass-fna")
"""Fastest first, as natten itself prefers them."""


@cache
def _import() -> tuple[Any, str]:
    """The library and why its kernels cannot be used, one of them empty."""
    if importlib.util.find_spec("natten") is None:
        return None, INSTALL
    try:
        natten = importlib.import_module("natten")
    except Exception as error:  # a wheel for another torch fails in many ways; each one is a reason
        return None, f"cannot be imported: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if not getattr(natten, "HAS_LIBNATTEN", False):
        return None, "installed without its compiled kernels; choose the wheel for this torch and CUDA at natten.org"
    return natten, ""


def why_not(request: Any) -> str | None:
    """Serves neighborhood attention without bias on CUDA."""
    if not isinstance(request, NeighborhoodRequest):
        return "serves neighborhood attention only"
    if request.device.type != "cuda":
        return f"needs a CUDA device, the tensors are on {request.device.type}"
    if request.bias:
        return "its kernels know no bias"
    if min(request.kernel) < 2:
        return f"no kernel for windows of one position, got {request.kernel[0]} x {request.kernel[1]}"
    if request.empty:
        return "nothing to compute"
    if problem := _import()[1]:
        return problem
    reasons = kernel_reasons(request)
    return None if None in reasons.values() else "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def kernel_reasons(request: NeighborhoodRequest) -> dict[str, str | None]:
    """Why each of the kernels cannot serve a call on a GPU; None for those that can."""
    major, minor = torch.cuda.get_device_capability(request.device)
    return {name: _reason(name, request, 10 * major + minor) for name in KERNELS}


def _reason(name: str, request: NeighborhoodRequest, capability: int) -> str | None:
    wanted = {"blackwell-fna": (100, 103), "hopper-fna": (90,)}.get(name)
    if capability < 60 or (wanted is not None and capability not in wanted):
        needed = "6.0 or above" if wanted is None else " or ".join(f"{number / 10:.1f}" for number in wanted)
        return f"needs compute capability {needed}, this GPU has {capability / 10:.1f}"
    if request.dtype not in (HALF if wanted is not None else (torch.float32, *HALF)):
        return f"no kernel for {request.dtype}"
    widths = (request.width, request.value_width)
    if wanted is None:
        aligned = not (widths[0] % 8 or widths[1] % 8)
        return None if aligned else f"needs heads of a multiple of 8 channels, got {widths[0]} and {widths[1]}"
    if widths[0] != widths[1]:
        return f"needs values as wide as keys, got {widths[1]} and {widths[0]}"
    if name == "blackwell-fna":
        known = widths[0] <= 128 and widths[0] % 8 == 0
    else:
        known = widths[0] in (32, 64, 128) or (widths[0] == 256 and not request.needs_grad)
    if not known:
        return f"no kernel for heads of {widths[0]} channels"
    if request.needs_grad and torch.are_deterministic_algorithms_enabled():
        return "its backward pass is not deterministic, which torch.use_deterministic_algorithms asks for"
    return None


def run(
    queries: Tensor, keys: Tensor, values: Tensor, *, kernel: tuple[int, int], dilation: tuple[int, int], scale: float
) -> Tensor:
    """Serve a call, see :func:`backbones.attention.neighborhood.neighborhood_attention`; sides fit the windows."""
    request = NeighborhoodRequest(
        device=queries.device,
        dtype=queries.dtype,
        width=queries.shape[4],
        value_width=values.shape[4],
        kernel=kernel,
        needs_grad=any(tensor.requires_grad for tensor in (queries, keys, values)),
    )
    chosen = next(name for name, reason in kernel_reasons(request).items() if reason is None)
    if scale == 0:  # which the library takes for none given
        queries, scale = queries * 0, 1.0
    mixed: Tensor = _import()[0].na2d(
        queries.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        kernel_size=kernel,
        dilation=dilation,
        scale=scale,
        backend=chosen,
    )
    return mixed


def probe(name: str, device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients on a small map, by the library and by the formula."""
    steps = torch.linspace(-1, 1, 8 * 8 * 2 * 32, dtype=torch.float32).reshape(1, 8, 8, 2, 32).to(device, dtype)
    geometry: dict[str, Any] = {"kernel": (3, 3), "dilation": (2, 1), "scale": 0.25}
    results = []
    for operator in (run, _formula):
        inputs = [(steps * factor).requires_grad_() for factor in (1.0, -0.5, 2.0)]
        output = operator(*inputs, **geometry)
        results.append([output, *torch.autograd.grad(output.sum(), inputs)])
    found, expected = ([tensor.detach().float() for tensor in tensors] for tensors in results)
    return found, expected


def _formula(queries: Tensor, keys: Tensor, values: Tensor, **geometry: Any) -> Tensor:
    return literal_attention(queries, keys, values, None, **geometry)
