"""Test sets as they are distributed: Set5, Set14, BSD100, Urban100, Manga109 and the like.

============================  =====================================
EDSR's layout, as of Set5     ``HR/*.png``, ``LR_bicubic/X4/*x4.png``
BasicSR's layout              ``GTmod12/*.png``, ``LRbicx4/*.png``
SelfExSR's layout             ``image_SRF_4/*_HR.png``, ``image_SRF_4/*_LR.png``
images alone                  ``*.png``; degraded here
============================  =====================================
"""

from __future__ import annotations

from pathlib import Path

from datamodules.image_files import images_below
from datamodules.superres.config import ImagesConfig
from datamodules.superres.folder import degraded_folder, paired
from datamodules.superres.layout import Layout, find_root
from graftwork.errors import DataError

TREE = "root/HR/*.png, with root/LR_bicubic/X4/*x4.png beside or without"
SOURCE = (
    "Set5, Set14, BSD100 and Urban100 come with jbhuang0604/SelfExSR, Manga109 from manga109.org: all for research "
    "alone, not to be passed on."
)
ORIGINALS = ("HR", "GTmod12", "GT", "original")
DEGRADED = ("LR_bicubic/X{}", "LRbicx{}", "LR/X{}", "LR")


def find_benchmark(root: str | None, config: ImagesConfig, option: str = "data.root") -> Layout:
    """The images of a test set.

    Args:
        root: Its folder.
        config: Degradation.
        option: What gave the folder, for messages.

    Raises:
        DataError: There is no such folder, it has no images, or an original lacks its degraded file.
    """
    config.check()
    place = find_root(root, TREE, SOURCE)
    pieces = sorted(path for path in place.glob("image_SRF_*") if path.is_dir())
    if pieces:
        wanted = place / f"image_SRF_{config.degradation.scale}"
        return _together(place, wanted if wanted in pieces or config.reads_pairs else pieces[0], config)
    folders = [place / name for name in ORIGINALS if (place / name).is_dir()]
    originals = folders[0] if folders else place
    others = {name.split("/")[0].format(config.degradation.scale) for name in DEGRADED} if not folders else set()
    files = images_below(originals, without=sorted(others))
    if not files:
        raise DataError("no images", str(originals), f"Expected {TREE} ({option})")
    pairs, unused = paired(originals, files, degraded_folder(place, DEGRADED, config), config)
    return Layout(place, {"test": pairs}, (), tuple(unused))


def _together(root: Path, folder: Path, config: ImagesConfig) -> Layout:
    """Originals and degraded files in one folder, told apart by their endings."""
    if not folder.is_dir():
        found = ", ".join(sorted(path.name for path in root.glob("image_SRF_*")))
        mend = "Set --data.degradation.scale to one of these, or --data.degradation.stored false"
        raise DataError(f"no folder {folder.name}, only {found}", str(root), mend)
    files = images_below(folder)
    originals, others = ([file for file in files if file.rpartition(".")[0].endswith(end)] for end in ("_HR", "_LR"))
    if not originals:
        raise DataError("no images that end in _HR", str(folder), "Expected *_HR.png with *_LR.png beside")
    pairs, _ = paired(folder, originals, folder if config.reads_pairs and others else None, config, others)
    return Layout(root, {"test": pairs})
