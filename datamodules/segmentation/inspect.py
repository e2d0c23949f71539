"""What ``doctor`` says about labelled images: classes and pixels, files that do not fit, copies, what lies around."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.cache import cache_folder
from datamodules.copies import copies
from datamodules.findings import Finding, Level, listed, sentences, several
from datamodules.guard import CorruptSample
from datamodules.image_reading import read_image, upright_size
from datamodules.segmentation.config import LabelledConfig
from datamodules.segmentation.counts import in_threads
from datamodules.segmentation.datamodule import data_info
from datamodules.segmentation.info import IGNORED, SegmentationInfo
from datamodules.segmentation.labels import Labels
from datamodules.segmentation.layout import Item, Layout, Split
from datamodules.segmentation.sheet import contact_sheet
from graftwork.errors import DataError, UserError

logger = logging.getLogger(__name__)

MOST_DECODED = 2000
"""Images of a split up to which all are decoded; of more, evenly spread ones are. Masks are small, and always are."""

MOST_CLASSES = 60
_RARE = 0.001
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


@dataclass
class Seen:
    """What decoding the images of a split has shown.

    Args:
        pixels: Of each class, [C].
        images: With each class, [C].
        ignored: Pixels that are ignored.
        read: Images whose labels could be read.
        decoded: Those among them that were decoded themselves.
        classes: Images by the number of classes they have.
        sizes: Images by height and width.
        kinds: Images by kind of file, of kinds that are converted.
        objects: Things of all images.
        corrupt: Sentences on files that cannot be decoded.
        misfits: Sentences on labels that do not fit.
        blank: Names of images without a labelled pixel.
    """

    pixels: NDArray[np.int64]
    images: NDArray[np.int64]
    ignored: int = 0
    read: int = 0
    decoded: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    objects: int = 0
    corrupt: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)


def inspect_images(config: LabelledConfig) -> list[Finding]:
    """Check a dataset as far as it can be read; never raises for what the user can mend.

    Args:
        config: The dataset.

    Returns:
        Findings about splits, files, classes, copies across splits, masks without an image, and where the picture is
        that shows some images with their labels.
    """
    try:
        config.check()
        layout = config.find()
        info = data_info(config, layout)
    except UserError as error:
        return [Finding("error", f"{error.where}: {error.what}" if error.where else error.what, error.mend)]
    found = list(split_findings(layout, info, "test_on" if hasattr(config, "test_on") else ""))
    seen = {name: look(split, info) for name, split in own_splits(layout).items()}
    for name, what in seen.items():
        found += file_findings(name, what, len(layout.splits[name]), config)
    found += class_findings(seen, info)
    found += copy_findings(layout)
    sound = all(finding.level != "error" for finding in found)
    return found + (list(sheet_findings(config, layout)) if sound else [])


def own_splits(layout: Layout) -> dict[str, Split]:
    """Splits without those that are another one on purpose, as test is val where test labels are not public."""
    found: dict[str, Split] = {}
    for name, split in layout.splits.items():
        if all(split is not other for other in found.values()):
            found[name] = split
    return found


def split_findings(layout: Layout, info: SegmentationInfo, option: str = "") -> Iterator[Finding]:
    """Sizes of the splits, whether objects are told apart, masks without an image, and images that are not listed.

    Args:
        layout: What was found.
        info: Its classes.
        option: Of the dataset, that lets it be tested on its validation images; empty if it has none.
    """
    for name, split in layout.splits.items():
        same = next((other for other, one in layout.splits.items() if one is split and other != name), "")
        origin = ", cut from the training images" if name in layout.cut else ""
        origin = f", the same as {same}" if same and name == "test" else origin
        yield Finding("ok", f"{name}: {len(split):,} images{origin}")
    for name in ("val", "test"):
        if name not in layout.splits:
            mend = f"Add images and masks for {name}" + (f", or set --data.{option} val" if option else "")
            yield Finding("warning", f"there is no {name} split", mend)
    if info.panoptic:
        names = listed([info.classes[label] for label in info.things], MOST_CLASSES) or "none"
        yield Finding("ok", f"labels have segments; things, told apart: {names}")
    if layout.unused:
        masks = several(len(layout.unused), "mask", "belongs", "belong")
        text = f"{masks} to no image: {listed([str(path) for path in layout.unused])}"
        yield Finding("warning", text, "Add the image, or remove the mask")
    if layout.unlisted:
        images = several(len(layout.unlisted), "image", "is", "are")
        text = f"{images} not listed in the annotations: {listed([str(path) for path in layout.unlisted])}"
        yield Finding("warning", text, "List and annotate them, or remove them; until then they are not used")


def look(split: Split, info: SegmentationInfo) -> Seen:
    """Decode the labels of a split and its images, of a large split evenly spread ones."""
    count = len(info.classes)
    seen = Seen(np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64))
    every = _step(len(split))
    if every > 1:
        logger.info("decoding %s masks", f"{len(split):,}")

    def one(place: int) -> _Facts | DataError:
        item, whole = split.items[place], place % every == 0
        try:
            size = read_image(item.image, info.channels).size[::-1] if whole else upright_size(item.image)
            return _facts(split.labels.read(item, size, info.panoptic), item, info, whole)
        except DataError as error:
            return error

    for item, found in zip(split.items, in_threads(one, range(len(split))), strict=True):
        if isinstance(found, CorruptSample):
            seen.corrupt.append(str(found))
        elif isinstance(found, DataError):
            seen.misfits.append(str(found))
        else:
            _add(seen, item, found)
    return seen


class _Facts(NamedTuple):
    """What doctor keeps of an image.

    Args:
        pixels: Of each class, and ignored ones behind, [C + 1].
        size: Height and width.
        objects: Its things.
        decoded: Whether the image itself was decoded.
        kinds: In which ways it is converted.
    """

    pixels: NDArray[np.int64]
    size: tuple[int, int]
    objects: int
    decoded: bool
    kinds: tuple[str, ...]


def _facts(labels: Labels, item: Item, info: SegmentationInfo, decoded: bool) -> _Facts:
    counts = np.bincount(labels.mask.ravel(), minlength=IGNORED + 1)
    pixels = np.append(counts[: len(info.classes)], counts[IGNORED])
    height, width = labels.mask.shape
    objects = sum(label in info.things for label in labels.classes)
    with Image.open(item.image) as stored:
        mode = stored.mode
    kinds = {
        "of 16 bits, cut to 8": mode in _DEEP,
        "in grey, given three equal channels": info.channels == 3 and mode in ("L", "1", "LA", *_DEEP),
        "in colour, made grey": info.channels == 1 and mode in ("RGB", "RGBA", "P", "CMYK"),
    }
    return _Facts(pixels, (height, width), objects, decoded, tuple(kind for kind, true in kinds.items() if true))


def _add(seen: Seen, item: Item, facts: _Facts) -> None:
    known = facts.pixels[:-1]
    seen.read += 1
    seen.decoded += facts.decoded
    seen.pixels += known
    seen.images += known > 0
    seen.classes[int((known > 0).sum())] += 1
    seen.ignored += int(facts.pixels[-1])
    seen.sizes[facts.size] += 1
    seen.objects += facts.objects
    seen.blank += [] if known.any() else [item.name]
    seen.kinds.update(facts.kinds)


def file_findings(name: str, seen: Seen, images: int, config: LabelledConfig) -> Iterator[Finding]:
    """What decoding the files of a split has shown."""
    if seen.read:
        smallest, largest = min(seen.sizes, key=min), max(seen.sizes, key=max)
        every = _step(images)
        what = f"{several(seen.read, 'image')} with labels decoded"
        if every > 1:
            what = f"{several(seen.read, 'mask')} and {several(seen.decoded, 'image')}, one of every {every}, decoded"
        sizes = f"{_size(smallest)} to {_size(largest)} pixels (height x width)"
        mean = sum(classes * count for classes, count in seen.classes.items()) / seen.read
        classes = f"{mean:.1f} classes per image ({min(seen.classes)} to {max(seen.classes)})"
        objects = f", {seen.objects / seen.read:.1f} things" if seen.objects else ""
        yield Finding("ok", f"{name}: {what}: {sizes}; {classes}{objects}")
    level: Level = "warning" if config.on_corrupt == "skip" else "error"
    yield from sentences(level, seen.corrupt, "files that cannot be decoded")
    yield from sentences("error", seen.misfits, "files of labels that do not fit")
    for kind, count in seen.kinds.items():
        yield Finding("ok", f"{name}: {several(count, 'image')} {kind}")
    if seen.blank:
        text = f"{name}: {several(len(seen.blank), 'image', 'has', 'have')} no labelled pixel: {listed(seen.blank)}"
        yield Finding("warning", text, "Label or remove them")
    small = sum(
        count for (height, width), count in seen.sizes.items() if height < config.crop[0] or width < config.crop[1]
    )
    if name == "train" and small and config.augment.scale[1] <= 1 and not any(config.augment.resize):
        text = f"{name}: {several(small, 'image', 'is', 'are')} smaller than a crop of {_size(config.crop)} and padded"
        yield Finding("warning", text, "Try a smaller --data.crop")
    if name != "train" and len(seen.sizes) > 1 and config.eval_batch_size > 1:
        text = (
            f"{name}: images have {len(seen.sizes)} sizes, so that eval_batch_size={config.eval_batch_size} will fail"
        )
        yield Finding("error", text, "Set --data.eval_batch_size 1")


def class_findings(seen: dict[str, Seen], info: SegmentationInfo) -> Iterator[Finding]:
    """Pixels and images per class, rare classes, and classes that a split lacks."""
    for name, what in seen.items():
        total = int(what.pixels.sum())
        if not total:
            continue
        shares = what.pixels / total
        rows = [f"{label} {shares[place]:.2%} in {what.images[place]:,}" for place, label in enumerate(info.classes)]
        ignored = what.ignored / (total + what.ignored)
        text = f"{name}: share of labelled pixels, and images with the class: {listed(rows, MOST_CLASSES)}; "
        yield Finding("ok", f"{text}{ignored:.2%} of all pixels are ignored")
        absent = [label for place, label in enumerate(info.classes) if not what.pixels[place]]
        if absent:
            mend = "Nothing can be learnt of them" if name == "train" else "Scores say nothing about them"
            yield Finding("warning", f"{name} has no pixel of {listed(absent)}", mend)
        rare = [label for place, label in enumerate(info.classes) if 0 < shares[place] < _RARE]
        if rare and name == "train":
            text = f"below {_RARE:.1%} of the training pixels each: {listed(rare)}"
            yield Finding("warning", text, "Try --data.balance 0.5, or weights of classes in the loss")
        if name == "train" and what.ignored and int((what.pixels > 0).sum()) == 1:
            only = info.classes[int(what.pixels.argmax())]
            mend = "255 is ignored: save a class that is 255 in your masks with another number, or name its colour"
            yield Finding("warning", f"train has nothing but '{only}' and ignored pixels", mend)


def copy_findings(layout: Layout) -> Iterator[Finding]:
    """Images that two splits share, by content; a split that is another one on purpose is not looked at."""
    for first, second in combinations(own_splits(layout), 2):
        one, other = ([item.image for item in layout.splits[name].items] for name in (first, second))
        shared = copies(one, other)
        if shared:
            names = listed([f"{a} = {b}" for a, b in shared])
            verb = "is" if len(shared) == 1 else "are"
            text = f"{several(len(shared), 'image')} of {second} {verb} also in {first}, byte for byte: {names}"
            yield Finding("warning", text, "Scores on copies say nothing; remove them from one of the splits")


def sheet_findings(config: LabelledConfig, layout: Layout) -> Iterator[Finding]:
    """Draw some images with their labels, and say where."""
    name = f"{layout.root.name}-{hashlib.blake2b(str(layout.root).encode(), digest_size=4).hexdigest()}.png"
    try:
        path = contact_sheet(config, cache_folder(None, "segmentation") / "sheets" / name)
    except UserError as error:  # training would meet it too
        yield Finding("error", f"{error.where}: {error.what}" if error.where else error.what, error.mend)
    except OSError as error:
        yield Finding("warning", f"images cannot be shown with their labels: {error}")
    else:
        yield Finding("ok", f"some training crops with their labels: {path}")


def _step(images: int) -> int:
    """One of how many images is decoded."""
    return max(1, -(-images // MOST_DECODED))


def _size(sides: tuple[int, int]) -> str:
    return f"{sides[0]} x {sides[1]}"
