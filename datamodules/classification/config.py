"""Options of the image data, by dataset. Standard library only: help and checks need neither torch nor torchvision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datamodules.image_config import StandardisedConfig
from graftwork.components import Registry

if TYPE_CHECKING:
    from datamodules.classification.datamodule import ClassificationData
    from datamodules.classification.layout import Layout


@dataclass(kw_only=True)
class AugmentConfig:
    """What is done to training images; every draw depends on seed, epoch and image alone."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image that a random crop takes; 1,1 crops as in evaluation."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest width / height of a random crop."""
    flip: float = 0.5
    """Share of images that are mirrored left to right; 0 where that changes the class, as with letters."""
    vertical_flip: float = 0.0
    """Share of images that are mirrored top to bottom."""
    policy: Literal["none", "rand", "trivial"] = "none"
    """Further changes of shape and colour: RandAugment (Cubuk et al. 2020), or one random change of random strength per
    image, TrivialAugment (Mueller and Hutter 2021)."""
    operations: int = 2
    """Changes per image of 'rand'."""
    magnitude: int = 9
    """Strength of 'rand', from 0 to 30."""
    erase: float = 0.0
    """Share of images in which a rectangle is replaced by noise (Zhong et al. 2020)."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            yield f"crop_scale={[low, high]} must be two increasing shares above 0 and up to 1"
        low, high = self.crop_ratio
        if not 0 < low <= high < math.inf:
            yield f"crop_ratio={[low, high]} must be two increasing numbers above 0"
        for name in ("flip", "vertical_flip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name}={getattr(self, name)} must be a share from 0 to 1"
        if self.operations < 1:
            yield f"operations={self.operations} must be at least 1; policy=none switches them off"
        if not 0 <= self.magnitude <= 30:
            yield f"magnitude={self.magnitude} must be from 0 to 30"


@dataclass(kw_only=True)
class ImagesConfig(StandardisedConfig):
    """What every dataset of images has: their size, scale and augmentation, splits, loaders."""

    counts: ClassVar = ("image_size", "batch_size", "eval_batch_size")

    image_size: int = 224
    """Height and width that every image is brought to, in pixels."""
    crop_pct: float = 0.875
    """Evaluation resizes the shorter side to image_size / crop_pct and cuts out the centre."""
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    """How images are resized."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to training images."""
    val_share: float = 0.1
    """Share of every class that is set aside for validation where the data has no validation folder."""
    test_share: float = 0.1
    """Share of every class that is set aside for testing where the class folders lie in root itself."""
    batch_size: int = 64
    """Images per training batch and device."""
    eval_batch_size: int = 128
    """Images per validation and test batch; scores do not depend on it."""

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds with each other."""
        yield from super().problems()
        if not 0 < self.crop_pct <= 1:
            yield f"crop_pct={self.crop_pct} must be above 0 and up to 1"

    def nested(self) -> dict[str, Any]:
        """Sections with problems of their own."""
        return {"augment": self.augment}

    def find(self) -> Layout:
        """Classes and files of the data.

        Raises:
            DataError: They are missing or unsuitable.
        """
        raise NotImplementedError(f"{type(self).__name__} must say where its images are")

    def build(self, seed: int) -> ClassificationData:
        """The datamodule of this data.

        Args:
            seed: Seed of the order and the augmentation of the training images.
        """
        from datamodules.classification.datamodule import ClassificationData

        return ClassificationData(self, seed)

    def as_folder(self, **changes: Any) -> FolderConfig:
        """The same images, splits and loaders over a folder.

        Args:
            changes: Fields of :class:`FolderConfig` that differ.
        """
        shared = {item.name: getattr(self, item.name) for item in fields(ImagesConfig)}
        return FolderConfig(**{**shared, **changes})


@dataclass(kw_only=True)
class FolderConfig(ImagesConfig):
    """Own images: a folder per class, below train, val and test or in root itself."""

    train_folder: str = "train"
    """Folder below root with the class folders to train on; if root has none of this name, its own folders are them."""
    val_folder: str = "val"
    """Folder below root for validation; 'valid' and 'validation' are found too."""
    test_folder: str = "test"
    """Folder below root for testing; ImageNet's published accuracies are those of its folder val."""
    labels: bool = True
    """Whether folders are classes; false takes every image below root alike, for pretraining on positions."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        for name in ("train_folder", "val_folder", "test_folder"):
            if not getattr(self, name).strip("/"):
                yield f"{name} must be the name of a folder"

    def find(self) -> Layout:
        """Classes and files below ``root``."""
        from datamodules.classification.layout import find_layout

        return find_layout(self)


@dataclass(kw_only=True)
class SampleConfig(ImagesConfig):
    """The embedded default: 1,797 handwritten digits of the UCI repository, 8 x 8 pixels; needs no network.

    ``root`` is the folder that the images are written to, a temporary one if omitted.
    """

    image_size: int = 32
    """Height and width that every image is brought to, in pixels."""
    crop_pct: float = 1.0
    """Evaluation resizes the shorter side to image_size / crop_pct and cuts out the centre."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(crop_scale=(0.6, 1.0), flip=0.0))
    """What is done to training images; a mirrored digit is none."""

    def find(self) -> Layout:
        """Write the images where they are missing, then read them as any other folder."""
        from datamodules.classification.sample import write_sample

        return self.as_folder(root=str(write_sample(self.root))).find()


@dataclass(kw_only=True)
class GeneratedConfig(ImagesConfig):
    """Coloured shapes on noise from a formula, for smoke tests; needs nothing.

    ``root`` is the folder that the images are written to, a temporary one if omitted.
    """

    image_size: int = 32
    """Height and width that every image is brought to, in pixels."""
    crop_pct: float = 1.0
    """Evaluation resizes the shorter side to image_size / crop_pct and cuts out the centre."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(crop_scale=(0.6, 1.0)))
    """What is done to training images."""
    val_share: float = 0.2
    """Share of every class that is set aside for validation."""
    test_share: float = 0.2
    """Share of every class that is set aside for testing."""
    images: int = 320
    """Images in all."""
    classes: int = 4
    """Classes, from 2 to 12: a colour and a shape each."""
    side: int = 40
    """Height and width of the files, in pixels."""
    noise: float = 0.15
    """Deviation of the noise, on the scale from 0 to 1."""
    images_seed: int = 0
    """Seed of places, sizes and noise."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        if not 2 <= self.classes <= 12:
            yield f"classes={self.classes} must be from 2 to 12"
        if self.images < 5 * self.classes:
            yield f"images={self.images} must be at least {5 * self.classes}, five for each of classes={self.classes}"
        if self.side < 8:
            yield f"side={self.side} must be at least 8"
        if not 0 <= self.noise <= 1:
            yield f"noise={self.noise} must be from 0 to 1"

    def find(self) -> Layout:
        """Write the images where they are missing, then read them as any other folder."""
        from datamodules.classification.generated import write_generated

        return self.as_folder(root=str(write_generated(self))).find()


DATASETS = Registry(
    "dataset",
    {"sample": SampleConfig, "folder": FolderConfig, "generated": GeneratedConfig},
    default="sample",
)
