"""A few small street scenes, written to disk and read as a user's own folder: for smoke tests."""

from __future__ import annotations

from pathlib import Path

from datamodules.cache import cache_folder
from datamodules.segmentation.config import GeneratedConfig
from datamodules.segmentation.sample import VERSION, write_scenes


def write_generated(config: GeneratedConfig) -> Path:
    """The scenes in the standard layout."""
    height, width = config.size
    name = f"scenes_{VERSION}_{config.images}_{height}x{width}_{config.images_seed}"
    few = -(-config.images // 4)
    counts = {"train": config.images, "val": few, "test": few}
    return write_scenes(cache_folder(config.root, "segmentation") / name, counts, (height, width), config.images_seed)
