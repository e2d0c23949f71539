"""ETT: electricity transformer temperature, the benchmark of long-term forecasting.

Zhou et al., "Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting", AAAI 2021. The files
are licensed CC BY-ND 4.0: pass them on unmodified only. They are read where the user keeps them.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pandas as pd

from datamodules.forecasting.borders import ett_borders
from datamodules.forecasting.config import EttConfig
from datamodules.forecasting.csv import FIRST_LINE, read_frame
from datamodules.forecasting.frame import complete, to_table
from datamodules.forecasting.source import SeriesSource
from graftwork.errors import DataError

logger = logging.getLogger(__name__)

COLUMNS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
ROWS = {"ETTh1": 17420, "ETTh2": 17420, "ETTm1": 69680, "ETTm2": 69680}
SHA256 = {"ETTh1": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"}
"""Of the file as published; differing bytes (line ends, for example) are told, not refused."""

EXPECTED = """Expected:
  <root>/ETTh1.csv  ETTh2.csv  ETTm1.csv  ETTm2.csv   (or <root>/ETT-small/...), any of them
Source: https://github.com/zhouhaoyi/ETDataset, folder ETT-small
Licence: CC BY-ND 4.0 (attribution, no changed copies)"""


def load_ett(config: EttConfig) -> SeriesSource:
    """Read a variant with its published split: 12, 4 and 4 months of 30 days.

    Raises:
        DataError: The file is missing, is another variant, or lacks columns or rows.
    """
    path = find_variant(config.root, config.variant)
    step = "h" if config.variant.startswith("ETTh") else "15min"
    rules = config.as_csv(root=str(path), columns=COLUMNS, frequency=step)
    frame = read_frame(path, rules)
    check_file(frame, path, config.variant)
    series = complete(to_table(frame, rules, str(path), FIRST_LINE), rules, str(path))
    return SeriesSource(config, series, ett_borders(steps_per_hour=1 if step == "h" else 4), str(path))


def find_variant(root: str | None, variant: str) -> Path:
    """The file of a variant at ``root``: the file itself, or in the folder or its ``ETT-small``.

    Raises:
        DataError: Not there; the message has the expected tree, the source and the licence.
    """
    if not root:
        raise DataError(
            f"no folder given for {variant}", mend=f"Set --data.root DIR, or try --data.name sample. {EXPECTED}"
        )
    path = Path(root).expanduser()
    if path.is_file():
        if path.stem in ROWS and path.stem != variant:
            raise DataError(
                f"the file is {path.stem}, asked for is {variant}", str(path), f"Set --data.variant {path.stem}"
            )
        return path
    for folder in (path, path / "ETT-small", path / "ETDataset" / "ETT-small"):
        if (folder / f"{variant}.csv").is_file():
            return folder / f"{variant}.csv"
    raise DataError(f"{variant}.csv not found", str(path), f"Mend --data.root, or try --data.name sample. {EXPECTED}")


def check_file(frame: pd.DataFrame, path: Path, variant: str) -> None:
    """Compare a file with what was published.

    Raises:
        DataError: Columns are missing. Other rows than published are only warned about.
    """
    missing = [name for name in ("date", *COLUMNS) if name not in frame.columns]
    if missing:
        raise DataError(
            f"columns {', '.join(missing)} are missing; found {', '.join(map(str, frame.columns))}",
            str(path),
            f"Use the published file, or read yours with --data.name csv. {EXPECTED}",
        )
    if len(frame) != ROWS[variant]:
        logger.warning("%s: %d rows, published are %d; scores are not comparable", path, len(frame), ROWS[variant])


def is_published(path: Path, variant: str) -> bool | None:
    """Whether the bytes are those published; None where their sum is not known."""
    known = SHA256.get(variant)
    return None if known is None else hashlib.sha256(path.read_bytes()).hexdigest() == known
