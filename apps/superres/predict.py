"""New images, restored: arrays, files and folders; bit depth, opacity and metadata are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apps.core.run.atomic import check_place
from apps.superres.models.network import inference_form
from apps.superres.module import SuperresModule
from apps.superres.restore import Restorer
from datamodules.guard import CorruptSample
from datamodules.image_files import SUFFIXES, images_below
from datamodules.superres.bicubic import imresize
from datamodules.superres.image import ImageFile, read_image
from datamodules.superres.image_encoding import write_image
from graftwork.errors import DataError, ShapeError, UserError

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
LOSSLESS = (".png", ".tif", ".tiff", ".webp", ".bmp")


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
            image: [H, W] or [H, W, C] with 1 or 3 channels: uint8, uint16, or floats from 0 to 1.

        Returns:
            [s * H, s * W, C] float32, clamped to 0..1.

        Raises:
            ShapeError: Something that is no such array.
            DataError: Values of another type, or that are not finite.
        """
        pixels = _as_float(np.asarray(image))
        restored = self._restored(self._to_channels(pixels))
        return restored if restored.shape[2] == pixels.shape[2] else _to(restored, pixels.shape[2])

    def predict_file(self, source: str | Path, output: str | Path | None = None) -> list[Path]:
        """Restore a file, or every image of a folder.

        Args:
            source: An image file or a folder.
            output: File or folder to write; beside the source, named ``<stem>_x<scale>``, if omitted.

        Returns:
            The files written.

        Raises:
            DataError: There are no images, or one cannot be read.
            UserError: The output would overwrite its input.
        """
        path = Path(source).expanduser()
        written = []
        for file, target in self._jobs(path, None if output is None else Path(output).expanduser()):
            written.append(self._file(file, target))
        if not written:
            raise DataError(f"has no images; expected {', '.join(SUFFIXES)}", where=str(path))
        return written

    def _jobs(self, path: Path, output: Path | None) -> Iterator[tuple[Path, Path]]:
        """Each image with the file to write."""
        if path.is_dir():
            folder = output or path.with_name(f"{path.name}{self._mark}")
            for name in images_below(path):
                yield path / name, self._kept(folder / name)
            return
        if output is None:
            yield path, self._kept(path.with_name(f"{path.stem}{self._mark}{path.suffix}"))
        elif output.is_dir() or not output.suffix:
            yield path, self._kept(output / f"{path.stem}{self._mark}{path.suffix}")
        else:
            yield path, output

    @property
    def _mark(self) -> str:
        return f"_x{self.info.scale}" if self.info.scale > 1 else "_restored"

    @staticmethod
    def _kept(path: Path) -> Path:
        """Names of formats that are read but not written, or that lose what was restored, become PNG."""
        return path if path.suffix.lower() in LOSSLESS else path.with_suffix(".png")

    def _file(self, file: Path, target: Path) -> Path:
        if target.resolve() == file.resolve():
            raise UserError("would overwrite its input", str(target), "Choose another --output")
        check_place(target, "--output")
        try:
            image = read_image(file)
        except CorruptSample as error:
            raise DataError(error.what, where=str(file), mend="Leave it out, or save it again") from error
        restored = self._restored(self._to_channels(image.pixels))
        pixels = restored if restored.shape[2] == image.pixels.shape[2] else _to(restored, image.pixels.shape[2])
        metadata = image.metadata
        if pixels.shape[2] != image.pixels.shape[2]:
            metadata = replace(metadata, icc=None)
        return write_image(target, pixels, alpha=self._alpha(image), bits=image.bits, metadata=metadata)

    def _alpha(self, image: ImageFile) -> NDArray[np.float32] | None:
        if image.alpha is None or self.info.scale == 1:
            return image.alpha
        return np.clip(imresize(image.alpha, self.info.scale), 0, 1).astype(np.float32)

    def _to_channels(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return pixels if pixels.shape[2] == self.info.channels else _to(pixels, self.info.channels)

    def _restored(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        restored = self.restorer(images)[0]
        if not all(bound.isfinite() for bound in restored.aminmax()):  # NaN is in both; makes no copy of a large image
            raise DataError("the model's output is not finite", mend="Check the weights: was the training stable?")
        # in place: a large image is held once
        found: NDArray[np.float32] = restored.clamp_(0, 1).permute(1, 2, 0).cpu().numpy()
        return found


def _to(pixels: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """[H, W, C] with grey repeated to colour, or colour summed up to luma."""
    if channels == 3:
        return pixels.repeat(3, axis=2)
    return (pixels @ LUMA)[..., None]


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
    return image.astype(np.float32)
