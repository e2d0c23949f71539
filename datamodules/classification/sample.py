"""The embedded default: handwritten digits, written once as a folder of PNG files.

They ship inside scikit-learn (BSD-3): the test part of "Optical Recognition of Handwritten Digits" of the UCI
repository (Alpaydin and Kaynak 1998, licence CC BY 4.0), 1,797 images of 8 x 8 pixels with values from 0 to 16, by 13
people. Consecutive images are often of one person, so the last fifth, in the order of the file, is the test split: a
random one would test on people that were trained on, and flatter every model.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.cache import cache_folder, write_folder
from graftwork.errors import missing_package

IMAGES = 1797
TRAIN = 1437
"""The first four fifths are for training."""

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOTICE = """Optical Recognition of Handwritten Digits, test part: 1,797 images of 8 x 8 pixels
Source: UCI Machine Learning Repository; E. Alpaydin and C. Kaynak 1998
Licence: Creative Commons Attribution 4.0 (CC BY 4.0), https://creativecommons.org/licenses/by/4.0/
Taken from the Python package scikit-learn (BSD-3), sklearn.datasets.load_digits
Changes: values 0 to 16 scaled to 0 to 255, written as PNG files; the last 360 images are the test split
"""


def write_sample(root: str | None) -> Path:
    """The digits as ``train/<digit>/<number>.png`` and ``test/<digit>/<number>.png``, with names and a notice beside.

    Args:
        root: Folder to make theirs in; a temporary one if None.

    Raises:
        MissingPackageError: The package with the data is not installed, and the images were never written before.
        DataError: The folder cannot be written.
    """
    return write_folder(cache_folder(root, "classification") / "digits", _write, files=IMAGES + 2)


def _write(folder: Path) -> None:
    images, labels = packaged_digits()
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / ("train" if number < TRAIN else "test") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:04d}.png")
    lines = [f"{digit} {name}\n" for digit, name in enumerate(NAMES)]
    (folder / "classes.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "LICENCE.txt").write_text(NOTICE, encoding="utf-8")


def packaged_digits() -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels [N, 8, 8] from 0 to 255, and the digit of each.

    Raises:
        MissingPackageError: The package is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise missing_package("scikit-learn", "sample", "the sample dataset of classification")
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8), [int(label) for label in found.target]
