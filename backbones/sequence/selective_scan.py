"""Mixer with a selective state space: the block of Mamba (v1), causal and streaming, or in both directions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.attention.selective_scan import selective_scan
from backbones.sequence.base import Mixer
from graftwork.errors import ShapeError

# B batch, L tokens, C width, E = expand * C inner channels, n states per channel, r rank of the step size, w kernel.

STEP_MIN, STEP_MAX, STEP_FLOOR = 1e-3, 1e-1, 1e-4


class MambaState(NamedTuple):
    """What the block remembers of the tokens before.

    Attributes:
        conv: The last inputs of the convolution, the latest last, [B, E, w].
        ssm: State of the scan, [B, E, n], float32.
    """

    conv: Tensor
    ssm: Tensor


class SelectiveScanMixer(Mixer):
    """The block of Mamba: gate, causal depthwise convolution and a scan whose coefficients depend on the token.

    Parameter names are those of the official checkpoints. It is causal and streams (step by step equals one pass)
    unless ``bidirectional``: then a second block ``reverse`` reads the tokens backwards and the outputs are added,
    y = f(x) + flip(r(flip(x))). Hidden tokens of a ``mask`` are empty inputs of the convolution and leave the state
    as it is, so sequences padded at either end give the result of the unpadded ones.

    Args:
        width: Channels of the tokens.
        state_size: Numbers of state per inner channel.
        kernel: Width of the convolution, in tokens.
        expand: Inner channels per channel.
        bidirectional: Add the reverse block.
        causal: Accepted for the common interface; the block is causal unless ``bidirectional``.
        rank: Channels the step size is made from; ceil(width / 16) if omitted.
        conv_bias: Whether the convolution has a bias.
        bias: Whether the projections into and out of the block have one.

    Source: Gu and Dao 2023, section 3.4; reverse block: Wang et al. 2024 (S-Mamba).
    """

    def __init__(
        self,
        width: int,
        state_size: int = 16,
        kernel: int = 4,
        expand: int = 2,
        bidirectional: bool = False,
        causal: bool = False,
        *,
        rank: int | None = None,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(width, causal=not bidirectional)
        self.supports_state = not bidirectional
        self.kernel = kernel
        self.state_size = state_size
        inner = expand * width
        self.rank = rank or math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=bias)
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner, bias=conv_bias)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, state_size + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=bias)
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self._reset_steps()
        self.reverse: SelectiveScanMixer | None = None
        if bidirectional:
            self.reverse = SelectiveScanMixer(
                width, state_size, kernel, expand, rank=rank, conv_bias=conv_bias, bias=bias
            )

    def _reset_steps(self) -> None:
        """Start with step sizes that are log-uniform between STEP_MIN and STEP_MAX."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = math.log(STEP_MIN), math.log(STEP_MAX)
        steps = torch.exp(torch.rand_like(self.dt_proj.bias) * (high - low) + low).clamp(min=STEP_FLOOR)
        with torch.no_grad():  # softplus(bias) = step
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        state: MambaState | None = None,
    ) -> tuple[Tensor, Any]:
        """Mix the tokens, see :meth:`Mixer.forward`."""
        self.check_inputs(x, memory, mask, state)
        if mask is not None and mask.shape[1] != x.shape[1]:
            raise ShapeError(f"mask of SelectiveScanMixer: expected {list(x.shape[:2])}, got {list(mask.shape)}")
        y, after = self._scan(x, mask, state)
        if self.reverse is None:
            return y, after
        backwards, _ = self.reverse._scan(x.flip(1), None if mask is None else mask.flip(1), None)
        return y + backwards.flip(1), None

    def _scan(self, x: Tensor, mask: Tensor | None, state: MambaState | None) -> tuple[Tensor, MambaState]:
        inputs, gate = self.in_proj(x).chunk(2, dim=-1)  # B, L, E
        if mask is not None:
            inputs = inputs * mask[:, :, None]
        inputs, window = self._convolve(inputs, None if state is None else state.conv)
        low, b, c = self.x_proj(inputs).split([self.rank, self.state_size, self.state_size], dim=-1)
        steps = F.softplus(self.dt_proj(low))  # B, L, E
        if mask is not None:
            steps = steps * mask[:, :, None]  # a step of 0 changes nothing
        rates = -torch.exp(self.A_log.float() if self.A_log.dtype != torch.float64 else self.A_log)
        ssm = None if state is None else state.ssm
        y, ssm = selective_scan(inputs, steps, rates, b, c, D=self.D, state=ssm)
        return self.out_proj(y * F.silu(gate)), MambaState(window, ssm)

    def _convolve(self, inputs: Tensor, window: Tensor | None) -> tuple[Tensor, Tensor]:
        """Causal convolution and SiLU of [B, L, E], and the last ``kernel`` inputs, [B, E, w]."""
        series = inputs.transpose(1, 2)
        if window is None:
            window = series.new_zeros(*series.shape[:2], self.kernel)
        series = torch.cat([window.to(series.dtype), series], dim=2)  # B, E, w + L
        mixed = F.silu(self.conv1d(series[:, :, 1:])).transpose(1, 2)
        return mixed, series[:, :, -self.kernel :]
