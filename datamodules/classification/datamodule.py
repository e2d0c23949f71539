"""The datamodule of image classification: files in classes behind resumable loaders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import TaskDataModule
from datamodules.classification.config import ImagesConfig
from datamodules.classification.info import ClassificationInfo
from datamodules.classification.layout import Layout, SplitFiles
from datamodules.classification.transforms import EvalTransform, TrainTransform, data_info, restored
from datamodules.findings import Finding
from datamodules.image_reading import read_image

logger = logging.getLogger(__name__)

Sample = dict[str, Tensor]


class ImageFiles(Dataset[Sample]):
    """Images of a split.

    Args:
        files: Paths and labels.
        channels: 3 for colour, 1 for grey.
        transform: Augmentation of training images, or the crop of evaluation.
    """

    def __init__(self, files: SplitFiles, channels: int, transform: TrainTransform | EvalTransform) -> None:
        self.files, self.channels, self.transform = files, channels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """One image.

        Args:
            key: Epoch and index; a plain index is that of epoch 0.

        Raises:
            CorruptSample: Its file cannot be decoded.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image = read_image(self.files.path(index), self.channels)
        label = torch.tensor(int(self.files.labels[index]))
        return {"image": self.transform(image, epoch, index), "label": label, "index": torch.tensor(index)}


class ClassificationData(TaskDataModule):
    """Images in classes.

    Args:
        config: Which data, sizes, augmentation and loaders.
        seed: Seed of the order and the augmentation of the training images.
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
        self._cycle = 0

    @property
    def layout(self) -> Layout:
        """Classes and files, found on first use.

        Raises:
            DataError: They are missing or unsuitable.
        """
        if self._layout is None:
            self.config.check()
            self._layout = self.config.find()
        return self._layout

    @property
    def info(self) -> ClassificationInfo:
        """What models, metrics and predictors need to know."""
        layout = self.layout
        counts = layout.splits["train"].counts(len(layout.classes))
        return data_info(self.config, layout.classes, counts, layout.root.name)

    def datasets(self) -> Mapping[str, ImageFiles]:
        """The images of each split.

        Raises:
            DataError: The data is missing or unsuitable.
        """
        layout, info = self.layout, self.info
        for split in layout.cut:
            logger.info("%s: %d images of the training images", split, len(layout.splits[split]))
        evaluation, training = EvalTransform(info), TrainTransform(info, self.config.augment, self.seed)
        training.cycle = self._cycle
        return {
            split: ImageFiles(files, info.channels, training if split == "train" else evaluation)
            for split, files in layout.splits.items()
        }

    def repeat_epochs(self, count: int) -> None:
        """Let the training images of the first epochs come again and again; their order stays that of each epoch.

        Loaders that exist already are not changed.

        Args:
            count: Epochs until the first one's images come again; 0 makes new ones in every epoch.
        """
        self._cycle = count
        if self._splits:
            files = self.split("train").dataset
            if isinstance(files, ImageFiles) and isinstance(files.transform, TrainTransform):
                files.transform.cycle = count

    @property
    def sample_spec(self) -> dict[str, str]:
        """Shape, dtype, unit and range of each key of a sample."""
        info = self.info
        size = f"[{info.channels}, {info.image_size}, {info.image_size}]"
        return {
            "image": f"{size} float32, values from 0 to 1 less the mean, by the deviation",
            "label": f"[] int64, number of the class, 0 to {len(info.classes) - 1}",
            "index": "[] int64, number of the image in its split",
        }

    def plot(self, sample: Mapping[str, Any]) -> Any:
        """One image under the name of its class, as a matplotlib figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3, 3), layout="constrained")
        axis = figure.subplots()
        pixels = restored(torch.as_tensor(sample["image"]), self.info).permute(1, 2, 0)  # S, S, C
        axis.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(self.info.classes[int(sample["label"])], fontsize=9)
        axis.set_axis_off()
        return figure

    def inspect(self) -> list[Finding]:
        """What ``doctor`` says about the data, file by file; a broken file becomes a finding, not an error."""
        from datamodules.classification.inspect import inspect_images

        return inspect_images(self.config)
