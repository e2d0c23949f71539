"""The embedded default: photographs that ship inside scikit-image and scikit-learn, written once as PNG files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.cache import cache_folder, write_folder
from datamodules.superres.bicubic import imresize
from graftwork.errors import DataError, missing_package


class Photograph(NamedTuple):
    """A photograph of an installed package.

    Args:
        split: Where it goes.
        package: Distribution, its import name, and the folder in it.
        file: Name of the file.
        licence: Who made it, and how it may be used.
    """

    split: str
    package: tuple[str, str, str]
    file: str
    licence: str


_IMAGE = ("scikit-image", "skimage", "data")
_LEARN = ("scikit-learn", "sklearn", "datasets/images")
_DANIEL = "Creative Commons Attribution 2.0, flickr.com/photos"

PHOTOGRAPHS = (
    Photograph("train", _IMAGE, "astronaut.png", "NASA, public domain"),
    Photograph("train", _IMAGE, "rocket.jpg", "SpaceX, public domain"),
    Photograph("train", _IMAGE, "motorcycle_left.png", "Middlebury Stereo 2014, D. Scharstein et al."),
    Photograph("train", _LEARN, "china.jpg", f"danielbuechele, {_DANIEL}/danielbuechele/6061409035"),
    Photograph("train", _LEARN, "flower.jpg", f"vultilion, {_DANIEL}/vultilion/6056698931"),
    Photograph("val", _IMAGE, "coffee.png", "Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0"),
    Photograph("test", _IMAGE, "chelsea.png", "Stefan van der Walt, Creative Commons CC0"),
)
"""Training, validation and test images; JPEG files are halved, so that their blocks of 8 x 8 pixels are not learnt."""


def write_sample(root: str | None) -> Path:
    """The photographs as ``train/HR/<name>.png``, ``val/HR/...`` and ``test/HR/...``, with a notice beside.

    Args:
        root: Folder to make theirs in; a temporary one if None.

    Raises:
        MissingPackageError: A package with photographs is not installed, and they were never written before.
        DataError: The folder cannot be written.
    """
    return write_folder(cache_folder(root, "superres") / "photographs", _write, files=len(PHOTOGRAPHS) + 1)


def _write(folder: Path) -> None:
    for photograph in PHOTOGRAPHS:
        place = folder / photograph.split / "HR"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(packaged(photograph)).save(place / f"{Path(photograph.file).stem}.png")
    (folder / "LICENCE.txt").write_text("\n".join(_notice()) + "\n", encoding="utf-8")


def packaged(photograph: Photograph) -> NDArray[np.uint8]:
    """Pixels of a photograph, [H, W, 3]; JPEG files are halved by bicubic resizing.

    Raises:
        MissingPackageError: The package is not installed.
        DataError: It has no such file.
    """
    distribution, module, folder = photograph.package
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise missing_package(distribution, "sample", "the sample dataset of super-resolution")
    path = Path(found.submodule_search_locations[0]) / folder / photograph.file
    if not path.is_file():
        raise DataError("no such file in this version of the package", str(path), f"Install {distribution}>=0.25")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    if path.suffix == ".jpg":
        return np.rint(255 * imresize(pixels / 255, 0.5, rounding="output")).astype(np.uint8)
    return pixels


def _notice() -> Iterator[str]:
    yield "Photographs from the Python packages scikit-image and scikit-learn (BSD-3)"
    for photograph in PHOTOGRAPHS:
        halved = "; halved" if photograph.file.endswith(".jpg") else ""
        yield f"{photograph.split}/HR/{Path(photograph.file).stem}.png: {photograph.licence}{halved}"
