"""Classes and segments of new images: arrays, files and folders, of any size."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from apps.core.run.atomic import replace_file
from apps.segmentation import coco
from apps.segmentation.module import SegmentationModule
from apps.segmentation.sources import label_file, open_image
from apps.segmentation.tiles import predict_labels
from apps.segmentation.visualise import draw_segmentation, outlined, overlay
from datamodules.guard import CorruptSample
from datamodules.image_files import SUFFIXES, images_below
from datamodules.image_reading import from_array, read_image, to_mode, upright_size
from datamodules.segmentation.transforms import Scaling
from graftwork.errors import DataError, UserError

OVERLAY_SIDE = 2048
"""Longest side of the overlay of an image that was predicted in tiles."""


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
        ``panoptic/<stem>.png``. Images of more than ``inference.max_pixels`` are read and predicted in tiles: their
        labels are a TIFF file, their overlay is small, and they have areas only.

        Args:
            source: An image file or a folder.
            output: Folder to write to; ``<source>_segmentation`` beside the source if omitted.

        Returns:
            The files written.

        Raises:
            DataError: There are no images, or one cannot be decoded and ``data.on_corrupt`` is ``error``.
            UserError: The output cannot be written.
        """
        path = Path(source).expanduser()
        root, names = _found(path)
        folder = Path(output).expanduser() if output else path.with_name(f"{path.stem}_segmentation")
        if folder.is_file() or (folder.suffix and not folder.is_dir()):
            raise UserError("several files are written, which need a folder", str(folder), "Name a folder as --output")
        record = _Record(self.info.classes)
        written: list[Path] = []
        for number, name in enumerate(names):
            try:
                written += self._file(root / name, folder / Path(name).with_suffix(""), number, name, record)
            except CorruptSample:
                if self.module.config.data.on_corrupt != "skip":
                    raise
                record.skipped.append(name)
        if len(record.skipped) == len(names):
            raise DataError("none of its images can be decoded", str(path), "Check the files with doctor")
        return [*written, *self._summaries(folder, record)]

    def _file(self, file: Path, stem: Path, number: int, name: str, record: _Record) -> Iterator[Path]:
        height, width = upright_size(file)
        if height * width > self.module.config.inference.max_pixels:
            yield from self._large(file, stem, number, name, record)
            return
        found = self._seen(read_image(file, self.info.channels))
        record.add(number, name, (height, width), found.areas)
        yield self._save(stem, "_mask.png", _indexed(found.labels, self.info.palette))
        yield self._save(stem, "_overlay.png", Image.fromarray(found.overlay()))
        masks: list[tuple[int, Any, float | None]]
        if found.segments is None:
            masks = [(label, found.labels == label, None) for label in np.unique(found.labels).tolist()]
        else:
            parts = enumerate(zip(found.segment_classes, found.segment_scores, strict=True), start=1)
            masks = [(label, found.segments == segment, score) for segment, (label, score) in parts]
            yield self._save(stem.parent / "panoptic" / stem.name, ".png", _coloured_ids(found.segments))
            about = coco.segments_info(found.segments, found.segment_classes, found.segment_scores)
            record.panoptic.append({"image_id": number, "file_name": f"{stem.name}.png", "segments_info": about})
        for label, mask, score in masks:
            if mask.any():
                record.annotations.append(coco.annotation(mask, number, label, len(record.annotations) + 1, score))

    def _large(self, file: Path, stem: Path, number: int, name: str, record: _Record) -> Iterator[Path]:
        """Labels tile by tile, so that memory does not grow with the image."""
        source = open_image(file, self.info.channels)
        target = stem.with_name(f"{stem.name}_mask.tif")
        step = -(-max(source.height, source.width) // OVERLAY_SIDE)
        counts = np.zeros(256, dtype=np.int64)
        with label_file(target, source.height, source.width) as labels:
            predict_labels(self.module.viewer, source, labels, device=self.module.device)
            for top in range(0, source.height, 1024):
                counts += np.bincount(np.asarray(labels[top : top + 1024]).ravel(), minlength=256)
            small = np.asarray(labels[::step, ::step])
        classes = self.info.classes
        record.add(
            number,
            name,
            (source.height, source.width),
            dict(zip(classes, counts[: len(classes)].tolist(), strict=True)),
        )
        yield target
        pixels = source.read((0, source.height), (0, source.width)) if step == 1 else _thinned(source, step)
        drawn = overlay(pixels.astype(np.float32) / 255, small, self.info.palette)
        yield self._save(stem, "_overlay.png", Image.fromarray(np.rint(drawn * 255).astype(np.uint8)))

    def _summaries(self, folder: Path, record: _Record) -> Iterator[Path]:
        yield _written(folder / "areas.csv", record.table())
        about = coco.categories(self.info.classes, self.info.palette, self.info.things)
        whole = {"images": record.images, "categories": about}
        yield _written(folder / "annotations.json", json.dumps({**whole, "annotations": record.annotations}))
        if record.panoptic:
            yield _written(folder / "panoptic.json", json.dumps({**whole, "annotations": record.panoptic}))

    @staticmethod
    def _save(stem: Path, ending: str, image: Image.Image) -> Path:
        content = io.BytesIO()
        image.save(content, format="PNG")
        return _written(stem.with_name(stem.name + ending), content.getvalue())

    def _open(self, image: Any, where: str) -> Image.Image:
        if isinstance(image, str | Path):
            return read_image(Path(image).expanduser(), self.info.channels)
        if isinstance(image, Image.Image):
            return to_mode(image, self.info.channels, where)
        return from_array(image, self.info.channels, where)

    def _seen(self, image: Image.Image) -> Segmentation:
        batch = self.scale(image)[None].to(self.module.device)
        size = torch.tensor([[image.height, image.width]])
        with torch.inference_mode():
            found = self.module.predict_batch({"image": batch, "size": size})
        if not found.certainty.isfinite().all():
            raise DataError("the model's output is not finite", mend="Check the weights: was the training stable?")
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


class _Record:
    """What is told of all images together."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.panoptic: list[dict[str, Any]] = []
        self.areas: list[tuple[str, int, dict[str, int]]] = []
        self.skipped: list[str] = []

    def add(self, number: int, name: str, size: tuple[int, int], areas: dict[str, int]) -> None:
        """An image, and the pixels of its classes."""
        height, width = size
        self.images.append({"id": number, "file_name": name, "height": height, "width": width})
        self.areas.append((name, height * width, areas))

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


def _indexed(labels: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Labels as an image whose palette has the colours of the classes; 255 is black."""
    image = Image.fromarray(labels, mode=None)
    colours = [channel for colour in palette for channel in colour]
    image = image.convert("L")
    image.putpalette((colours + [0] * (768 - len(colours)))[:768])
    return image


def _coloured_ids(segments: NDArray[np.int32]) -> Image.Image:
    return Image.fromarray(coco.as_colours(segments))


def _thinned(source: Any, step: int) -> NDArray[np.uint8]:
    """Every ``step``-th pixel of an image, read a strip at a time."""
    rows = [
        source.read((top, min(top + 1, source.height)), (0, source.width))[:, ::step]
        for top in range(0, source.height, step)
    ]
    return np.concatenate(rows)


def _written(path: Path, content: str | bytes) -> Path:
    replace_file(path, content, "--output")
    return path
