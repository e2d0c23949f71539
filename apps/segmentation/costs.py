"""What segmentation models cost: heads on backbones, and fast against literal forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from apps.core.inference.conditions import PLAIN, Conditions
from apps.segmentation.models.config import HEADS, SegmenterConfig
from apps.segmentation.models.head import SegmentationHead, Targets
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.kmax_clusters import update_benchmark
from apps.segmentation.models.segmenter import Segmenter, build_segmenter
from backbones.attention import dispatch
from backbones.comparison import Part, compare_forms
from backbones.timing import measure, peak_memory
from backbones.vision.config import BACKBONES
from backbones.vision.measure import multiplications
from datamodules.segmentation.info import SegmentationInfo

CLASSES = 150
DATA = SegmentationInfo(
    classes=tuple(map(str, range(CLASSES))), palette=((0, 0, 0),) * CLASSES, things=(1, 2), panoptic=True
)
WIDTHS = (96, 192, 384, 768)
"""Channels of Swin-T, whose levels the heads are measured on."""


class Cost(NamedTuple):
    """A backbone with a head.

    Attributes:
        backbone: Name.
        head: Name.
        parameters: Of both.
        gmacs: Multiply-adds of both.
        latency_ms: Median of a prediction, classes at the image's size included.
        fastest_ms: Fastest.
        slowest_ms: Slowest.
        memory_mib: Peak memory of a prediction.
    """

    backbone: str
    head: str
    parameters: int
    gmacs: float
    latency_ms: float
    fastest_ms: float
    slowest_ms: float
    memory_mib: float


def cost(backbone: str, head: str, height: int, width: int, repeats: int, conditions: Conditions = PLAIN) -> Cost:
    """Measure a prediction of one image."""
    torch.manual_seed(0)
    config = SegmenterConfig(backbone=BACKBONES.get(backbone)(), head=HEADS.get(head)())
    model = build_segmenter(config, DATA).to(conditions.device).eval().requires_grad_(False)
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1)).to(conditions.device)
    gmacs = multiplications(_Scores(model), images) / 1e9
    if conditions.compiled:
        model.compile()
    call = conditions.within(_inference(lambda: model.class_scores(images)))
    timing = measure({"fast": call}, repeats=repeats)["fast"]
    return Cost(
        backbone,
        head,
        sum(parameter.numel() for parameter in model.parameters()),
        gmacs,
        timing.p50 * 1e3,
        timing.min * 1e3,
        timing.max * 1e3,
        peak_memory(call, conditions.device) / 2**20,
    )


class _Scores(nn.Module):
    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.class_scores(images)


def parts(repeats: int, side: int = 256, conditions: Conditions = PLAIN) -> Iterator[Part]:
    """Fast against literal: the update of clusters, and the heads on levels of Swin-T.

    Args:
        repeats: Measured calls of each form.
        side: Height and width of the image that the levels are of, in pixels.
        conditions: Device and type of numbers.
    """
    device = conditions.device

    def compared(name: str, fast: Callable[[], Any], literal: Callable[[], Any], repeats: int = repeats) -> Part:
        return compare_forms(name, conditions.within(fast), conditions.within(literal), repeats, of=_first)

    pair = update_benchmark(device=device)
    yield compared("kmax update, 128 clusters, 160 x 160", pair.fast, pair.literal)
    generator = torch.Generator().manual_seed(0)
    sides = [-(-side // stride) for stride in (4, 8, 16, 32)]
    levels = [torch.randn(1, c, n, n, generator=generator).to(device) for c, n in zip(WIDTHS, sides, strict=True)]
    info = HeadInfo(channels=WIDTHS, strides=(4, 8, 16, 32), classes=CLASSES, things=(1, 2))
    for name in ("segformer", "upernet", "mask2former", "kmax"):
        torch.manual_seed(0)
        head: SegmentationHead = HEADS.get(name)().build(info).to(device).eval()
        _open_branches(head)
        fast, literal = _forms(head, levels, side)
        yield compared(f"{name} head, {side} x {side}", _inference(fast), _inference(literal))
        if name in ("mask2former", "segformer"):
            head.train()
            steps = _training(head, fast, side), _training(head, literal, side)
            yield compared(f"{name} head, {side} x {side}, training step", *steps, max(1, repeats // 3))


def _open_branches(head: nn.Module) -> None:
    """Let branches that begin at zero count, as they do after training."""
    for module in head.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.any():
            nn.init.constant_(module.weight, 0.1)


def _forms(head: SegmentationHead, levels: list[Tensor], side: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    def fast() -> Any:
        return head(levels, (side, side))

    def literal() -> Any:
        vars(head)["literal"] = True  # heads of pixels look at it, the others at what attention is forced to
        try:
            with dispatch.force("math"):
                return head(levels, (side, side))
        finally:
            del vars(head)["literal"]

    return fast, literal


def _training(head: SegmentationHead, form: Callable[[], Any], side: int) -> Callable[[], Tensor]:
    from apps.segmentation.targets import class_segments

    rows = torch.arange(side) * 8 // side
    labels = rows[None, :, None].expand(1, -1, side).contiguous().to(next(head.parameters()).device)
    targets = Targets(labels, [class_segments(labels[0])])

    def step() -> Tensor:
        torch.manual_seed(0)
        loss = head.loss(form(), targets)["loss"]
        loss.backward()
        head.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _inference(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return call()

    return run


def _first(result: Any) -> Tensor:
    """The tensor that forms are compared by: logits of classes."""
    if isinstance(result, Tensor):
        return result
    found: Tensor = result.logits if hasattr(result, "logits") else result.classes
    return found
