"""Parts of ViG and ViG-H: the token mixer with gated linear attention, the gated MLP, blocks and convolutions.

Maps have their channels last, so that linear layers and norms need no copies.

Shape legend: B batch, H height, W width, C channels, T = H * W tokens in row-major order, h heads, d key channels of a
head, e = C / h value channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention.gated_linear import gated_linear_attention
from backbones.vision.layers import DropPath
from graftwork.errors import ConfigError

RANK = 16
"""Channels that the logits of the gates are made from."""
TEMPERATURE = 16.0
"""Divides the log gates: with a logit of zero the state fades to 2 ** (-1 / 16) = 0.958 per token."""
RMS_EPS = 1e-6
PATCH = 16
"""Pixels per position of the plain model."""


class GatedLinearMixer2d(nn.Module):
    """Gated linear attention over all positions in both directions, blended with what is near.

    A depthwise convolution comes first, and everything is made from its output, which also is the local branch. Both
    directions share queries, keys and values and have gates of their own. The attended and the local branch are
    normalised per head and blended by a sigmoid gate that is learned from the position.

    Source: Liao et al. 2024, "ViG", section 3. Differs: the directions are averaged in training and evaluation alike;
    the official evaluation kernel divides their sum by four, which the norm after it hides but for its epsilon.

    Args:
        width: Channels, C.
        heads: Number of heads; divides ``width`` and the key channels.
        key_ratio: Channels of queries and keys per channel.
        conv_activation: SiLU after the depthwise convolution.
        out_activation: SiLU before the output projection.

    Raises:
        ConfigError: Heads do not divide the channels.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_ratio: float = 0.5,
        conv_activation: bool = True,
        out_activation: bool = False,
    ) -> None:
        super().__init__()
        self.key_width = int(width * key_ratio)
        for name, channels in (("width", width), ("key channels", self.key_width)):
            if heads < 1 or channels < 1 or channels % heads:
                raise ConfigError(f"{name}={channels} must be a multiple of heads={heads}")
        self.heads = heads
        self.conv_activation = conv_activation
        self.out_activation = out_activation
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.qkv = nn.Linear(width, 2 * self.key_width + width, bias=False)
        self.gate = nn.Sequential(nn.Linear(width, RANK, bias=False), nn.Linear(RANK, 2 * self.key_width))
        self.blend = nn.Linear(width, width)
        self.read_norm = nn.RMSNorm(width // heads, eps=RMS_EPS)
        self.local_norm = nn.RMSNorm(width // heads, eps=RMS_EPS)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to the same."""
        size = x.shape[1:3]
        near = self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)  # B, T, C
        if self.conv_activation:
            near = F.silu(near)
        heads = (self.heads, -1)
        q, k, v = (part.unflatten(-1, heads) for part in self.qkv(near).split(self._widths(), dim=-1))
        ahead, back = (gate.unflatten(-1, heads) for gate in self.log_gates(near).chunk(2, dim=-1))
        read, _ = gated_linear_attention(q, k, v, ahead, backward_gate=back)  # B, T, h, e
        read, local = self.read_norm(read), self.local_norm(near.unflatten(-1, heads))
        mixed = local + torch.sigmoid(self.blend(near)).unflatten(-1, heads) * (read - local)
        if self.out_activation:
            mixed = F.silu(mixed)
        out: Tensor = self.out(mixed.flatten(-2)).unflatten(1, size)
        return out

    def log_gates(self, x: Tensor) -> Tensor:
        """Log gates of both directions, the forward ones first, [B, T, 2 * h * d]; never in half precision."""
        logits: Tensor = self.gate(x)
        return F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32))) / TEMPERATURE

    def _widths(self) -> list[int]:
        return [self.key_width, self.key_width, self.local.out_channels]

    def reset(self) -> None:
        """Small Xavier weights and zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, gain=2**-2.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class SwiGLU(nn.Module):
    """Gated MLP: SiLU of one half of the hidden channels times the other, [N, width] to [N, width].

    Args:
        width: Channels.
        hidden: Hidden channels, of each half.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * hidden, bias=False)
        self.contract = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of every position by itself."""
        gate, value = self.expand(x).chunk(2, dim=-1)
        mixed: Tensor = self.contract(F.silu(gate) * value)
        return mixed


def hidden_width(width: int, multiple: int, ratio: float = 4.0) -> int:
    """Hidden channels of a :class:`SwiGLU`: two thirds of ``ratio`` times the width, rounded up to a multiple."""
    return -(-int(2 * int(width * ratio) / 3) // multiple) * multiple


class ViGBlock(nn.Module):
    """Two residual branches behind norms: token mixer and gated MLP, [B, H, W, C] to the same.

    Args:
        mixer: The token mixer.
        mlp: The MLP.
        norms: Norm of each branch.
        drop_path: Share of samples that skip a branch.
    """

    def __init__(
        self, mixer: GatedLinearMixer2d, mlp: SwiGLU, norms: tuple[nn.Module, nn.Module], drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = norms
        self.mixer = mixer
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions, then channels."""
        x = x + self.drop_path(self.mixer(self.mixer_norm(x)))
        x = x + self.drop_path(self.mlp(self.mlp_norm(x)))
        return x


class NormedConvolution(nn.Module):
    """A convolution with a step of two, bias, and a layer norm after it, [B, H, W, narrow] to [B, H', W', wide].

    Args:
        narrow: Channels in.
        wide: Channels out.
        kernel: Side of the kernel.
        stride: Step of the kernel; the padding is one position on each side.
    """

    def __init__(self, narrow: int, wide: int, kernel: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(narrow, wide, kernel, stride=stride, padding=1)
        self.norm = nn.LayerNorm(wide)

    def forward(self, x: Tensor) -> Tensor:
        """Fewer positions with more channels."""
        normed: Tensor = self.norm(self.convolve(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return normed

    def convolve(self, x: Tensor) -> Tensor:
        """[B, narrow, H, W] to [B, wide, H', W']."""
        convolved: Tensor = self.conv(x)
        return convolved


class PatchConvolution(NormedConvolution):
    """The first convolution of the plain model: nine pixels wide, two positions for every patch of sixteen pixels.

    By itself it leaves out the last patch where less than seven pixels of that are there; zeros stand for the others.

    Args:
        in_channels: Channels of the images.
        wide: Channels out.
    """

    def __init__(self, in_channels: int, wide: int) -> None:
        super().__init__(in_channels, wide, kernel=9, stride=8)

    def convolve(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, wide, H', W'], for ceil(H / 16) patches after one more step of two."""
        if all(isinstance(side, int) and (side % PATCH == 0 or side % PATCH >= 7) for side in x.shape[2:]):
            return super().convolve(x)
        convolved = super().convolve(F.pad(x, (0, 7, 0, 7)))
        for axis in (2, 3):  # by index, as a graph that leaves the side open must not depend on how it divides
            count = x.shape[axis] // PATCH + (x.shape[axis] + PATCH - 1) // PATCH
            convolved = convolved.index_select(axis, torch.arange(count, device=x.device))
        return convolved


class ConvolutionStem(nn.Module):
    """Two normed convolutions with an activation between them, images [B, in_channels, H, W] to [B, H', W', width].

    Args:
        first: The first convolution, to half the channels.
        activation: Between the convolutions.
        width: Channels out.
    """

    def __init__(self, first: NormedConvolution, activation: nn.Module, width: int) -> None:
        super().__init__()
        self.first = first
        self.activation = activation
        self.second = NormedConvolution(width // 2, width)

    def forward(self, images: Tensor) -> Tensor:
        """From pixels to the first level."""
        x: Tensor = self.second(self.activation(self.first(images.permute(0, 2, 3, 1))))
        return x
