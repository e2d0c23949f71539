"""Window attention of timm's Swin and TinyViT, mended for maps of any size and for weights that change.

Shape legend: B batch, H height, W width, C channels; h, w sides of a window, N = h * w, M windows in a map.

timm decides windows and shifts for the image size that a model was built with, so a last stage of one window never
shifts, however large the map. It also shifts before it pads, so on maps that are no multiple of the window its mask
misses the seam, and opposite borders attend each other. Here every axis is shifted where the map is larger than the
window, padding comes first, and the mask is kept per size. TinyViT's table of biases is read anew on every call, so no
weights from before stay behind in evaluation mode, and gradients flow there too.

Classes are exchanged in place, so copies, pickles and names of parameters stay what they are in timm.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import beit, eva, swin_transformer, swin_transformer_v2, tiny_vit
from torch import Tensor, nn

from backbones.attention.dispatch import exporting

Size = tuple[int, int]

_BLOCKED = -100.0
"""Added to the logits of pairs that only the cyclic shift brought together, as in the official code."""


class _AnyMap:
    """Attention of a Swin block on maps of any size, with padding and shift as official detection code has them."""

    window_size: Any
    target_shift_size: Any
    attn: Any

    def _attn(self, x: Tensor) -> Tensor:
        """Attention in windows, [B, H, W, C] to the same.

        Source: Liu et al. 2021, section 3.2; padding and masks as in Swin-Transformer-Object-Detection.
        """
        height, width = x.shape[1:3]
        window = self.window_size
        down, right = (-side % step for side, step in zip((height, width), window, strict=True))
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
        shift = self._shift(height, width)
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        padded = (height + down, width + right)
        x = _windows(x, window)  # B * M, N, C
        x = self.attn(x, mask=shift_mask(x, padded, window, shift) if any(shift) else None)
        x = _map(x, padded, window)  # B, H, W, C
        if any(shift):
            x = torch.roll(x, shift, (1, 2))
        return x[:, :height, :width].contiguous() if down or right else x

    def _shift(self, height: int, width: int) -> Size:
        """Half a window in blocks that shift at all, on axes with more than one window."""
        if not any(self.target_shift_size):
            return 0, 0
        rows, columns = self.window_size
        return rows // 2 if height > rows else 0, columns // 2 if width > columns else 0


class _SwinBlock(_AnyMap, swin_transformer.SwinTransformerBlock):
    pass


class _SwinV2Block(_AnyMap, swin_transformer_v2.SwinTransformerV2Block):
    pass


class _CallsItsLayer:
    """Attention that calls its layer for queries, keys and values, once another one stands there."""

    qkv: Any

    @property
    def qkv_bias_separate(self) -> bool:
        """Whether the bias is added afterwards; else only the layer's weight is read, not an adapter around it."""
        return self.__dict__["qkv_bias_separate"] or type(self.qkv) is not nn.Linear

    @qkv_bias_separate.setter
    def qkv_bias_separate(self, separate: bool) -> None:
        self.__dict__["qkv_bias_separate"] = separate


class _SwinAttention(swin_transformer.WindowAttention):
    """Swin's attention by the fused kernel where that is faster.

    Measured on a CPU, inference of Swin-T takes a quarter less time with it. It has no gradients for the table of
    biases there, so training keeps timm's own form; so do other devices, where nothing was measured.
    """

    @property  # type: ignore[misc]
    def fused_attn(self) -> bool:
        """Whether to call the kernel of torch."""
        on_cpu = self.relative_position_bias_table.device.type == "cpu"
        return self.__dict__["fused_attn"] or (on_cpu and not torch.is_grad_enabled() and not exporting())

    @fused_attn.setter
    def fused_attn(self, fused: bool) -> None:
        self.__dict__["fused_attn"] = fused


class _SwinV2Attention(_CallsItsLayer, swin_transformer_v2.WindowAttention):
    pass


class _BeitAttention(_CallsItsLayer, beit.Attention):
    pass


class _EvaAttention(_CallsItsLayer, eva.EvaAttention):
    pass


class _TinyViTAttention(tiny_vit.Attention):
    """TinyViT's attention without a memory of its biases."""

    def get_attention_biases(self, device: torch.device) -> Tensor:
        """Biases of all pairs in a window, [heads, N, N], from the table as it is now."""
        index: Any = self.attention_bias_idxs
        return self.attention_biases.index_select(1, index.flatten()).view(-1, *index.shape)


_MENDED: dict[type, type] = {
    swin_transformer.SwinTransformerBlock: _SwinBlock,
    swin_transformer_v2.SwinTransformerV2Block: _SwinV2Block,
    swin_transformer.WindowAttention: _SwinAttention,
    swin_transformer_v2.WindowAttention: _SwinV2Attention,
    beit.Attention: _BeitAttention,
    eva.EvaAttention: _EvaAttention,
    tiny_vit.Attention: _TinyViTAttention,
}


def mend_windows(model: nn.Module) -> None:
    """Exchange the classes of window attention in a model of timm, in place."""
    for module in model.modules():
        mended = _MENDED.get(type(module))
        if mended is not None:
            module.__class__ = mended
            if isinstance(module, _AnyMap):
                module.register_buffer("attn_mask", None, persistent=False)  # that of the size it was built for


def shift_mask(x: Tensor, padded: Size, window: Size, shift: Size) -> Tensor:
    """What a cyclic shift forbids: 0 for pairs that were neighbours before it, -100 for the others.

    Args:
        x: Names device and type.
        padded: Height and width of the map, multiples of the window's.
        window: Height and width of a window.
        shift: Positions that the map was rolled up and to the left; 0 on an axis leaves it whole.

    Returns:
        [M, N, N], kept for the next call with the same arguments.
    """
    # traces and tensors of other kinds must not leave their tensors behind for later calls
    plain = type(x) is Tensor and not (torch.compiler.is_compiling() or exporting())
    build: Any = _kept_mask if plain else _mask
    mask: Tensor = build(padded, window, shift, x.device, x.dtype)
    return mask


def _mask(padded: Size, window: Size, shift: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    rows, columns = (_areas(side, step, by, device) for side, step, by in zip(padded, window, shift, strict=True))
    area = _windows((rows[:, None] * 3 + columns)[None, :, :, None], window)  # M, N, 1
    return torch.zeros((), device=device, dtype=dtype).where(area == area.transpose(1, 2), _BLOCKED)


@lru_cache(maxsize=32)
def _kept_mask(padded: Size, window: Size, shift: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # one made in inference could not serve in training
        return _mask(padded, window, shift, device, dtype)


def _areas(side: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Number of the area each position belongs to after the roll: before, 1 ahead of and 2 behind the seam."""
    places = torch.arange(side, device=device)
    return (places >= side - window).long() + (places >= side - shift).long() if shift else torch.zeros_like(places)


def _windows(x: Tensor, window: Size) -> Tensor:
    """[B, H, W, C] to [B * M, N, C], windows in row-major order."""
    batch, height, width, channels = x.shape
    rows, columns = window
    x = x.view(batch, height // rows, rows, width // columns, columns, channels)
    return x.transpose(2, 3).reshape(-1, rows * columns, channels)


def _map(x: Tensor, padded: Size, window: Size) -> Tensor:
    """[B * M, N, C] back to [B, H, W, C]."""
    (height, width), (rows, columns) = padded, window
    x = x.view(-1, height // rows, width // columns, rows, columns, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])
