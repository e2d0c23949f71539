"""Key maps of mmsegmentation: official names to those of our heads and segmenters.

Origin: open-mmlab/mmsegmentation 1.2.2 (Apache-2.0): decode heads, auxiliary heads, and the Swin backbones of whole
checkpoints. Its MiT backbones (SegFormer B0 to B5) are none of ours, so of those checkpoints the head alone is of use.

A surprise: mmsegmentation's Swin joins four neighbours channel by channel before it halves a map, Swin's own code (and
timm) neighbour by neighbour, in another order; weights of that layer are permuted here. Another one: it shifts windows
on maps that are no larger than one window, where timm does not, so that with a side of up to 224 pixels the coarsest
level of a Swin with windows of 7 differs; above that all levels are equal.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from checkpoints.keymap import KeyMap
from checkpoints.official import kmax, mask2former

Renames = tuple[tuple[str, str], ...]

BLOCKS: Renames = ((r"\.(?:bn|gn)\.", ".norm."),)
"""Norms inside of convolution blocks."""

UPERNET: Renames = (
    (r"^psp_modules\.(\d+)\.1\.", r"pools.\1."),
    (r"^bottleneck\.", "context."),
    (r"^lateral_convs\.", "laterals."),
    (r"^fpn_convs\.", "smooths."),
    (r"^fpn_bottleneck\.", "fusion."),
)
SEGFORMER: Renames = ((r"^convs\.", "laterals."), (r"^fusion_conv\.", "fusion."))
FCN: Renames = ((r"^convs\.", "body.convs."), (r"^conv_cat\.", "body.join."))

HEADS: Mapping[str, Renames] = {"upernet": UPERNET, "segformer": SEGFORMER, "fcn": FCN}
CLASSIFIER: Renames = ((r"^conv_seg\.", "classifier."),)
OTHER_PARTS = r"^(backbone|neck|data_preprocessor)\."
"""Parts of a whole checkpoint that are no head."""


def _within(renames: Renames, part: str, ours: str) -> Renames:
    """Renames of the keys of a part of a whole checkpoint, to keys of a part of our model."""
    inner = ((pattern.replace("^", rf"^{part}\."), ours + replacement) for pattern, replacement in renames)
    return (*inner, (rf"^{part}\.", ours))  # what needs no other name


def _auxiliary(prefix: str) -> Renames:
    """The second head, which is a fully convolutional one in every published recipe."""
    return _within((*FCN, *CLASSIFIER), "auxiliary_head", f"{prefix}auxiliary.")


def _head(renames: Renames) -> KeyMap:
    own = (*renames, *CLASSIFIER)
    return KeyMap(renames=(*BLOCKS, *_auxiliary(""), *_within(own, "decode_head", ""), *own), drops=(OTHER_PARTS,))


HEAD_KEYMAPS: Mapping[str, KeyMap] = (
    {name: _head(renames) for name, renames in HEADS.items()} | kmax.KEYMAPS | mask2former.HEADS
)
"""The map of each head by itself, from its own keys or out of a whole checkpoint, its second head included."""


def by_neighbours(tensor: Tensor) -> Tensor:
    """The last axis in timm's order of four neighbours, where mmsegmentation's was channel by channel.

    Args:
        tensor: Weights of the layer that halves a map, or of the norm before it, [..., 4 * C].

    Returns:
        The same shape: neighbours (row, column) = (0, 0), (1, 0), (0, 1), (1, 1), C channels each.
    """
    split = tensor.unflatten(-1, (tensor.shape[-1] // 4, 2, 2))  # C, row, column
    return split.movedim((-1, -2), (-3, -2)).flatten(-3)


SWIN: Renames = (
    (r"^backbone\.patch_embed\.projection\.", "backbone.trunk.patch_embed.proj."),
    (r"^backbone\.patch_embed\.norm\.", "backbone.trunk.patch_embed.norm."),
    (r"^backbone\.norm(\d)\.", r"backbone.output_norms.\1."),
    (r"^backbone\.stages\.0\.downsample\.", "backbone.trunk.layers.1.downsample."),
    (r"^backbone\.stages\.1\.downsample\.", "backbone.trunk.layers.2.downsample."),
    (r"^backbone\.stages\.2\.downsample\.", "backbone.trunk.layers.3.downsample."),
    (r"^backbone\.stages\.", "backbone.trunk.layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
"""Its Swin to timm's, behind our contract: ``trunk`` and ``output_norms``."""


def _segmenter(renames: Renames) -> KeyMap:
    heads = (*_auxiliary("head."), *_within((*renames, *CLASSIFIER), "decode_head", "head."))
    return KeyMap(
        renames=(*BLOCKS, *heads, *SWIN),
        converts=((r"^backbone\.trunk\.layers\.\d+\.downsample\.", by_neighbours),),
        drops=(r"relative_position_index$", r"attn_mask$", r"^data_preprocessor\."),
    )


BRIDGED = KeyMap(
    renames=((r"^decode_head\.", "head.decode."), *SWIN),
    converts=((r"^backbone\.trunk\.layers\.\d+\.downsample\.", by_neighbours),),
    drops=(r"relative_position_index$", r"attn_mask$", r"^data_preprocessor\.", r"^auxiliary_head\."),
)
"""Of a segmenter whose head is mmsegmentation's own, which has no second head."""

KEYMAPS: Mapping[str, KeyMap] = (
    {name: _segmenter(renames) for name, renames in HEADS.items()} | {"mmseg": BRIDGED} | mask2former.KEYMAPS
)
"""The map of each whole segmenter by its head, with a Swin of timm as the backbone that has norms on its outputs."""
