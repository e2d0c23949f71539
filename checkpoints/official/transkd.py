"""Key map of TransKD: the names of its distillation modules to ours.

Origin: RuipingL/TransKD (no licence file). Its students and teachers are SegFormers and no part of this map.

A surprise: the levels of its fusion are numbered from the coarsest, everything else from the finest, from 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from checkpoints.keymap import KeyMap, Stack

LEVELS = range(1, 9)
"""Numbers of levels that are understood."""


def _flat(weight: Tensor) -> Tensor:
    return torch.squeeze(weight, 0)


TRANSKD = KeyMap(
    renames=(
        (r"^skfs\.(\d+)\.", r"fusion.steps.\1."),
        (r"(\.steps\.\d+)\.conv1\.", r"\1.reduce."),
        (r"(\.steps\.\d+)\.conv2\.", r"\1.project."),
        (r"(\.steps\.\d+)\.fc\.", r"\1.squeeze."),
        (r"(\.steps\.\d+)\.fc1\.0\.", r"\1.squeeze_single."),
        (r"(\.steps\.\d+)\.fcs\.", r"\1.excite."),
        *((rf"^embed{level}_linearproject\.", f"alignment.projections.{level - 1}.") for level in LEVELS),
        (r"^attn\d+\.qkv\.", "mixer.qkv."),
        (r"^attn\d+\.proj\.", "mixer.out."),
        (r"^conv1\.", "mixer.value."),
        (r"^conv2\.", "mixer.gate."),
        (r"^atten_weight$", "mixer.attention_weight"),
        (r"^conv_weight$", "mixer.convolution_weight"),
        *((rf"^patch_embed{level}\.", f"assistant.embeddings.{level - 1}.") for level in LEVELS),
        (r"^(assistant\.embeddings\.\d+)\.proj\.", r"\1.conv."),
    ),
    converts=((r"^fuse_weights\.\d+$", _flat),),
    stacks=(Stack(r"fuse_weights\.(?P<index>\d+)", "assistant.weights"),),
)
