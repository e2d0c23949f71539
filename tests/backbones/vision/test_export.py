"""Every backbone as an ONNX file that computes the same, for any batch at the size it was exported with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apps.core.export.onnx import export_checked, formats
from apps.core.protocols import ExportSpec
from backbones.vision import create_backbone
from backbones.vision.measure import SMALL

pytest.importorskip("timm", reason="needs the extra 'vision'")
pytest.importorskip("onnxruntime", reason="needs the extra 'export'")

QUICK = ("tiny_vit_5m", "nat_mini", "dinat_mini", "biformer_tiny", "vig_h_tiny")
"""Exported in the fast suite; the others take longer."""


class Levels(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(images))


@pytest.mark.parametrize("size", [(96, 64), pytest.param((224, 224), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_the_file_computes_what_the_backbone_computes(name, size, tmp_path):
    torch.manual_seed(0)
    backbone = create_backbone(name).eval()
    spec = ExportSpec(
        module=Levels(backbone),
        examples=[{"images": torch.randn(batch, 3, *size)} for batch in (2, 1, 3)],
        dynamic={"images": {0: "batch"}},
        outputs=[f"level{level}" for level in backbone.out_indices],
        rtol=1e-3,
        atol=2e-4,
    )
    checks, path = export_checked(spec, tmp_path / "model.onnx", formats("onnx"), {})
    assert all(row.ok for row in checks), [row for row in checks if not row.ok]
    assert path.name == "model.onnx"
