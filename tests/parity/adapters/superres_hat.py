"""Adapter of HAT, from official hyper-parameters to our outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apps.superres.models.hat import HAT
from apps.superres.models.hat_config import HATConfig
from apps.superres.models.padding import pad_to_multiple
from backbones.attention.partition import overlapping_index, partition, relative_index
from backbones.attention.window import window_attention
from checkpoints.keymap import load_official
from checkpoints.official.superres import KEYMAPS
from tests.parity.adapters.superres_frame import image_info, training_outputs, upsampler
from tests.parity.case import Case
from tests.parity.recording import Tap, record

RESIDUALS = {"1conv": True, "identity": False}
"""Official kinds of residual connections to whether there is a convolution."""


def hat(case: Case) -> dict[str, Tensor]:
    config = _config(case.config)
    model = config.build(image_info(case, config.upsampler)).eval()
    load_official(model, case.weights, KEYMAPS["hat"])
    low = case.inputs["lq"]
    with torch.no_grad(), record(model, _taps(model)) as seen:
        outputs = {"sr": model(low), "padded_lq": pad_to_multiple(low, model.tile_multiple)}
    outputs |= {name: _official_layout(name, tensor, model) for name, tensor in seen.items()}
    outputs |= _tables(config, *outputs["padded_lq"].shape[2:]) | _tiled(case, model)
    return outputs | training_outputs(case, model, KEYMAPS["hat"])


def _config(official: dict[str, Any]) -> HATConfig:
    sizes = (_two(official.get(name, usual)) for name, usual in (("img_size", 64), ("patch_size", 1)))
    # Patches cut nothing: all they do is to make the official network think of smaller images.
    height, width = (side // patch for side, patch in zip(*sizes, strict=True))
    return HATConfig(
        width=official.get("embed_dim", 96),
        depths=tuple(official.get("depths", (6, 6, 6, 6))),
        heads=tuple(official.get("num_heads", (6, 6, 6, 6))),
        window=official.get("window_size", 7),
        overlap=official.get("overlap_ratio", 0.5),
        compress=official.get("compress_ratio", 3),
        squeeze=official.get("squeeze_factor", 30),
        conv_scale=official.get("conv_scale", 0.01),
        mlp_ratio=official.get("mlp_ratio", 4.0),
        qkv_bias=official.get("qkv_bias", True),
        qk_scale=official.get("qk_scale") or None,
        patch_norm=official.get("patch_norm", True),
        group_convolution=RESIDUALS[official.get("resi_connection", "1conv")],
        absolute_positions=(height, width) if official.get("ape") else None,
        image_size=min(height, width),
        upsampler=upsampler(official, "pixelshuffle"),
        image_range=official.get("img_range", 1.0),
        drop_path=official.get("drop_path_rate", 0.1),
    )


def _two(sides: int | Sequence[int]) -> Sequence[int]:
    return (sides, sides) if isinstance(sides, int) else sides


def _taps(model: HAT) -> dict[str, Tap]:
    taps = {"conv_first": Tap("shallow"), "body_norm": Tap("norm"), "conv_after_body": Tap("after_body")}
    for number, group in enumerate(model.groups):
        taps[f"g{number}.rhag"] = Tap(f"groups.{number}")
        taps[f"g{number}.ocab"] = Tap(f"groups.{number}.overlapping")
        for index in range(len(group.blocks)):
            path, name = f"groups.{number}.blocks.{index}", f"g{number}.hab{index}"
            taps |= {name: Tap(path), f"{name}_shifted": Tap(path)}
            taps |= {f"{name}.cab": Tap(f"{path}.convolutions"), f"{name}.attn_windows": Tap(f"{path}.attention")}
    return taps


def _official_layout(name: str, tensor: Tensor, model: HAT) -> Tensor:
    """From our maps to windows, tokens or maps with channels second; ours scales the convolutions' result already."""
    if match := re.fullmatch(r"g(\d+)\.hab(\d+)\.attn_windows", name):
        attention = model.groups[int(match[1])].blocks[int(match[2])].attention
        return partition(tensor.roll((-attention.shift, -attention.shift), (1, 2)), attention.window)
    if name.endswith(".cab"):
        return tensor.permute(0, 3, 1, 2) / model.config.conv_scale
    return tensor if name.startswith("conv_") else tensor.flatten(1, 2)


def _tables(config: HATConfig, height: int, width: int) -> dict[str, Tensor]:
    """Index tables and the mask of shifted windows, as the official network keeps them."""
    window, key_window = config.window, config.key_window
    cross = overlapping_index(window, key_window)
    # Theirs are negative where ours count on from the end of the table.
    cross = torch.where(cross > window * (window + key_window), cross - (window + key_window - 1) ** 2, cross)
    return {
        "relative_position_index_SA_int16": relative_index(window).to(torch.int16),
        "relative_position_index_OCA_int16": cross.to(torch.int16),
        "attn_mask": _mask(height, width, window),
    }


def _mask(height: int, width: int, window: int) -> Tensor:
    """Pairs that our attention hides in shifted windows, [windows, n, n]: those whose values do not reach the query."""
    tokens, shift = height * width, window // 2
    everyone = torch.eye(tokens).reshape(1, height, width, 1, tokens)
    alike = torch.zeros(1, height, width, 1, 1)
    reached = window_attention(alike, alike, everyone, window=window, shift=shift).reshape(tokens, tokens) > 0
    rolled = torch.arange(tokens).reshape(1, height, width).roll((-shift, -shift), (1, 2))
    members = partition(rolled, window)  # windows, n
    return torch.where(reached[members[:, :, None], members[:, None]], 0.0, -100.0)


def _tiled(case: Case, model: HAT) -> dict[str, Tensor]:
    """Outputs ``sr_tile<side>_pad<margin>``: the padded image cut as the official inference script does."""
    outputs = {}
    for name in case.expected:
        if match := re.fullmatch(r"sr_tile(\d+)_pad(\d+)", name):
            outputs[name] = _in_official_tiles(model, case.inputs["lq"], int(match[1]), int(match[2]))
    return outputs


def _in_official_tiles(model: HAT, images: Tensor, tile: int, margin: int) -> Tensor:
    """Tiles of a fixed side side by side; a margin around each that ends where the padded image ends."""
    padded, scale = pad_to_multiple(images, model.tile_multiple), model.scale
    height, width = padded.shape[2:]
    output = torch.zeros(*padded.shape[:2], height * scale, width * scale)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            above, before = min(margin, top), min(margin, left)
            part = padded[..., top - above : top + tile + margin, left - before : left + tile + margin]
            with torch.no_grad():
                restored = model(part)[..., above * scale :, before * scale :]
            place = output[..., top * scale : (top + tile) * scale, left * scale : (left + tile) * scale]
            place.copy_(restored[..., : place.shape[2], : place.shape[3]])
    return output[..., : images.shape[2] * scale, : images.shape[3] * scale]
