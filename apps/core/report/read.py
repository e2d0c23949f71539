"""Read a run folder: every file may be absent or broken, and then its part is empty."""

from __future__ import annotations

import csv
import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SECTIONS = ("summary", "best", "worst", "random")


@dataclass(frozen=True)
class Medium:
    """A picture or sound of the run.

    Args:
        path: The file.
        section: ``summary``, ``best``, ``worst``, ``random`` or the app's own.
        caption: One sentence.
        score: Score of the sample; None for what belongs to no sample.
        before: A picture of the same size to compare with; None for none.
    """

    path: Path
    section: str
    caption: str
    score: float | None = None
    before: Path | None = None


Series = dict[str, list[tuple[float, float]]]


@dataclass
class RunFiles:
    """Contents of a run folder.

    Args:
        path: The folder.
        results: Rows of ``results.json``.
        curves: Logged name to points (step, value) in order of step.
        epochs: Largest epoch logged plus one; 0 if none was.
        media: Pictures and sounds, in order of section.
        notes: ``notes.json``.
        provenance: ``provenance.json``.
        config: Text of ``config.yaml``.
    """

    path: Path
    results: list[dict[str, Any]] = field(default_factory=list)
    curves: Series = field(default_factory=dict)
    epochs: int = 0
    media: list[Medium] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    config: str = ""


def read_run(path: Path) -> RunFiles:
    """Read what there is in a run folder."""
    curves, epochs = read_metrics(path / "metrics.csv")
    return RunFiles(
        path=path,
        results=[row for row in _json(path / "results.json", list) if isinstance(row, dict) and row.get("metric")],
        curves=curves,
        epochs=epochs,
        media=read_media(path / "media"),
        notes=_json(path / "notes.json", dict),
        provenance=_json(path / "provenance.json", dict),
        config=_text(path / "config.yaml"),
    )


def read_metrics(path: Path) -> tuple[Series, int]:
    """Read Lightning's ``metrics.csv``, whose rows are sparse.

    Returns:
        Points (step, value) of each column in order of step, and the number of epochs. A NaN stays as a point; an
        empty cell is none. Where a step was logged twice (a run that was resumed), the later row counts.
    """
    points: dict[str, dict[float, float]] = {}
    last_epoch = -1.0
    for line, row in enumerate(csv.DictReader(_text(path).splitlines())):
        step = _float(row.get("step"), line)
        last_epoch = max(last_epoch, _float(row.get("epoch"), -1))
        for name, cell in row.items():
            if name and name not in ("step", "epoch") and isinstance(cell, str) and cell.strip():
                points.setdefault(name, {})[step] = _float(cell, math.nan)
    return {name: sorted(values.items()) for name, values in points.items()}, int(last_epoch) + 1


def read_media(folder: Path) -> list[Medium]:
    """Pictures and sounds of ``media/index.json``; without an index, every file of the folder."""
    entries = _json(folder / "index.json", list)
    if not entries and folder.is_dir():
        entries = [{"file": path.name} for path in sorted(folder.iterdir()) if path.suffix not in (".json", ".tmp")]
    media = [found for entry in entries if isinstance(entry, dict) and (found := _medium(folder, entry))]
    order = {name: rank for rank, name in enumerate(SECTIONS)}
    return sorted(media, key=lambda medium: order.get(medium.section, len(order)))


def _medium(folder: Path, entry: dict[str, Any]) -> Medium | None:
    path = _inside(folder, entry.get("file"))
    if path is None:
        return None
    score = entry.get("score")
    return Medium(
        path=path,
        section=str(entry.get("section") or "pictures"),
        caption=str(entry.get("caption") or path.stem.replace("_", " ")),
        score=float(score) if isinstance(score, int | float) else None,
        before=_inside(folder, entry.get("before")),
    )


def _inside(folder: Path, name: object) -> Path | None:
    """The file of that name in the folder of media or in the run; never one outside of the run."""
    for base in (folder, folder.parent) if name else ():
        path = (base / str(name)).resolve()
        if path.is_file() and path.is_relative_to(folder.parent.resolve()):
            return path
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(path: Path, kind: type) -> Any:
    text = _text(path)
    if not text:
        return kind()
    try:
        value = json.loads(text)
    except ValueError:
        log.warning("%s is not valid JSON; the report leaves it out", path)
        return kind()
    return value if isinstance(value, kind) else kind()


def _float(cell: str | None, otherwise: float) -> float:
    try:
        return float(cell) if cell not in (None, "") else otherwise
    except ValueError:
        return otherwise
