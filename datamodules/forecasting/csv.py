"""Reading a CSV file of series: where it is, how it is written, and what is wrong with it."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re
import warnings
import zipfile
from pathlib import Path

import pandas as pd

from datamodules.forecasting.borders import date_borders, ratio_borders, rows_needed
from datamodules.forecasting.config import CsvConfig, SeriesConfig
from datamodules.forecasting.frame import complete, to_table
from datamodules.forecasting.series import Series
from datamodules.forecasting.source import SeriesSource
from graftwork.errors import DataError

logger = logging.getLogger(__name__)

LAYOUT = """Expected is a CSV file with a date column and one numeric column per variate:
  date,load,temperature
  2024-01-01 00:00,12.5,3.1
  2024-01-01 01:00,11.9,2.8"""

FIRST_LINE = 2  # of the data; line 1 has the names
_SUFFIXES = (".csv", ".txt", ".tsv", ".csv.gz", ".zip")
_DELIMITERS = (",", ";", "\t", "|")
_COMMA_NUMBER = re.compile(r"^\s*\"?[+-]?\d+,\d+\"?\s*$")
_EMPTY = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-", "?", "#N/A"]


def load_csv(config: CsvConfig, view: SeriesConfig | None = None) -> SeriesSource:
    """Read a file and cut its splits by share or by date.

    Args:
        config: Where the file is, how it is written, how it is split.
        view: The configuration that the source keeps, where another dataset is read through this one.

    Raises:
        DataError: Anything about the file that would make a forecast wrong; the message says what to mend.
    """
    path = find_file(config.root)
    series = read_series(path, config)
    if config.split_dates is not None:
        return SeriesSource(view or config, series, date_borders(series.index, config.split_dates), str(path))
    needed = rows_needed(config.split, config.look_back, config.horizon)
    return SeriesSource(view or config, series, ratio_borders(len(series), config.split), str(path), needed)


def read_series(path: str | Path, config: CsvConfig) -> Series:
    """The series in a file, without splits; also the input of ``predict``.

    Args:
        path: The file.
        config: How it is written, and the policies for gaps.

    Raises:
        DataError: As :func:`load_csv`.
    """
    frame = read_frame(Path(path), config)
    return complete(to_table(frame, config, str(path), FIRST_LINE), config, str(path))


def find_file(root: str | None) -> Path:
    """The data file at ``root``: the file itself, or the only data file of a folder.

    Raises:
        DataError: Nothing given, nothing there, or a folder with another number of data files than one.
    """
    if not root:
        raise DataError("no data given", mend=f"Set --data.root FILE, or try --data.name sample. {LAYOUT}")
    path = Path(root).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError("no such file", str(path), f"Mend --data.root, or try --data.name sample. {LAYOUT}")
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name.lower().endswith(_SUFFIXES))
    if len(files) == 1:
        return files[0]
    found = ", ".join(entry.name for entry in files[:10]) + (", ..." if len(files) > 10 else "")
    if files:
        raise DataError(
            f"a folder with {len(files)} data files: {found}", str(path), f"Name one: --data.root {files[0]}"
        )
    raise DataError("a folder without a CSV file", str(path), f"Set --data.root to the file. {LAYOUT}")


def read_frame(path: Path, config: CsvConfig) -> pd.DataFrame:
    """The cells of a file: numeric columns as numbers, others as text.

    Args:
        path: CSV, optionally gzipped or the only member of a zip archive.
        config: Date column, delimiter and decimal character; the last two are recognised if None.

    Raises:
        DataError: An empty file, lines of different lengths, repeated names, an unknown encoding.
    """
    text = _read_text(path).rstrip()
    if not text:
        raise DataError("the file is empty", str(path), LAYOUT)
    delimiter = config.delimiter or _delimiter(text)
    header = _header(text, delimiter, path)
    decimal = config.decimal or _decimal(text, delimiter)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # longer lines would silently lose cells
        try:
            frame = pd.read_csv(
                io.StringIO(text),
                sep=delimiter,
                decimal=decimal,
                names=header,
                header=None,
                skiprows=1,
                index_col=False,
                skip_blank_lines=False,
                skipinitialspace=True,
                low_memory=False,
                dtype={config.date_column: "string"},
                keep_default_na=False,
                na_values=_EMPTY,
            )
        except (pd.errors.ParserError, pd.errors.ParserWarning, csv.Error) as error:
            raise DataError(
                f"lines of different lengths: {str(error).strip()}; the first line names {len(header)} columns",
                str(path),
                f"Mend the line, or name the character between cells with --data.delimiter (read with {delimiter!r})",
            ) from error
    return _without_row_numbers(frame, path)


def _without_row_numbers(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Leave out the row numbers that pandas writes before the columns of a frame."""
    first = frame.columns[0]
    if first != _unnamed(1) or not pd.api.types.is_integer_dtype(frame[first].dtype):
        return frame
    if not frame[first].diff().iloc[1:].eq(1).all():
        return frame
    logger.warning("%s: the first column has no name and counts the rows; left out", path)
    return frame.drop(columns=first)


def _unnamed(place: int) -> str:
    return f"unnamed {place}"


def _read_text(path: Path) -> str:
    try:
        data = _read_bytes(path)
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read: {error}", str(path), "Check the file and its permissions") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        logger.warning("%s: not UTF-8; read as Windows-1252", path)
        return data.decode("cp1252", errors="replace")


def _read_bytes(path: Path) -> bytes:
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix != ".zip":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
        if len(members) != 1:
            raise DataError(f"an archive of {len(members)} files: {', '.join(members[:5])}", str(path), "Unpack it")
        return archive.read(members[0])


def _delimiter(text: str) -> str:
    first = text.split("\n", 1)[0]
    return max(_DELIMITERS, key=first.count)  # the comma where there is none


def _header(text: str, delimiter: str, path: Path) -> list[str]:
    names = [name.strip() for name in next(csv.reader([text.split("\n", 1)[0].rstrip("\r")], delimiter=delimiter))]
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        places = ", ".join(str(place) for place, name in enumerate(names, start=1) if name == repeated[0])
        raise DataError(
            f"column '{repeated[0]}' occurs more than once (columns {places})", str(path), "Rename or remove one"
        )
    return [name or _unnamed(place) for place, name in enumerate(names, start=1)]


def _decimal(text: str, delimiter: str) -> str:
    """A comma where the first rows have cells like 3,14 and the comma is not the delimiter."""
    if delimiter == ",":
        return "."
    lines = text.split("\n", 21)[1:21]
    return "," if any(_COMMA_NUMBER.match(cell) for line in lines for cell in line.split(delimiter)) else "."
