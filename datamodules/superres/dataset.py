"""Samples: random patches of training images, whole images for evaluation.

Shape legend: C channels, c those of the degraded image; h, w its sides; s scale.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.sampler import Key, sample_rng
from datamodules.superres.config import ImagesConfig
from datamodules.superres.crops import Box, Turn, at_least, centre_box, draw_box, draw_turn
from datamodules.superres.image import to_float
from datamodules.superres.pairs import Pair
from datamodules.superres.store import PixelStore
from graftwork.errors import DataError

logger = logging.getLogger(__name__)

Sample = dict[str, Any]
Pixels = NDArray[np.float32]

EVALUATION_SEED = 0
"""Evaluation degrades image number i in the same way in every run, whatever its seed."""

_WHOLE = 12
"""BasicSR crops the originals of test sets to multiples of this before it shrinks them."""


class RestorationImages(Dataset[Sample]):
    """What training and evaluation share: pairs of pixels, degraded where there is no file.

    Args:
        pairs: Images of the split.
        config: Degradation, sizes and augmentation.
        store: Decodes files.
    """

    def __init__(self, pairs: Sequence[Pair], config: ImagesConfig, store: PixelStore) -> None:
        self.pairs, self.config, self.store = pairs, config, store
        self.degradation = config.degradation.build()
        self._said_cropped = False

    def degraded_pixels(self, pair: Pair, original: Any) -> tuple[Any, Any]:
        """Pixels of the degraded file and of the original, both cropped at bottom and right to fit each other.

        Raises:
            CorruptSample: The file cannot be decoded.
            DataError: The sizes do not belong to each other; both files are named.
        """
        degraded = self.store.pixels(pair.degraded)  # type: ignore[arg-type]  # called for stored pairs alone
        rows, columns = fitting_sides(pair, original.shape[:2], degraded.shape[:2], self.degradation.scale)
        scale = self.degradation.scale
        self._say_cropped(pair, original, (rows * scale, columns * scale))
        return degraded[:rows, :columns], original[: rows * scale, : columns * scale]

    def whole_periods(self, pair: Pair, original: Any) -> Any:
        """The original without what is more than whole periods, at bottom and right.

        Raises:
            DataError: Nothing would be left.
        """
        period = self.degradation.period
        height, width = (side // period * period for side in original.shape[:2])
        if not height or not width:
            text = f"{original.shape[0]} x {original.shape[1]} pixels are less than the scale or pattern, {period}"
            raise DataError(text, str(pair.original), "Remove the file, or choose a smaller scale")
        self._say_cropped(pair, original, (height, width))
        return original[:height, :width]

    def other(self, index: int, shape: tuple[int, ...], random: np.random.Generator) -> Pixels | None:
        """A random part of another image, for degradations that mix two; of a single image, that image upside down."""
        if not self.degradation.wants_other:
            return None
        others = len(self.pairs) - 1
        number = (index + 1 + int(random.integers(others))) % len(self.pairs) if others else index
        pixels = self.store.pixels(self.pairs[number].original)
        height, width = shape[:2]
        turned = Turn(mirror=not others, upend=not others).of(at_least(pixels, max(height, width)))
        top, left = (
            int(random.integers(has - wants + 1)) for has, wants in zip(turned.shape, (height, width), strict=False)
        )
        return to_float(turned[top : top + height, left : left + width])

    def _say_cropped(self, pair: Pair, original: Any, sides: tuple[int, int]) -> None:
        if original.shape[:2] != sides and not self._said_cropped:
            self._said_cropped = True
            text = "%s has %d x %d pixels, %d x %d are used: images are cropped at bottom and right to fit the scale"
            logger.info(text, pair.original.name, *original.shape[:2], *sides)


class TrainingPatches(RestorationImages):
    """Random patches, flipped and transposed; each is a function of seed, epoch and index.

    What is computed is computed on a part that is larger than the patch by what the degradation looks at, after turning
    the original: a patch shows what evaluation would, and the phase of a mosaic stays as it is.

    Args:
        pairs: Training images.
        config: Degradation, sizes and augmentation.
        store: Decodes files.
        seed: Seed of the run.
    """

    def __init__(self, pairs: Sequence[Pair], config: ImagesConfig, store: PixelStore, seed: int) -> None:
        super().__init__(pairs, config, store)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs) * self.config.repeat

    def __getitem__(self, key: int | Key) -> Sample:
        """One patch.

        Args:
            key: Epoch and index; a plain index is that of epoch 0.

        Raises:
            CorruptSample: A file cannot be decoded.
            DataError: A degraded file does not fit its original.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        random = sample_rng(self.seed, epoch, index)
        number = index % len(self.pairs)
        pair = self.pairs[number]
        original = self.store.pixels(pair.original)
        if pair.degraded is not None:
            degraded, clean = self._stored(pair, original, random)
        else:
            degraded, clean = self._computed(number, original, random)
        return as_sample(degraded, clean, pair, index)

    def _stored(self, pair: Pair, original: Any, random: np.random.Generator) -> tuple[Pixels, Pixels]:
        scale, side = self.degradation.scale, self.config.patch
        degraded, original = self.degraded_pixels(pair, original)
        degraded, original = at_least(degraded, side), at_least(original, side * scale)
        box = draw_box(random, degraded.shape[0], degraded.shape[1], side)
        turn = draw_turn(random, self.config.flip, self.config.transpose)
        return to_float(turn.of(box.of(degraded))), to_float(turn.of(box.scaled(scale).of(original)))

    def _computed(self, number: int, original: Any, random: np.random.Generator) -> tuple[Pixels, Pixels]:
        degrade, side = self.degradation, self.config.patch * self.degradation.scale
        original = at_least(self.whole_periods(self.pairs[number], original), side)
        height, width = original.shape[:2]
        box = draw_box(random, height, width, side, degrade.period)
        turn = draw_turn(random, self.config.flip, self.config.transpose)
        region = box.widened(degrade.margin, degrade.grid, height, width)
        clean = to_float(turn.of(region.of(original)))
        inner = turn.box(box.within(region), region.bottom - region.top, region.right - region.left)
        degraded = degrade(clean, random, self.other(number, clean.shape, random))
        return inner.shrunk(degrade.scale).of(degraded), inner.of(clean)


class EvaluationImages(RestorationImages):
    """Whole images, or their centres; the degradation of each is fixed by its index alone.

    Args:
        pairs: Images of the split.
        config: Degradation and sizes.
        store: Decodes files.
    """

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | Key) -> Sample:
        """One image.

        Args:
            key: Index, or epoch and index.

        Raises:
            CorruptSample: A file cannot be decoded.
            DataError: A degraded file does not fit its original.
        """
        index = key[1] if isinstance(key, tuple) else key
        pair = self.pairs[index]
        original = self.store.pixels(pair.original)
        if pair.degraded is not None:
            stored, original = self.degraded_pixels(pair, original)
            degraded, clean = to_float(stored), to_float(original)
        else:
            clean = to_float(self.whole_periods(pair, original))
            random = sample_rng(EVALUATION_SEED, 0, index)
            degraded = self.degradation(clean, random, self.other(index, clean.shape, random))
        box = self._shown(degraded)
        return as_sample(box.of(degraded), box.scaled(self.degradation.scale).of(clean), pair, index)

    def _shown(self, degraded: Pixels) -> Box:
        height, width = degraded.shape[:2]
        side = self.config.eval_patch or max(height, width)
        return centre_box(height, width, side, max(1, self.degradation.period // self.degradation.scale))


def fitting_sides(pair: Pair, original: tuple[int, int], degraded: tuple[int, int], scale: int) -> tuple[int, int]:
    """Height and width of the part of a degraded file that has an original.

    A file made from the whole of an original whose side is no multiple of the scale is one pixel longer; one made after
    cropping to multiples of 12 is some pixels shorter.

    Raises:
        DataError: Other differences; both files and sizes are named.
    """
    fits = [narrow in _sides(wide, scale) for wide, narrow in zip(original, degraded, strict=True)]
    if not all(fits):
        expected = f"{original[0] // scale} x {original[1] // scale}"
        raise DataError(
            f"has {degraded[0]} x {degraded[1]} pixels, expected {expected} for scale {scale}: "
            f"{pair.original} has {original[0]} x {original[1]}",
            str(pair.degraded),
            "Set --data.degradation.scale to that of the files, or remove the pair",
        )
    rows, columns = (min(narrow, wide // scale) for wide, narrow in zip(original, degraded, strict=True))
    return rows, columns


def _sides(side: int, scale: int) -> set[int]:
    """Sides that the degraded file of an original may have."""
    return {side // scale, -(-side // scale)} | ({side // _WHOLE * _WHOLE // scale} if scale > 1 else set()) - {0}


def as_sample(degraded: Pixels, original: Pixels, pair: Pair, index: int) -> Sample:
    """Channels-first tensors of the degraded image and the original, with its name and index."""
    return {"lq": _tensor(degraded), "gt": _tensor(original), "name": pair.name, "index": torch.tensor(index)}


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
