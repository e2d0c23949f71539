"""CSV files as people write them, and what each broken one is told."""

from __future__ import annotations

import gzip
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datamodules.forecasting.config import CsvConfig
from datamodules.forecasting.csv import find_file, load_csv, read_series
from datamodules.forecasting.series import Series
from graftwork.errors import ConfigError, DataError

Read = Callable[..., Series]
Lines = Callable[..., list[str]]
Text = Callable[..., str]

A = [float(i) for i in range(6)]


def broken(read: Read, content: str | bytes, **options: object) -> str:
    """The message that a broken file gives."""
    with pytest.raises(DataError) as caught:
        read(content, **options)
    return str(caught.value)


# --- files that are fine ---


def test_plain_file(read: Read, lines: Lines, text: Text) -> None:
    series = read(text(lines()))
    assert (series.names, series.frequency, len(series)) == (("a", "b"), "h", 6)
    assert series.values[:, 0].tolist() == A
    assert series.index[5] == pd.Timestamp("2024-01-01 05:00")
    assert series.index.tz is None


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda t: "\ufeff" + t, {}),
        (lambda t: t.replace("\n", "\r\n"), {}),
        (lambda t: t + "\n\n", {}),
        (lambda t: t.replace(",", ";"), {}),
        (lambda t: t.replace(",", "\t"), {}),
        (lambda t: t.replace(",", "|"), {"delimiter": "|"}),
        (lambda t: t.replace(",", ", "), {}),
        (lambda t: t.replace("2024-", '"2024-').replace("00,", '00",'), {}),
        (lambda t: t.encode("utf-16"), {}),
        (lambda t: t.replace("date", "when"), {"date_column": "when"}),
    ],
    ids=["bom", "crlf", "blank end", "semicolon", "tab", "bar", "spaces", "quotes", "utf-16", "date column"],
)
def test_ways_to_write_the_same_file(
    read: Read, lines: Lines, text: Text, change: Callable[[str], str | bytes], options: dict[str, str]
) -> None:
    series = read(change(text(lines())), **options)
    assert series.names == ("a", "b")
    assert series.values[:, 1].tolist() == [10.0 + value for value in A]


@pytest.mark.parametrize("options", [{}, {"decimal": ","}, {"delimiter": ";", "decimal": ","}])
def test_decimal_comma(read: Read, options: dict[str, str]) -> None:
    body = [f"2024-01-0{i};{i},5;-1,25" for i in range(1, 7)]
    series = read("\n".join(["date;a;b", *body]), **options)
    assert series.values[:, 0].tolist() == [i + 0.5 for i in range(1, 7)]
    assert series.values[0, 1] == -1.25


def test_umlauts_of_windows_files(read: Read, lines: Lines, text: Text, caplog: pytest.LogCaptureFixture) -> None:
    assert read(text(lines(), "date,Wärme,b").encode("cp1252")).names == ("Wärme", "b")
    assert "Windows-1252" in caplog.text


@pytest.mark.parametrize("suffix", [".csv.gz", ".zip"])
def test_compressed_files(tmp_path: Path, lines: Lines, text: Text, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.csv", text(lines()))
    else:
        path.write_bytes(gzip.compress(text(lines()).encode()))
    assert len(read_series(path, CsvConfig())) == 6


def test_one_variate(read: Read) -> None:
    series = read("date,a\n" + "\n".join(f"2024-01-0{i},{i}" for i in range(1, 6)))
    assert (series.names, series.frequency, series.values.shape) == (("a",), "D", (5, 1))


def test_target_and_columns(read: Read, lines: Lines, text: Text) -> None:
    assert read(text(lines()), target="a").names == ("b", "a")
    assert read(text(lines(), "date,OT,b")).names == ("b", "OT")
    assert read(text(lines(), "date,a,b"), columns=("b",)).names == ("b",)
    assert read(text(lines()), features="S", target="a").names == ("a",)


def test_text_column_that_is_not_asked_for_does_no_harm(read: Read, lines: Lines, text: Text) -> None:
    body = [f"{line},sunny" for line in lines()]
    assert read(text(body, "date,a,b,weather"), columns=("a", "b")).names == ("a", "b")


def test_unsorted_rows_are_sorted(read: Read, lines: Lines, text: Text, caplog: pytest.LogCaptureFixture) -> None:
    assert read(text(lines()[::-1])).values[:, 0].tolist() == A
    assert "first at line 3: 2024-01-01 04:00:00 after 2024-01-01 05:00:00; sorted" in caplog.text


def test_row_numbers_of_pandas_are_no_variate(read: Read, lines: Lines, text: Text) -> None:
    numbered = [f"{i},{line}" for i, line in enumerate(lines())]
    assert read(text(numbered, ",date,a,b")).names == ("a", "b")
    unnamed_dates = text(lines(), ",a,b")
    assert read(unnamed_dates, date_column="unnamed 1").names == ("a", "b")


# --- dates ---


@pytest.mark.parametrize(
    ("written", "options"),
    [
        ("%Y-%m-%dT%H:%M:%S", {}),
        ("%Y/%m/%d %H:%M", {}),
        ("%d.%m.%Y %H:%M", {}),
        ("%d/%m/%Y %H:%M", {}),
        ("%m/%d/%Y %H:%M", {}),
        ("%d %b %Y %H:%M", {}),
        ("%H:%M, %d~%m~%Y", {"date_format": "%H:%M, %d~%m~%Y", "delimiter": ";"}),
    ],
)
def test_date_formats(read: Read, written: str, options: dict[str, str]) -> None:
    dates = pd.date_range("2024-02-10", periods=60, freq="6h")
    series = read("date;a\n" + "\n".join(f"{date:{written}};{i}" for i, date in enumerate(dates)), **options)
    assert series.index.tolist() == dates.tolist()
    assert series.frequency == "6h"


def test_midnight_without_hours(read: Read) -> None:
    dates = [str(d).removesuffix(" 00:00:00") for d in pd.date_range("2024-01-01", periods=30, freq="h")]
    assert read("date,a\n" + "\n".join(f"{date},1" for date in dates)).index[24] == pd.Timestamp("2024-01-02")


@pytest.mark.parametrize(
    ("cells", "first", "frequency"),
    [
        (["2001", "2002", "2003", "2004"], "2001-01-01", "YS-JAN"),
        (["200101", "200102", "200103", "200104"], "2001-01-01", "MS"),
        (["20010101", "20010102", "20010103", "20010104"], "2001-01-01", "D"),
        (["1704067200.0", "1704070800.0", "1704074400.0", "1704078000.0"], "2024-01-01", "h"),
        (["1704067200", "1704070800", "1704074400", "1704078000"], "2024-01-01", "h"),
        (["1704067200000", "1704070800000", "1704074400000", "1704078000000"], "2024-01-01", "h"),
    ],
)
def test_dates_as_numbers(read: Read, cells: list[str], first: str, frequency: str) -> None:
    series = read("date,a\n" + "\n".join(f"{cell},1" for cell in cells))
    assert (series.index[0], series.frequency) == (pd.Timestamp(first), frequency)


def test_ambiguous_order_of_day_and_month_is_told(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    series = read("date,a\n" + "\n".join(f"0{i}/01/2024,1" for i in range(1, 7)))
    assert series.frequency == "MS"
    assert "--data.date_format" in caplog.text
    dotted = read("date,a\n" + "\n".join(f"0{i}.01.2024,1" for i in range(1, 7)))
    assert dotted.frequency == "D"  # dates with dots are written day first


@pytest.mark.parametrize("frequency", ["15min", "h", "D", "B", "W-MON", "MS", "ME", "QS-JAN", "YS-JAN", "10D"])
@pytest.mark.parametrize("holes", [(), (7, 20)])
def test_step_is_inferred(read: Read, frequency: str, holes: tuple[int, ...]) -> None:
    dates = pd.date_range("2020-01-01", periods=40, freq=frequency)
    body = [f"{date},{i}" for i, date in enumerate(dates) if i not in holes]
    series = read("date,a\n" + "\n".join(body), on_irregular="resample", on_missing="interpolate")
    assert series.frequency.split("-")[0] == frequency.split("-")[0]  # QS-JAN and QS-OCT are the same quarters
    assert series.index.tolist() == dates.tolist()
    np.testing.assert_allclose(series.values[:, 0], np.arange(40.0))


def test_month_end_and_quarter_end_with_holes(read: Read) -> None:
    for frequency in ("ME", "QE-MAR", "YE-DEC"):
        dates = pd.date_range("2000-01-01", periods=20, freq=frequency).delete([5])
        message = broken(read, "date,a\n" + "\n".join(f"{date},1" for date in dates))
        assert f"not regular at step {frequency}: missing timestamps: 1 (gaps: 1)" in message


# --- time zones ---


def test_offsets_become_utc_or_the_zone_asked_for(read: Read, lines: Lines, text: Text) -> None:
    content = text(lines(zone="Europe/Berlin", start="2024-03-31", count=8))  # written with +01:00, then +02:00
    utc = read(content)
    assert (str(utc.index.tz), utc.frequency, utc.index[0].hour) == ("UTC", "h", 23)
    local = read(content, timezone="Europe/Berlin")
    assert [stamp.hour for stamp in local.index] == [0, 1, 3, 4, 5, 6, 7, 8]
    assert local.frequency == "h"


@pytest.mark.parametrize("day", ["2024-03-31", "2024-10-27"])
def test_local_clock_with_a_zone_is_regular_across_daylight_saving(
    read: Read, lines: Lines, text: Text, day: str
) -> None:
    local = [
        line.replace("+01:00", "").replace("+02:00", "") for line in lines(zone="Europe/Berlin", start=day, count=30)
    ]
    assert "if this is local time with daylight saving, name its zone with --data.timezone" in broken(read, text(local))
    series = read(text(local), timezone="Europe/Berlin")
    assert (series.frequency, len(series)) == ("h", 30)
    assert series.values[:, 0].tolist() == [float(i) for i in range(30)]


def test_local_days_are_regular_across_daylight_saving(read: Read, lines: Lines, text: Text) -> None:
    content = text(lines("D", zone="Europe/Berlin", start="2024-03-25", count=14))
    assert "--data.timezone" in broken(read, content, frequency="D")
    assert read(content, timezone="Europe/Berlin").frequency == "D"


def test_hour_that_daylight_saving_skips(read: Read, lines: Lines, text: Text) -> None:
    message = broken(read, text(lines(start="2024-03-31")), timezone="Europe/Berlin")
    assert "no local times of Europe/Berlin" in message
    assert "drop --data.timezone" in message


def test_mixed_offsets(read: Read) -> None:
    message = broken(read, "date,a\n2024-01-01 00:00+01:00,1\n2024-01-01 01:00,1\n2024-01-01 02:00+01:00,1\n")
    assert "mixes dates with and without a UTC offset, first without at line 3: '2024-01-01 01:00'" in message


# --- broken files ---


def test_nothing_given_or_nothing_there(tmp_path: Path) -> None:
    for root in (None, str(tmp_path / "no.csv")):
        with pytest.raises(DataError, match=r"(?s)--data.root.*--data.name sample.*date,load,temperature"):
            find_file(root)


def test_folders(tmp_path: Path, lines: Lines, text: Text) -> None:
    with pytest.raises(DataError, match="a folder without a CSV file"):
        find_file(str(tmp_path))
    (tmp_path / "one.csv").write_text(text(lines()))
    assert find_file(str(tmp_path)).name == "one.csv"
    (tmp_path / "two.csv").write_text(text(lines()))
    with pytest.raises(DataError, match=r"2 data files: one.csv, two.csv. Name one: --data.root .*one.csv"):
        find_file(str(tmp_path))


def test_empty_files(read: Read) -> None:
    assert "the file is empty" in broken(read, "")
    assert "the file is empty" in broken(read, "\n\n")
    assert "column names but no rows" in broken(read, "date,a\n")


def test_no_date_column(read: Read, lines: Lines, text: Text) -> None:
    assert "unknown date column 'date'; did you mean datetime" in broken(read, text(lines(), "datetime,a,b"))
    assert "known: a, b, t" in broken(read, text(lines(), "t,a,b"))


def test_only_a_date_column(read: Read) -> None:
    assert "only the date column 'date'" in broken(read, "date\n2024-01-01\n2024-01-02\n")


def test_wrong_delimiter(read: Read, lines: Lines, text: Text) -> None:
    assert "--data.delimiter" in broken(read, text(lines()), delimiter=";", date_column="date,a,b")


def test_unreadable_date(read: Read, lines: Lines, text: Text) -> None:
    body = lines()
    body[3] = "soon,1,2"
    message = broken(read, text(body))
    assert "cells of column 'date' that are no date: 1 of 6, first at line 5: 'soon'" in message
    body[3] = ",1,2"
    assert "line 5: an empty cell" in broken(read, text(body))


def test_times_without_dates(read: Read) -> None:
    for cells in (["00:00", "01:00", "02:00"], ["1:00 PM", "2:00 PM", "3:00 PM"]):
        message = broken(read, "date,a\n" + "\n".join(f"{cell},1" for cell in cells))
        assert f"column 'date' has times without dates, such as '{cells[0]}'" in message


def test_wrong_date_format(read: Read, lines: Lines, text: Text) -> None:
    assert "that are no date: 6 of 6, first at line 2" in broken(read, text(lines()), date_format="%d.%m.%Y")


def test_text_in_a_numeric_column(read: Read, lines: Lines, text: Text) -> None:
    body = lines()
    body[2] = "2024-01-01 02:00:00,broken,2"
    assert "cells of column 'a' that are no number: 1 of 6, first at line 4: 'broken'" in broken(read, text(body))


def test_decimal_comma_where_a_point_was_asked_for(read: Read) -> None:
    message = broken(read, "date;a\n2024-01-01;1,5\n2024-01-02;2,5\n2024-01-03;2,5\n", decimal=".")
    assert "'1,5'. If the comma is the decimal character: --data.decimal ','" in message


def test_repeated_column_names(read: Read, lines: Lines, text: Text) -> None:
    assert "column 'a' occurs more than once (columns 2, 3)" in broken(read, text(lines(), "date,a,a"))


def test_unknown_column_and_target(read: Read, lines: Lines, text: Text) -> None:
    assert "unknown column 'lod'; did you mean load" in broken(read, text(lines(), "date,load,b"), columns=("lod",))
    assert "unknown target column 'lod'; did you mean load" in broken(read, text(lines(), "date,load,b"), target="lod")


def test_lines_of_different_lengths(read: Read, lines: Lines, text: Text) -> None:
    body = lines()
    body[2] += ",7"
    message = broken(read, text(body))
    assert "lines of different lengths" in message
    assert "line 4" in message
    every = broken(read, text([f"{line},7" for line in lines()]))
    assert "lines of different lengths" in every


def test_infinite_values(read: Read, lines: Lines, text: Text) -> None:
    body = lines()
    body[4] = "2024-01-01 04:00:00,inf,2"
    assert "infinite values in 'a' 1 (first 2024-01-01 04:00:00)" in broken(read, text(body))


def test_missing_and_repeated_timestamps(read: Read, lines: Lines, text: Text) -> None:
    body = lines(count=12)
    message = broken(read, text(body[:3] + body[5:7] + [body[6]] + body[7:9] + body[10:]))
    assert "repeated timestamps: 1, first 2024-01-01 06:00:00" in message
    assert "missing timestamps: 3 (gaps: 2), first after 2024-01-01 02:00:00 (next row 2024-01-01 05:00:00)" in message
    assert "--data.on_irregular resample" in message


def test_timestamp_off_the_grid(read: Read, lines: Lines, text: Text) -> None:
    body = lines(count=12)
    body[5] = body[5].replace("05:00:00", "05:07:00")
    assert "timestamps off the grid: 1, first 2024-01-01 05:07:00" in broken(read, text(body))


def test_resampling_takes_means_and_leaves_gaps_to_the_policy(read: Read, lines: Lines, text: Text) -> None:
    body = lines(count=8)
    content = text(body[:2] + ["2024-01-01 01:20:00,3,0"] + body[2:4] + body[5:])
    assert "empty cells: 2, in 'a' 1 (first 2024-01-01 04:00:00)" in broken(read, content, on_irregular="resample")
    series = read(content, on_irregular="resample", on_missing="forward_fill")
    assert series.values[:, 0].tolist() == [0, 2, 2, 3, 3, 5, 6, 7]


def test_step_much_finer_than_the_rows(read: Read, lines: Lines, text: Text) -> None:
    message = broken(read, text(lines("D", 100)), frequency="s", on_irregular="resample")
    assert "Name the right step with --data.frequency" in message


def test_step_that_is_no_step(read: Read, lines: Lines, text: Text) -> None:
    with pytest.raises(ConfigError, match="frequency 'hurly' is unknown"):
        read(text(lines()), frequency="hurly")


def test_no_regular_step(read: Read) -> None:
    dates = ["2024-01-15", "2024-02-15", "2024-03-15", "2024-04-15"]
    message = broken(read, "date,a\n" + "\n".join(f"{date},1" for date in dates))
    assert "no regular step found; most common: 31 days (2 times)" in message
    assert "2 different timestamps are too few" in broken(read, "date,a\n2024-01-01,1\n2024-01-02,2\n")


def test_empty_cells(read: Read, lines: Lines, text: Text) -> None:
    body = [line.replace(",3,", ",,").replace(",1,", ",NA,") for line in lines()]
    message = broken(read, text(body))
    assert "empty cells: 2, in 'a' 2 (first 2024-01-01 01:00:00)" in message
    for policy in ("forward_fill", "interpolate", "drop_columns"):
        assert policy in message
    assert read(text(body), on_missing="forward_fill").values[:, 0].tolist() == [0, 0, 2, 2, 4, 5]
    assert read(text(body), on_missing="interpolate").values[:, 0].tolist() == A
    assert read(text(body), on_missing="drop_columns").names == ("b",)
    assert "would drop the target column 'a'" in broken(read, text(body), on_missing="drop_columns", target="a")


def test_first_cells_take_the_first_known_value(read: Read, lines: Lines, text: Text) -> None:
    body = [line.replace(",0,", ",,").replace(",1,", ",,") for line in lines()]
    for policy in ("forward_fill", "interpolate"):
        assert read(text(body), on_missing=policy).values[:, 0].tolist() == [2, 2, 2, 3, 4, 5]


def test_column_without_a_number(read: Read, lines: Lines, text: Text) -> None:
    body = [f"{line}," for line in lines()]
    assert "no number in column 'c'" in broken(read, text(body, "date,a,b,c"), on_missing="forward_fill")


def test_many_incomplete_columns_are_counted(read: Read, lines: Lines, text: Text) -> None:
    body = [f"{line}," + "," * 5 for line in lines()]
    assert "and 3 more columns" in broken(read, text(body, "date,a,b,c,d,e,f,g,h"))


def test_archive_of_many_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "x")
    with pytest.raises(DataError, match=r"an archive of 2 files: a\.csv, b\.csv\. Unpack it"):
        read_series(tmp_path / "data.zip", CsvConfig())
    (tmp_path / "data.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read"):
        read_series(tmp_path / "data.zip", CsvConfig())


# --- splits ---


def test_too_few_rows(tmp_path: Path, lines: Lines, text: Text) -> None:
    (tmp_path / "short.csv").write_text(text(lines(count=300)))
    with pytest.raises(DataError, match=r"300 rows are too few: val gets 30 .*this split needs 944 rows in all"):
        load_csv(CsvConfig(root=str(tmp_path / "short.csv")))


def test_constant_column_is_told_and_kept(
    tmp_path: Path, lines: Lines, text: Text, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "flat.csv").write_text(text([f"{line},5" for line in lines(count=200)], "date,a,b,c"))
    source = load_csv(CsvConfig(root=str(tmp_path), look_back=8, horizon=4))
    with caplog.at_level(logging.WARNING):
        sample = source.windows("train")[0]
    assert "column 'c' is constant over the training rows" in caplog.text
    assert sample["history"][:, 2].tolist() == [0.0] * 8


def test_split_at_dates(tmp_path: Path, lines: Lines, text: Text) -> None:
    (tmp_path / "data.csv").write_text(text(lines("D", 200)))
    source = load_csv(CsvConfig(root=str(tmp_path), look_back=8, horizon=4, split_dates=("2024-05-01", "2024-06-01")))
    first = (
        source.windows("test")[0]["future"][0, 0].item() * source.standardiser.scale[0] + source.standardiser.mean[0]
    )
    assert first == pytest.approx(31 + 29 + 31 + 30 + 31, abs=1e-3)


@pytest.mark.parametrize("form", ["%Q", "%s", "%Y-%m-%d %", "%Y %Y"])
def test_a_format_that_is_none(read: Read, lines: Lines, text: Text, form: str) -> None:
    with pytest.raises(ConfigError, match=f"data.date_format='{form}' is no format"):
        read(text(lines()), date_format=form)


def test_several_offsets_are_told(read: Read, lines: Lines, text: Text, caplog: pytest.LogCaptureFixture) -> None:
    body = text(lines(zone="Europe/Berlin", start="2024-03-31"))
    assert str(read(body).index[0]) == "2024-03-30 23:00:00+00:00"
    assert "several UTC offsets (+0100, +0200), read as UTC; set --data.timezone" in caplog.text
    caplog.clear()
    assert str(read(body, timezone="Europe/Berlin").index[0]) == "2024-03-31 00:00:00+01:00"
    read(text(lines(zone="Etc/GMT-2")))
    assert "offsets" not in caplog.text
