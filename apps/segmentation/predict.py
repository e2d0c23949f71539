"""Classes and segments of new images: arrays, files and folders, of any size."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from apps.core.run.atomic import replace_file
from apps.segmentation import coco
from apps.segmentation.models.segmenter import continued
from apps.segmentation.module import SegmentationModule
from apps.segmentation.sources import PixelSource, image_size, label_file, open_image, whole_image
from apps.segmentation.tiles import check_finite, normaliser, predict_labels, read_at, refuse_size
from apps.segmentation.visualise import draw_segmentation, outlined, overlay
from datamodules.guard import CorruptSample
from datamodules.image_files import SUFFIXES, images_below
from datamodules.image_reading import from_array, to_mode
from datamodules.segmentation.transforms import Scaling
from graftwork.errors import DataError, UserError

log = logging.getLogger(__name__)

OVERLAY_SIDE = 2048
"""Longest side of the overlay of an image of more than ``inference.max_pixels``."""
MOST_DESCRIBED = 67_108_864
"""Pixels of the largest image whose masks and segments are written; of larger ones there are labels and areas."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one image.

    Args:
        labels: Class of every pixel, [H, W] uint8.
        certainty: Its probability, [H, W].
        classes: Names.
        palette: Colours.
        image: The image, [H, W, C] from 0 to 1.
        segments: Segment of every pixel from 1, 0 for none, [H, W]; None where the model tells no objects apart.
        segment_classes: Label of segment 1, 2, ...
        segment_scores: Certainty of each.
    """

    labels: NDArray[np.uint8]
    certainty: NDArray[np.float32]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    image: NDArray[np.float32]
    segments: NDArray[np.int32] | None = None
    segment_classes: tuple[int, ...] = ()
    segment_scores: tuple[float, ...] = ()

    @property
    def areas(self) -> dict[str, int]:
        """Pixels of each class."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=False))

    def overlay(self) -> NDArray[np.uint8]:
        """Colours of the classes, and lines between segments, over the image, [H, W, 3]."""
        drawn = overlay(self.image, self.labels, self.palette)
        drawn = drawn if self.segments is None else outlined(drawn, self.segments)
        return np.rint(drawn * 255).astype(np.uint8)

    def figure(self) -> Any:
        """The image beside its classes, as a matplotlib figure."""
        return draw_segmentation(self.image, self.labels, None, self.certainty, self.classes, self.palette)


class SegmentationPredictor:
    """Trained weights, ready for new images.

    Args:
        module: A trained ``SegmentationModule``.
    """

    def __init__(self, module: SegmentationModule) -> None:
        self.module = module.eval()
        self.info = module.info
        self.scale = Scaling(self.info)

    def __call__(self, images: Any) -> Any:
        """Classes, and segments, of an image or of several.

        Args:
            images: An array [H, W] or [H, W, C] with 1, 3 or 4 channels (uint8, uint16, bool, or floats from 0 to 1),
                a path, a PIL image; or a list of these.

        Returns:
            A :class:`Segmentation`; a list of them for several images.

        Raises:
            DataError: Something that is no image.
        """
        if isinstance(images, list | tuple):
            return [self._seen(self._open(image, f"image {number}")) for number, image in enumerate(images)]
        return self._seen(self._open(images, "image"))

    def predict_file(self, source: str | Path, output: str | Path | None = None) -> list[Path]:
        """Segment a file, or every image below a folder.

        For every image ``<stem>_mask.png`` (labels, coloured by a palette) and ``<stem>_overlay.png``; for all together
        ``areas.csv`` and ``annotations.json`` (COCO), and, where the model tells objects apart, ``panoptic.json`` with
        ``panoptic/<stem>.png``. Sub-folders stay what they are; images whose names differ in the ending alone keep it.

        Images of more than ``inference.max_pixels`` are read and predicted in tiles, unless ``inference.shorter_side``
        makes them small enough: labels of tiles are a TIFF file. All of these have a small overlay, and their objects
        are found at ``inference.max_pixels``. Images of more than :data:`MOST_DESCRIBED` pixels have labels, overlay
        and areas only.

        Args:
            source: An image file or a folder.
            output: Folder to write to; ``<source>_segmentation`` beside the source if omitted.

        Returns:
            The files written.

        Raises:
            ConfigError: An image is above ``inference.max_pixels`` at the size that ``inference.shorter_side`` wants;
                said before anything is written.
            DataError: There are no images, one cannot be decoded and ``data.on_corrupt`` is ``error``, or the model's
                output is not finite.
            UserError: The output cannot be written.
        """
        path = Path(source).expanduser()
        root, names = _found(path)
        folder = Path(output).expanduser() if output else path.with_name(f"{path.stem}_segmentation")
        if folder.is_file() or (folder.suffix and not folder.is_dir()):
            raise UserError("several files are written, which need a folder", str(folder), "Name a folder as --output")
        self._refuse_sizes(root, names)
        record = _Record(folder, self.info.classes)
        written: list[Path] = []
        for number, (name, stem) in enumerate(_stems(names).items()):
            try:
                written += self._file(root / name, _Item(number, name, stem), record)
            except CorruptSample:
                if self.module.config.data.on_corrupt != "skip":
                    raise
                record.skipped.append(name)
        if len(record.skipped) == len(names):
            raise DataError("none of its images can be decoded", str(path), "Check the files with doctor")
        return [*written, *self._summaries(folder, record)]

    def _refuse_sizes(self, root: Path, names: Sequence[str]) -> None:
        """Refuse images that can be seen neither whole nor in tiles before the first is predicted."""
        config = self.module.config.inference
        for name in names if config.shorter_side else ():
            with contextlib.suppress(CorruptSample):  # told, or skipped, when its turn comes
                height, width = image_size(root / name)
                if height * width > config.max_pixels:
                    refuse_size(self.module.viewer, (height, width), name)

    def _file(self, file: Path, item: _Item, record: _Record) -> Iterator[Path]:
        height, width = image_size(file)
        if height * width > self.module.config.inference.max_pixels:
            yield from self._large(open_image(file, self.info.channels), item, record)
            return
        found = self._seen(whole_image(file, self.info.channels))
        record.add(item, found.labels.shape, found.areas)
        yield _save(record.folder / f"{item.stem}_mask.png", _indexed(found.labels, self.info.palette))
        yield _save(record.folder / f"{item.stem}_overlay.png", Image.fromarray(found.overlay()))
        segments = None
        if found.segments is not None:
            segments = _Segments(found.segments, found.segment_classes, found.segment_scores)
        yield from self._described(item, found.labels, segments, record)

    def _large(self, source: PixelSource, item: _Item, record: _Record) -> Iterator[Path]:
        """Labels part by part, so that the memory of the model does not grow with the image."""
        size = source.height, source.width
        viewer, device = self.module.viewer, self.module.device
        if viewer.config.shorter_side and size[0] * size[1] <= MOST_DESCRIBED:
            labels = np.empty(size, dtype=np.uint8)
            predict_labels(viewer, source, labels, device=device)
            yield _save(record.folder / f"{item.stem}_mask.png", _indexed(labels, self.info.palette))
            yield from self._summed_up(source, item, labels, record)
            return
        target = record.folder / f"{item.stem}_mask.tif"
        with label_file(target, *size) as mapped:
            predict_labels(viewer, source, mapped, device=device)
            more = list(self._summed_up(source, item, mapped, record))
        yield target
        yield from more

    def _summed_up(self, source: PixelSource, item: _Item, labels: Any, record: _Record) -> Iterator[Path]:
        """Areas, overlay, masks and segments of a large image."""
        height, width = source.height, source.width
        counts = np.zeros(256, dtype=np.int64)
        for top in range(0, height, 1024):
            counts += np.bincount(np.asarray(labels[top : top + 1024]).ravel(), minlength=256)
        names = self.info.classes
        record.add(item, (height, width), dict(zip(names, counts[: len(names)].tolist(), strict=True)))
        segments = self._segments(source, item)
        step = -(-max(height, width) // OVERLAY_SIDE)
        pixels = source.read((0, height), (0, width)) if step == 1 else _thinned(source, step)
        drawn = overlay(pixels.astype(np.float32) / 255, np.asarray(labels[::step, ::step]), self.info.palette)
        drawn = drawn if segments is None else outlined(drawn, segments.numbers[::step, ::step])
        yield _save(record.folder / f"{item.stem}_overlay.png", Image.fromarray(np.rint(drawn * 255).astype(np.uint8)))
        if height * width <= MOST_DESCRIBED:
            yield from self._described(item, np.asarray(labels), segments, record)

    def _segments(self, source: PixelSource, item: _Item) -> _Segments | None:
        """Segments of a large image, found where it is brought down to what the model sees at once."""
        if not self.module.tells_objects:
            return None
        size = source.height, source.width
        if size[0] * size[1] > MOST_DESCRIBED:
            log.warning(
                "%s: objects are not told apart in %d x %d pixels, above %d; cut it into smaller images for that",
                *(item.name, *size, MOST_DESCRIBED),
            )
            return None
        seen = read_at(source, self.module.viewer.segment_size(size), normaliser(self.info))[None]
        with torch.inference_mode():
            seen = seen.to(self.module.device)
            (found,) = self.module.segments_of(self.module.model(continued(seen)), seen, size)
        return _Segments(found.segments.cpu().numpy(), tuple(found.classes.tolist()), tuple(found.scores.tolist()))

    def _described(
        self, item: _Item, labels: NDArray[np.uint8], segments: _Segments | None, record: _Record
    ) -> Iterator[Path]:
        """Masks of segments, or of classes where no objects are told apart, in COCO's formats."""
        masks: Iterator[tuple[int, Any, float | None]]
        if segments is None:
            masks = ((label, labels == label, None) for label in np.unique(labels).tolist())
        else:
            parts = enumerate(zip(segments.classes, segments.scores, strict=True), start=1)
            masks = ((label, segments.numbers == segment, score) for segment, (label, score) in parts)
            picture = Image.fromarray(coco.as_colours(segments.numbers))
            yield _save(record.folder / f"panoptic/{item.stem}.png", picture)
            about = coco.segments_info(*segments)
            record.panoptic.append({"image_id": item.number, "file_name": f"{item.stem}.png", "segments_info": about})
        for label, mask, score in masks:
            if mask.any():
                number = len(record.annotations) + 1
                record.annotations.append(coco.annotation(mask, item.number, label, number, score))

    def _summaries(self, folder: Path, record: _Record) -> Iterator[Path]:
        yield _written(folder / "areas.csv", record.table())
        about = coco.categories(self.info.classes, self.info.palette, self.info.things)
        whole = {"images": record.images, "categories": about}
        yield _written(folder / "annotations.json", json.dumps({**whole, "annotations": record.annotations}))
        if record.panoptic:
            yield _written(folder / "panoptic.json", json.dumps({**whole, "annotations": record.panoptic}))

    def _open(self, image: Any, where: str) -> Image.Image:
        if isinstance(image, str | Path):
            return whole_image(Path(image).expanduser(), self.info.channels)
        if isinstance(image, Image.Image):
            return to_mode(image, self.info.channels, where)
        return from_array(image, self.info.channels, where)

    def _seen(self, image: Image.Image) -> Segmentation:
        batch = self.scale(image)[None].to(self.module.device)
        size = torch.tensor([[image.height, image.width]])
        with torch.inference_mode():
            found = self.module.predict_batch({"image": batch, "size": size})
        check_finite(found.certainty)
        segmentation = Segmentation(
            labels=found.labels[0].cpu().numpy().astype(np.uint8),
            certainty=found.certainty[0].cpu().numpy(),
            classes=tuple(self.info.classes),
            palette=tuple(self.info.palette),
            image=self.module.pixels(batch[0]).astype(np.float32),
        )
        if found.segments is None or found.segment_classes is None or found.segment_scores is None:
            return segmentation
        known = found.segment_classes[0] >= 0
        return replace(
            segmentation,
            segments=found.segments[0].cpu().numpy(),
            segment_classes=tuple(found.segment_classes[0][known].tolist()),
            segment_scores=tuple(found.segment_scores[0][known].tolist()),
        )


class _Item(NamedTuple):
    """An image: its number, its name below the input, and that of its files below the output, without their ending."""

    number: int
    name: str
    stem: str


class _Segments(NamedTuple):
    """Segments of an image: the number at every pixel, [H, W], 0 for none; class and certainty of 1, 2, ..."""

    numbers: NDArray[np.int32]
    classes: Sequence[int]
    scores: Sequence[float]


class _Record:
    """Where files are written, and what is told of all images together."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder, self.classes = folder, classes
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.panoptic: list[dict[str, Any]] = []
        self.areas: list[tuple[str, int, dict[str, int]]] = []
        self.skipped: list[str] = []

    def add(self, item: _Item, size: Sequence[int], areas: dict[str, int]) -> None:
        """An image, and the pixels of its classes."""
        height, width = size
        self.images.append({"id": item.number, "file_name": item.name, "height": height, "width": width})
        self.areas.append((item.name, height * width, areas))

    def table(self) -> str:
        """CSV: ``file, pixels``, then the share of each class; files that were skipped have none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "pixels", *self.classes])
        for name, pixels, areas in self.areas:
            writer.writerow([name, pixels, *(f"{areas.get(label, 0) / pixels:.6g}" for label in self.classes)])
        writer.writerows([name] for name in self.skipped)
        return text.getvalue()


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


def _stems(names: Sequence[str]) -> dict[str, str]:
    """Where files of images go: the name without its ending, or with it where that alone tells two images apart."""
    short = {name: PurePosixPath(name).with_suffix("").as_posix() for name in names}
    shared = Counter(short.values())
    return {name: stem if shared[stem] == 1 and stem not in short else name for name, stem in short.items()}


def _indexed(labels: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Labels as an image whose palette has the colours of the classes; 255 is black."""
    image = Image.fromarray(labels, mode=None)
    colours = [channel for colour in palette for channel in colour]
    image = image.convert("L")
    image.putpalette((colours + [0] * (768 - len(colours)))[:768])
    return image


def _thinned(source: PixelSource, step: int) -> NDArray[np.uint8]:
    """Every ``step``-th pixel of an image, read a strip at a time."""
    rows = [
        source.read((top, min(top + 1, source.height)), (0, source.width))[:, ::step]
        for top in range(0, source.height, step)
    ]
    return np.concatenate(rows)


def _save(path: Path, image: Image.Image) -> Path:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return _written(path, content.getvalue())


def _written(path: Path, content: str | bytes) -> Path:
    replace_file(path, content, "--output")
    return path
