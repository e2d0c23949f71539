"""From a decoded image to what the model sees: augmentation as a pure function of a seed, and evaluation's crop.

C channels, S image_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.classification.config import AugmentConfig, ImagesConfig
from datamodules.classification.info import ClassificationInfo
from datamodules.sampler import sample_rng
from graftwork.errors import missing_package

try:
    from torchvision.transforms import v2
    from torchvision.transforms.v2.functional import InterpolationMode
except ImportError as absent:
    raise missing_package("torchvision", "vision", "image data") from absent


class EvalTransform:
    """Resize the shorter side, cut out the centre, scale.

    Args:
        info: Size, scale and interpolation.
    """

    def __init__(self, info: ClassificationInfo) -> None:
        size, mode = info.image_size, InterpolationMode(info.interpolation)
        shorter = math.floor(size / info.crop_pct)
        self.crop = v2.Compose([v2.Resize(shorter, mode, antialias=True), v2.CenterCrop(size)])
        self.scale = Scaling(info)

    def __call__(self, image: Image.Image, epoch: int = 0, index: int = 0) -> Tensor:
        """[C, S, S] float32 of an image of mode RGB or L; the same in every epoch."""
        scaled: Tensor = self.scale(self.crop(image))
        return scaled


class TrainTransform:
    """Random crop, mirroring, changes of shape and colour, erased rectangle.

    torchvision's transforms draw from torch's global generator. Here each image brings its own seed, and the generator
    is put back afterwards, so that neither the loader processes nor anything drawn in between has a say.

    Args:
        info: Size, scale and interpolation.
        augment: What to do.
        seed: Seed of the run.

    Attributes:
        cycle: Epochs after which the same images come again; 0 for never.
    """

    def __init__(self, info: ClassificationInfo, augment: AugmentConfig, seed: int) -> None:
        self.seed, self.cycle = seed, 0
        self.change = v2.Compose([*_crop(info, augment), *_flips(augment), *_policy(info, augment)])
        self.scale = Scaling(info)
        # the noise is that of standardised pixels, so it comes after the scaling
        self.erase = v2.RandomErasing(augment.erase, value="random") if augment.erase else None

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Tensor:
        """[C, S, S] float32 of an image of mode RGB or L.

        Args:
            image: The image.
            epoch: Epoch, from 0.
            index: Index of the image in its split.
        """
        drawn_for = epoch % self.cycle if self.cycle else epoch
        with seeded(int(sample_rng(self.seed, drawn_for, index).integers(2**63))):
            changed: Tensor = self.scale(self.change(image))
            return changed if self.erase is None else self.erase(changed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's generator on the CPU begins at ``seed``; afterwards it is where it was."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)  # not torch.manual_seed, which would reach the generators of GPUs too
    try:
        yield
    finally:
        generator.set_state(before)


class Scaling:
    """Bytes to numbers: to the scale from 0 to 1, less the mean, by the deviation of every channel.

    Args:
        info: Mean and deviation.
    """

    def __init__(self, info: ClassificationInfo) -> None:
        self.mean, self.std = (255 * torch.tensor(values)[:, None, None] for values in (info.mean, info.std))

    def __call__(self, image: Image.Image) -> Tensor:
        """[C, H, W] float32 of an image of mode RGB or L."""
        pixels = torch.from_numpy(np.array(image))  # H, W or H, W, C
        channels_first = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
        return channels_first.to(torch.float32, memory_format=torch.contiguous_format).sub_(self.mean).div_(self.std)


def restored(images: Tensor, info: ClassificationInfo) -> Tensor:
    """The inverse of the scaling: [..., C, S, S] back to the scale from 0 to 1, cut to that range."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (info.mean, info.std))
    return (images.float() * std + mean).clamp(0, 1)


def data_info(config: ImagesConfig, classes: tuple[str, ...], counts: list[int], dataset: str) -> ClassificationInfo:
    """What the configuration and the files say of the data."""
    return ClassificationInfo(
        image_size=config.image_size,
        channels=config.channels,
        classes=classes,
        counts=tuple(counts),
        mean=config.channel_mean,
        std=config.channel_std,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
        dataset=dataset,
    )


def _crop(info: ClassificationInfo, augment: AugmentConfig) -> list[v2.Transform]:
    mode, size = InterpolationMode(info.interpolation), info.image_size
    if tuple(augment.crop_scale) == (1.0, 1.0):
        return [v2.Resize(math.floor(size / info.crop_pct), mode, antialias=True), v2.CenterCrop(size)]
    return [v2.RandomResizedCrop(size, augment.crop_scale, augment.crop_ratio, mode, antialias=True)]


def _flips(augment: AugmentConfig) -> list[v2.Transform]:
    flips: list[v2.Transform] = [v2.RandomHorizontalFlip(augment.flip)] if augment.flip else []
    return [*flips, v2.RandomVerticalFlip(augment.vertical_flip)] if augment.vertical_flip else flips


def _policy(info: ClassificationInfo, augment: AugmentConfig) -> list[v2.Transform]:
    """Changes of shape leave corners of the mean colour, which the scaling makes zero."""
    fill = [round(255 * value) for value in info.mean]
    colour = fill if len(fill) > 1 else fill[0]
    mode = InterpolationMode.BILINEAR
    if augment.policy == "rand":
        return [v2.RandAugment(augment.operations, augment.magnitude, interpolation=mode, fill=colour)]
    return [v2.TrivialAugmentWide(interpolation=mode, fill=colour)] if augment.policy == "trivial" else []
