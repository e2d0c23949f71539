"""New images, restored: arrays, files and folders; bit depth, opacity and metadata are kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apps.superres.channels import as_image, as_input
from apps.superres.models.network import inference_form
from apps.superres.module import SuperresModule
from apps.superres.restore import Restorer
from apps.superres.targets import Job, jobs
from datamodules.guard import CorruptSample
from datamodules.superres.bicubic import imresize
from datamodules.superres.image import ImageFile, read_image
from datamodules.superres.image_encoding import format_of, write_image
from graftwork.errors import DataError, ShapeError

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = -1.0, 2.0
"""Of floating-point pixels: filters overshoot 0 and 1, but not by as much."""


class ImagePredictor:
    """Trained weights, ready for new images.

    Args:
        module: A trained ``SuperresModule``.
    """

    def __init__(self, module: SuperresModule) -> None:
        self.module = module.eval()
        self.info = module.images
        self.restorer = Restorer(inference_form(module.model), self.info.scale, module.config.tiles)

    def __call__(self, image: Any) -> NDArray[np.float32]:
        """Restore an image.

        Args:
            image: [H, W] or [H, W, C] with 1 or 3 channels: uint8, uint16, or floats from 0 to 1. A mosaic has one
                channel, or three of which only the measured values are used.

        Returns:
            [s * H, s * W, C] float32, clamped to 0..1; three channels for a mosaic.

        Raises:
            ShapeError: Something that is no such array.
            DataError: Values of another type or range, or that are not finite, or a mosaic smaller than its pattern.
        """
        pixels = _as_float(np.asarray(image))
        return as_image(self._restored(as_input(pixels, self.info)), pixels, self.info)

    def predict_file(self, source: str | Path, output: str | Path | None = None) -> list[Path]:
        """Restore a file, or every image of a folder.

        An image of a folder that cannot be read or kept in its format does not stop the others; all such are named at
        the end.

        Args:
            source: An image file or a folder.
            output: File or folder to write; beside the source, named ``<stem>_x<scale>``, if omitted.

        Returns:
            The files written.

        Raises:
            DataError: There are no images, or some were left out: they cannot be read and ``data.on_corrupt`` is
                ``error`` or none can, or their format cannot hold the result.
            UserError: A result would overwrite an image or another result, or cannot be written.
        """
        path = Path(source).expanduser()
        mark = f"_x{self.info.scale}" if self.info.scale > 1 else "_restored"
        planned = jobs(path, None if output is None else Path(output).expanduser(), mark)
        written: list[Path] = []
        failures: list[DataError] = []
        for job in planned:
            try:
                image, pixels = self._read(job)
            except DataError as error:
                failures.append(error)
            else:
                written.append(self._write(job, image, pixels))
        if failures:
            self._tell(failures, written, path)
        return written

    def _read(self, job: Job) -> tuple[ImageFile, NDArray[np.float32]]:
        """An image, and what the network takes of it; errors of this file alone come before it is restored."""
        try:
            image = read_image(job.file)
        except CorruptSample as error:
            raise CorruptSample(error.what, str(job.file), "Leave it out, or save it again") from error
        sides = [side * self.info.scale for side in image.pixels.shape[:2]]
        format_of(job.target, sides, bits=image.bits, transparent=image.alpha is not None)
        return image, as_input(image.pixels, self.info, str(job.file))

    def _write(self, job: Job, image: ImageFile, inputs: NDArray[np.float32]) -> Path:
        pixels = as_image(self._restored(inputs), image.pixels, self.info)
        metadata = image.metadata
        if pixels.shape[2] != image.pixels.shape[2]:
            metadata = replace(metadata, icc=None)
        return write_image(job.target, pixels, alpha=self._alpha(image), bits=image.bits, metadata=metadata)

    def _tell(self, failures: Sequence[DataError], written: Sequence[Path], source: Path) -> None:
        """Name the images that were left out: in a warning where that was asked for, else in an error."""
        if len(failures) == 1 and not written:
            raise failures[0]
        count = len(failures) + len(written)
        others = "the others are written" if written else "nothing is written"
        listed = "".join(f"\n- {error}" for error in failures)
        what = f"{len(failures)} of {count} images are left out, {others}:{listed}"
        corrupt = all(isinstance(error, CorruptSample) for error in failures)
        if not (corrupt and written and self.module.config.data.on_corrupt == "skip"):
            raise DataError(what, str(source))
        logger.warning("%s: %s", source, what)

    def _alpha(self, image: ImageFile) -> NDArray[np.float32] | None:
        if image.alpha is None or self.info.scale == 1:
            return image.alpha
        return np.clip(imresize(image.alpha, self.info.scale), 0, 1).astype(np.float32)

    def _restored(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        restored = self.restorer(images)[0]
        if not all(bound.isfinite() for bound in restored.aminmax()):  # NaN is in both; makes no copy of a large image
            raise DataError("the model's output is not finite", mend="Check the weights: was the training stable?")
        # in place: a large image is held once
        found: NDArray[np.float32] = restored.clamp_(0, 1).permute(1, 2, 0).cpu().numpy()
        return found


def _as_float(image: NDArray[Any]) -> NDArray[np.float32]:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ShapeError(f"expected an image [H, W] or [H, W, C] with 1 or 3 channels, got {list(image.shape)}")
    if image.dtype in (np.uint8, np.uint16):
        return np.divide(image, np.iinfo(image.dtype).max, dtype=np.float32)
    if image.dtype.kind != "f":
        raise DataError(f"pixels of type {image.dtype}", mend="Give uint8, uint16, or floats from 0 to 1")
    if not np.isfinite(image).all():
        raise DataError("pixels that are not finite numbers")
    low, high = float(image.min()), float(image.max())
    if low < LOWEST or high > HIGHEST:
        raise DataError(f"floating-point pixels from {low:g} to {high:g}", mend="Expected 0 to 1; divide by 255?")
    return image.astype(np.float32)
