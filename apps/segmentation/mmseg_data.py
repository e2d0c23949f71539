"""Datasets and the metric of mmsegmentation, with samples and predictions of this package.

Its samples are ``{"inputs": bytes [3, H, W] in the order blue, green, red, "data_samples": SegDataSample}``; ours are
described in :mod:`datamodules.segmentation.dataset`.

Shape legend: B batch, C channels, H x W image.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from apps.segmentation.mmseg_bridge import build, quiet
from datamodules.sampler import Key, sample_rng
from datamodules.segmentation.dataset import Sample
from datamodules.segmentation.info import IGNORED, SegmentationInfo
from graftwork.errors import DataError, ShapeError
from graftwork.names import unknown

Size = tuple[int, int]

SCORES = ("mIoU", "mDice", "mFscore")


class Reading(NamedTuple):
    """How samples of mmsegmentation are read.

    Args:
        info: Mean and deviation; labels from ``len(info.classes)`` on are an error.
        size: Height and width that smaller crops are filled up to, at the bottom and on the right; None leaves them.
        ignored: Further labels that are ignored, besides 255; 11 in CamVid's files.
        blue_first: Whether the pipeline gives blue, green, red, as its ``LoadImageFromFile`` does.
    """

    info: SegmentationInfo
    size: Size | None = None
    ignored: tuple[int, ...] = ()
    blue_first: bool = True


def sample_of(found: Mapping[str, Any], index: int, reading: Reading) -> Sample:
    """One of its samples as one of ours.

    Args:
        found: ``inputs`` [C, H, W] on the scale from 0 to 255, and ``data_samples`` with ``gt_sem_seg``.
        index: Number of the image in its dataset.
        reading: Scale, size, ignored labels.

    Returns:
        ``image`` float32 less the mean, by the deviation; ``mask`` int64; ``name``, ``index`` and ``size``.

    Raises:
        DataError: There are no labels, or some that are no class.
        ShapeError: Image and labels differ in size, or an image is larger than ``reading.size``.
    """
    info, described = reading.info, found["data_samples"]
    path = str(described.metainfo.get("img_path", index))
    if "gt_sem_seg" not in described:
        raise DataError("has no labels", path, "Put LoadAnnotations into the pipeline")
    image, mask = found["inputs"].float(), described.gt_sem_seg.data[0].long()
    if image.shape[1:] != mask.shape:
        raise ShapeError(
            f"image of {list(image.shape[1:])} pixels has labels of {list(mask.shape)}",
            path,
            "Leave Resize out of the pipeline, or put it after LoadAnnotations",
        )
    if reading.blue_first and len(image) == 3:
        image = image.flip(0)
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    height, width = mask.shape
    image, mask = _filled((image - mean) / std, _checked(mask, path, reading), path, reading.size)
    return {
        "image": image,
        "mask": mask,
        "name": PurePath(path).stem,
        "index": torch.tensor(index),
        "size": torch.tensor([height, width]),
    }


def _checked(mask: Tensor, path: str, reading: Reading) -> Tensor:
    """Labels with further ignored ones at 255."""
    classes = len(reading.info.classes)
    for label in reading.ignored:
        mask = mask.masked_fill(mask == label, IGNORED)
    strange = mask[((mask < 0) | (mask >= classes)) & (mask != IGNORED)]
    if len(strange):
        raise DataError(
            f"has the label {int(strange[0])}, which is none of the {classes} classes",
            path,
            "Check reduce_zero_label, or ignore the label",
        )
    return mask


def _filled(image: Tensor, mask: Tensor, path: str, size: Size | None) -> tuple[Tensor, Tensor]:
    if size is None or tuple(mask.shape) == tuple(size):
        return image, mask
    bottom, right = (side - own for side, own in zip(size, mask.shape, strict=True))
    if bottom < 0 or right < 0:
        raise ShapeError(f"image of {list(mask.shape)} pixels is larger than {list(size)}", path, "Put RandomCrop in")
    return F.pad(image, (0, right, 0, bottom)), F.pad(mask, (0, right, 0, bottom), value=IGNORED)


def info_of(dataset: Any, crop: Size = (512, 512)) -> SegmentationInfo:
    """Classes and colours of one of its datasets; mean and deviation are those of ImageNet.

    Args:
        dataset: A ``BaseSegDataset``.
        crop: Height and width of training images, in pixels.

    Raises:
        DataError: It does not name its classes.
    """
    known = dataset.metainfo
    classes = tuple(known.get("classes") or ())
    if not classes:
        raise DataError("does not name its classes", type(dataset).__name__, "Give it metainfo=dict(classes=...)")
    colours = [tuple(int(part) for part in colour) for colour in known["palette"]]
    palette: Any = tuple(colours)
    return SegmentationInfo(classes=classes, palette=palette, crop=crop, dataset=type(dataset).__name__)


class MMSegImages(Dataset[Sample]):
    """A dataset of mmsegmentation that gives our samples, each a function of seed, epoch and index.

    Args:
        dataset: A ``BaseSegDataset``, or its configuration: ``{"type": "ADE20KDataset", "data_root": ...}``.
        reading: Scale, size and ignored labels; by the dataset's own classes if omitted.
        seed: Seed of the run. The dataset's transforms draw from global generators, which are seeded for each sample
            and given back as they were.

    Raises:
        MissingPackageError: mmsegmentation is not installed.
        ConfigError: The configuration does not name a dataset, or has arguments that it refuses.
        DataError: Its files are missing, or it does not name its classes.
    """

    def __init__(self, dataset: Any, reading: Reading | None = None, seed: int = 0) -> None:
        self.dataset = build("DATASETS", dataset) if isinstance(dataset, Mapping) else dataset
        self.reading = reading or Reading(info_of(self.dataset))
        self.seed = seed

    @property
    def info(self) -> SegmentationInfo:
        """Classes and scale."""
        return self.reading.info

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | Key) -> Sample:
        """One sample.

        Args:
            key: Epoch and index; a plain index is that of epoch 0.

        Raises:
            DataError: See :func:`sample_of`.
            ShapeError: See :func:`sample_of`.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in the {len(self)} images of {type(self.dataset).__name__}")
        with _drawing(sample_rng(self.seed, epoch, index)):
            found = self.dataset[index]
        return sample_of(found, index, self.reading)


@contextmanager
def _drawing(source: np.random.Generator) -> Iterator[None]:
    """Inside, the global generators of numpy and of Python draw what ``source`` says."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    start = int(source.integers(2**32))
    np.random.seed(start)
    random.seed(start)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class OfficialScores:
    """mmsegmentation's ``IoUMetric`` on predictions of this package, for comparisons with published numbers.

    Args:
        info: Classes.
        scores: Some of :data:`SCORES`.

    Raises:
        MissingPackageError: mmsegmentation is not installed.
        ConfigError: A score that it does not know.
    """

    def __init__(self, info: SegmentationInfo, scores: Sequence[str] = ("mIoU",)) -> None:
        for name in scores:
            if name not in SCORES:
                raise unknown("score", name, SCORES)
        self.metric = build("METRICS", {"type": "IoUMetric", "iou_metrics": list(scores), "ignore_index": IGNORED})
        self.metric.dataset_meta = {"classes": list(info.classes)}
        self.images = 0

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Add images.

        Args:
            prediction: Class of every pixel, [B, H, W].
            labels: The right one, [B, H, W]; 255 is ignored.
        """
        images = [
            {"pred_sem_seg": {"data": found[None]}, "gt_sem_seg": {"data": truth[None]}}
            for found, truth in zip(prediction, labels, strict=True)
        ]
        self.metric.process({}, images)
        self.images += len(images)

    def compute(self) -> dict[str, float]:
        """Its scores in percent, rounded to two decimals as it does: ``aAcc``, ``mIoU``, ``mAcc`` and so on."""
        with quiet():
            found = self.metric.compute_metrics(self.metric.results)
        return {name: float(value) for name, value in found.items()}
