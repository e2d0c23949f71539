"""Adapters of CRAFT, from official hyper-parameters to our outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from apps.superres.models.craft import CRAFT
from apps.superres.models.craft_attention import PositionNetwork, offsets
from apps.superres.models.craft_config import CRAFTConfig
from apps.superres.models.padding import pad_to_multiple
from backbones.attention.partition import relative_index
from backbones.attention.window import window_attention
from checkpoints.keymap import KeyMap, load_official
from checkpoints.official.superres import KEYMAPS, POSITIONS
from tests.parity.adapters.superres_frame import image_info, training_outputs
from tests.parity.adapters.superres_hat import RESIDUALS
from tests.parity.case import Case
from tests.parity.recording import Tap, record

BLOCKS = {"srwab": "rectangles", "hferb": "frequencies", "hfb": "fusions"}
"""Official names of blocks to ours."""
POSITION_KEYMAP = KeyMap(renames=((r"^(attns\.\d\.)?pos\.", ""), *POSITIONS))
"""Of the position network alone."""


def craft(case: Case) -> dict[str, Tensor]:
    model = _config(case.config).build(image_info(case)).eval()
    load_official(model, case.weights, KEYMAPS["craft"])
    low = case.inputs["lq"]
    with torch.no_grad(), record(model, _taps(model)) as seen:
        outputs = {"sr": model(low), "padded_lq": pad_to_multiple(low, model.tile_multiple)}
        outputs |= _position_tables(model)
    outputs |= {name: _official_layout(name, tensor) for name, tensor in seen.items()}
    return outputs | training_outputs(case, model, KEYMAPS["craft"])


def _config(official: dict[str, Any]) -> CRAFTConfig:
    return CRAFTConfig(
        width=official.get("embed_dim", 96),
        depths=tuple(official.get("depths", (6, 6, 6, 6))),
        heads=tuple(official.get("num_heads", (6, 6, 6, 6))),
        window=(official.get("split_size_0", 4), official.get("split_size_1", 16)),
        mlp_ratio=official.get("mlp_ratio", 2.0),
        qkv_bias=official.get("qkv_bias", True),
        qk_scale=official.get("qk_scale") or None,
        group_convolution=RESIDUALS[official.get("resi_connection", "1conv")],
        image_range=official.get("img_range", 1.0),
        upsampler="light",
    )


def _taps(model: CRAFT) -> dict[str, Tap]:
    taps = {"conv_first": Tap("shallow"), "body_norm": Tap("norm"), "norm": Tap("norm")}
    taps["conv_after_body"] = Tap("after_body")
    for number, group in enumerate(model.groups):
        taps[f"g{number}"] = Tap(f"groups.{number}")
        for official, ours in BLOCKS.items():
            for index in range(len(getattr(group, ours))):
                name = f"g{number}.{official}{index}"
                taps |= {name: Tap(f"groups.{number}.{ours}.{index}")}
                taps |= {f"{name}_shifted": taps[name]} if index % 2 else {}
    return taps


def _official_layout(name: str, tensor: Tensor) -> Tensor:
    """From our maps to tokens, or maps with channels second."""
    if name.startswith("conv_"):
        return tensor
    return tensor.flatten(1, 2) if ".srwab" in name else tensor.permute(0, 3, 1, 2)


def _position_tables(model: CRAFT) -> dict[str, Tensor]:
    tables = {}
    for number, group in enumerate(model.groups):
        for index, block in enumerate(group.rectangles):
            for half, position in zip("hv", block.attention.positions, strict=True):
                tables[f"pos_{half}_table_g{number}b{index}"] = position.table()
    return tables


def rectangle_attention(case: Case) -> dict[str, Tensor]:
    """One half of the heads by itself, on queries, keys and values [3, B, H W, channels]."""
    official, qkv = case.config, case.inputs["qkv"]
    short, long = official["split"]
    window = (short, long) if official["branch"] == "horizontal" else (long, short)
    heads = official["branch_heads"]
    position = PositionNetwork(official["branch_dim"] // 4 // 4, heads, window).eval()
    load_official(position, case.weights, POSITION_KEYMAP)

    q, k, v = qkv.unflatten(-1, (heads, -1)).unflatten(2, (official["H"], official["W"]))
    with torch.no_grad():
        bias = position()
        mixed = window_attention(q, k, v, window=window, wrap=True, bias=bias, scale=official.get("qk_scale") or None)
        return {
            "out_bhwc": mixed.flatten(3),
            "pos_table": position.table(),
            "rpi_int16": relative_index(window).to(torch.int16),
            "offsets": offsets(*window, torch.device("cpu")),
        }
