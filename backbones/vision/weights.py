"""Weights for vision backbones: official files through key maps, files of ours, and other sizes of tables.

Names are those of :class:`backbones.vision.classifier.Classifier`: ``backbone.*`` and ``head.*``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from backbones.vision.base import VisionBackbone
from backbones.vision.classifier import Classifier
from backbones.vision.variants import FAMILIES
from checkpoints.reading import read_weights
from graftwork.components import import_dotted
from graftwork.errors import WeightsError

logger = logging.getLogger("graftwork.backbones")

PREFIXES = ("", "model.", "backbone.", "model.backbone.")
"""What may stand before our names in a file of ours: whole classifiers, bare backbones, runs of an app."""


@dataclass
class Outcome:
    """What became of the tensors of a file.

    Args:
        loaded: Names that were loaded.
        fitted: Those of them whose tables were interpolated or whose channels were adapted.
        left: Names of the model that the file has nothing for, and that may stay as initialised.
        ignored: Tensors of the file that this model has no place for on purpose: heads, later stages, output norms.
    """

    loaded: list[str] = field(default_factory=list)
    fitted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"{len(self.fitted)} of them fitted to other sizes"] if self.fitted else []
        parts += [f"as initialised: {', '.join(_shortened(self.left))}"] if self.left else []
        return "; ".join(parts)


def load_weights(model: VisionBackbone | Classifier, path: str | Path, family: str = "") -> Outcome:
    """Load a file of weights into a backbone or classifier.

    Args:
        model: The model; a bare backbone takes what belongs to it.
        path: Official weights of the family, or weights that this package wrote.
        family: Key of :data:`backbones.vision.variants.FAMILIES`, which knows the official names.

    Returns:
        What became of the tensors. Position tables of other window or image sizes are interpolated, the first layer is
        adapted to other numbers of image channels; output norms, and a head of other classes, stay as initialised.

    Raises:
        WeightsError: The file cannot be read, or does not fit; the first difference is named.
    """
    outcome = load_tensors(model, read_weights(path), family, where=str(path))
    logger.info("%s: %s", path, outcome.summary())
    return outcome


def load_pretrained(model: VisionBackbone | Classifier, variant: str) -> Outcome:
    """Download published weights where timm has them, and load them.

    Raises:
        WeightsError: There are none, or they cannot be fetched; the message says what to do instead.
    """
    backbone = model.backbone if isinstance(model, Classifier) else model
    outcome = load_tensors(model, backbone.published_weights(variant), "timm", where=f"pretrained {variant}")
    logger.info("pretrained %s: %s", variant, outcome.summary())
    return outcome


def load_tensors(
    model: VisionBackbone | Classifier, state: Mapping[str, Tensor], family: str = "", *, where: str = ""
) -> Outcome:
    """Load tensors under official names or ours, see :func:`load_weights`."""
    bare = not isinstance(model, Classifier)
    backbone = model if isinstance(model, VisionBackbone) else model.backbone
    wanted = {f"backbone.{name}" if bare else name: value for name, value in model.state_dict().items()}
    found = _ours(state, wanted) or _official(backbone, state, family)
    outcome = Outcome()
    chosen: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, target in wanted.items():
        tensor = found.get(name)
        if tensor is None:
            (outcome.left if _may_stay(name) else problems).append(name)
            continue
        fitted = tensor if tensor.shape == target.shape else _fit(backbone, name, tensor, target)
        if fitted is not None:
            chosen[name] = fitted
            outcome.loaded.append(name)
            outcome.fitted += [name] if fitted is not tensor else []
        elif name.startswith("head."):
            outcome.left.append(name)
        else:
            problems.append(f"{name} is {list(tensor.shape)} there, {list(target.shape)} in the model")
    strangers = [name for name in found if name not in wanted]
    outcome.ignored = [name for name in strangers if _may_be_left_out(name, backbone)]
    strangers = [name for name in strangers if name not in outcome.ignored]
    if problems or strangers:
        raise _misfit(model, problems, strangers, wanted, where)
    names = {name.removeprefix("backbone.") if bare else name: value for name, value in chosen.items()}
    model.load_state_dict(names, strict=False)
    return outcome


def _ours(state: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under our names, if most of what is wanted is there under one of the usual prefixes; else none."""
    backbone_names = [name for name in wanted if name.startswith("backbone.")]
    for prefix in PREFIXES:
        bare = prefix.endswith("backbone.") or not any(key.startswith(f"{prefix}backbone.") for key in state)
        keys = [prefix + (name.removeprefix("backbone.") if bare else name) for name in backbone_names]
        if sum(key in state for key in keys) * 2 > len(keys):
            inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            return {f"backbone.{key}": value for key, value in inside.items()} if bare else inside
    return {}


def _official(backbone: VisionBackbone, state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    maps = FAMILIES[family].keymaps if family in FAMILIES else ""
    if not maps:
        return backbone.official_tensors(state)
    tensors: dict[str, Tensor] = import_dotted(maps)[family].translate(state).tensors
    return tensors


def _fit(backbone: VisionBackbone, name: str, found: Tensor, wanted: Tensor) -> Tensor | None:
    """The tensor in another size, where that has a meaning."""
    if not name.startswith("backbone."):
        return None
    inner = name.removeprefix("backbone.")
    if fit_channels(found, wanted) and backbone.layer_of(inner) == 0:
        return adapt_channels(found, wanted.shape[1])
    return backbone.fit_tensor(inner, found, wanted)


def fit_channels(found: Tensor, wanted: Tensor) -> bool:
    """Whether two convolution weights differ in their input channels only, and the first one takes RGB."""
    same = found.dim() == wanted.dim() == 4 and found.shape[:1] + found.shape[2:] == wanted.shape[:1] + wanted.shape[2:]
    return same and found.shape[1] == 3


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution for RGB made one for other channels, with a response of the same scale.

    For 1, and for multiples of 3, a grey image gets the very response that it got before. For other numbers some of the
    three colours have one channel more than the rest, and the response is only near it.

    Args:
        weight: [out, 3, h, w].
        channels: Wanted input channels: 1 sums the three, others repeat them in turn, scaled by 3 / channels.

    Returns:
        [out, channels, h, w].
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    index = torch.arange(channels, device=weight.device) % 3
    return weight[:, index] * (weight.shape[1] / channels)


def _may_stay(name: str) -> bool:
    inner = name.removeprefix("backbone.")
    return inner.startswith(("output_norms.", "head.")) or ".lora_" in inner or inner.endswith("num_batches_tracked")


def _may_be_left_out(name: str, backbone: VisionBackbone) -> bool:
    inner = name.removeprefix("backbone.")
    return inner.startswith(("head.", "output_norms.")) or backbone.is_left_out(inner)


def _misfit(
    model: VisionBackbone | Classifier,
    problems: list[str],
    strangers: list[str],
    wanted: Mapping[str, Tensor],
    where: str,
) -> WeightsError:
    shapes = [problem for problem in problems if problem not in wanted]
    missing = [f"{name} is missing there" for name in problems if name in wanted]
    lines = shapes + missing + [f"{name} has no place in the model" for name in strangers]
    backbone = model.backbone if isinstance(model, Classifier) else model
    more = f"; and {len(lines) - 1} more" if len(lines) > 1 else ""
    return WeightsError(
        f"the weights do not fit {type(backbone).__name__}: first difference: {lines[0]}{more}",
        where=where,
        mend="Choose the variant, and its options, that the weights were trained with",
    )


def _shortened(names: list[str], most: int = 4) -> list[str]:
    return names if len(names) <= most else [*names[:most], f"{len(names) - most} more"]
