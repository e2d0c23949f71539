"""The datamodule of labelled images: crops and whole images behind resumable loaders."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from datamodules.base import TaskDataModule
from datamodules.findings import Finding, listed
from datamodules.segmentation.balance import BalancedOrder, image_weights
from datamodules.segmentation.config import LabelledConfig
from datamodules.segmentation.counts import Counts, counted
from datamodules.segmentation.dataset import (
    EvaluationImages,
    LabelledImages,
    Sample,
    TrainingImages,
    collate_samples,
)
from datamodules.segmentation.info import SegmentationInfo
from datamodules.segmentation.layout import Layout, Split
from datamodules.segmentation.readable import readable
from graftwork.errors import DataError

logger = logging.getLogger(__name__)

_MOST_NAMED = 20


class SegmentationData(TaskDataModule):
    """Images whose pixels have classes, and segments where labels tell objects apart.

    Args:
        config: Which data, crops, augmentation and loaders.
        seed: Seed of the order and the augmentation of the training images.
    """

    def __init__(self, config: LabelledConfig, seed: int = 0) -> None:
        super().__init__(
            seed=seed,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            num_workers=config.num_workers,
            on_corrupt=config.on_corrupt,
        )
        self.config = config
        self._layout: Layout | None = None
        self._counts: Counts | None = None
        self._info: SegmentationInfo | None = None

    @property
    def layout(self) -> Layout:
        """Classes, images and labels of each split, found on first use.

        Raises:
            ConfigError: The options contradict each other.
            DataError: The data is missing or unsuitable.
        """
        if self._layout is None:
            self.config.check()
            self._layout = self.config.find()
        return self._layout

    @property
    def counts(self) -> Counts | None:
        """Pixels of each class of the training images; None where they are not counted.

        Raises:
            DataError: Labels do not fit an image or the classes.
        """
        if self._counts is None and self.config.count:
            layout, skip = self.layout, self.config.on_corrupt == "skip"
            self._counts = counted(layout.splits["train"], len(layout.classes.names), skip_corrupt=skip)
        return self._counts

    @property
    def info(self) -> SegmentationInfo:
        """What models, metrics and predictors need to know."""
        if self._info is None:
            self._info = data_info(self.config, self.layout, self.counts)
        return self._info

    def datasets(self) -> Mapping[str, LabelledImages]:
        """Crops to train on, whole images to evaluate on; masks of all splits are looked at here, not mid-run.

        Raises:
            DataError: The data is missing or unsuitable.
        """
        layout, info, config = self.layout, self.info, self.config
        for name in layout.cut:
            logger.info("%s: %d images of the training images", name, len(layout.splits[name]))
        if never := [name for name, pixels in zip(info.classes, info.pixels, strict=False) if not pixels]:
            text = "no training pixel is of %s: nothing can be learnt of what is never seen; 255 in masks is ignored"
            logger.warning(text, listed(never, _MOST_NAMED))
        found: dict[str, LabelledImages] = {}
        checked: dict[Split, Split] = {}  # test may be val, on purpose
        for name, split in layout.splits.items():
            if name == "train":
                found[name] = TrainingImages(split, info, config.augment, self.seed, self._order())
                continue
            if split not in checked:
                checked[split] = self._checked(name, split)
            found[name] = EvaluationImages(checked[split], info)
        return found

    def _checked(self, name: str, split: Split) -> Split:
        """A split to evaluate on whose labels fit, as far as they are looked at; without corrupt images if asked."""
        if self.config.on_corrupt == "skip":
            kept, corrupt = readable(split, self.info, name)
            for file in corrupt:
                self._skip(file)
            return kept
        if self.config.count:
            counted(split, len(self.info.classes))
        return split

    def _order(self) -> BalancedOrder | None:
        if not self.config.balance or self.counts is None:
            return None
        return BalancedOrder(image_weights(self.counts.pixels > 0, self.config.balance), self.seed)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Samples of one size as a batch; names become a list, lists of segments get the length of the longest.

        Raises:
            ConfigError: Their sizes differ.
        """
        return collate_samples(samples, self.eval_batch_size)

    @property
    def sample_spec(self) -> dict[str, str]:
        """Shape, dtype, unit and range of each key of a sample."""
        info = self.info
        sides = f"{info.crop[0]}, {info.crop[1]}"
        found = {
            "image": f"[{info.channels}, {sides}] float32, values from 0 to 1 less the mean, by the deviation; padding "
            "is 0; evaluation has whole images",
            "mask": f"[{sides}] int64, class 0 to {len(info.classes) - 1}, 255 is ignored",
            "name": "text, name of the image",
            "index": "[] int64, number of the image in its split",
            "size": "[2] int64, height and width in pixels, before padding at the bottom and on the right",
        }
        if info.panoptic:
            found["segments"] = f"[{sides}] int32, number of the segment, from 0; -1 is void"
            found["segment_classes"] = "[segments] int64, class of each; -1 where a batch has longer lists"
            found["segment_crowd"] = "[segments] bool, whether it is a group of objects"
        return found

    def plot(self, sample: Mapping[str, Any]) -> Any:
        """The image beside its labels, as a matplotlib figure."""
        from matplotlib.figure import Figure

        from datamodules.segmentation.sheet import coloured, overlaid

        figure = Figure(figsize=(8, 3.2), layout="constrained")
        mask = torch.as_tensor(sample["mask"]).numpy()
        pixels, colours = overlaid(sample, self.info), coloured(mask, self.info.palette)
        for axis, shown, title in zip(
            figure.subplots(1, 2), (pixels, colours), (str(sample.get("name", "image")), "labels"), strict=True
        ):
            axis.imshow(shown, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
        return figure

    def inspect(self) -> list[Finding]:
        """What ``doctor`` says about the data, file by file; a broken file becomes a finding, not an error."""
        from datamodules.segmentation.inspect import inspect_images

        return inspect_images(self.config)


def data_info(config: LabelledConfig, layout: Layout, counts: Counts | None = None) -> SegmentationInfo:
    """What the configuration and the files say of the data.

    Args:
        config: The dataset.
        layout: What was found.
        counts: Pixels of the training images.

    Raises:
        DataError: Segments are asked for, and a split has none.
    """
    without = [name for name, split in layout.splits.items() if not split.labels.tells_segments]
    if config.panoptic is True and without:
        mend = "Set --data.panoptic auto"
        raise DataError(f"labels of {without[0]} tell no objects apart", "data.panoptic=true", mend)
    panoptic = bool(config.panoptic) and not without
    return SegmentationInfo(
        classes=layout.classes.names,
        palette=layout.classes.palette,
        things=layout.classes.things if panoptic else (),
        panoptic=panoptic,
        crop=(config.crop[0], config.crop[1]),
        channels=config.channels,
        mean=config.channel_mean,
        std=config.channel_std,
        pixels=counts.total if counts is not None else (),
        present=counts.present if counts is not None else (),
        dataset=layout.root.name,
    )
