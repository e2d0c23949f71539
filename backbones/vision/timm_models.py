"""Models of timm by name, built with what this package needs: any size, no hidden drop path, one window everywhere."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import timm
import torch
from timm.models.davit import DaVit
from timm.models.maxxvit import MaxxVit
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.tiny_vit import TinyVit
from torch import nn
from torch.overrides import TorchFunctionMode

from backbones.vision.timm_sizes import known_sizes
from backbones.vision.timm_windows import mend_windows
from graftwork.errors import ConfigError
from graftwork.names import unknown


@dataclass(frozen=True)
class Blueprint:
    """How to build a model of timm, as often as it is needed.

    Args:
        name: Name in timm, with or without the tag of its weights.
        in_channels: Channels of the images.
        drop_path: Stochastic-depth rate.
        window: Side of the attention windows; 0 keeps the model's.
        image_size: Height and width the model is built for, if it is bound to one; None keeps the model's.

    Raises:
        ConfigError: By :meth:`build`: no such model, or one that cannot have these values.
    """

    name: str
    in_channels: int = 3
    drop_path: float = 0.0
    window: int = 0
    image_size: tuple[int, int] | None = None

    # models of timm share methods by custom, not by a common class, hence Any

    def build(self, classes: int = 0) -> Any:
        """The model with random weights; 0 classes leave out its classifier."""
        try:
            model = self._create(num_classes=classes, **self._options)
        except (AssertionError, RuntimeError, ValueError) as error:
            if self.image_size is None:
                raise
            raise self.unsuited(f"timm says: {error}") from error
        mend_windows(model)
        return model

    def outline(self, classes: int = 0) -> Any:
        """The same model without memory for its tensors, for questions about names and shapes."""
        with _outlines():
            return self.build(classes)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all tensors of the whole model with a classifier."""
        return frozenset(self.outline(classes=1).state_dict())

    def unsuited(self, mend: str) -> ConfigError:
        """The error for an image size that the model cannot be built for."""
        return ConfigError(f"image_size={self.image_size} does not suit timm's {self.name}", mend=mend)

    def bare(self, size: tuple[int, int], indices: Sequence[int]) -> Any:
        """The model as timm has it, for images of a size, from images to a list of maps.

        Raises:
            ConfigError: It does not take that size.
        """
        options: dict[str, Any] = {"features_only": True, "out_indices": list(indices)}
        if size != self.native and "img_size" in _parameters(type(_plain(self._name))):
            options["img_size"] = size
        images = torch.empty(1, self.in_channels, *size, device="meta")
        try:
            with _outlines(), torch.no_grad():
                self._create(**options).eval()(images)
        except Exception as error:  # models refuse in many ways
            raise ConfigError(
                f"timm's {self.name} alone does not take {size[0]} x {size[1]} pixels",
                mend=f"Compare at {self.native[0]} x {self.native[1]}",
            ) from error
        return self._create(**options)

    def usual_indices(self) -> list[int]:
        """The levels that timm returns for features, by its numbers."""
        with _outlines():
            model = self._create(features_only=True)
        return list(model.feature_info.out_indices)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What timm knows of the weights: mean, std, input_size, hf_hub_id, ..."""
        _check_name(self.name)
        found = timm.get_pretrained_cfg(self.name)
        return found.to_dict() if found is not None else {}

    @property
    def native(self) -> tuple[int, int]:
        """Height and width of images that the model was made for."""
        height, width = self.image_size or self.facts.get("input_size", (3, 224, 224))[-2:]
        return int(height), int(width)

    @property
    def _name(self) -> str:
        return self.name.partition(".")[0]

    def _create(self, **options: Any) -> Any:
        _check_name(self.name)
        return timm.create_model(self.name, pretrained=False, in_chans=self.in_channels, **options)

    @cached_property
    def _options(self) -> dict[str, Any]:
        _check_name(self.name)
        plain = _plain(self._name)
        known = _parameters(type(plain))
        options: dict[str, Any] = {}
        if "drop_path_rate" in known:  # timm's default is not zero everywhere
            options["drop_path_rate"] = self.drop_path
        elif self.drop_path:
            raise ConfigError(
                f"drop_path={self.drop_path} is not possible: timm's {self.name} has no stochastic depth",
                mend="Leave drop_path at 0",
            )
        if "strict_img_size" in known:
            options["strict_img_size"] = False
        elif "dynamic_img_size" in known:
            options["dynamic_img_size"] = True
        return options | self._window(plain) | self._image_size(plain, "img_size" in known)

    def _window(self, plain: Any) -> dict[str, Any]:
        if not self.window:
            return {}
        for family, option in _WINDOWS.items():
            if isinstance(plain, family) and (found := option(plain, self.window)):
                return found
        raise ConfigError(
            f"window={self.window} is not possible for timm's {self.name}",
            mend="Swin, MaxViT, TinyViT and DaViT take another window; leave it at 0 for others",
        )

    def _image_size(self, plain: Any, possible: bool) -> dict[str, Any]:
        if self.image_size is None:
            return {}
        if possible and known_sizes(plain) is None:
            return {"img_size": self.image_size}
        raise ConfigError(
            f"image_size={self.image_size} is not possible: {self.name} is not bound to a size",
            mend="Leave out image_size; images of any size from 32 pixels can be given",
        )


def _swin(model: Any, window: int) -> dict[str, Any]:
    # built for images whose coarsest map is one window, so that no stage takes a smaller one
    return {"window_size": window, "img_size": 32 * window}


def _swin_v2(model: Any, window: int) -> dict[str, Any]:
    # distances are measured in windows of the pretraining, so that the network that gives biases sees known values
    blocks = [stage.blocks[0] for stage in model.layers]
    trained = [max(block.attn.pretrained_window_size) or max(block.window_size) for block in blocks]
    return _swin(model, window) | {"pretrained_window_sizes": tuple(trained)}


def _maxvit(model: Any, window: int) -> dict[str, Any]:
    return {"img_size": 32 * window} if known_sizes(model) is not None else {}


def _tiny_vit(model: Any, window: int) -> dict[str, Any]:
    return {"window_sizes": (window, window, 2 * window, window)}


_WINDOWS: dict[type[nn.Module], Callable[[Any, int], dict[str, Any]]] = {
    SwinTransformer: _swin,
    SwinTransformerV2: _swin_v2,
    MaxxVit: _maxvit,
    TinyVit: _tiny_vit,
    DaVit: lambda model, window: {"window_size": window},
}
"""Class to the options that give its attention another window; none where a model of the class has no windows."""


class _WithoutValues(TorchFunctionMode):
    """Leaves out the drawing of initial values, which is most of the work of building on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _DRAWING.fullmatch(getattr(func, "__name__", "")):
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


_DRAWING = re.compile(r"(kaiming_)?(uniform|normal)_|(erfinv|mul|add|clamp|fill|zero)_")
"""What initial values are made with; on the meta device these do nothing but take time."""


@contextmanager
def _outlines() -> Iterator[None]:
    with torch.device("meta"), _WithoutValues():
        yield


@cache
def _plain(architecture: str) -> Any:
    with _outlines():
        return timm.create_model(architecture, pretrained=False, num_classes=0)


def _parameters(model: type) -> set[str]:
    """Names of a constructor's parameters, those that it hands to its bases included."""
    names: set[str] = set()
    for base in inspect.getmro(model):
        if base is nn.Module:
            break
        found = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        names |= set(found)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in found.values()):
            break
    return names


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown("model of timm", name, timm.list_models())
    if tag:
        tags = [full.partition(".")[2] for full in timm.list_models(f"{architecture}.*", include_tags=True)]
        if tag not in tags:
            raise unknown(f"weights of timm's {architecture}", tag, tags)
