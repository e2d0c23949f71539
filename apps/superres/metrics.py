"""Scores of restored images over a whole split, as papers report them, beside the image as it was or bicubic resizing.

Shape legend: B batch, C channels, H, W sides of the originals; h, w of the degraded images; K scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from apps.superres.quality import WINDOW, psnr, psnr_b, ssim
from datamodules.superres.bicubic import imresize
from datamodules.superres.degradations.mosaic import interpolated
from datamodules.superres.info import RestorationInfo

CEILING = 100.0
"""dB that a higher PSNR counts as, so that an image restored without any error does not make the mean infinite."""

MOST_ROWS = 500
"""Images of the table; of more, those with the lowest PSNR are shown."""

NAME_BYTES = 96
"""Of a name that the table keeps: names travel between processes as numbers."""


class ImageScores(Metric):
    """Scores of every image, gathered over processes; of one that comes again, as in place of a corrupt one, the first.

    Args:
        scores: Scores per image, K.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor] | Tensor
    names: list[Tensor] | Tensor

    def __init__(self, scores: int) -> None:
        super().__init__()
        self.scores = scores
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("names", default=[], dist_reduce_fx="cat")

    def update(self, indices: Tensor, names: Sequence[str], scores: Tensor) -> None:
        """Add images.

        Args:
            indices: Number of each in the split, [B].
            names: Name of each.
            scores: [B, K].
        """
        rows = torch.cat([indices.to(scores.device).double()[:, None], scores.detach().double()], dim=1)
        self.rows.append(rows)  # type: ignore[union-attr]
        self.names.append(_as_bytes(names).to(rows.device))  # type: ignore[union-attr]

    def compute(self) -> tuple[list[str], Tensor]:
        """Names, and scores [N, K] float64, in the order of the split."""
        if not len(self.rows):
            return [], torch.zeros(0, self.scores, dtype=torch.float64)
        rows, names = dim_zero_cat(self.rows).cpu(), dim_zero_cat(self.names).cpu()
        order = rows[:, 0].argsort(stable=True)
        order = order[rows[order, 0].diff(prepend=rows.new_full((1,), -1)) > 0]
        return _as_text(names[order]), rows[order, 1:]

    @property
    def seen(self) -> int:
        """Images of this process."""
        return len({index for rows in self.rows for index in rows[:, 0].tolist()})


class RestorationMetrics(nn.Module):
    """Metric suite of one split, with the trivial restoration of the same images beside.

    ``psnr`` and ``ssim`` follow the papers on the degradation: luma without a border of as many pixels as the scale for
    super-resolution, all channels for noise, blur and compression. Both are means over images of the scores of 8-bit
    images; a PSNR above :data:`CEILING`, as that of an image restored exactly, counts as this much. Where luma is
    scored ``psnr_rgb`` is that of all channels; ``psnr_b`` counts the blocking of JPEG too. The baseline is bicubic
    resizing for super-resolution, bilinear interpolation for mosaics, the degraded image itself for the others; it is
    computed once for each image, because evaluation degrades an image in the same way each time.

    Args:
        info: Scale, degradation and protocol of the data.
        thorough: Also the SSIM of all channels where luma is scored, which takes three times as long as that of luma.
    """

    def __init__(self, info: RestorationInfo, thorough: bool = False) -> None:
        super().__init__()
        self.info = info
        in_luma = info.colour == "y" and info.channels == 3
        self.columns = ["psnr", "ssim", *(["psnr_rgb"] if in_luma else [])]
        self.columns += ["ssim_rgb"] if in_luma and thorough else []
        self.columns += ["psnr_b"] if info.degradation == "jpeg" else []
        self.ours, self.trivial = ImageScores(len(self.columns)), ImageScores(len(self.columns))
        self._known: dict[int, Tensor] = {}

    def update(self, batch: Mapping[str, Any], prediction: Tensor) -> None:
        """Add one batch.

        Args:
            batch: ``lq`` [B, c, h, w], ``gt`` [B, C, H, W], ``index`` [B]; ``name`` if there is one.
            prediction: [B, C, H, W], not clamped; it is left as it is.
        """
        indices: Tensor = batch["index"]
        names = batch.get("name") or [str(index) for index in indices.tolist()]
        scores = self.scored(prediction, batch["gt"])
        self.ours.update(indices, names, scores)
        self.trivial.update(indices, names, self._trivial_scores(batch).to(scores.device))

    def scored(self, images: Tensor, originals: Tensor) -> Tensor:
        """Scores of images, in the order of ``columns``: [B, K] float64, PSNR up to :data:`CEILING`.

        NaN where an image is too small for SSIM; the border of an image that has nothing else is scored.
        """
        border, colour = self.info.border, self.info.colour
        height, width = originals.shape[-2:]
        border = border if min(height, width) > 2 * border else 0
        wide_enough = min(height, width) - 2 * border >= WINDOW
        found: dict[str, Tensor] = {}
        for name in self.columns:
            measure = {"psnr": psnr, "ssim": ssim, "psnr_b": psnr_b}[name.removesuffix("_rgb")]
            seen_in = "rgb" if name.endswith("_rgb") else colour
            if measure is not ssim:
                found[name] = measure(images, originals, border=border, colour=seen_in).clamp(max=CEILING)
            elif wide_enough:
                found[name] = ssim(images, originals, border=border, colour=seen_in)
            else:
                found[name] = torch.full_like(found["psnr"], math.nan)
        return torch.stack([found[name] for name in self.columns], dim=1)

    def _trivial_scores(self, batch: Mapping[str, Any]) -> Tensor:
        indices = batch["index"].tolist()
        if any(index not in self._known for index in indices):
            scores = self.scored(trivial(batch["lq"], self.info), batch["gt"])
            self._known.update(zip(indices, scores.cpu(), strict=True))
        return torch.stack([self._known[index] for index in indices])

    def compute(self) -> dict[str, float]:
        """Means over images of the restored ones."""
        return self._means(self.ours)

    def baseline(self) -> dict[str, float]:
        """The same of the trivial restoration."""
        return self._means(self.trivial)

    def _means(self, scores: ImageScores) -> dict[str, float]:
        rows = scores.compute()[1]
        return {name: float(rows[:, i].nanmean()) for i, name in enumerate(self.columns)}

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Scores of each image, ours and the baseline's."""
        names, ours = self.ours.compute()
        other = self.trivial.compute()[1]
        shown, title = list(range(len(names))), "scores by image"
        if len(names) > MOST_ROWS:
            shown, title = ours[:, 0].argsort(stable=True)[:MOST_ROWS].tolist(), f"{MOST_ROWS} images of lowest psnr"
        rows = [
            {"image": names[i]}
            | {heading(name): _plain(ours[i, k]) for k, name in enumerate(self.columns)}
            | {f"{heading(name)} of baseline": _plain(other[i, k]) for k, name in enumerate(self.columns[:2])}
            for i in shown
        ]
        return {title: rows} if rows else {}

    def count(self) -> int:
        """Images seen by this process."""
        return self.ours.seen

    def reset(self) -> None:
        """Forget the images; scores of the trivial restoration are kept for the next time."""
        self.ours.reset()
        self.trivial.reset()


def trivial(degraded: Tensor, info: RestorationInfo) -> Tensor:
    """What needs no model: bicubic resizing, bilinear demosaicing, or nothing at all.

    Args:
        degraded: [B, c, h, w].
        info: Scale and degradation.

    Returns:
        [B, C, H, W], not clamped.
    """
    if info.pattern:
        with torch.autocast(degraded.device.type, enabled=False):
            return interpolated(degraded.float(), info.pattern)
    return imresize(degraded, info.scale) if info.scale > 1 else degraded


def heading(metric: str) -> str:
    """How a table names a score: ``PSNR``, ``SSIM (RGB)``, ``PSNR-B``."""
    return {"psnr_b": "PSNR-B", "psnr_rgb": "PSNR (RGB)", "ssim_rgb": "SSIM (RGB)"}.get(metric, metric.upper())


def _plain(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)


def _as_bytes(names: Sequence[str]) -> Tensor:
    """[B, NAME_BYTES] uint8, filled up with zeros."""
    rows = [name.encode(errors="replace")[:NAME_BYTES].ljust(NAME_BYTES, b"\0") for name in names]
    return torch.tensor([list(row) for row in rows], dtype=torch.uint8).view(len(rows), NAME_BYTES)


def _as_text(rows: Tensor) -> list[str]:
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows.tolist()]
