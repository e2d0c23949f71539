"""Options of the images to restore, by dataset. Standard library only: help and checks need no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datamodules.image_config import ImageFilesConfig
from datamodules.superres.degradations.config import DEGRADATIONS
from graftwork.components import Registry, component

if TYPE_CHECKING:
    from datamodules.superres.datamodule import RestorationData
    from datamodules.superres.layout import Layout


@dataclass(kw_only=True)
class ImagesConfig(ImageFilesConfig):
    """What every dataset of images to restore has: degradation, patches, splits, loaders."""

    counts: ClassVar = ("patch", "repeat", "batch_size", "eval_batch_size")

    degradation: Any = component(DEGRADATIONS)
    """What is to be undone."""
    patch: int = 64
    """Side of the degraded training patches, in pixels; those of the originals are larger by the scale."""
    repeat: int = 1
    """Patches of each training image per epoch."""
    flip: bool = True
    """Mirror training patches left to right and top to bottom, each with probability one half."""
    transpose: bool = True
    """Exchange rows and columns of training patches with probability one half."""
    val_root: str | None = None
    """Folder of a benchmark such as Set5 to validate on in place of the data's own validation images."""
    test_root: str | None = None
    """Folder of a benchmark to test on in place of the data's own test images."""
    eval_patch: int = 0
    """Evaluate on the centre of each image alone, of this side in degraded pixels; 0 takes whole images."""
    metric_colour: Literal["auto", "y", "rgb"] = "auto"
    """Score luma or all channels; 'auto' does as papers on the degradation do."""
    metric_border: int = -1
    """Pixels on each side that are not scored; -1 does as papers on the degradation do."""
    cache: str = "auto"
    """Folder for decoded training images, so that each file is decoded once; 'auto' takes one below the temporary
    folder where it has room, 'off' decodes at every patch."""
    batch_size: int = 16
    """Patches per training batch and device."""

    def problems(self) -> Iterator[str]:
        """Values out of range or at odds with each other."""
        yield from super().problems()
        if self.eval_patch < 0:
            yield f"eval_patch={self.eval_patch} must be 0 (whole images) or more"
        if self.metric_border < -1:
            yield f"metric_border={self.metric_border} must be -1 (as papers do), 0 or more"
        yield from self._degradation_problems()

    def _degradation_problems(self) -> Iterator[str]:
        name, scale, period = DEGRADATIONS.name_of(self.degradation), self.degradation.scale, self.degradation.period
        if name == "mosaic" and self.channels != 3:
            yield f"channels={self.channels} must be 3 for degradation.name=mosaic"
        for option in ("patch", "eval_patch"):
            side = getattr(self, option)
            if scale >= 1 and side > 0 and side * scale % period:
                yield f"{option}={side} must be a multiple of {period // scale}, the side of the degradation's pattern"

    @property
    def colour(self) -> Literal["y", "rgb"]:
        """What is scored: luma or all channels."""
        usual: Literal["y", "rgb"] = self.degradation.colour
        return usual if self.metric_colour == "auto" else self.metric_colour

    @property
    def border(self) -> int:
        """Pixels on each side that are not scored."""
        usual: int = self.degradation.border
        return usual if self.metric_border < 0 else self.metric_border

    @property
    def reads_pairs(self) -> bool:
        """Whether degraded files are read where the data has them."""
        return bool(getattr(self.degradation, "pairs", False) and getattr(self.degradation, "stored", True))

    def nested(self) -> dict[str, Any]:
        """Sections with problems of their own."""
        return {"degradation": self.degradation} if hasattr(self.degradation, "problems") else {}

    def find(self) -> Layout:
        """Images of each split.

        Raises:
            DataError: They are missing or unsuitable.
        """
        raise NotImplementedError(f"{type(self).__name__} must say where its images are")

    def build(self, seed: int) -> RestorationData:
        """The datamodule of this data.

        Args:
            seed: Seed of the order, the patches and the degradation of the training images.
        """
        from datamodules.superres.datamodule import RestorationData

        return RestorationData(self, seed)

    def as_folder(self, **changes: Any) -> FolderConfig:
        """The same images, splits and loaders over a folder.

        Args:
            changes: Fields of :class:`FolderConfig` that differ.
        """
        shared = {item.name: getattr(self, item.name) for item in fields(ImagesConfig)}
        return FolderConfig(**{**shared, **changes})


@dataclass(kw_only=True)
class FolderConfig(ImagesConfig):
    """Own images, degraded here, or pairs of files: train, val and test, or all in root itself."""

    train_folder: str = "train"
    """Folder below root with the images to train on; if root has no such folder, they are root's own."""
    val_folder: str = "val"
    """Folder below root for validation."""
    test_folder: str = "test"
    """Folder below root for testing."""
    hr_folder: str = "HR"
    """Name of the folders that hold originals, at any depth; without any, all images of a split are originals."""
    lr_folder: str = "LR"
    """Name of the folders beside them that hold degraded files, themselves or in a folder X4 (of the scale)."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        for name in ("train_folder", "val_folder", "test_folder", "hr_folder", "lr_folder"):
            if not getattr(self, name).strip("/"):
                yield f"{name} must be the name of a folder"
        if self.hr_folder == self.lr_folder:
            yield f"hr_folder and lr_folder are both '{self.hr_folder}'; originals and degraded files need one each"

    def find(self) -> Layout:
        """Images below ``root``."""
        from datamodules.superres.folder import find_folder

        return find_folder(self)


@dataclass(kw_only=True)
class BenchmarkConfig(ImagesConfig):
    """A test set such as Set5, Set14, BSD100, Urban100 or Manga109: HR/ and LR_bicubic/X4/, or images alone."""

    def find(self) -> Layout:
        """Images below ``root``, all for testing."""
        from datamodules.superres.benchmark import find_benchmark

        return find_benchmark(self.root, self)


@dataclass(kw_only=True)
class Div2kConfig(ImagesConfig):
    """DIV2K, Flickr2K or both (DF2K), whole images or cut into sub-images."""

    variant: Literal["DIV2K", "Flickr2K", "DF2K"] = "DIV2K"
    """800 images, 2,650 images, or both."""
    sub_images: bool = False
    """Read the folders that end in _sub, made by cutting images into pieces of 480 pixels."""
    track: str = "bicubic"
    """Folder of the low-resolution files: DIV2K_train_LR_<track>."""

    def find(self) -> Layout:
        """Images below ``root``."""
        from datamodules.superres.div2k import find_div2k

        return find_div2k(self)


@dataclass(kw_only=True)
class SampleConfig(ImagesConfig):
    """The embedded default: seven photographs of scikit-image and scikit-learn; needs no network.

    ``root`` is the folder that the images are written to, a temporary one if omitted. Five are for training, one for
    validation, one for testing: enough to see a model learn, too few to compare models.
    """

    patch: int = 32
    """Side of the degraded training patches, in pixels; those of the originals are larger by the scale."""
    repeat: int = 64
    """Patches of each training image per epoch."""

    def find(self) -> Layout:
        """Write the images where they are missing, then read them as any other folder."""
        from datamodules.superres.sample import write_sample

        return self.as_folder(root=str(write_sample(self.root))).find()


@dataclass(kw_only=True)
class GeneratedConfig(ImagesConfig):
    """Edges, stripes and gradients from a formula, for smoke tests; needs nothing.

    ``root`` is the folder that the images are written to, a temporary one if omitted.
    """

    patch: int = 16
    """Side of the degraded training patches, in pixels; those of the originals are larger by the scale."""
    repeat: int = 8
    """Patches of each training image per epoch."""
    images: int = 8
    """Training images; a quarter as many are made for validation and for testing."""
    side: int = 96
    """Height and width of the files, in pixels."""
    images_seed: int = 0
    """Seed of what is drawn."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from super().problems()
        if self.images < 1:
            yield f"images={self.images} must be at least 1"
        if self.side < 16:
            yield f"side={self.side} must be at least 16"

    def find(self) -> Layout:
        """Write the images where they are missing, then read them as any other folder."""
        from datamodules.superres.generated import write_generated

        return self.as_folder(root=str(write_generated(self))).find()


DATASETS = Registry(
    "dataset",
    {
        "sample": SampleConfig,
        "folder": FolderConfig,
        "benchmark": BenchmarkConfig,
        "div2k": Div2kConfig,
        "generated": GeneratedConfig,
    },
    default="sample",
)
