"""Classes of new images: arrays, files and folders."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from apps.classification.module import FINE_TUNE, ClassificationModule
from apps.classification.visualise import draw_gallery, draw_guesses
from apps.core.run.atomic import replace_file
from datamodules.classification.transforms import EvalTransform
from datamodules.guard import CorruptSample
from datamodules.image_files import SUFFIXES, images_below
from datamodules.image_reading import from_array, read_image, to_mode
from graftwork.errors import ConfigError, DataError, UserError

GALLERY = 24
"""Images in the picture of a folder."""

CSV_ONLY = "classes are written as a CSV file, which its picture of the same name would overwrite"


@dataclass(frozen=True, eq=False)
class Guess:
    """Classes of one image.

    Args:
        classes: Names, the most probable first.
        probabilities: [top] of each.
        image: What the model saw, [H, W, C] from 0 to 1.
        all_probabilities: [classes] of every class, in the order of training.
    """

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    image: NDArray[np.float32]
    all_probabilities: NDArray[np.float32]

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.classes[0]

    def figure(self) -> Any:
        """The image beside its classes, as a matplotlib figure."""
        return draw_guesses(self.image, self.classes, self.probabilities.tolist())


class ImagePredictor:
    """Trained weights, ready for new images.

    Args:
        module: A trained ``ClassificationModule``.

    Raises:
        ConfigError: The weights are of a model without classes.
    """

    def __init__(self, module: ClassificationModule) -> None:
        if not isinstance(module, ClassificationModule):
            raise ConfigError("model.name=positions predicts no classes", mend=FINE_TUNE)
        self.module = module.eval()
        self.info = module.info
        self.transform = EvalTransform(self.info)

    def __call__(self, images: Any) -> Any:
        """Classes of an image, or of several.

        Args:
            images: An array [H, W] or [H, W, C] with 1, 3 or 4 channels (uint8, uint16, bool, or floats from 0 to 1),
                a path, a PIL image; or a list of these, or an array [N, H, W, C].

        Returns:
            A :class:`Guess`; a list of them for several images.

        Raises:
            DataError: Something that is no image.
        """
        several = isinstance(images, list | tuple) or (np.ndim(images) == 4 if hasattr(images, "ndim") else False)
        if not several:
            return next(self._guesses([self._open(images, "image")]))
        opened = [self._open(image, f"image {number}") for number, image in enumerate(images)]
        size = self.module.config.data.eval_batch_size
        return [guess for start in range(0, len(opened), size) for guess in self._guesses(opened[start : start + size])]

    def predict_file(self, source: str | Path, output: str | Path | None = None) -> list[Path]:
        """Classes of a file, or of every image below a folder.

        Args:
            source: An image file or a folder.
            output: CSV file to write, or a folder for ``<source>_classes.csv``; beside the source if omitted. A picture
                with the same stem is written next to it.

        Returns:
            The files written.

        Raises:
            DataError: There are no images, or one cannot be decoded and ``data.on_corrupt`` is ``error``.
            UserError: The output would overwrite an image, or cannot be written.
        """
        path = Path(source).expanduser()
        folder, names = _found(path)
        target, picture = _targets(path, output)
        rows: list[list[str]] = []
        shown: list[Guess] = []
        for name, guess in self._classified(folder, names):
            rows.append([name, *_cells(guess)])
            if guess is not None and len(shown) < GALLERY:
                shown.append(guess)
        if not shown:
            raise DataError("none of its images can be decoded", str(path), "Check the files with doctor")
        top = min(self.module.config.top, len(self.info.classes))
        replace_file(target, _table(rows, top), "--output")
        replace_file(picture, _drawn(shown), "--output")
        return [target, picture]

    def _classified(self, folder: Path, names: Sequence[str]) -> Iterator[tuple[str, Guess | None]]:
        """Each file with its classes, in order, a batch in memory at a time; None for files that are skipped."""
        data = self.module.config.data
        for start in range(0, len(names), data.eval_batch_size):
            part = names[start : start + data.eval_batch_size]
            images = [self._readable(folder / name, data.on_corrupt == "skip") for name in part]
            guesses = self._guesses([image for image in images if image is not None])
            for name, image in zip(part, images, strict=True):
                yield name, None if image is None else next(guesses)

    def _readable(self, path: Path, skip: bool) -> Image.Image | None:
        try:
            return read_image(path, self.info.channels)
        except CorruptSample:
            if skip:
                return None
            raise

    def _open(self, image: Any, where: str) -> Image.Image:
        if isinstance(image, str | Path):
            return read_image(Path(image).expanduser(), self.info.channels)
        if isinstance(image, Image.Image):
            return to_mode(image, self.info.channels, where)
        return from_array(image, self.info.channels, where)

    def _guesses(self, images: Sequence[Image.Image]) -> Iterator[Guess]:
        if not images:
            return
        batch = torch.stack([self.transform(image) for image in images])
        with torch.inference_mode():
            probabilities = self.module.predict_batch({"image": batch.to(self.module.device)}).softmax(1).cpu()
        for pixels, row in zip(batch, probabilities, strict=True):
            if not row.isfinite().all():
                raise DataError("the model's output is not finite", mend="Check the weights: was the training stable?")
            top = row.topk(min(self.module.config.top, len(row)))
            names = tuple(self.info.classes[place] for place in top.indices.tolist())
            yield Guess(names, top.values.numpy(), self.module.pixels(pixels), row.numpy())


def _found(path: Path) -> tuple[Path, list[str]]:
    """Folder, and the images in it by relative path."""
    if not path.exists():
        raise DataError("no such file or folder", str(path), "Check --input")
    if path.is_file():
        return path.parent, [path.name]
    names = images_below(path)
    if not names:
        raise DataError("no images", str(path), f"Expected files that end in {', '.join(SUFFIXES[:4])}, ...")
    return path, names


def _cells(guess: Guess | None) -> list[str]:
    if guess is None:
        return []
    pairs = zip(guess.classes, guess.probabilities.tolist(), strict=True)
    return [cell for name, value in pairs for cell in (name, f"{value:.6g}")]


def _table(rows: Sequence[Sequence[str]], top: int) -> str:
    """CSV: ``file, class, probability``, then ``class_2, probability_2`` and so on; nothing for files skipped."""
    further = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("class", "probability")]
    names = ["class", "probability", *further]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *names])
    writer.writerows([*row, *[""] * (1 + len(names) - len(row))] for row in rows)
    return text.getvalue()


def _drawn(shown: Sequence[Guess]) -> bytes:
    titles = [f"{guess.name} {100 * guess.probabilities[0]:.0f} %" for guess in shown]
    figure = shown[0].figure() if len(shown) == 1 else draw_gallery([guess.image for guess in shown], titles)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    return drawn.getvalue()


def _targets(source: Path, output: str | Path | None) -> tuple[Path, Path]:
    """The CSV file and the picture to write, neither of them an image that is there."""
    name = f"{source.resolve().stem}_classes.csv"
    target = Path(output).expanduser() if output else source.with_name(name) if source.name else Path(name)
    if output and (str(output).endswith(("/", os.sep)) or target.is_dir()):
        target = target / name
    if target.suffix.lower() in SUFFIXES:
        raise UserError(CSV_ONLY, f"--output {output}", f"Write {target.with_suffix('.csv')}")
    picture = target.with_suffix(".png")
    for path in (target, picture):
        inside = path.exists() and source.is_dir() and source.resolve() in path.resolve().parents
        if (inside and path == picture) or (path.exists() and path.samefile(source)):
            raise UserError(f"would overwrite the input {path}", f"--output {output}", "Choose another name")
        if path.is_dir():
            raise UserError("a folder is in the way", str(path), "Choose another name with --output")
    return target, picture
