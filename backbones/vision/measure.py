"""What a vision backbone costs: parameters and products without running it, time and memory by running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbones import attention
from backbones.timing import Timing, measure, peak_memory, ratio
from backbones.vision.base import VisionBackbone
from backbones.vision.create import create_backbone, create_classifier
from graftwork.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a benchmark runs.

    Args:
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        batch: Images per call.
        dtype: Key of :data:`DTYPES`; half types run under autocast.
        device: Torch device.
        repeats: Measured calls of each form.
        train: Also measure forward and backward.
        compiled: Compile the model first.
        against: ``math`` for the literal operators, ``timm`` for the bare model of timm, or empty for no rival.
    """

    height: int = 224
    width: int = 224
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    repeats: int = 10
    train: bool = False
    compiled: bool = False
    against: str = ""

    def images(self, channels: int = 3) -> Tensor:
        """Random images."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, channels, self.height, self.width, generator=generator).to(self.device)

    def precision(self) -> Any:
        """The context that a call runs in."""
        return nullcontext() if self.dtype == "float32" else torch.autocast(self.device, DTYPES[self.dtype])


def parameters(name: str, classes: int = 1000) -> int:
    """Parameters of the classifier, counted without memory for them."""
    with torch.device("meta"):
        model = create_classifier(name, classes)
    return sum(parameter.numel() for parameter in model.parameters())


def multiplications(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of matrix products, convolutions and attention kernels in one forward pass.

    Half of what torch's counter calls FLOPs; the papers print this number as "FLOPs". Fast forms of windowed operators
    multiply some masked pairs too, and these are counted.
    """
    # torch's counter does not know the CPU's fused attention: the products inside are counted one by one
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(images)
    return int(counter.get_total_flops()) // 2


def structure(name: str, height: int, width: int) -> dict[str, Any]:
    """Sizes of a backbone on images of a size, without running it.

    Returns:
        ``parameters`` of the bare backbone, ``channels``, ``strides``, ``maps`` (height and width of every level).
    """
    with torch.device("meta"):
        backbone = create_backbone(name).eval()
        maps = backbone(torch.empty(1, backbone.in_channels, height, width))
    return {
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "channels": list(backbone.channels),
        "strides": list(backbone.strides),
        "maps": [list(level.shape[2:]) for level in maps],
    }


def count(name: str, height: int, width: int) -> int:
    """Multiply-accumulates of a backbone on one image; runs it once on the CPU, as forms differ between devices."""
    backbone = create_backbone(name).eval()
    return multiplications(backbone, torch.zeros(1, backbone.in_channels, height, width))


def benchmark(name: str, setting: Setting) -> dict[str, Any]:
    """Measure one backbone.

    Returns:
        One row: ``latency_ms`` with ``fastest_ms`` and ``slowest_ms``, ``images_per_s``, ``memory_mib`` (peak of live
        tensors in a forward pass beside weights), ``gmacs``, ``attention`` (operators and what served them); with
        ``train`` also ``train_ms`` and ``train_memory_mib``; with a rival ``ratio`` (rival / ours) and its range.

    Raises:
        ConfigError: There is no such rival of this backbone.
    """
    torch.manual_seed(0)
    backbone = create_backbone(name).to(setting.device).eval()
    images = setting.images(backbone.in_channels)
    attention.reset_used()
    gmacs = multiplications(backbone, images) / 1e9
    served = _served()
    if setting.compiled:
        backbone.compile()
    rival = _rival(name, backbone, setting)
    row: dict[str, Any] = {"name": name, "parameters": sum(p.numel() for p in backbone.parameters()), "gmacs": gmacs}
    row |= _timed(_forward(backbone, images, setting), _forward(rival, images, setting) if rival else None, setting, "")
    row["images_per_s"] = setting.batch / row["latency_ms"] * 1e3
    row["memory_mib"] = peak_memory(_forward(backbone, images, setting), setting.device) / 2**20
    if setting.train:
        ours = _step(backbone, images, setting)
        row |= _timed(ours, _step(rival, images, setting) if rival else None, setting, "train_")
        row["train_memory_mib"] = peak_memory(ours, setting.device) / 2**20
    return {**row, "attention": served}


def _timed(ours: Callable[[], Any], rival: Callable[[], Any] | None, setting: Setting, prefix: str) -> dict[str, float]:
    calls = {"ours": ours, **({"rival": rival} if rival else {})}
    timings = measure(calls, repeats=setting.repeats, warmup=2)
    found = _milliseconds(timings["ours"], prefix)
    if rival:
        paired = ratio(timings["rival"], timings["ours"])
        found |= {f"{prefix}ratio": paired.median, f"{prefix}ratio_min": paired.min, f"{prefix}ratio_max": paired.max}
    return found


def _milliseconds(timing: Timing, prefix: str) -> dict[str, float]:
    names = {"latency_ms": timing.p50, "fastest_ms": timing.min, "slowest_ms": timing.max}
    return {prefix + name: seconds * 1e3 for name, seconds in names.items()}


def _forward(model: nn.Module, images: Tensor, setting: Setting) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode(), setting.precision():
            return model(images)

    return call


def _step(model: nn.Module, images: Tensor, setting: Setting) -> Callable[[], Any]:
    """Forward and backward in training mode; gradients are thrown away."""
    inputs = images.clone().requires_grad_()

    def call() -> Any:
        model.train()
        with setting.precision():
            loss = torch.stack([level.float().square().mean() for level in model(inputs)]).sum()
        loss.backward()
        model.zero_grad(set_to_none=True)
        model.eval()
        inputs.grad = None

    return call


class _Literal(nn.Module):
    """A model whose operators are the literal ones."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Any:
        with attention.force("math"):
            return self.module(images)


def _rival(name: str, backbone: VisionBackbone, setting: Setting) -> nn.Module | None:
    if not setting.against:
        return None
    if setting.against == "math":
        return _Literal(backbone)
    bare = getattr(backbone, "bare_model", None)
    if setting.against == "timm" and bare is not None:
        rival: nn.Module = bare(setting.height, setting.width).to(setting.device).eval()
        return rival
    raise ConfigError(
        f"{name} has no rival '{setting.against}'", mend="math suits our own backbones, timm those of timm"
    )


def _served() -> dict[str, str]:
    return {
        operator: "/".join(sorted({c["backend"] for c in choices})) for operator, choices in attention.used().items()
    }


def ceilings(setting: Setting, side: int = 0) -> dict[str, float]:
    """What the device can do at most, measured: ``tflops`` of a large matrix product, ``gb_per_s`` of a copy."""
    side = side or (8192 if setting.device.startswith("cuda") else 1024)
    dtype = DTYPES[setting.dtype]
    left = torch.randn(side, side, device=setting.device, dtype=dtype)
    block = torch.empty(2**28 if setting.device.startswith("cuda") else 2**26, device=setting.device, dtype=torch.uint8)
    timings = measure({"product": lambda: left @ left, "copy": block.clone}, repeats=setting.repeats, warmup=3)
    return {
        "tflops": 2 * side**3 / timings["product"].min / 1e12,
        "gb_per_s": 2 * block.numel() / timings["copy"].min / 1e9,
    }


def chosen(names: Sequence[str]) -> list[str]:
    """The names given, or one small variant of each family."""
    return list(names) or list(SMALL)


SMALL = (
    "swin_tiny",
    "maxvit_tiny",
    "tiny_vit_5m",
    "shvit_s1",
    "davit_tiny",
    "nat_mini",
    "dinat_mini",
    "dinat_s_tiny",
    "biformer_tiny",
    "biformer_stl",
    "vig_tiny",
    "vig_h_tiny",
)
"""A small variant of every family."""
