"""Freezing the first stages of a backbone."""

from __future__ import annotations

from backbones.vision.base import VisionBackbone
from graftwork.errors import ConfigError


def freeze_stages(backbone: VisionBackbone, stages: int) -> None:
    """Stop the training of the first stages: no gradients, and norms in evaluation mode whatever ``train()`` says.

    Args:
        backbone: The backbone.
        stages: 1 is the stem alone, 2 the stem and the first stage, and so on; -1 is everything, 0 is nothing.

    Raises:
        ConfigError: The backbone has fewer stages.
    """
    if stages == 0:
        return
    numbers = {backbone.stage_of(name) for name, _ in backbone.named_parameters()}
    known = max(numbers) + 1
    if stages > known or stages < -1:
        raise ConfigError(
            f"freeze={stages} is more than the {known} stages of {type(backbone).__name__}, the stem counted as one",
            mend=f"Use a number from 0 to {known}, or -1 for the whole backbone",
        )
    backbone.frozen_stages = stages
    for name, parameter in backbone.named_parameters():
        if backbone.is_frozen(name):
            parameter.requires_grad_(False)
    backbone.train(backbone.training)
