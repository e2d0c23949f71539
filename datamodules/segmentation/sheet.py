"""Pictures of labels: colours of classes, overlays, and a sheet of images to look a dataset over.

Shape legend: H, W sides of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.segmentation.config import LabelledConfig
from datamodules.segmentation.info import SegmentationInfo
from datamodules.segmentation.transforms import restored

IGNORED_COLOUR = (0, 0, 0)
_TILE, _LINE = 240, 14


def coloured(mask: NDArray[Any], palette: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
    """Labels [H, W] as the colours of their classes, [H, W, 3]; ignored pixels are black."""
    table = np.tile(np.array(IGNORED_COLOUR, dtype=np.uint8), (256, 1))
    table[: len(palette)] = np.asarray(palette, dtype=np.uint8).reshape(-1, 3)
    return table[mask.astype(np.uint8)]


def outlines(segments: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels [H, W] whose right or lower neighbour belongs to another segment."""
    edges = np.zeros(segments.shape, dtype=bool)
    edges[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    edges[:-1] |= segments[:-1] != segments[1:]
    return edges


def overlaid(sample: Mapping[str, Any], info: SegmentationInfo, strength: float = 0.0) -> NDArray[np.uint8]:
    """The image of a sample, [H, W, 3], with the colours of its labels over it.

    Args:
        sample: As a dataset gives it.
        info: Scale and colours.
        strength: Share of the labels' colours, from 0 (the image alone) to 1; segments get white outlines if above 0.
    """
    pixels = restored(torch.as_tensor(sample["image"]), info).permute(1, 2, 0).numpy()  # H, W, C
    shown = np.rint(255 * np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    if strength:
        mask = torch.as_tensor(sample["mask"]).numpy()
        known = (mask < len(info.classes))[..., None]
        shown = np.where(known, (1 - strength) * shown + strength * coloured(mask, info.palette), shown)
        if "segments" in sample:
            shown[outlines(torch.as_tensor(sample["segments"]).numpy())] = 255
    return np.asarray(shown, dtype=np.uint8)


def contact_sheet(config: LabelledConfig, path: Path, split: str = "train", images: int = 12, seed: int = 0) -> Path:
    """A picture of some samples of a split, image over labels, with the colours of all classes below.

    Args:
        config: The dataset.
        path: File to write, PNG.
        split: Training samples are shown as the model sees them, augmented.
        images: At most so many, evenly spread over the split.
        seed: Of the augmentation.

    Raises:
        DataError: The data is missing or unsuitable, or has no such split.
    """
    data = config.build(seed)
    data.setup()
    dataset = data.split(split)
    numbers = np.unique(np.linspace(0, len(dataset) - 1, images).astype(int)).tolist()
    fetched = dataset.__getitems__([(0, number) for number in numbers])  # without corrupt files where they are skipped
    if fetched.error is not None:
        raise fetched.error
    pairs = [_tile(sample, data.info) for sample in fetched.content]
    across = min(4, len(pairs))
    tall = max(pair.height for pair in pairs)
    rows = -(-len(pairs) // across)
    legend = _legend(data.info, across * _TILE)
    sheet = Image.new("RGB", (across * _TILE, rows * tall + legend.height), "white")
    for place, pair in enumerate(pairs):
        sheet.paste(pair, (place % across * _TILE, place // across * tall))
    sheet.paste(legend, (0, rows * tall))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _tile(sample: Mapping[str, Any], info: SegmentationInfo) -> Image.Image:
    """Image over labels, with the name on top."""
    pictures = [Image.fromarray(overlaid(sample, info)), Image.fromarray(overlaid(sample, info, 0.6))]
    width = _TILE - 4
    height = max(1, round(width * pictures[0].height / pictures[0].width))
    tile = Image.new("RGB", (_TILE, _LINE + 2 * (height + 2) + 4), "white")
    ImageDraw.Draw(tile).text((2, 1), str(sample["name"])[-36:], fill="black")
    for place, picture in enumerate(pictures):
        tile.paste(picture.resize((width, height)), (2, _LINE + place * (height + 2)))
    return tile


def _legend(info: SegmentationInfo, width: int) -> Image.Image:
    across = max(1, width // 160)
    rows = -(-len(info.classes) // across)
    legend = Image.new("RGB", (width, rows * (_LINE + 4) + 6), "white")
    draw = ImageDraw.Draw(legend)
    for label, (name, colour) in enumerate(zip(info.classes, info.palette, strict=True)):
        left, top = 4 + label % across * 160, 4 + label // across * (_LINE + 4)
        draw.rectangle((left, top, left + 12, top + 12), fill=colour, outline="black")
        draw.text((left + 18, top + 1), f"{label} {name}"[:24], fill="black")
    return legend
