from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apps.core.export import onnx as verb
from apps.core.export.check import check, compare, first_line, table
from apps.core.export.onnx import export_checked, formats
from apps.core.protocols import ExportSpec
from graftwork.errors import ConfigError, MissingPackageError, UserError


class Mixer(nn.Module):
    """Two inputs, two outputs, a dynamic batch and a dynamic length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.dropout(self.layer(tokens)) + marks
        return mixed, mixed.mean(1)


class Sum(nn.Module):
    def forward(self, numbers: Tensor) -> Tensor:
        return numbers.sum(-1)


class Counting(nn.Module):
    """Loops over a value of its input, which no tracer can follow."""

    def forward(self, numbers: Tensor) -> Tensor:
        for _ in range(int(numbers.sum().item())):
            numbers = numbers * 2
        return numbers


def mixer_spec(module: nn.Module | None = None, **changes: object) -> ExportSpec:
    torch.manual_seed(0)
    examples = [
        {"tokens": torch.randn(batch, length, 4), "marks": torch.randn(batch, length, 3)}
        for batch, length in ((2, 5), (1, 1), (7, 16))
    ]
    fields = {
        "module": module or Mixer(),
        "examples": examples,
        "dynamic": {"tokens": {0: "batch", 1: "length"}, "marks": {0: "batch", 1: "length"}},
        "outputs": ["mixed", "pooled"],
    }
    return ExportSpec(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_file_equals_the_model_at_all_shapes(name: str, tmp_path: Path):
    path = tmp_path / "new" / f"mixer.{name}"
    checks, written = export_checked(mixer_spec(), path, formats(name), {"task": "toy", "config": "seed: 1\n"})
    assert written == path and [file.name for file in path.parent.iterdir()] == [path.name]
    assert [row.output for row in checks] == ["mixed", "pooled"] * 3
    assert all(row.ok and row.abs_error < 1e-5 for row in checks)
    assert "tokens (7, 16, 4)" in checks[-1].shapes


def test_onnx_file_names_inputs_outputs_axes_and_its_origin(tmp_path: Path):
    import onnx

    path = tmp_path / "mixer.onnx"
    export_checked(mixer_spec(), path, formats("onnx"), {"task": "toy", "config": "seed: 1\n"})
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == ["tokens", "marks"]
    assert [value.name for value in model.graph.output] == ["mixed", "pooled"]
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", "length", 4]
    assert {entry.key: entry.value for entry in model.metadata_props}["config"] == "seed: 1\n"


def test_a_file_that_differs_is_kept_under_another_name(tmp_path: Path):
    path = tmp_path / "mixer.onnx"
    path.write_text("an earlier, good file")
    form = formats("onnx")

    def lying(file: Path, spec: ExportSpec):
        run = form.runner(file, spec)
        return lambda example: [run(example)[0] + 0.5, run(example)[1]]

    checks, written = export_checked(mixer_spec(), path, form._replace(runner=lying), {})
    assert written == tmp_path / "mixer.failed.onnx" and written.exists()
    assert path.read_text() == "an earlier, good file"
    assert [row.ok for row in checks] == [False, True] * 3
    assert checks[0].abs_error == pytest.approx(0.5, rel=1e-3)
    assert "DIFFERS" in table(checks)[1][-1] and table(checks)[2][-1] == "equal"
    assert verb._conclude(checks, written, verb.Console(quiet=True)) == 1


def test_a_shape_that_the_file_refuses_is_a_difference(tmp_path: Path):
    spec = mixer_spec(dynamic={})  # traced for (2, 5) alone
    checks, written = export_checked(spec, tmp_path / "fixed.onnx", formats("onnx"), {})
    assert [row.ok for row in checks] == [True, True, False, False, False, False]
    assert checks[2].reason and written.name == "fixed.failed.onnx"


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_a_model_that_cannot_be_traced_says_why(name: str, tmp_path: Path):
    spec = ExportSpec(module=Counting(), examples=[{"numbers": torch.ones(3)}], dynamic={}, outputs=["numbers"])
    with pytest.raises(UserError, match=r"Counting: this model cannot be exported: \w+") as caught:
        export_checked(spec, tmp_path / f"counting.{name}", formats(name), {})
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_formats_and_their_packages(monkeypatch):
    with pytest.raises(ConfigError, match="unknown export format 'onx'; did you mean onnx"):
        formats("onx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(MissingPackageError, match=r"graftwork\[export\]"):
        formats("onnx")
    assert formats("pt2").suffix == ".pt2"


def test_comparison_by_hand():
    expected = np.array([1.0, -2.0, 0.0], dtype=np.float32)
    row = compare("x", "y", np.array([1.0, -2.002, 0.0], dtype=np.float32), expected, rtol=1e-2, atol=0.0)
    assert row.ok and row.abs_error == pytest.approx(2e-3, rel=1e-3) and row.rel_error == pytest.approx(1e-3, rel=1e-3)
    assert not compare("x", "y", expected + 1, expected, rtol=1e-2, atol=1e-2).ok
    assert "shape (2,)" in compare("x", "y", expected[:2], expected, 1, 1).reason


def test_nan_and_infinity_must_stand_where_the_model_has_them():
    odd = np.array([math.nan, math.inf, 1.0])
    assert compare("x", "y", odd, odd.copy(), 0, 0).ok
    lost = compare("x", "y", np.array([0.0, math.inf, 1.0]), odd, 1, 1)
    assert not lost.ok
    broken = compare("x", "y", np.array([math.nan] * 3), np.ones(3), 1, 1)
    assert not broken.ok and broken.reason == "not finite"


def test_whole_numbers_and_wrong_counts():
    spec = ExportSpec(Sum(), [{"numbers": torch.ones(2, 3, dtype=torch.int64)}], {}, ["sum"])
    assert check(spec, lambda example: [np.array([3, 3])])[0].ok
    assert "2 outputs in the file" in check(spec, lambda example: [np.array([3, 3])] * 2)[0].reason


def test_first_line_tells_the_first_cause():
    try:
        try:
            raise ValueError("\nsizes differ\nmore")
        except ValueError as error:
            raise RuntimeError("the exporter failed") from error
    except RuntimeError as error:
        assert first_line(error) == "ValueError: sizes differ"
