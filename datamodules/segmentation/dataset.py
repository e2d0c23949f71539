"""Samples: augmented crops to train on, whole images to evaluate on.

Shape legend: C channels; H, W sides of an image; S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.image_reading import read_image
from datamodules.sampler import Key, sample_rng
from datamodules.segmentation.balance import BalancedOrder
from datamodules.segmentation.config import AugmentConfig
from datamodules.segmentation.info import IGNORED, SegmentationInfo
from datamodules.segmentation.labels import Labels, from_segments
from datamodules.segmentation.layout import Item, Split
from datamodules.segmentation.transforms import VOID, Scaling, change_colour, draw_view, padded
from graftwork.errors import ConfigError

Sample = dict[str, Any]


class LabelledImages(Dataset[Sample]):
    """What training and evaluation share: images of a split with their labels.

    Args:
        split: Images, and what reads their labels.
        info: Classes, scale, and whether segments are wanted.
    """

    def __init__(self, split: Split, info: SegmentationInfo) -> None:
        self.split, self.info = split, info
        self.scale = Scaling(info)

    def __len__(self) -> int:
        return len(self.split)

    def _read(self, number: int) -> tuple[Item, Any, Labels]:
        item = self.split.items[number]
        image = read_image(item.image, self.info.channels)
        return item, image, self.split.labels.read(item, (image.height, image.width), self.info.panoptic)


class TrainingImages(LabelledImages):
    """Crops of one size; each is a function of seed, epoch and index.

    Args:
        split: Training images.
        info: Classes, crop, scale, and whether segments are wanted.
        augment: What is done to them.
        seed: Seed of the run.
        order: Which image an index stands for in an epoch; the one of that number if omitted.
    """

    def __init__(
        self,
        split: Split,
        info: SegmentationInfo,
        augment: AugmentConfig,
        seed: int,
        order: BalancedOrder | None = None,
    ) -> None:
        super().__init__(split, info)
        self.augment, self.seed, self.order = augment, seed, order

    def __getitem__(self, key: int | Key) -> Sample:
        """One crop.

        Args:
            key: Epoch and index; a plain index is that of epoch 0.

        Raises:
            CorruptSample: A file cannot be decoded.
            DataError: Labels do not fit the image or the classes.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        number = index if self.order is None else self.order.image(epoch, index)
        item, image, labels = self._read(number)
        random = sample_rng(self.seed, epoch, index)
        crop = self.info.crop
        view = draw_view(random, labels.mask, self.augment, crop)
        shown = view.of_image(image)
        if self.augment.colour:
            shown = change_colour(shown, random, self.augment)
        if labels.segments is None:
            mask: Any = view.of_numbers(labels.mask)
            cropped = Labels(mask)
        else:
            segments: Any = view.of_numbers(labels.segments)
            cropped = from_segments(segments, labels.classes, labels.crowd)
        return as_sample(self.scale(shown, crop), _padded(cropped, crop), view.size, item.name, number)


class EvaluationImages(LabelledImages):
    """Whole images at their own resolution."""

    def __getitem__(self, key: int | Key) -> Sample:
        """One image.

        Args:
            key: Index, or epoch and index.

        Raises:
            CorruptSample: A file cannot be decoded.
            DataError: Labels do not fit the image or the classes.
        """
        index = key[1] if isinstance(key, tuple) else key
        item, image, labels = self._read(index)
        return as_sample(self.scale(image), labels, (image.height, image.width), item.name, index)


def as_sample(image: Tensor, labels: Labels, size: Sequence[int], name: str, number: int) -> Sample:
    """The dict of a sample.

    Args:
        image: [C, H, W].
        labels: Mask and, in panoptic data, segments, [H, W].
        size: Height and width before padding.
        name: Of the image.
        number: Of the image in its split.
    """
    sample: Sample = {
        "image": image,
        "mask": _tensor(labels.mask).long(),
        "name": name,
        "index": torch.tensor(number),
        "size": torch.tensor([int(side) for side in size]),
    }
    if labels.segments is not None:
        sample["segments"] = _tensor(labels.segments)
        sample["segment_classes"] = torch.tensor(labels.classes, dtype=torch.int64)
        sample["segment_crowd"] = torch.tensor(labels.crowd, dtype=torch.bool)
    return sample


def collate_samples(samples: Sequence[Sample], batch_size: int) -> dict[str, Any]:
    """Samples of one size as a batch: names become a list, lists of segments get the length of the longest.

    Args:
        samples: Of a dataset of this file.
        batch_size: What was asked for, for the message.

    Raises:
        ConfigError: Their sizes differ.
    """
    sizes = {tuple(sample["image"].shape[1:]) for sample in samples}
    if len(sizes) > 1:
        one, other = (f"{height} x {width}" for height, width in sorted(sizes)[:2])
        raise ConfigError(
            f"data.eval_batch_size={batch_size} puts images of {one} and {other} pixels into one batch",
            mend="Set --data.eval_batch_size 1",
        )
    shared = [{key: value for key, value in sample.items() if key not in _LISTS} for sample in samples]
    batch: dict[str, Any] = default_collate(shared)
    if "segments" in batch:
        longest = max(len(sample["segment_classes"]) for sample in samples)
        for key, value in _LISTS.items():
            batch[key] = torch.stack([_lengthened(sample[key], longest, value) for sample in samples])
    return batch


_LISTS = {"segment_classes": -1, "segment_crowd": 0}
"""Keys with an entry per segment, and what fills them up."""


def _lengthened(values: Tensor, length: int, value: int) -> Tensor:
    return torch.cat([values, values.new_full((length - len(values),), value)])


def _padded(labels: Labels, size: tuple[int, int]) -> Labels:
    mask: Any = padded(labels.mask, size, IGNORED)
    segments: Any = None if labels.segments is None else padded(labels.segments, size, VOID)
    return labels._replace(mask=mask, segments=segments)


def _tensor(numbers: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers))
