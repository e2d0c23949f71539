"""Adapters of neighborhood attention and of NAT, DiNAT, DiNAT_s and the isotropic models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backbones.attention.neighborhood import axis_neighbors, neighborhood_attention
from backbones.vision.classifier import Classifier
from backbones.vision.dinat import DiNAT, DiNAT_s, DiNATIsotropic, NeighborhoodPyramid
from checkpoints.keymap import KeyMap, load_official
from checkpoints.official.dinat import KEYMAPS
from tests.parity.case import Case
from tests.parity.recording import gradient_keys, official_gradients


def attention(case: Case) -> dict[str, Tensor]:
    """Every configuration of the case: outputs, gradients of the output times ``grad_out``, and index tables."""
    outputs: dict[str, Tensor] = {}
    for number, sizes in enumerate(case.meta.get("cases") or [case.config]):
        prefix = f"c{sizes.get('case', number)}_"
        found = _one_attention(sizes, {name: case.inputs.get(prefix + name) for name in ("q", "k", "v", "rpb")})
        leaves, mixed, plain = found
        outputs |= {f"{prefix}out": _heads_first(mixed), f"{prefix}out_nobias": _heads_first(plain)}
        outputs |= _tables(sizes, prefix)
        above = case.inputs.get(f"{prefix}grad_out")
        if above is not None:
            gradients = torch.autograd.grad(_heads_first(mixed), list(leaves.values()), above)
            outputs |= {f"{prefix}grad_{name}": value for name, value in zip(leaves, gradients, strict=True)}
    return outputs


def _one_attention(
    sizes: Mapping[str, Any], given: Mapping[str, Tensor | None]
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in given.items() if value is not None}
    kernel, dilation = _sides(sizes["kernel_size"]), _sides(sizes.get("dilation") or 1)
    options: dict[str, Any] = {"kernel_size": kernel, "dilation": dilation, "scale": sizes.get("scale")}
    with torch.enable_grad():
        q, k, v = (leaves[name].permute(0, 2, 3, 1, 4) for name in ("q", "k", "v"))
        mixed = neighborhood_attention(q, k, v, bias=leaves.get("rpb"), **options)
    return leaves, mixed, neighborhood_attention(q, k, v, **options)


def _sides(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _heads_first(mixed: Tensor) -> Tensor:
    return mixed.permute(0, 3, 1, 2, 4)


def _tables(sizes: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    tables = {}
    for axis, (name, side) in enumerate((("row", "H"), ("col", "W"))):
        options = [_sides(sizes["kernel_size"]), _sides(sizes.get("dilation") or 1)]
        kernel, dilation = (option[axis] if isinstance(option, tuple) else option for option in options)
        index, relative = axis_neighbors(sizes[side], kernel, dilation)
        tables |= {f"{prefix}{name}_index": index.to(torch.int32), f"{prefix}{name}_rel": relative.to(torch.int32)}
    return tables


def dinat(case: Case) -> dict[str, Tensor]:
    """NAT as well: there are no dilations then."""
    return _outputs(case, "dinat", DiNAT, **_shared(case, width=64))


def dinat_s(case: Case) -> dict[str, Tensor]:
    return _outputs(case, "dinat_s", DiNAT_s, **_shared(case, width=96), **_patches(case, 4))


def dinat_isotropic(case: Case) -> dict[str, Tensor]:
    official = case.config
    options = _shared(case, width=384)
    depth = official.get("depth", official.get("depths", 12))
    options["depths"] = _listed(depth)
    options["heads"] = _listed(official.get("num_heads", 12))
    dilations = official.get("dilations", official.get("dilation"))
    if isinstance(dilations, int):
        options["dilations"] = [[1, dilations]]
    elif dilations and not isinstance(dilations[0], list):
        options["dilations"] = [dilations]
    return _outputs(case, "dinat_isotropic", DiNATIsotropic, **options, **_patches(case, 16))


def _shared(case: Case, width: int) -> dict[str, Any]:
    official = case.config
    return {
        "width": official.get("embed_dim", width),
        "depths": official.get("depths", (2, 2, 6, 2)),
        "heads": official.get("num_heads", (3, 6, 12, 24)),
        "kernel_size": official.get("kernel_size") or 7,
        "dilations": official.get("dilations"),
        "mlp_ratio": official.get("mlp_ratio", 4.0),
        "layer_scale": official.get("layer_scale") or 0.0,
        "qkv_bias": bool(official.get("qkv_bias", True)),
        "scale": official.get("qk_scale") or None,
        "drop_path": official.get("drop_path_rate", 0.0),
        "in_channels": official.get("in_chans", 3),
    }


def _patches(case: Case, side: int) -> dict[str, Any]:
    found = case.config.get("patch_size", side)
    return {
        "patch": found[0] if isinstance(found, list) else found,
        "patch_norm": bool(case.config.get("patch_norm", True)),
    }


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _outputs(case: Case, family: str, build: Callable[..., NeighborhoodPyramid], **options: Any) -> dict[str, Tensor]:
    """Every number of a case: levels, normalised ones where the weights have norms for them, logits, gradients."""
    weights = dict(case.weights)
    normed = [level for level in range(len(options["depths"])) if f"norm{level}.weight" in weights]
    backbone = build(**options, output_norms=bool(normed))
    for level in range(len(options["depths"])) if normed else ():
        width = backbone.level_channels[level]  # a level without a norm of its own is not compared
        weights.setdefault(f"norm{level}.weight", torch.ones(width))
        weights.setdefault(f"norm{level}.bias", torch.zeros(width))
    classifier = Classifier(backbone, case.config.get("num_classes", 1000)).eval()
    classifies = "norm.weight" in weights
    model = classifier if classifies else nn.ModuleDict({"backbone": backbone}).eval()
    load_official(model, weights, KEYMAPS[family])
    outputs: dict[str, Tensor] = {}
    with torch.no_grad():
        levels = backbone.extract(case.inputs["image"])
        outputs |= {f"level{level}": features for level, features in enumerate(levels)}
        for level in normed:
            assert backbone.output_norms is not None
            features = backbone.output_norms[str(level)](levels[level])
            outputs |= {f"{name}{level}": features for name in ("norm", "dense", "out")}
        if classifies:
            outputs["logits"] = classifier.head(levels[-1])
    return outputs | _gradients(case, classifier, KEYMAPS[family])


def _gradients(case: Case, classifier: Classifier, keymap: KeyMap) -> dict[str, Tensor]:
    """Those of ``sum(logits * linspace(-1, 1))``, as other cases of this area have them."""
    image = case.inputs["image"].clone().requires_grad_()

    def loss(call: Callable[..., Tensor]) -> Tensor:
        logits = call(image)
        return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()

    outputs = {}
    if "grad_image" in case.expected:
        outputs["grad_image"] = torch.autograd.grad(loss(classifier), image)[0]
    found = official_gradients(classifier, keymap, case.weights, gradient_keys(case.expected, "grad"), loss)
    return outputs | {f"grad.{key}": value for key, value in found.items()}
