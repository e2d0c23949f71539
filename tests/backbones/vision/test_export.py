"""Every backbone as an ONNX file that computes the same, for any batch at the size it was exported with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from apps.core.export.onnx import export_checked, formats
from apps.core.protocols import ExportSpec
from backbones.vision import create_backbone
from backbones.vision.base import VisionBackbone
from backbones.vision.biformer import BiFormer
from backbones.vision.dinat import DiNAT
from backbones.vision.measure import SMALL
from backbones.vision.vig import ViG, ViGH

pytest.importorskip("onnxruntime", reason="needs the extra 'export'")

SHALLOW: dict[str, Callable[[], VisionBackbone]] = {
    "dinat": lambda: DiNAT(width=16, depths=(2, 1), heads=(1, 2), kernel_size=3, dilations=[[1, 4], [2]]),
    "biformer": lambda: BiFormer(
        channels=(16, 32), depths=(1, 1), topks=(2, -2), regions=3, head_width=8, qk_widths=(16, 32)
    ),
    "vig": lambda: ViG(width=32, depth=1, heads=2),
    "vig_h": lambda: ViGH(channels=(16, 32), depths=(1, 1), heads=(1, 2)),
}
"""Networks with every kind of layer once: tracing takes as long as there are layers."""


class Levels(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(images))


def check_export(backbone: VisionBackbone, size: tuple[int, int], folder: Path) -> None:
    spec = ExportSpec(
        module=Levels(backbone.eval()),
        examples=[{"images": torch.randn(batch, 3, *size)} for batch in (2, 1, 3)],
        dynamic={"images": {0: "batch"}},
        outputs=[f"level{level}" for level in backbone.out_indices],
        rtol=1e-3,
        atol=5e-4,
    )
    checks, path = export_checked(spec, folder / "model.onnx", formats("onnx"), {})
    assert all(row.ok for row in checks), [row for row in checks if not row.ok]
    assert path.name == "model.onnx"


@pytest.mark.parametrize("name", SHALLOW)
def test_files_of_shallow_networks_compute_the_same(name, tmp_path):
    torch.manual_seed(0)
    check_export(SHALLOW[name](), (72, 56), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 64), (224, 224)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_files_of_real_ones_compute_the_same(name, size, tmp_path):
    pytest.importorskip("timm", reason="needs the extra 'vision'")
    torch.manual_seed(0)
    check_export(create_backbone(name), size, tmp_path)
