"""DIV2K and Flickr2K as they are distributed, whole or cut into sub-images.

``DIV2K_train_HR/0001.png`` with ``DIV2K_train_LR_bicubic/X4/0001x4.png``, validation likewise, and
``Flickr2K/Flickr2K_HR`` with ``Flickr2K/Flickr2K_LR_bicubic/X4``. Low-resolution files are optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.image_files import images_below
from datamodules.superres.config import Div2kConfig
from datamodules.superres.folder import degraded_folder, paired
from datamodules.superres.layout import Layout, cut, find_root, named_uniquely
from datamodules.superres.pairs import Pair
from graftwork.errors import DataError

TREE = "root/DIV2K_train_HR/0001.png and, optionally, root/DIV2K_train_LR_bicubic/X4/0001x4.png; the same for valid"
SOURCE = (
    "DIV2K (Agustsson and Timofte 2017): data.vision.ee.ethz.ch/cvl/DIV2K; Flickr2K (Lim et al. 2017) beside EDSR's "
    "code; both for research alone."
)


def find_div2k(config: Div2kConfig) -> Layout:
    """Training images of the variant, and the hundred validation images of DIV2K where they are.

    Raises:
        DataError: There is no such folder, it has no training images, or an image lacks its low-resolution file.
    """
    config.check()
    root = find_root(config.root, TREE, SOURCE)
    groups: dict[str, Sequence[Pair]] = {}
    if config.variant in ("DIV2K", "DF2K"):
        groups["DIV2K"] = _images((root, root / "DIV2K"), "DIV2K_train", config, config.sub_images)
    if config.variant in ("Flickr2K", "DF2K"):
        groups["Flickr2K"] = _images((root, root / "Flickr2K"), "Flickr2K", config, config.sub_images)
    train = named_uniquely(groups)
    valid = _images((root, root / "DIV2K"), "DIV2K_valid", config, sub_images=False, needed=False)
    if valid or config.val_root:
        return Layout(root, {"train": train, **({"val": valid, "test": valid} if valid else {})})
    shares = {"val": config.val_share} if config.val_share else {}
    return Layout(root, cut(train, shares, config.sub_images), tuple(shares))


def _images(
    places: Sequence[Path], name: str, config: Div2kConfig, sub_images: bool, needed: bool = True
) -> tuple[Pair, ...]:
    """Images of ``<name>_HR`` in the first place that has such a folder."""
    ending = "_sub" if sub_images else ""
    folders = [place / f"{name}_HR{ending}" for place in places]
    originals = next((folder for folder in folders if folder.is_dir()), None)
    files = images_below(originals) if originals is not None else []
    if originals is None or not files:
        if not needed:
            return ()
        text = f"no images in {folders[0].name}" if originals is not None else f"no folder {folders[0].name}"
        raise DataError(text, str(places[0]), f"Expected {TREE}. {SOURCE}")
    track = f"{name}_LR_{config.track}"  # that of mild and difficult files holds them itself
    degraded = degraded_folder(originals.parent, (f"{track}/X{{}}{ending}", track), config)
    return paired(originals, files, degraded, config)[0]
