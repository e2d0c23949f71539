"""Adapters of the data protocol: calendar features and the ETT windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from apps.forecasting.models.config import LastValueConfig, SeriesInfo
from datamodules.forecasting.borders import SplitName
from datamodules.forecasting.calendar import integer_marks
from datamodules.forecasting.calendar import time_features as calendar_features
from datamodules.forecasting.config import CsvConfig, EttConfig, SeriesConfig
from datamodules.forecasting.source import load
from datamodules.forecasting.windows import WindowDataset
from graftwork.errors import DataError
from tests.parity.case import Case

SHARED = Path(__file__).resolve().parents[4] / "shared"


def time_features(case: Case) -> dict[str, Tensor]:
    """Real features and integer marks for each frequency's timestamps."""
    outputs = {}
    for name, stamps in case.inputs.items():
        frequency = name.removeprefix("timestamps.")
        columns = dict(zip(("year", "month", "day", "hour", "minute", "second"), stamps.T.numpy(), strict=True))
        index = pd.DatetimeIndex(pd.to_datetime(pd.DataFrame(columns)))
        outputs[f"timeF.{frequency}"] = torch.from_numpy(calendar_features(index, frequency))
        marks = integer_marks(index)
        golden = case.expected.get(f"integer.{frequency}")
        width = marks.shape[1] if golden is None else golden.shape[1]
        outputs[f"integer.{frequency}"] = torch.from_numpy(np.ascontiguousarray(marks[:, :width]))
    return outputs


def find_file(case: Case) -> Path:
    """The data file a case names: near the case, or in ../shared/data.

    Raises:
        DataError: It is in neither.
    """
    name = Path(case.meta["file"]).name
    roots = [case.path.parent, *(parent / "data" for parent in case.path.resolve().parents), SHARED / "data"]
    for root in roots:
        found = sorted(root.rglob(name)) if root.is_dir() else []
        if found:
            return found[0]
    raise DataError(f"{name} not found", where=str(case.path), mend=f"Put it under {SHARED / 'data'}")


def marks_of(meta: dict[str, Any]) -> Literal["timeF", "integer"]:
    """The calendar of a protocol: ``timeenc`` is the official flag, 1 for real features, or a phrase with timeF in it.

    Without the flag ``embed`` decides, as in the official code.
    """
    official = meta.get("timeenc", meta.get("embed", "timeF"))
    return "timeF" if "timeF" in str(official) or str(official).startswith(("1", "True")) else "integer"


def protocol_config(case: Case) -> SeriesConfig:
    """Our configuration of the official protocol: the published ETT split, or 70/10/20 for any other file."""
    meta, path = case.meta, find_file(case)
    shared: dict[str, Any] = {
        "root": str(path),
        "look_back": meta["seq_len"],
        "horizon": meta["pred_len"],
        "features": meta.get("features", "M"),
        "target": meta.get("target"),
        "marks": marks_of(meta),
    }
    if path.stem in ("ETTh1", "ETTh2", "ETTm1", "ETTm2"):
        return EttConfig(variant=cast(Any, path.stem), **shared)
    return CsvConfig(**shared)


def ett_protocol(case: Case) -> dict[str, Tensor]:
    """First and last window of each split, scaler statistics, window counts, and the naive forecast's error."""
    source = load(protocol_config(case))
    label = case.meta.get("label_len", 0)
    outputs = {
        "scaler.mean": torch.tensor(source.standardiser.mean, dtype=torch.float64),
        "scaler.scale": torch.tensor(source.standardiser.scale, dtype=torch.float64),
    }
    splits: tuple[SplitName, ...] = ("train", "val", "test")
    for split in splits:
        dataset = source.windows(split)
        outputs[f"{split}_windows"] = torch.tensor(len(dataset))
        if f"{split}_windows" in case.meta:
            case.state(f"{split}_windows", torch.tensor(case.meta[f"{split}_windows"]))
        for which, position in (("first", 0), ("last", len(dataset) - 1)):
            for name, value in official_window(dataset, position, label).items():
                key = f"{split}.{which}.{name}"
                outputs[key] = trimmed(value, case.expected.get(key)) if "mark" in name else value
    naive = case.meta.get("naive_repeat_last_test") or {}
    for name, value in naive_errors(source.windows("test")).items() if naive else ():
        outputs[f"naive_repeat_last_test.{name}"] = value
        case.state(f"naive_repeat_last_test.{name}", torch.tensor(naive[name], dtype=torch.float64))
    return outputs


def trimmed(marks: Tensor, golden: Tensor | None) -> Tensor:
    """The columns the official loader has of integer marks: hourly data lacks the minute, our last column."""
    return marks if golden is None else marks[..., : golden.shape[-1]]


def official_window(dataset: WindowDataset, position: int, label: int) -> dict[str, Tensor]:
    """A window as the official loader gives it: the target block begins with the last ``label`` observed rows."""
    sample = dataset[position]
    future = sample["future"]
    if dataset.outputs < dataset.values.shape[1]:  # the official block keeps every column
        begin = int(sample["window"]) + dataset.look_back
        future = dataset.values[begin : begin + dataset.horizon]
    first = dataset.look_back - label
    return {
        "x": sample["history"],
        "y": torch.cat([sample["history"][first:], future]),
        "x_mark": sample["history_marks"],
        "y_mark": torch.cat([sample["history_marks"][first:], sample["future_marks"]]),
    }


def naive_errors(dataset: WindowDataset) -> dict[str, Tensor]:
    """Error of repeating the last value over every test window, in float64."""
    variates = dataset.values.shape[1]
    info = SeriesInfo(dataset.look_back, dataset.horizon, variates, dataset.outputs, 0)
    model, squared, absolute, count = LastValueConfig().build(info), 0.0, 0.0, 0
    for begin in range(0, len(dataset), 512):
        batch = dataset.__getitems__(range(begin, min(begin + 512, len(dataset)))).tensors
        error = (model(batch["history"]).values - batch["future"]).double()
        squared, absolute = squared + float((error**2).sum()), absolute + float(error.abs().sum())
        count += error.numel()
    return {
        "mse": torch.tensor(squared / count, dtype=torch.float64),
        "mae": torch.tensor(absolute / count, dtype=torch.float64),
    }
