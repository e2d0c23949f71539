"""The embedded default: hourly traffic on a motorway in Minneapolis with the weather, October 2016 to September 2018.

The file ships inside the package ``autots`` (MIT), which is read by path and never imported. The data is the "Metro
Interstate Traffic Volume" series of the UCI repository (licence CC BY 4.0): 17,520 hourly rows on a regular
grid of local time, 104 of them empty in every column (at most nine in a row; the hours that daylight saving skips are
among them).

What is left out, and why:

- ``snow_1h`` is 0 throughout and ``weather_main`` is text.
- ``rain_1h`` was recorded in October 2016 (12 hours with rain) and again from August 2018 (401 hours); in the 21 months
  between it is 0. With the usual split, test rows would lie up to 142 training deviations off, and 96 % of the error of
  a repeat-last forecaster over all columns would be rain.

The outliers that the full UCI series is known for (0 K, 9831 mm of rain) lie before October 2016, not in this file.
"""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pandas as pd

from datamodules.cache import cache_folder, write_if_changed
from datamodules.forecasting.config import SampleConfig
from datamodules.forecasting.csv import load_csv
from datamodules.forecasting.source import SeriesSource
from graftwork.errors import DataError, missing_package

MEMBER = Path("datasets", "data", "traffic_hourly.zip")
COLUMNS = ("clouds_all", "temp", "traffic_volume")
UNITS = {"clouds_all": "%", "temp": "K", "traffic_volume": "vehicles/h"}
FILE = "metro_traffic.csv"

NOTICE = """Metro Interstate Traffic Volume, Minneapolis, hourly, 2016-10-01 to 2018-09-30
Source: UCI Machine Learning Repository
Traffic recorded by the Minnesota Department of Transportation
Licence: Creative Commons Attribution 4.0 (CC BY 4.0), https://creativecommons.org/licenses/by/4.0/
Taken from the Python package autots (MIT), file datasets/data/traffic_hourly.zip
Changes: columns clouds_all (%), temp (K) and traffic_volume (vehicles/h) kept; 104 empty hours repeat the hour before
"""


def load_sample(config: SampleConfig) -> SeriesSource:
    """Write the CSV file where it is missing and read it as a user's own file.

    Raises:
        MissingPackageError: The package with the data is not installed.
        DataError: The data in the package is not what it should be.
    """
    return load_csv(config.as_csv(root=str(write_sample(config.root))), view=config)


def write_sample(root: str | None) -> Path:
    """The sample as ``date,clouds_all,temp,traffic_volume`` in a folder, with a notice of source and licence beside it.

    Args:
        root: Folder; a temporary one if None.
    """
    folder = cache_folder(root, "forecasting")
    table = read_packaged(packaged_file())
    write_if_changed(folder / "metro_traffic.LICENCE.txt", NOTICE)
    return write_if_changed(folder / FILE, table.to_csv(index=False, lineterminator="\n"))


def packaged_file() -> Path:
    """Path of the data inside its package, found without importing it.

    Raises:
        MissingPackageError: The package is not installed.
        DataError: It is, but has no such file.
    """
    spec = importlib.util.find_spec("autots")
    if spec is None or not spec.submodule_search_locations:
        raise missing_package("autots", "sample", "the sample dataset of forecasting")
    path = Path(next(iter(spec.submodule_search_locations))) / MEMBER
    if not path.is_file():
        raise DataError("not in the installed autots", str(path), "Install it again: pip install 'graftwork[sample]'")
    return path


def read_packaged(path: Path) -> pd.DataFrame:
    """Date and the used columns of the packaged file, empty hours filled with the hour before.

    Raises:
        DataError: Columns are missing or the archive is broken.
    """
    try:
        frame = pd.read_csv(path)
        chosen = frame[["datetime", *COLUMNS]].rename(columns={"datetime": "date"})
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"not the expected table: {error}", str(path), "Install autots 1.0.4, or use --data.name csv"
        ) from error
    return chosen.ffill()
