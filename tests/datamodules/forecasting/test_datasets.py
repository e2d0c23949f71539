"""The datasets by name: options, ETT's protocol, the sample, the generated series, and what must not leak."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from datamodules.forecasting import sample
from datamodules.forecasting.borders import SPLITS
from datamodules.forecasting.config import DATASETS, CsvConfig, EttConfig, GeneratedConfig, SampleConfig, SeriesConfig
from datamodules.forecasting.info import ForecastingInfo
from datamodules.forecasting.source import SeriesSource, load
from graftwork.errors import ConfigError, DataError, MissingPackageError

needs_autots = pytest.mark.skipif(importlib.util.find_spec("autots") is None, reason="needs the extra 'sample'")


@pytest.fixture(scope="module")
def etth1(shared: Path) -> SeriesSource:
    """ETTh1 with the benchmark's defaults."""
    return load(EttConfig(root=str(shared / "data")))


@pytest.fixture(scope="module")
def fake_ett(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short file in ETT's layout."""
    folder = tmp_path_factory.mktemp("ett")
    index = pd.date_range("2016-07-01", periods=14400, freq="h")
    values = np.random.default_rng(0).normal(size=(14400, 7)).round(3)
    table = pd.DataFrame(values, index=index, columns=["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"])
    table.to_csv(folder / "ETTh2.csv", index_label="date")
    return folder


# --- options ---


def test_names_and_default() -> None:
    assert (DATASETS.default, set(DATASETS.names())) == ("sample", {"sample", "ett", "csv", "generated"})
    for name in DATASETS.names():
        assert list(DATASETS.get(name)().problems()) == []


def test_options_import_neither_torch_nor_pandas() -> None:
    code = (
        "import sys, datamodules.forecasting.config\n"
        "print([name for name in ('torch', 'pandas', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SampleConfig(horizon=0), "horizon=0 must be at least 1"),
        (SampleConfig(look_back=-5), "look_back=-5 must be at least 1"),
        (EttConfig(batch_size=0), "batch_size=0"),
        (EttConfig(num_workers=-1), "num_workers=-1"),
        (EttConfig(season=0), "season=0 must be at least 1, or be left out"),
        (CsvConfig(split=(0.8, 0.2, 0.2)), r"split=\[0.8, 0.2, 0.2\] sums to 1.2, more than 1"),
        (CsvConfig(split=(1.0, 0.0, 0.0)), "three shares above 0"),
        (
            CsvConfig(split_dates=("2024-02-01", "2024-01-01")),
            "2024-02-01, which must be before the test date 2024-01-01",
        ),
        (CsvConfig(split_dates=("soon", "2024-01-01")), "'soon' is no validation date"),
        (CsvConfig(target="a", columns=("b", "c")), r"target=a is not among columns=\['b', 'c'\]"),
        (CsvConfig(columns=("date", "c")), "leave it out of columns"),
        (CsvConfig(delimiter=",", decimal=","), "cannot be the same character"),
        (CsvConfig(delimiter="::"), "must be one character"),
        (CsvConfig(timezone="Europe/Berln"), "did you mean Europe/Berlin"),
        (GeneratedConfig(variates=0), "variates=0"),
        (GeneratedConfig(noise=-1), "noise=-1"),
    ],
)
def test_options_out_of_range(config: SeriesConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(config)


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)3 problems.*look_back=0.*horizon=0.*sums to 2.7"):
        load(CsvConfig(look_back=0, horizon=0, split=(0.9, 0.9, 0.9)))


def test_target_goes_with_every_choice_of_features() -> None:
    for features in ("M", "S", "MS"):
        assert list(CsvConfig(features=features, target="a").problems()) == []


# --- ETT ---


def test_ett_windows_equal_the_reference(shared: Path, etth1: SeriesSource) -> None:
    golden = load_file(shared / "goldens/forecasting/data_etth1_protocol.safetensors")
    facts = json.loads((shared / "goldens/forecasting/data_etth1_protocol.json").read_text())
    label = facts["label_len"]
    for split in SPLITS:
        windows = etth1.windows(split)
        assert len(windows) == etth1.window_count(split) == facts[f"{split}_windows"]
        for place, index in (("first", 0), ("last", len(windows) - 1)):
            given = windows[index]
            ours = {
                "x": given["history"],
                "y": torch.cat([given["history"][-label:], given["future"]]),
                "x_mark": given["history_marks"],
                "y_mark": torch.cat([given["history_marks"][-label:], given["future_marks"]]),
            }
            for name, value in ours.items():
                np.testing.assert_allclose(value, golden[f"output.{split}.{place}.{name}"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(etth1.standardiser.mean, golden["output.scaler.mean"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(etth1.standardiser.scale, golden["output.scaler.scale"], rtol=0, atol=1e-6)


def test_repeating_the_last_value_scores_as_published(shared: Path, etth1: SeriesSource) -> None:
    facts = json.loads((shared / "goldens/forecasting/data_etth1_protocol.json").read_text())["naive_repeat_last_test"]
    windows = etth1.windows("test")
    batch = windows.__getitems__(list(range(len(windows)))).tensors
    error = (batch["future"] - batch["history"][:, -1:]).double()
    assert error.square().mean().item() == pytest.approx(facts["mse"], abs=1e-6)
    assert error.abs().mean().item() == pytest.approx(facts["mae"], abs=1e-6)


@pytest.mark.parametrize("where", ["data", "data/ETT-small", "data/ETT-small/ETTh1.csv"])
def test_ett_is_found_in_the_usual_places(shared: Path, where: str) -> None:
    assert load(EttConfig(root=str(shared / where))).series.names[-1] == "OT"


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_ett_missing_names_tree_source_and_licence(root: str | None) -> None:
    with pytest.raises(DataError, match=r"(?s)--data.root.*ETTh1.csv.*github.com/zhouhaoyi/ETDataset.*CC BY-ND 4.0"):
        load(EttConfig(root=root))


def test_ett_other_than_published(fake_ett: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = load(EttConfig(root=str(fake_ett), variant="ETTh2"))
    assert "14400 rows, published are 17420" in caplog.text
    assert [source.window_count(split) for split in SPLITS] == [8449, 2785, 2785]
    with pytest.raises(DataError, match=r"the file is ETTh2, asked for is ETTh1\. Set --data\.variant ETTh2"):
        load(EttConfig(root=str(fake_ett / "ETTh2.csv")))
    text = (fake_ett / "ETTh2.csv").read_text()
    (tmp_path / "ETTh1.csv").write_text(text.replace("MULL", "XXXX", 1))
    with pytest.raises(DataError, match="columns MULL are missing; found date, HUFL"):
        load(EttConfig(root=str(tmp_path)))
    (tmp_path / "ETTh1.csv").write_text("\n".join(text.split("\n")[:9001]))
    with pytest.raises(DataError, match="9000 rows found, the split needs 14400"):
        load(EttConfig(root=str(tmp_path)))


@pytest.mark.parametrize(("features", "inputs", "outputs"), [("M", 7, 7), ("MS", 7, 1), ("S", 1, 1)])
def test_features_of_ett(fake_ett: Path, features: Any, inputs: int, outputs: int) -> None:
    source = load(EttConfig(root=str(fake_ett), variant="ETTh2", features=features, target="LULL", marks="integer"))
    given = source.windows("val")[0]
    assert (source.variates, source.outputs, source.mark_features) == (inputs, outputs, 5)
    assert (given["history"].shape, given["future"].shape) == ((96, inputs), (96, outputs))
    assert given["history_marks"][0].tolist()[:2] == [6.0, 22.0]  # 22 June 2017, four days before the border
    assert source.series.target == "LULL"
    assert json.loads(json.dumps(source.plain()))["names"][-1] == "LULL"


# --- nothing leaks ---


def test_standardiser_and_training_never_see_later_rows(tmp_path: Path) -> None:
    config = GeneratedConfig(root=str(tmp_path), rows=400, look_back=20, horizon=10)
    source = load(config)
    file = next(tmp_path.glob("*.csv"))
    table = pd.read_csv(file)
    table.iloc[source.borders.val.start :, 1:] = 1e6
    table.to_csv(tmp_path / "changed.csv", index=False)
    changed = load(config.as_csv(root=str(tmp_path / "changed.csv")))
    assert changed.standardiser == source.standardiser
    assert torch.equal(changed.windows("train").values, source.windows("train").values)


def test_training_rows_have_mean_0_and_deviation_1(tmp_path: Path) -> None:
    source = load(GeneratedConfig(root=str(tmp_path)))
    training = source.tensors[0][source.borders.train.slice]
    torch.testing.assert_close(training.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(training.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)
    plain = load(GeneratedConfig(root=str(tmp_path), scale=False))
    np.testing.assert_allclose(plain.tensors[0], plain.series.values, atol=1e-6)


def test_every_row_of_a_split_is_forecast(tmp_path: Path) -> None:
    source = load(GeneratedConfig(root=str(tmp_path), rows=333, look_back=17, horizon=11))
    for split in SPLITS:
        span, windows = source.borders.span(split), source.windows(split)
        first = source.borders.rows(split, 17).start + 17
        forecast = {first + int(item["window"]) + step for item in _items(windows) for step in range(11)}
        assert forecast == set(range(max(span.start, 17), span.stop))


def _items(windows: Any) -> Iterator[dict[str, torch.Tensor]]:
    return (windows[index] for index in range(len(windows)))


# --- sample and generated ---


@needs_autots
def test_sample_is_a_standard_csv_file_with_its_licence(tmp_path: Path) -> None:
    source = load(SampleConfig(root=str(tmp_path)))
    assert (tmp_path / "metro_traffic.csv").read_text().startswith("date,clouds_all,temp,traffic_volume\n2016-10-01")
    assert "CC BY 4.0" in (tmp_path / "metro_traffic.LICENCE.txt").read_text()
    assert (len(source.series), source.series.frequency, source.series.target) == (17520, "h", "traffic_volume")
    assert "autots" not in sys.modules
    again = load(CsvConfig(root=str(tmp_path / "metro_traffic.csv")))
    np.testing.assert_array_equal(again.series.values, source.series.values)
    assert isinstance(source.config, SampleConfig)


@needs_autots
def test_sample_has_no_column_that_rules_the_score(tmp_path: Path) -> None:
    source = load(SampleConfig(root=str(tmp_path)))
    for split in SPLITS:
        assert source.windows(split).values.abs().max() < 5


def test_sample_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"'autots'. Install it with: pip install 'graftwork\[sample\]'"):
        load(SampleConfig(root=str(tmp_path)))


def test_generated_is_the_same_every_time_and_changes_with_the_seed(tmp_path: Path) -> None:
    first, again = (load(GeneratedConfig(root=str(tmp_path / name))) for name in ("a", "b"))
    np.testing.assert_array_equal(first.series.values, again.series.values)
    other = load(GeneratedConfig(root=str(tmp_path / "a"), series_seed=1))
    assert not np.array_equal(first.series.values, other.series.values)


@pytest.mark.parametrize("frequency", ["15min", "D", "B", "MS", "W", "s"])
def test_generated_at_any_step(tmp_path: Path, frequency: str) -> None:
    source = load(GeneratedConfig(root=str(tmp_path), frequency=frequency, variates=2, rows=300))
    assert (source.variates, len(source.series)) == (2, 300)
    assert source.windows("test")[0]["future_marks"].shape == (24, source.mark_features)


def test_generated_without_a_folder_uses_a_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert load(GeneratedConfig()).where.startswith(str(tmp_path))


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot make the folder.*--data\.root"):
        load(GeneratedConfig(root=str(tmp_path / "file")))


def test_loading_is_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load(GeneratedConfig(root=str(tmp_path))).windows("train")
    assert caplog.text == ""


def test_info_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    index = pd.date_range("2024-01-01", periods=200, freq="h")
    table = pd.DataFrame({"date": index, "OT": np.arange(200.0), "b": 1.0 * index.hour, "c": 2.0 * index.hour})
    table.to_csv(tmp_path / "data.csv", index=False)
    info = CsvConfig(root=str(tmp_path), look_back=8, horizon=4).build(0).info
    assert (info.names, info.array_columns) == (("b", "c", "OT"), ("OT", "b", "c"))
    assert ForecastingInfo.from_plain(json.loads(json.dumps(info.plain()))) == info
    chosen = CsvConfig(root=str(tmp_path), look_back=8, horizon=4, columns=("c", "OT", "b")).build(0).info
    assert chosen.array_columns == ("c", "OT", "b")
