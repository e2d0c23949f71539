"""Names and colours of classes, and the text files that give them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.segmentation.info import IGNORED
from graftwork.errors import DataError

Colour = tuple[int, int, int]

MOST_CLASSES = IGNORED
"""Labels are kept in bytes, and 255 is taken."""


@dataclass(frozen=True)
class ClassTable:
    """Classes in the order of their labels.

    Args:
        names: Name of each.
        palette: Colour of each, red, green and blue from 0 to 255.
        things: Labels of those whose objects are told apart.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    things: tuple[int, ...] = ()

    @classmethod
    def named(cls, names: Sequence[str], things: Sequence[int] = ()) -> ClassTable:
        """Classes with colours from :func:`colour_map`."""
        return cls(tuple(names), colour_map(len(names)), tuple(things))

    def without(self, label: int) -> ClassTable:
        """The classes with one left out, those after it moved up; the same where there is no such label."""
        kept = [number for number in range(len(self.names)) if number != label]
        things = tuple(place for place, number in enumerate(kept) if number in self.things)
        return ClassTable(tuple(self.names[i] for i in kept), tuple(self.palette[i] for i in kept), things)


def colour_map(count: int) -> tuple[Colour, ...]:
    """Colours that differ, as Pascal VOC has them: the bits of 1, 2, ... spread over red, green and blue.

    Args:
        count: Number of colours. Black, which VOC has for its background, comes last here: after 255 others.
    """
    return tuple(_spread(number % 256) for number in range(1, count + 1))


def _spread(number: int) -> Colour:
    red = green = blue = 0
    for place in range(7, -1, -1):
        red |= (number & 1) << place
        green |= (number >> 1 & 1) << place
        blue |= (number >> 2 & 1) << place
        number >>= 3
    return red, green, blue


def read_names(file: Path) -> list[str]:
    """Names of classes, a line each; empty lines at the end do not count.

    Raises:
        DataError: A line is empty, a name comes twice, or there are none or too many.
    """
    names = [line.strip() for line in read_text(file).rstrip().splitlines()]
    if "" in names and any(names):
        text = f"line {names.index('') + 1} is empty"
        raise DataError(text, str(file), "Every line names the class of one number, from 0; give this one a name")
    return checked_names([name for name in names if name], str(file))


def checked_names(names: Sequence[str], where: str) -> list[str]:
    """The names, if there are as many as labels allow and all differ.

    Raises:
        DataError: They do not.
    """
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count == 0:
        raise DataError("names no classes", where, "Expected one name per line, in the order of the numbers 0, 1, ...")
    if count > 1:
        raise DataError(f"{count} classes have the name '{name}'", where, "Give each class a name of its own")
    if len(names) > MOST_CLASSES:
        raise DataError(f"has {len(names)} classes, at most {MOST_CLASSES} are possible", where, "Merge some")
    return list(names)


def read_palette(file: Path) -> list[tuple[Colour, str]]:
    """Colour and name of every class, from lines such as ``128 64 128 road``.

    Raises:
        DataError: A line has another form, or a colour or a name comes twice.
    """
    entries: list[tuple[Colour, str]] = []
    lines: dict[Colour, int] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        colour, name = _entry(line, number, file)
        if colour in lines:
            text = f"lines {lines[colour]} and {number} have the same colour {' '.join(map(str, colour))}"
            raise DataError(text, str(file), "Give every class a colour of its own")
        lines[colour] = number
        entries.append((colour, name))
    checked_names([name for _, name in entries], str(file))
    return entries


def _entry(line: str, number: int, file: Path) -> tuple[Colour, str]:
    parts = line.split(maxsplit=3)
    values = [int(part) if part.isdecimal() else -1 for part in parts[:3]]
    if len(parts) < 4 or not all(0 <= value <= 255 for value in values):
        text = f"line {number} is '{line.strip()}'"
        raise DataError(text, str(file), "Expected red, green and blue from 0 to 255 and a name: 128 64 128 road")
    return (values[0], values[1], values[2]), parts[3].strip()


def read_text(file: Path) -> str:
    """A text file in UTF-8.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", str(file), "Write it as text in UTF-8") from error
