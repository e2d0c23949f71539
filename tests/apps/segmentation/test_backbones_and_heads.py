"""Every family of backbones with every head: a step of training, evaluation, and prediction at any size."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch

from apps.core.cli.resolve import resolve
from apps.core.run.optim import parameter_groups
from apps.segmentation.config import PanopticConfig, SegmentationConfig
from apps.segmentation.models.segmenter import Segmenter
from apps.segmentation.targets import targets_of
from backbones.vision.variants import FAMILIES, VARIANTS
from datamodules.segmentation.info import SegmentationInfo
from tests.apps.segmentation.runs import SMALL_MASKS

HEADS = ("upernet", "segformer", "kmax", "mask2former")
INFO = SegmentationInfo(
    classes=("road", "sky", "car"), palette=((90, 90, 90), (90, 150, 230), (220, 40, 40)), things=(2,), panoptic=True
)
SMALLEST = {
    family: min(
        (name for name, variant in VARIANTS.items() if variant.family == family),
        key=lambda name: VARIANTS[name].parameters,
    )
    for family in FAMILIES
}
"""The variant of every family with the fewest parameters."""
NARROW = {
    "mask2former": SMALL_MASKS,
    "kmax": {
        "queries": 8,
        "width": 32,
        "key_width": 16,
        "feedforward": 64,
        "mask_width": 16,
        "mask_hidden": 32,
        "layers": [1, 1, 1],
        "stage_layers": [1, 1, 1, 1],
        "stage_widths": [32, 16, 16, 8],
        "semantic_width": 32,
    },
    "upernet": {"channels": 32, "auxiliary_channels": 16},
}
"""Options that keep a test short; the structure is that of the published heads."""
PAIRS = list(zip(SMALLEST.values(), cycle(HEADS), strict=False))
OTHERS = [(name, head) for name in SMALLEST.values() for head in HEADS if (name, head) not in PAIRS]


def segmenter(backbone: str, head: str, info: SegmentationInfo = INFO) -> Segmenter:
    torch.manual_seed(0)
    options = {f"model.head.{name}": value for name, value in NARROW.get(head, {}).items()}
    config = resolve(SegmentationConfig, [], {"model.backbone": backbone, "model.head": head, **options})
    model: Segmenter = config.model.build(info)
    return model


def batch(height: int, width: int, count: int = 2) -> dict[str, torch.Tensor]:
    """Sky above road, two cars, an ignored corner."""
    mask = torch.zeros(count, height, width, dtype=torch.int64)
    mask[:, : height // 2] = 1
    segments = mask.int()
    for number, left in enumerate((width // 8, width // 2), start=2):
        place = slice(height // 3, 2 * height // 3), slice(left, left + width // 4)
        mask[:, *place], segments[:, *place] = 2, number
    mask[:, -height // 8 :, -width // 8 :] = 255
    segments[:, -height // 8 :, -width // 8 :] = -1
    classes = torch.tensor([0, 1, 2, 2]).expand(count, -1)
    return {
        "image": torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1)),
        "mask": mask,
        "segments": segments,
        "segment_classes": classes,
        "segment_crowd": torch.zeros_like(classes, dtype=torch.bool),
    }


def check(name: str, head: str, trained: tuple[int, int], seen: list[tuple[int, int]]) -> None:
    model = segmenter(name, head).train()
    samples = batch(*trained)
    targets = targets_of(samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = model.head.loss(model(samples["image"]), targets)
    assert losses["loss"].isfinite() and losses["loss"] > 0
    losses["loss"].backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    optimizer.step()
    model.eval()
    for height, width in seen:
        with torch.no_grad():
            images = batch(height, width, 1)["image"]
            scores = model.class_scores(images)
            assert scores.shape == (1, 3, height, width) and scores.isfinite().all()
            total = model.head.probabilities(scores).sum(1)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-4, atol=1e-4)
            if model.head.makes_segments and min(height, width) >= 32:
                (found,) = model.head.panoptic(model(images), (height, width), PanopticConfig())
                assert found.segments.shape == (height, width) and int(found.segments.max()) <= len(found.classes)


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_every_family_has_a_head(name, head):
    check(name, head, (64, 64), [(49, 65), (1, 40)])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), OTHERS)
def test_every_pair_trains_and_predicts(name, head):
    check(name, head, (64, 64), [(65, 97)])


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", SMALLEST.values())
def test_every_pair_takes_road_scenes(name, head):
    check(name, head, (360, 480), [(360, 480), (361, 479)])


@pytest.mark.parametrize("head", [*HEADS, "fcn", "unet"])
def test_images_without_labels_cost_nothing(head):
    model = segmenter("timm:test_convnext", head).train()
    samples = batch(64, 64)
    samples["mask"] = torch.full_like(samples["mask"], 255)
    samples["segments"] = torch.full_like(samples["segments"], -1)
    loss = model.head.loss(model(samples["image"]), targets_of(samples))["loss"]
    loss.backward()
    assert loss.isfinite()
    if not model.head.makes_segments:
        assert float(loss) == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("head", [*HEADS, "fcn", "unet"])
def test_a_short_training_lowers_the_loss(head):
    model = segmenter("timm:test_convnext", head).train()
    samples = batch(64, 64)
    targets = targets_of(samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for step in range(12):
        torch.manual_seed(step)
        loss = model.head.loss(model(samples["image"]), targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss))
    assert sum(found[-3:]) < 0.95 * sum(found[:3])


@pytest.mark.parametrize(
    ("name", "head"),
    [("shvit_s1", "kmax"), ("shvit_s1", "mask2former"), ("swin_tiny", "fcn"), ("timm:test_resnet", "fcn")],
)
def test_all_that_is_trained_gets_gradients(name, head):
    """Processes that train together wait for the gradient of every trainable tensor."""
    model = segmenter(name, head).train()
    samples = batch(64, 64)
    model.head.loss(model(samples["image"]), targets_of(samples))["loss"].backward()
    waiting = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not waiting


def test_stages_that_no_head_reads_are_not_built():
    model = segmenter("swin_tiny", "fcn")
    assert len(model.backbone.out_indices) == 4
    options = {"model.head.in_levels": (1,), "model.head.auxiliary_weight": 0.0}
    config = resolve(SegmentationConfig, [], {"model.backbone": "swin_tiny", "model.head": "fcn", **options})
    short = config.model.build(INFO)
    assert short.backbone.out_indices == (0, 1)
    whole, rest = (sum(value.numel() for value in found.backbone.parameters()) for found in (model, short))
    assert rest < whole / 10
    assert short.eval().class_scores(torch.randn(1, 3, 64, 96)).shape == (1, 3, 64, 96)


def has_norms(backbone: str, head: str, **words) -> bool:
    options = {f"model.head.{name}": value for name, value in NARROW.get(head, {}).items()}
    options |= {f"model.backbone.{name}": value for name, value in words.items()}
    config = resolve(SegmentationConfig, [], {"model.backbone": backbone, "model.head": head, **options})
    return config.model.build(INFO).backbone.output_norms is not None


def test_levels_are_normalised_as_in_published_models():
    assert has_norms("swin_tiny", "upernet") and has_norms("timm:test_convnext", "upernet")
    assert not has_norms("timm:test_resnet", "mask2former")  # batch norms inside
    assert not has_norms("timm:test_convnext", "kmax")  # as published
    assert has_norms("timm:test_resnet", "segformer", output_norms=True)
    assert not has_norms("swin_tiny", "segformer", output_norms=False)
    assert has_norms("timm:test_convnext", "kmax", output_norms=True)


@pytest.mark.parametrize(
    ("backbone", "head", "tables"),
    [
        ("swin_tiny", "mask2former", 12 + 3),
        ("timm:test_vit", "upernet", 2),
        ("timm:test_convnext", "unet", 3),
    ],
)
def test_tables_of_positions_and_queries_are_not_decayed(backbone, head, tables):
    options = {"model.head.upsample": "wau"} if head == "unet" else {}
    options |= {f"model.head.{name}": value for name, value in NARROW.get(head, {}).items()}
    config = resolve(SegmentationConfig, [], {"model.backbone": backbone, "model.head": head, **options})
    model = config.model.build(INFO)
    names = ("bias_table", "query_features", "positions", "pos_embed", "cls_token")
    found = {name: value for name, value in model.named_parameters() if name.endswith(names) and value.ndim > 1}
    found.pop("head.pixel_decoder.level_positions", None)  # decays as published
    decayed = {
        id(value) for group in parameter_groups(model, 0.1) if group["weight_decay"] for value in group["params"]
    }
    assert len(found) == tables and not [name for name, value in found.items() if id(value) in decayed]
