"""The embedded default: rendered street scenes, written once as a folder of images with panoptic labels.

The scenes come from :mod:`datamodules.segmentation.scenes`; nobody has rights in them. They are read through the
standard folder layout: ``images/<split>/<number>.png``, ``masks/<split>/<number>.png`` with numbers of segments as
colours, and ``masks/<split>/panoptic.json`` in COCO's format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.cache import cache_folder, write_folder
from datamodules.segmentation.scenes import NAMES, PALETTE, THINGS, Scene, draw_scene

SIZE = (96, 160)
"""Height and width of the images, in pixels."""

COUNTS = {"train": 120, "val": 20, "test": 20}
VERSION = 1
"""Counted up when the renderer changes, so that older folders are not taken for new ones."""

_PER_CLASS = 1000


def write_sample(root: str | None) -> Path:
    """The default scenes as a folder in the standard layout.

    Args:
        root: Folder to make theirs in; a temporary one if None.

    Raises:
        DataError: The folder cannot be written.
    """
    return write_scenes(cache_folder(root, "segmentation") / f"streets_{VERSION}", COUNTS, SIZE, 0)


def write_scenes(folder: Path, counts: Mapping[str, int], size: tuple[int, int], seed: int) -> Path:
    """Rendered scenes as a folder in the standard layout; one that is complete already is taken as it is.

    Args:
        folder: The folder; its name must tell what is in it.
        counts: Images of each split.
        size: Height and width of the images, in pixels.
        seed: Of what is drawn; each scene is a function of seed, split and number.

    Raises:
        DataError: The folder cannot be written.
    """

    def write(place: Path) -> None:
        for stream, (split, count) in enumerate(counts.items()):
            _write_split(place, split, count, size, (seed, stream))

    return write_folder(folder, write, files=2 * sum(counts.values()) + len(counts))


def _write_split(root: Path, split: str, count: int, size: tuple[int, int], seed: tuple[int, int]) -> None:
    images, masks = root / "images" / split, root / "masks" / split
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        scene = draw_scene(random, *size)
        name = f"{number:04d}.png"
        Image.fromarray(scene.image).save(images / name, compress_level=1)
        ids = segment_ids(scene)
        Image.fromarray(_as_colours(scene, ids)).save(masks / name)
        listed.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        annotations.append({"image_id": number, "file_name": name, "segments_info": _infos(scene, ids)})
    content = {"images": listed, "annotations": annotations, "categories": _categories()}
    (masks / "panoptic.json").write_text(json.dumps(content), encoding="utf-8")


def segment_ids(scene: Scene) -> list[int]:
    """A number for each segment: a thousand times the class, counted from 1, and the number within the class."""
    ids: list[int] = []
    for place, label in enumerate(scene.classes):
        ids.append((label + 1) * _PER_CLASS + scene.classes[:place].count(label))
    return ids


def _as_colours(scene: Scene, ids: list[int]) -> Any:
    numbers = np.array([*ids, 0])[scene.segments]  # void, -1, takes the last
    return np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16], axis=-1).astype(np.uint8)


def _infos(scene: Scene, ids: list[int]) -> list[dict[str, Any]]:
    counts = np.bincount(scene.segments[scene.segments >= 0], minlength=len(ids)).tolist()
    return [
        {"id": number, "category_id": label + 1, "iscrowd": 0, "area": area}
        for number, label, area in zip(ids, scene.classes, counts, strict=True)
    ]


def _categories() -> list[dict[str, Any]]:
    return [
        {"id": label + 1, "name": name, "isthing": int(label in THINGS), "color": list(PALETTE[label])}
        for label, name in enumerate(NAMES)
    ]
