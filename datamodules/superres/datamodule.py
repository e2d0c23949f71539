"""The datamodule of images to restore: patches and whole images behind resumable loaders."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from datamodules.base import TaskDataModule
from datamodules.findings import Finding
from datamodules.superres.benchmark import find_benchmark
from datamodules.superres.config import ImagesConfig
from datamodules.superres.dataset import EvaluationImages, RestorationImages, Sample, TrainingPatches
from datamodules.superres.degradations.config import DEGRADATIONS, MosaicConfig
from datamodules.superres.info import RestorationInfo
from datamodules.superres.layout import Layout
from datamodules.superres.store import PixelStore, store_folder
from graftwork.errors import ConfigError

logger = logging.getLogger(__name__)


class RestorationData(TaskDataModule):
    """Pairs of degraded and original images.

    Args:
        config: Which data, degradation, sizes and loaders.
        seed: Seed of the order, the patches and the degradation of the training images.
    """

    def __init__(self, config: ImagesConfig, seed: int = 0) -> None:
        super().__init__(
            seed=seed,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            num_workers=config.num_workers,
            on_corrupt=config.on_corrupt,
        )
        self.config = config
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """Images of each split, found on first use.

        Raises:
            ConfigError: The options contradict each other.
            DataError: The images are missing or unsuitable.
        """
        if self._layout is None:
            self._layout = find_images(self.config)
        return self._layout

    @property
    def info(self) -> RestorationInfo:
        """What models, metrics and predictors need to know."""
        return data_info(self.config, self.layout.root.name)

    def datasets(self) -> Mapping[str, RestorationImages]:
        """Patches to train on, whole images to evaluate on.

        Raises:
            DataError: The data is missing or unsuitable.
        """
        config, layout = self.config, self.layout
        for split in layout.cut:
            logger.info("%s: %d images of the training images", split, len(layout.splits[split]))
        found: dict[str, RestorationImages] = {}
        for split, pairs in layout.splits.items():
            if split == "train":
                store = PixelStore(store_folder(config.cache, pairs, config.channels), config.channels)
                found[split] = TrainingPatches(pairs, config, store, self.seed)
            else:
                found[split] = EvaluationImages(pairs, config, PixelStore(None, config.channels))
        return found

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Samples of one size as a batch; names become a list.

        Raises:
            ConfigError: Their sizes differ.
        """
        sizes = {tuple(sample["lq"].shape[1:]) for sample in samples}
        if len(sizes) > 1:
            one, other = (f"{height} x {width}" for height, width in sorted(sizes)[:2])
            raise ConfigError(
                f"data.eval_batch_size={self.eval_batch_size} puts images of {one} and {other} pixels into one batch",
                mend="Set --data.eval_batch_size 1, or --data.eval_patch to a side that all images have",
            )
        batch: dict[str, Any] = default_collate(list(samples))
        return batch

    @property
    def sample_spec(self) -> dict[str, str]:
        """Shape, dtype, unit and range of each key of a sample."""
        info = self.info
        small, large = info.patch, info.patch * info.scale
        free = ", may leave it" if info.degradation in ("gaussian_noise", "gaussian_blur", "motion_blur") else ""
        return {
            "lq": f"[{info.degraded_channels}, {small}, {small}] float32, degraded, from 0 to 1{free}; "
            "evaluation has whole images",
            "gt": f"[{info.channels}, {large}, {large}] float32, original, from 0 to 1",
            "name": "text, name of the image",
            "index": "[] int64, number of the sample in its split",
        }

    def plot(self, sample: Mapping[str, Any]) -> Any:
        """The degraded image beside the original, as a matplotlib figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.2), layout="constrained")
        titles = (("lq", self.info.degradation.replace("_", " ")), ("gt", str(sample.get("name", "original"))))
        for axis, (key, title) in zip(figure.subplots(1, 2), titles, strict=True):
            axis.imshow(picture(torch.as_tensor(sample[key])), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
        return figure

    def inspect(self) -> list[Finding]:
        """What ``doctor`` says about the data, file by file; a broken file becomes a finding, not an error."""
        from datamodules.superres.inspect import inspect_images

        return inspect_images(self.config)


def find_images(config: ImagesConfig) -> Layout:
    """Images of each split, those of ``val_root`` and ``test_root`` in place of the data's own.

    Raises:
        ConfigError: The options contradict each other.
        DataError: The images are missing or unsuitable.
    """
    config.check()
    layout = config.find()
    splits = dict(layout.splits)
    for split, root in (("val", config.val_root), ("test", config.test_root)):
        if root is not None:
            splits[split] = find_benchmark(root, config, f"data.{split}_root").splits["test"]
    return replace(layout, splits=splits)


def data_info(config: ImagesConfig, dataset: str) -> RestorationInfo:
    """What the configuration says of the data.

    Args:
        config: The dataset.
        dataset: Name for titles.
    """
    degradation = config.degradation
    inputs = degradation.input_channels(config.channels)
    return RestorationInfo(
        scale=degradation.scale,
        channels=config.channels,
        degradation=DEGRADATIONS.name_of(degradation),
        input_channels=0 if inputs == config.channels else inputs,
        pattern=degradation.pattern if isinstance(degradation, MosaicConfig) else "",
        period=degradation.period,
        colour=config.colour,
        border=config.border,
        patch=config.patch,
        dataset=dataset,
    )


def picture(image: Tensor) -> Any:
    """An image [C, H, W] as an array to show: [H, W, 3], or [H, W] for any other number of channels, their mean."""
    shown = image.detach().cpu().float().clamp(0, 1)
    return shown.permute(1, 2, 0).numpy() if len(shown) == 3 else shown.mean(0).numpy()
