"""Pictures and sounds inside the page itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from apps.core.report.numbers import number, size
from apps.core.report.read import Medium

KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
}


class Budget:
    """Bytes of media that the page may still take in; what no longer fits is named instead of shown.

    Args:
        left: Bytes of the files, before encoding.
    """

    def __init__(self, left: int = 12_000_000) -> None:
        self.left = left

    def take(self, count: int) -> bool:
        """Take ``count`` bytes if they fit."""
        if count > self.left:
            return False
        self.left -= count
        return True


def gallery(media: Sequence[Medium], budget: Budget) -> str:
    """Figures for the files, in order; nothing for no files."""
    figures = "".join(_figure(medium, budget) for medium in media)
    return f'<div class="media">{figures}</div>' if figures else ""


def _figure(medium: Medium, budget: Budget) -> str:
    score = "" if medium.score is None else f' · <span class="score">score {number(medium.score, 3)}</span>'
    return f"<figure>{_shown(medium, budget)}<figcaption>{escape(medium.caption)}{score}</figcaption></figure>"


def _shown(medium: Medium, budget: Budget) -> str:
    kind = KINDS.get(medium.path.suffix.lower())
    bytes_ = medium.path.stat().st_size
    name = escape(f"{medium.path.parent.name}/{medium.path.name}")
    if kind is None or not budget.take(bytes_):
        return f'<p class="over">{name}, {size(bytes_)}: not shown here, see the run folder.</p>'
    if kind.startswith("audio/"):
        return f'<audio controls preload="metadata" src="{_data(medium.path)}"></audio>'
    image = f'<img loading="lazy" alt="{escape(medium.caption)}" src="{_data(medium.path)}">'
    before = medium.before
    if before is None or before.suffix.lower() not in KINDS or not budget.take(before.stat().st_size):
        return image
    return _slider(image, f'<img alt="before" src="{_data(before)}">')


def _slider(after: str, before: str) -> str:
    """Two pictures of one size, the first one shown on the right of a bar that the reader moves."""
    move = "this.parentNode.style.setProperty('--cut',this.value+'%')"
    bar = f'<input type="range" min="0" max="100" value="50" aria-label="before and after" oninput="{move}">'
    return f'<div class="compare">{after}<div class="before">{before}</div>{bar}</div>'


def _data(path: Path) -> str:
    kind = KINDS[path.suffix.lower()]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
