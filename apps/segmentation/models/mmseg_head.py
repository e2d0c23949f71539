"""A decode head of mmsegmentation behind the interface of our heads.

Shape legend: B batch, C classes, h x w output map, H x W image.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apps.segmentation.losses import resize
from apps.segmentation.mmseg_bridge import build, open_mmseg, quiet
from apps.segmentation.models.decode import chosen_levels
from apps.segmentation.models.head import PixelHead, PixelOutput, Size, Targets
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.mmseg_config import MMSEG, MMSegHeadConfig
from datamodules.segmentation.info import IGNORED
from graftwork.errors import ConfigError, ShapeError
from graftwork.names import unknown

OPTIONS = "model.head.options"


class MMSegHead(PixelHead):
    """Levels through a head of mmsegmentation to logits, and its own losses.

    Class weights go into a cross entropy that, unlike mmsegmentation's, allows for ignored pixels; a ``loss_decode`` of
    the user's own has its own weights.

    Args:
        config: Which head, and arguments of its constructor.
        info: Sizes of backbone and data.

    Attributes:
        decode: The head, a ``BaseDecodeHead``; weights are named as in mmsegmentation below it.
        chosen: Levels that are read, counted from 0.

    Raises:
        MissingPackageError: mmsegmentation is not installed.
        ConfigError: A level that the backbone does not give, an option the head does not know, or a value it refuses.
    """

    def __init__(self, config: MMSegHeadConfig, info: HeadInfo) -> None:
        super().__init__(info)
        self.config = config
        wanted = config.in_levels or config.facts.levels or range(len(info.channels))
        self.chosen = chosen_levels("in_levels", wanted, len(info.channels))
        self.decode = _decode_head(config, info, self.chosen)
        self.refuses_ignored = any(_refuses_ignored(loss) for loss in _losses(self.decode))

    @property
    def reads(self) -> frozenset[int]:
        """Levels that are read."""
        return frozenset(self.chosen)

    def forward(self, levels: Sequence[Tensor], size: Size) -> PixelOutput:
        """Levels of a backbone, fine to coarse, [B, C_i, h_i, w_i], to logits [B, C, h, w].

        Further outputs of heads that have them (dual attention, context encoding) are kept for their loss.

        Raises:
            ShapeError: Other levels than the head was built for, and the message names both; or a batch of one image
                in training, where a batch norm has a single value to take statistics of.
        """
        self.check_levels(levels, MMSEG + self.config.kind)
        try:
            found = self.decode(list(levels))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ShapeError(
                f"{MMSEG}{self.config.kind} pools to one position, which batch norm cannot train on with one image",
                mend="Use batches of two or more, or options.norm_cfg={type: GN, num_groups: 32}",
            ) from error
        if isinstance(found, Tensor):
            return PixelOutput(found)
        first, *further = found
        return PixelOutput(first, tuple(further))

    def class_scores(self, output: PixelOutput, size: Size) -> Tensor:
        """Logits, bilinearly resized."""
        return resize(output.logits, size, self.decode.align_corners)

    def loss(self, output: PixelOutput, targets: Targets) -> dict[str, Tensor]:
        """The head's own losses at the resolution of the labels.

        Returns:
            ``loss``, the sum of all that it names losses, and these, ``loss_ce`` as ``ce``.

        Raises:
            ConfigError: There are ignored pixels, and mmsegmentation's cross entropy with class weights, which fails
                at them.
        """
        if self.refuses_ignored and bool((targets.labels == IGNORED).any()):
            raise ConfigError(
                "mmsegmentation's CrossEntropyLoss with class_weight cannot ignore pixels, and these labels have some",
                "model.head.options.loss_decode",
                "Use type: GraftworkCrossEntropy, or leave loss_decode out and set model.class_weights",
            )
        logits = (output.logits, *output.auxiliary) if output.auxiliary else output.logits
        found = self.decode.loss_by_feat(logits, labelled(targets.labels))
        counted = (targets.labels != IGNORED).any()  # a loss on which classes occur has no ignored pixels
        parts = {name.replace("loss_", ""): value * counted for name, value in found.items() if "loss" in name}
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def labelled(labels: Tensor) -> list[Any]:
    """Labels [B, H, W] as mmsegmentation has them: a ``SegDataSample`` for each image."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    return [SegDataSample(gt_sem_seg=PixelData(data=image.long()[None])) for image in labels]


def _decode_head(config: MMSegHeadConfig, info: HeadInfo, chosen: tuple[int, ...]) -> Any:
    """The head with its initial weights."""
    open_mmseg(MMSEG + config.kind)
    from apps.segmentation import mmseg_parts  # registers the cross entropy

    _check_names(config)
    arguments = {**config.arguments, **_inputs(config, info, chosen), "type": config.kind, "num_classes": info.classes}
    if info.weights:
        if "loss_decode" in config.options:
            raise ConfigError(
                "options.loss_decode and model.class_weights both say how classes are weighed",
                "model.head",
                "Set model.class_weights to none, or leave loss_decode out",
            )
        name = mmseg_parts.GraftworkCrossEntropy.__name__
        arguments["loss_decode"] = {"type": name, "class_weight": list(info.weights)}
    head = build("MODELS", arguments, OPTIONS)
    if not any("loss" in loss.loss_name for loss in _losses(head)):
        raise ConfigError("loss_decode has no loss_name with 'loss' in it, so nothing would be trained", OPTIONS)
    with quiet():
        head.init_weights()
    return head


def _inputs(config: MMSegHeadConfig, info: HeadInfo, chosen: tuple[int, ...]) -> dict[str, Any]:
    """Arguments that say what is read."""
    channels, several = [info.channels[level] for level in chosen], config.facts.several
    found: dict[str, Any] = {"in_channels": channels, "in_index": list(chosen)}
    if not several and len(chosen) == 1:
        found = {"in_channels": channels[0], "in_index": chosen[0]}
    elif not several:
        found["input_transform"] = "resize_concat"
    if config.kind == "FPNHead":
        found["feature_strides"] = [info.strides[level] for level in chosen]
    elif config.kind == "DepthwiseSeparableASPPHead":
        found["c1_in_channels"] = info.channels[0]
    return found


def _losses(head: Any) -> list[Any]:
    """The criteria of a head."""
    found = head.loss_decode
    return list(found) if isinstance(found, nn.ModuleList) else [found]


def _refuses_ignored(loss: Any) -> bool:
    """Whether a criterion looks up the weight of the label 255."""
    plain = not (getattr(loss, "use_sigmoid", False) or getattr(loss, "use_mask", False))
    return type(loss).__name__ == "CrossEntropyLoss" and plain and getattr(loss, "class_weight", None) is not None


def _check_names(config: MMSegHeadConfig) -> None:
    """Refuse options that no constructor of the head has."""
    from mmseg.registry import MODELS

    known: set[str] = set()
    for base in inspect.getmro(MODELS.get(config.kind)):
        if "__init__" in vars(base) and base.__module__.startswith("mmseg."):
            known |= set(inspect.signature(base.__init__).parameters)  # type: ignore[misc]
    for name in config.options:
        if name not in known:
            raise unknown(f"option of {MMSEG}{config.kind}", name, known - {"self", "arg", "args", "kwargs"}, OPTIONS)
