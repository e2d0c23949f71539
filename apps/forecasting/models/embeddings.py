"""Embeddings of time steps: observed values, position, and calendar.

Source: Zhou et al. 2021 (Informer), appendix B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

TABLE_SIZES = {"month": 13, "day": 32, "weekday": 7, "hour": 24, "minute": 4}
"""Rows of the calendar tables, in the order of the integer marks; minute is minute // 15."""


def sinusoid_table(length: int, width: int) -> Tensor:
    """Fixed positions, [length, width]: even channels sine, odd ones cosine, wavelengths up to 10000 * 2 pi."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rates)
    table[:, 1::2] = torch.cos(position * rates[: width // 2])
    return table


class PositionTable(nn.Module):
    """Adds fixed sine and cosine positions.

    Args:
        length: Longest sequence.
        width: D.
    """

    table: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", sinusoid_table(length, width), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] plus the positions of its L steps."""
        return tokens + self.table[: tokens.shape[1]]


class ValueEmbedding(nn.Module):
    """Circular convolution over three steps; the first step sees the last one as its left neighbour.

    Args:
        variates: N.
        width: D.
        bias: Whether the convolution has one.
    """

    def __init__(self, variates: int, width: int, bias: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(variates, width, kernel_size=3, bias=bias)
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_in", nonlinearity="leaky_relu")

    def forward(self, values: Tensor) -> Tensor:
        """[B, L, N] to [B, L, D]."""
        ring = torch.cat([values[:, -1:], values, values[:, :1]], dim=1)
        embedded: Tensor = self.convolution(ring.transpose(1, 2))
        return embedded.transpose(1, 2)


class CalendarEmbedding(nn.Module):
    """Embeds the calendar of each step.

    Args:
        kind: ``timeF``: a Linear on real features; ``fixed`` and ``learned``: the sum of one table row per integer
            mark, sinusoidal and never trained, or trained.
        marks: M, number of real features (``timeF`` only).
        width: D.
        frequency: Pandas-like letter; the minute table exists for ``t`` (and ``15min``) only.
        bias: Whether the Linear has one.
    """

    def __init__(
        self, kind: Literal["timeF", "fixed", "learned"], marks: int, width: int, frequency: str, bias: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(marks, width, bias=bias) if kind == "timeF" else None
        self.tables = nn.ModuleDict()
        if kind == "timeF":
            return
        for name in calendar_tables(frequency):
            rows = sinusoid_table(TABLE_SIZES[name], width)
            learned = nn.Embedding(TABLE_SIZES[name], width)
            self.tables[name] = learned if kind == "learned" else nn.Embedding.from_pretrained(rows, freeze=True)

    def forward(self, marks: Tensor) -> Tensor:
        """Real features [B, L, M], or integer marks (month, day, weekday, hour, minute // 15), to [B, L, D]."""
        if self.linear is not None:
            embedded: Tensor = self.linear(marks)
            return embedded
        whole = marks.long()
        columns = {name: column for column, name in enumerate(TABLE_SIZES)}
        rows = [table(whole[..., columns[name]]) for name, table in self.tables.items()]
        return torch.stack(rows).sum(dim=0)


def calendar_tables(frequency: str) -> Mapping[str, int]:
    """The tables a sampling frequency uses: all but the minute, and that too for series sampled in minutes."""
    in_minutes = re.fullmatch(r"\d*(t|min)", frequency.lower()) is not None
    return {name: rows for name, rows in TABLE_SIZES.items() if name != "minute" or in_minutes}


class StepEmbedding(nn.Module):
    """Value, calendar and position embeddings of a time step, summed.

    Args:
        variates: N.
        width: D.
        calendar: Embedding of the calendar; None for series without dates.
        length: Longest sequence; 0 for no positions.
        bias: Whether the value convolution has a bias.
        dropout: Dropout of the sum.
    """

    def __init__(
        self, variates: int, width: int, calendar: CalendarEmbedding | None, length: int, bias: bool, dropout: float
    ) -> None:
        super().__init__()
        self.value = ValueEmbedding(variates, width, bias)
        self.calendar = calendar
        self.position = PositionTable(length, width) if length else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, marks: Tensor | None) -> Tensor:
        """[B, L, N] and [B, L, M] to [B, L, D]; without marks the calendar term is left out."""
        tokens: Tensor = self.value(values)
        if marks is not None and self.calendar is not None:
            tokens = tokens + self.calendar(marks)
        if self.position is not None:
            tokens = self.position(tokens)
        embedded: Tensor = self.dropout(tokens)
        return embedded
