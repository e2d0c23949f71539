"""What an image file says beside its pixels: colour profile, EXIF and resolution, kept from reading to writing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

ORIENTATION = 274
_EXIF_FOLDER, _GPS_FOLDER = 34665, 34853
_DESCRIPTIVE = (
    *(270, 271, 272, 305, 306, 315, 33432),  # description, make, model, software, date, artist, copyright
    *(40091, 40092, 40093, 40094, 40095),  # title, comment, author, keywords, subject as Windows writes them
)
_SIZES = (40962, 40963)


@dataclass(frozen=True)
class Metadata:
    """What goes from the file that was read into the file that is written.

    Args:
        icc: Colour profile of the pixels, as the file has it.
        exif: EXIF without what no longer holds: orientation (pixels are upright), sizes and the preview picture.
        dpi: Horizontal and vertical resolution, in pixels per inch.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None


def metadata_of(image: Image.Image, *, keep_profile: bool = True) -> Metadata:
    """The metadata of an open image.

    Args:
        image: Decoded by Pillow, or opened only.
        keep_profile: Whether the pixels are still those that the colour profile is about.
    """
    icc = image.info.get("icc_profile") if keep_profile else None
    return Metadata(icc or None, _exif(image), _dpi(image.info.get("dpi")))


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it makes no sense."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF raises a dozen kinds; the picture may be fine all the same
        return 1
    return value if value in range(1, 9) else 1


def _exif(image: Image.Image) -> bytes | None:
    try:
        found = image.getexif()
        kept = Image.Exif()
        for tag in _DESCRIPTIVE:
            if tag in found:
                kept[tag] = found[tag]
        for folder in (_EXIF_FOLDER, _GPS_FOLDER):
            entries = {tag: value for tag, value in found.get_ifd(folder).items() if tag not in _SIZES}
            if entries:
                kept.get_ifd(folder).update(entries)
                kept[folder] = entries
        return kept.tobytes() if len(kept) else None
    except Exception:  # as above: what cannot be read cannot be kept
        return None


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        across, down = (float(part) for part in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if across > 1 and down > 1 else None  # 1 and 0 stand for "not known"
