"""What the restoration networks cost: fast against literal forms, with the difference between their images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from apps.core.inference.conditions import PLAIN, Conditions
from apps.superres.literal import literal, literal_attention
from apps.superres.models.config import MODELS
from apps.superres.models.hat_config import HATSmallConfig
from apps.superres.models.info import ImageInfo
from apps.superres.models.maxim import MAXIM
from apps.superres.models.network import inference_form
from apps.superres.models.trunk import TrunkRestorer
from backbones.comparison import Part, compare_forms
from backbones.timing import measure, peak_memory, ratio
from backbones.vision.measure import multiplications

SLOW_S = 4.0
"""A call that takes longer than this is measured once more, without a rival."""


class Cost(NamedTuple):
    """A network at one size of images.

    Attributes:
        model: Its name.
        size: ``height x width`` of the input.
        parameters: All of them.
        gmacs: Multiply-adds of matrix products, convolutions and attention.
        fast_ms: Median of the form for inference.
        fast_mib: Peak memory of the same.
        rival: What it is compared with.
        rival_ms: Median of that.
        rival_mib: Peak memory of that.
        ratio: rival / fast, the median over paired runs.
        ratio_min: Smallest.
        ratio_max: Largest.
        difference: Largest difference between the results of both.
    """

    model: str
    size: str
    parameters: int
    gmacs: float
    fast_ms: float
    fast_mib: float
    rival: str = ""
    rival_ms: float = math.nan
    rival_mib: float = math.nan
    ratio: float = math.nan
    ratio_min: float = math.nan
    ratio_max: float = math.nan
    difference: float = math.nan


class Network(NamedTuple):
    """Forms of one network on the same images."""

    name: str
    size: str
    model: nn.Module
    images: Tensor
    forms: dict[str, Callable[[], Tensor]]


def network(name: str, height: int, width: int, scale: int, conditions: Conditions = PLAIN) -> Network:
    """A network as it is used, as it is trained, and as its paper has it.

    Args:
        name: Of ``MODELS``.
        height: Of the input, in pixels.
        width: Of the input.
        scale: Output pixels per input pixel and side; 1 for networks that only restore.
        conditions: Device, type of numbers, and whether to compile the network as it is used.
    """
    torch.manual_seed(0)
    config = MODELS.get(name)()
    info = ImageInfo(scale=scale, channels=3)
    if next(config.info_problems(info), None):
        info = ImageInfo(scale=1, channels=3)
    model: nn.Module = config.build(info).to(conditions.device).eval()
    inference = inference_form(model)
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)).to(conditions.device)

    used: Any = torch.compile(inference) if conditions.compiled else inference
    forms = {"inference": _call(used, images)}
    if not isinstance(model, TrunkRestorer | MAXIM):  # their literal attention spans whole maps, or there is none
        forms["literal"] = _call(literal(model), images, literal_attention)
    if inference is not model:
        forms["training form"] = _call(model, images)
    forms = {form: conditions.within(call) for form, call in forms.items()}
    if conditions.compiled:
        forms["inference"]()  # the first call compiles, which is no part of what a call costs
    return Network(name, f"{height} x {width}", model, images, forms)


def _call(model: nn.Module, images: Tensor, context: Callable[[], Any] = nullcontext) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode(), context():
            result: Tensor = model(images)
            return result

    return run


def costs(found: Network, repeats: int) -> Iterator[Cost]:
    """A row for every other form beside the one for inference, or one row without a rival."""
    parameters = sum(parameter.numel() for parameter in found.model.parameters())
    gmacs = multiplications(found.model, found.images) / 1e9
    forms = dict(found.forms)
    first = measure({"inference": forms["inference"]}, repeats=1, warmup=0)["inference"].p50
    if first > SLOW_S:
        forms = {"inference": forms["inference"]}
    timings = measure(forms, repeats=repeats if first < SLOW_S else 1, warmup=int(first < SLOW_S))
    memory = {name: peak_memory(form, found.images.device) / 2**20 for name, form in forms.items()}
    wanted, fast = forms["inference"](), timings["inference"]
    facts = (found.name, found.size, parameters, gmacs, fast.p50 * 1e3, memory["inference"])
    rivals = [name for name in forms if name != "inference"]
    if not rivals:
        yield Cost(*facts)
    for rival in rivals:
        paired = ratio(timings[rival], fast)
        difference = float((forms[rival]() - wanted).abs().max())
        yield Cost(*facts, rival, timings[rival].p50 * 1e3, memory[rival], *paired, difference)


def parts(repeats: int, conditions: Conditions = PLAIN) -> list[Part]:
    """The parts that decide: window attention of HAT-S, and dynamic convolution of DLGSANet."""
    found = (*_windows(conditions.device), *_dynamic(conditions.device))
    return [_part(name, run, repeats, conditions) for name, run in found]


def _part(name: str, run: Callable[[str], Tensor], repeats: int, conditions: Conditions) -> Part:
    fast, literal_form = (conditions.within(_without_gradient(run, form)) for form in ("fast", "literal"))
    return compare_forms(name, fast, literal_form, repeats, of=lambda result: result)


def _without_gradient(run: Callable[[str], Tensor], form: str) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return run(form)

    return call


def _windows(device: str) -> Iterator[tuple[str, Callable[[str], Tensor]]]:
    from apps.superres.models.hat_attention import OverlappingAttention, WindowAttention

    config = HATSmallConfig()
    torch.manual_seed(0)
    layers = {
        "hat_s window attention": WindowAttention(config, 6, 0),
        "hat_s window attention, shifted": WindowAttention(config, 6, 8),
        "hat_s overlapping attention": OverlappingAttention(config, 6),
    }
    maps = torch.randn(1, 64, 64, config.width, generator=torch.Generator().manual_seed(1)).to(device)
    for name, layer in layers.items():
        yield f"{name}, 64 x 64", _forced(layer.to(device).eval(), maps)


def _forced(layer: nn.Module, maps: Tensor) -> Callable[[str], Tensor]:
    def run(form: str) -> Tensor:
        with literal_attention() if form == "literal" else nullcontext():
            result: Tensor = layer(maps)
            return result

    return run


def _dynamic(device: str) -> Iterator[tuple[str, Callable[[str], Tensor]]]:
    from apps.superres.models.dlgsanet_attention import DynamicConvolution

    torch.manual_seed(0)
    layer = DynamicConvolution(48, kernel=7, group_width=6, squeeze=4).to(device).eval()
    generator = torch.Generator().manual_seed(1)
    for height, width in ((64, 64), (180, 320)):
        maps = torch.randn(1, 48, height, width, generator=generator).to(device)
        yield f"dlgsanet_light dynamic convolution, {height} x {width}", _forced(layer, maps)


def chosen(names: Sequence[str]) -> list[str]:
    """These networks, or all of them.

    Raises:
        ConfigError: There is no such network.
    """
    for name in names:
        MODELS.get(name)
    return list(names) or list(MODELS.names())
