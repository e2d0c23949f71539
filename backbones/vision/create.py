"""Backbones and classifiers by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import Any

from backbones.lora import add_lora
from backbones.vision.base import VisionBackbone
from backbones.vision.classifier import Classifier
from backbones.vision.config import BACKBONES, BackboneConfig
from backbones.vision.freezing import freeze_stages
from backbones.vision.weights import load_pretrained, load_weights
from graftwork.errors import ConfigError, all_problems
from graftwork.names import unknown

_initial: ContextVar[bool] = ContextVar("graftwork_initial_weights", default=True)


@contextmanager
def without_initial_weights() -> Iterator[None]:
    """Inside, ``pretrained`` and ``weights`` of configurations are ignored: other weights replace them right after."""
    token = _initial.set(False)
    try:
        yield
    finally:
        _initial.reset(token)


def create_backbone(
    name: str,
    pretrained: bool = False,
    weights: str | Path | None = None,
    in_channels: int = 3,
    out_indices: Sequence[int] | None = None,
    drop_path: float = 0.0,
    checkpointing: bool = False,
    dense: bool = False,
    **options: Any,
) -> VisionBackbone:
    """Build a vision backbone by name.

    Args:
        name: A name of ``python -m backbones list``, ``timm:<model>``, or ``custom:package.module.Class``.
        pretrained: Download published ImageNet weights where timm has them.
        weights: A file with weights instead: official ones of the family, or ours.
        in_channels: Channels of the images; weights for 3 channels are fitted to other numbers.
        out_indices: Levels to return, 0 for the finest, negative ones from the end; all if omitted.
        drop_path: Stochastic-depth rate of the last block.
        checkpointing: Compute blocks again in the backward pass instead of keeping their activations.
        dense: Put layer norms on the returned maps of trunks that have layer norms inside, as published models for
            dense prediction do; ``output_norms`` as an option decides for all trunks.
        options: Further fields of the backbone's configuration, for instance ``output_norms=True``, ``freeze=2``,
            ``lora_rank=8`` or ``dilations="auto"``.

    Returns:
        A module from images [B, in_channels, H, W] (any size from 32 pixels) to a list of maps
        [B, C, ceil(H / stride), ceil(W / stride)], with ``.channels`` and ``.strides``.

    Raises:
        ConfigError: Unknown name or option (the nearest are given), or a value that does not fit.
        WeightsError: The weights cannot be read, fetched, or do not fit.
        MissingPackageError: The name needs timm, which is not installed.
    """
    common = {"pretrained": pretrained, "drop_path": drop_path, "checkpointing": checkpointing}
    config = _config(name, {**common, "weights": str(weights or ""), **options})
    backbone: VisionBackbone = config.build(in_channels=in_channels, out_indices=out_indices, dense=dense)
    return backbone


def create_classifier(
    name: str,
    classes: int = 1000,
    pretrained: bool = False,
    weights: str | Path | None = None,
    in_channels: int = 3,
    drop_path: float = 0.0,
    checkpointing: bool = False,
    **options: Any,
) -> Classifier:
    """Build a vision backbone with the classification head of its family.

    Args:
        name: As for :func:`create_backbone`, and so are the other arguments.
        classes: Number of classes; 0 gives pooled features. Where the weights hold a head of as many classes it is
            loaded too, else it stays as initialised.
        pretrained: See :func:`create_backbone`.
        weights: See :func:`create_backbone`.
        in_channels: See :func:`create_backbone`.
        drop_path: See :func:`create_backbone`.
        checkpointing: See :func:`create_backbone`.
        options: See :func:`create_backbone`.

    Returns:
        A module from images [B, in_channels, H, W] to logits [B, classes].

    Raises:
        ConfigError: See :func:`create_backbone`.
        WeightsError: See :func:`create_backbone`.
        MissingPackageError: See :func:`create_backbone`.
    """
    common = {"pretrained": pretrained, "drop_path": drop_path, "checkpointing": checkpointing}
    config = _config(name, {**common, "weights": str(weights or ""), **options})
    return assemble_classifier(config, classes, in_channels=in_channels)


def assemble(
    config: BackboneConfig, *, in_channels: int, out_indices: Sequence[int] | None, dense: bool = False
) -> VisionBackbone:
    """The backbone of a configuration: structure, weights, adapters, frozen stages.

    Args:
        config: Which.
        in_channels: Channels of the images.
        out_indices: Levels to return; all if omitted.
        dense: Whether it is for dense prediction, see ``output_norms`` of the configuration.
    """
    backbone = _structure(config, in_channels, out_indices)
    if dense and config.output_norms == "auto" and backbone.has_layer_norms:
        backbone.add_output_norms()
    if not backbone.channels:
        raise ConfigError(
            f"{config.variant} gives no maps of a regular stride, so it can only classify",
            mend="Take create_classifier, or a backbone with levels such as swin_tiny",
        )
    _load(backbone, config)
    _tune(backbone, config)
    return backbone


def assemble_classifier(config: BackboneConfig, classes: int, *, in_channels: int = 3) -> Classifier:
    """The classifier of a configuration; custom configurations give the backbone, this adds the head."""
    if not isinstance(config, BackboneConfig):
        return Classifier(config.build(in_channels=in_channels, out_indices=(-1,)), classes)
    classifier = Classifier(_structure(config, in_channels, (-1,)), classes)
    _load(classifier, config)
    _tune(classifier.backbone, config)
    return classifier


def _config(name: str, values: dict[str, Any]) -> Any:
    config_class = BACKBONES.get(name, "backbone")
    known = [field.name for field in fields(config_class)]
    common = {field.name: field.default for field in fields(BackboneConfig)}
    given = {key: value for key, value in values.items() if key in known or value != common.get(key, ...)}
    for key in given:
        if key not in known:
            raise unknown(f"option of backbone {name}", key, known)
    config = config_class(**given)
    problems = list(config.problems()) if hasattr(config, "problems") else []
    if problems:
        raise all_problems(problems)
    return config


def _structure(config: BackboneConfig, in_channels: int, out_indices: Sequence[int] | None) -> VisionBackbone:
    return config.structure(
        in_channels=in_channels,
        out_indices=out_indices,
        checkpointing=config.checkpointing,
        output_norms=config.output_norms is True,
    )


def _load(model: VisionBackbone | Classifier, config: BackboneConfig) -> None:
    if not _initial.get():
        return
    if config.weights:
        load_weights(model, config.weights, config.facts.family)
    elif config.pretrained:
        load_pretrained(model, config.variant)


def _tune(backbone: VisionBackbone, config: BackboneConfig) -> None:
    if config.lora_rank:
        add_lora(backbone, config.lora_rank, config.lora_alpha)
    freeze_stages(backbone, config.freeze)
