"""Classification heads of timm's models, as modules of their own beside the backbone.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.models.davit import DaVit
from timm.models.maxxvit import MaxxVit
from timm.models.shvit import SHViT
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

from backbones.vision.layers import init_linear


class Recipe(NamedTuple):
    """Where a family keeps what follows its last map.

    Args:
        norm: Name of the norm on the map, empty if there is none before pooling.
        channels_last: Whether that norm and the head want channels last.
        pooled: Whether pooling stands beside the head instead of inside.
    """

    norm: str = ""
    channels_last: bool = False
    pooled: bool = False


_RECIPES: dict[type[nn.Module], Recipe] = {
    SwinTransformer: Recipe(norm="norm", channels_last=True),
    SwinTransformerV2: Recipe(norm="norm", channels_last=True),
    MaxxVit: Recipe(norm="norm"),
    TinyVit: Recipe(),
    SHViT: Recipe(pooled=True),
    DaVit: Recipe(norm="norm_pre"),
}


class MapHead(nn.Module):
    """timm's own head on the last map: norm, pooling, layers before the logits, classifier.

    Args:
        model: The whole model, which is taken apart.
        recipe: Of its family.
    """

    def __init__(self, model: Any, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.norm = model.get_submodule(recipe.norm) if recipe.norm else nn.Identity()
        self.pool = nn.Sequential(model.global_pool, model.flatten) if recipe.pooled else nn.Identity()
        self.head = model.get_submodule("head")

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, C, H, W] to logits [B, classes]."""
        x = features.permute(0, 2, 3, 1) if self.recipe.channels_last else features
        logits: Tensor = self.head(self.pool(self.norm(x)))
        return logits

    def timm_names(self) -> dict[str, str]:
        """Names of the tensors in timm, to ours."""
        parts = {"norm": self.recipe.norm, "head": "head"}
        split_names = [(name, *name.partition(".")) for name in self.state_dict()]
        return {f"{parts[part]}.{rest}": name for name, part, _, rest in split_names}


class Readout(nn.Module):
    """timm's own ``forward_head`` with the modules it uses, for models that read tokens rather than a map.

    Args:
        model: The model without all other modules.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Any) -> Tensor:
        """What ``forward_features`` gives, to logits [B, classes]."""
        logits: Tensor = self.model.forward_head(features)
        return logits

    def timm_names(self) -> dict[str, str]:
        """Names of the tensors in timm, to ours."""
        return {name.removeprefix("model."): name for name in self.state_dict()}


def map_head(outline: Any, device: torch.device) -> MapHead | None:
    """The head of a family that classifies its last map, with new weights; None for other models.

    Args:
        outline: The classifier on the meta device.
        device: Where the head shall be.
    """
    recipe = next((recipe for family, recipe in _RECIPES.items() if isinstance(outline, family)), None)
    if recipe is None:
        return None
    head = MapHead(outline, recipe)
    if device.type != "meta":
        head.to_empty(device=device)
        for module in head.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        head.apply(init_linear)
    return head


def split(model: Any, outline: Any, images: Tensor) -> Readout:
    """Take out of a classifier what reads its features.

    Args:
        model: The classifier; loses the modules that only ``forward_head`` uses.
        outline: The same on the meta device, in evaluation mode.
        images: Some that it takes, on the meta device.

    Returns:
        These modules, and the way they are used.
    """
    features: Any = None

    def compute() -> None:
        nonlocal features
        features = outline.forward_features(images)

    computing = _touched(outline, compute)
    reading = _touched(outline, lambda: outline.forward_head(features))
    reader = copy.copy(model)
    reader._modules = {name: child for name, child in model._modules.items() if name in reading or not _state(child)}
    reader._parameters = {name: value for name, value in model._parameters.items() if name in reading}
    reader._buffers = {name: value for name, value in model._buffers.items() if name in reading}
    for name in reading - computing:
        if name in model._modules:
            model._modules[name] = nn.Identity()
        model._parameters.pop(name, None)
        model._buffers.pop(name, None)
    return Readout(reader)


def _state(child: nn.Module | None) -> dict[str, Tensor]:
    return {} if child is None else child.state_dict()


def _touched(model: nn.Module, compute: Callable[[], Any]) -> set[str]:
    """Names of a model's children, parameters and buffers that a computation asks it for."""
    found: set[str] = set()
    kind: Any = type(model)

    class Watched(kind):  # what a module holds is no plain attribute of it, so it passes here
        def __getattr__(self, name: str) -> Any:
            found.add(name)
            return super().__getattr__(name)

    model.__class__ = Watched
    try:
        with torch.no_grad():
            compute()
    finally:
        model.__class__ = kind
    return found
