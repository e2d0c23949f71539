"""The parity runner notices what it must notice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.parity.__main__ import main
from tests.parity.case import find_cases
from tests.parity.runner import run_case
from tests.parity.tolerance import Tolerance


def write_case(folder: Path, *, system: str = "dlinear", spoil: float = 0.0, drop: str = "", **meta: Any) -> Path:
    """A DLinear case whose golden numbers come from a few lines of plain tensor arithmetic."""
    torch.manual_seed(1)
    history, weights = torch.randn(2, 12, 3), {}
    for part in ("Seasonal", "Trend"):
        weights[f"Linear_{part}.weight"], weights[f"Linear_{part}.bias"] = torch.randn(4, 12), torch.randn(4)
    padded = torch.cat([history[:, :1].repeat(1, 2, 1), history, history[:, -1:].repeat(1, 2, 1)], dim=1)
    trend = torch.stack([padded[:, i : i + 5].mean(1) for i in range(12)], dim=1)
    parts = {"Seasonal": history - trend, "Trend": trend}
    forecasts = [
        nn.functional.linear(x.mT, weights[f"Linear_{p}.weight"], weights[f"Linear_{p}.bias"]).mT
        for p, x in parts.items()
    ]
    forecast = torch.stack(forecasts).sum(0)
    tensors = {f"weights.{key}": value for key, value in weights.items()}
    tensors |= {"input.x_enc": history, "output.forecast": (forecast + spoil).contiguous()}
    tensors |= {"output.extra": torch.zeros(1)} if drop else {}
    record = {
        "schema": 1,
        "area": "forecasting",
        "system": system,
        "case": "made",
        "config": {"seq_len": 12, "pred_len": 4, "moving_avg": 5},
        "tolerance": {"rtol": 1e-4, "atol": 2e-5},
        **meta,
    }
    (folder / "made.json").write_text(json.dumps(record))
    save_file(tensors, folder / "made.safetensors")
    return folder


def test_a_right_system_passes(tmp_path: Path) -> None:
    certificate = tmp_path / "out" / "certificate.json"
    assert main([str(write_case(tmp_path)), "--json", str(certificate)]) == 0
    written = json.loads(certificate.read_text())
    assert written["passed"] == 1 and len(written["cases"][0]["sha256"]) == 64
    assert written["cases"][0]["tensors"]["forecast"]["over_tolerance"] < 1
    assert written["versions"]["torch"] == torch.__version__


def test_a_number_off_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certificate = tmp_path / "certificate.json"
    assert main([str(write_case(tmp_path, spoil=1e-2)), "--json", str(certificate)]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_an_output_the_adapter_does_not_give_fails(tmp_path: Path) -> None:
    result = run_case(find_cases([write_case(tmp_path, drop="extra")])[0])
    assert result.status == "FAIL" and "extra" in result.message
    assert main([str(tmp_path), "--json", str(tmp_path / "c.json")]) == 1


def test_an_adapter_that_raises_fails_its_case_only(tmp_path: Path) -> None:
    result = run_case(find_cases([write_case(tmp_path, config={"seq_len": 12, "pred_len": 9, "moving_avg": 5})])[0])
    assert result.status == "FAIL" and "WeightsError" in result.message and "Traceback" in result.details


@pytest.mark.parametrize("change", [{"system": "nobody"}, {"area": "elsewhere"}, {"area": "../etc"}])
def test_no_adapter_is_said_and_fails_the_run(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write_case(tmp_path, **change)
    assert run_case(find_cases([folder])[0]).status == "no adapter"
    assert main([str(folder)]) == 1


def test_filter_and_mistakes(tmp_path: Path) -> None:
    write_case(tmp_path)
    assert main([str(tmp_path), "--filter", "forecasting/dlinear"]) == 0
    assert main([str(tmp_path), "--filter", "no such thing"]) == 1
    assert main([str(tmp_path / "absent")]) == 2
    (tmp_path / "broken.json").write_text("{")
    assert main([str(tmp_path)]) == 2


def test_tables_are_no_cases_and_folders_with_expected_json_are(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('{"models": []}')
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "expected.json").write_text('{"area": "mono3d", "system": "kitti_eval", "case": "set"}')
    (case,) = find_cases([tmp_path])
    before = case.digest
    (tmp_path / "set" / "label.txt").write_text("more")
    (again,) = find_cases([tmp_path])
    assert case.name == "set" and again.digest != before


@pytest.mark.parametrize(
    ("stated", "name", "ours", "golden", "passes"),
    [
        ({"rtol": 0.1, "atol": 0.0}, "y", [1.05], [1.0], True),
        ({"rtol": 0.1, "atol": 0.0}, "y", [1.2], [1.0], False),
        ({"rtol": 0.0, "atol": 0.0}, "y", [1.0], [1.0], True),
        ({"rtol": 0.0, "atol": 0.0}, "y", [1.0 + 1e-7], [1.0], False),
        ({"rtol": 0.0, "atol": 1e-9, "grad_rtol": 0.1}, "grad.w", [1.05], [1.0], True),
        ({"rtol": 0.0, "atol": 0.0, "relative_to_max": 0.01}, "y", [0.5, 100.0], [0.0, 100.0], True),
        ({"rtol": 0.0, "atol": 0.0, "relative_to_max": 0.01}, "y", [2.0, 100.0], [0.0, 100.0], False),
        ({"rtol": 0.0, "atol": 0.0, "image_abs": 0.02}, "image", [0.51], [0.5], True),
        ({"rtol": 1.0, "atol": 1.0}, "y", [math.nan], [1.0], False),
        ({"rtol": 1.0, "atol": 1.0}, "y", [math.nan, -math.inf], [math.nan, -math.inf], True),
        ({"rtol": 1.0, "atol": 1.0}, "y", [1.0], [math.inf], False),
        ({"rtol": 1.0, "atol": 9.0}, "y", [[1.0]], [1.0], False),
    ],
)
def test_tolerance(stated: dict[str, float], name: str, ours: Any, golden: Any, passes: bool) -> None:
    error = Tolerance.of(stated).error(name, torch.tensor(ours), torch.tensor(golden))
    assert error.passes is passes


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_integers_are_exact(dtype: torch.dtype) -> None:
    golden: Tensor = torch.tensor([0, 1, 1]).to(dtype)
    tolerance = Tolerance(rtol=1, atol=1)
    assert tolerance.error("i", golden.clone(), golden).passes
    assert not tolerance.error("i", 1 - golden.long(), golden).passes
    big = torch.tensor([2**60 + 1])
    assert not tolerance.error("i", big - 1, big).passes
