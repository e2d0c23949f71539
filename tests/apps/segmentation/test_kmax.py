"""kMaX-DeepLab as a head: levels in, masks, losses and segments out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apps.core.export.onnx import export_checked, formats
from apps.core.protocols import ExportSpec
from apps.segmentation.config import PanopticConfig
from apps.segmentation.models.head import MaskOutput, Segments, Targets
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.kmax import KMaXHead, choose_levels, sampled
from apps.segmentation.models.kmax_config import KMaXConfig
from apps.segmentation.models.kmax_decoder import Predictor
from apps.segmentation.models.kmax_layers import BatchNorm, resize
from apps.segmentation.models.kmax_pixel_decoder import Block
from apps.segmentation.models.segmenter import ClassMap, Segmenter
from backbones.attention import dispatch
from checkpoints.keymap import load_official
from checkpoints.official.segmentation import HEAD_KEYMAPS
from graftwork.errors import ConfigError, ShapeError
from tests.apps.segmentation.without_float64 import moved

CHANNELS, STRIDES, CLASSES, QUERIES = (6, 8, 10, 12), (4, 8, 16, 32), 3, 7
SMALL: dict[str, Any] = {
    "queries": QUERIES,
    "width": 16,
    "key_width": 8,
    "heads": 2,
    "feedforward": 24,
    "mask_width": 8,
    "mask_hidden": 12,
    "layers": (1, 1, 1),
    "stage_layers": (1, 2, 1, 1),
    "stage_widths": (8, 8, 4, 4),
    "axial_heads": 2,
    "semantic_width": 12,
    "semantic_projections": (4, 2),
    "pixel_samples": 64,
    "semantic_samples": 64,
    "drop_path": 0.0,
}


def small(channels: tuple[int, ...] = CHANNELS, strides: tuple[int, ...] = STRIDES, **changed: Any) -> KMaXHead:
    torch.manual_seed(0)
    info = HeadInfo(
        channels=channels, strides=strides, classes=CLASSES, things=(0,), weights=changed.pop("weights", ())
    )
    return KMaXConfig(**{**SMALL, **changed}).build(info)


def levels(
    height: int, width: int, channels: tuple[int, ...] = CHANNELS, strides: tuple[int, ...] = STRIDES, images: int = 2
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(images, count, math.ceil(height / stride), math.ceil(width / stride), generator=generator)
        for count, stride in zip(channels, strides, strict=True)
    ]


def targets(height: int, width: int, images: int = 2, known: bool = True) -> Targets:
    labels = torch.arange(width).mul(CLASSES).div(width, rounding_mode="floor").expand(images, height, width).clone()
    labels[:, : height // 4] = 255
    if not known:
        labels.fill_(255)
    segments = []
    for image in labels:
        present = torch.tensor([label for label in range(CLASSES) if (image == label).any()], dtype=torch.long)
        segments.append(Segments(present, image == present[:, None, None]))
    return Targets(labels, segments)


def lively(head: KMaXHead) -> KMaXHead:
    """Norms as after some training, none of them at its first value; some of them negative."""
    generator = torch.Generator().manual_seed(2)
    for module in head.modules():
        if isinstance(module, BatchNorm):
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 1.5 - 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) / 4)
                for buffer, least in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                    buffer.copy_(torch.rand(module.weight.shape, generator=generator) + least)  # type: ignore[union-attr]
    return head


@pytest.mark.parametrize(
    ("channels", "decoders", "semantic"),
    [
        ((256, 512, 1024, 2048), (21.15, 27.78), 15.86),
        ((96, 192, 384, 768), (21.20, 18.25), 6.33),
        ((128, 256, 512, 1024), (22.03, 20.16), 8.23),
        ((192, 384, 768, 1536), (23.69, 23.97), 12.05),
    ],
    ids=["resnet50", "convnext_tiny", "convnext_base", "convnext_large"],
)
def test_parameters_are_those_of_the_published_models(
    channels: tuple[int, ...], decoders: tuple[float, float], semantic: float
) -> None:
    with torch.device("meta"):
        head = KMaXConfig().build(HeadInfo(channels=channels, strides=STRIDES, classes=133))
    counts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in head.named_children()}
    assert counts["pixel_decoder"] == pytest.approx(decoders[0], abs=0.006)
    assert counts["decoder"] + counts["semantic"] == pytest.approx(decoders[1], abs=0.006)
    assert counts["semantic"] == pytest.approx(semantic, abs=0.006)


def layers_of(head: KMaXHead) -> list[Any]:
    """With attributes that type checkers do not see through a list of modules."""
    return list(head.decoder.layers)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 70), (360, 480), (32, 32)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    head = small()
    output = head.train()(levels(*size), size)
    grid = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert output.masks.shape == (2, QUERIES, *grid) and output.classes.shape == (2, QUERIES, CLASSES + 1)
    assert [layer.masks.shape[2:] for layer in output.auxiliary] == [grid] * 3
    assert output.semantic.shape == (2, CLASSES + 1, *grid)
    losses = head.loss(output, targets(*size))
    losses["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
    with torch.no_grad():
        seen = head.eval()(levels(*size), size)
        assert seen.auxiliary == () and seen.semantic is None
        assert head.class_scores(seen, size).shape == (2, CLASSES, *size)
        assert head.panoptic(seen, size, PanopticConfig())[1].segments.shape == size


@pytest.mark.parametrize(
    ("strides", "used", "stride"),
    [
        ((2, 4, 8, 16, 32), [4, 3, 2, 1], 4),
        ((8, 16, 32), [2, 1, 0], 8),
        ((16, 32, 64), [1, 0], 16),
        ((16,), [0], 16),
        ((4, 4, 8, 16, 32), [4, 3, 2, 1], 4),
    ],
)
def test_backbones_with_other_levels(strides: tuple[int, ...], used: list[int], stride: int) -> None:
    channels = tuple(range(5, 5 + len(strides)))
    head = small(channels, strides)
    assert head.places == used and head.stride == stride
    output = head.train()(levels(64, 96, channels, strides), (64, 96))
    assert output.masks.shape[2:] == (64 // stride, 96 // stride) and len(output.auxiliary) == 3
    assert torch.isfinite(head.loss(output, targets(64, 96))["loss"])


def test_levels_that_are_all_too_coarse_or_fine_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"strides from 4 to 32, the backbone has strides \[1, 2\]"):
        choose_levels((1, 2), 4)


def test_other_levels_than_promised_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected channels \[.*\], got \["):
        small()(levels(64, 64)[1:], (64, 64))


def test_inference_takes_short_cuts_only_where_nothing_changes() -> None:
    head = lively(small()).double().eval()
    for sign in (1, -1):
        with torch.no_grad():
            for layer in layers_of(head):
                layer.predictor.mask_norm.weight.fill_(0.1 * sign)
        images = [level.double() for level in levels(65, 97)]
        found = []
        for form in ("auto", "math"):
            with dispatch.force(form), torch.no_grad():
                found.append(head(images, (65, 97)))
        for fast, literal in zip(found[0][:2], found[1][:2], strict=True):
            torch.testing.assert_close(fast, literal)


def test_training_and_evaluation_agree_but_for_their_norms() -> None:
    head = lively(small()).double().eval()
    images = [level.double() for level in levels(64, 64)]
    with torch.no_grad():
        seen = head(images, (64, 64))
        head.training = True  # outputs of training, norms of evaluation
        trained = head(images, (64, 64))
    torch.testing.assert_close(trained.masks, seen.masks)
    assert len(trained.auxiliary) == 3


def test_a_layers_masks_learn_from_its_own_losses_alone() -> None:
    head = lively(small()).train()
    output: MaskOutput = head(levels(64, 64), (64, 64))
    kernels = [layer.predictor.kernels.conv.weight for layer in layers_of(head)]
    final = torch.autograd.grad(output.masks.sin().sum(), kernels, retain_graph=True, allow_unused=True)
    assert final == (None, None, None)
    second = torch.autograd.grad(output.auxiliary[1].masks.sin().sum(), kernels, allow_unused=True)
    assert [gradient is not None and bool(gradient.any()) for gradient in second] == [False, True, False]


def test_without_supervision_the_layers_masks_learn_nothing() -> None:
    head = lively(small(supervise_layers=False)).train()
    output = head(levels(64, 64), (64, 64))
    assert output.auxiliary == ()
    head.loss(output, targets(64, 64))["loss"].backward()
    for layer in layers_of(head):
        assert all(p.grad is None or not p.grad.any() for p in layer.predictor.parameters())
        assert layer.update.values.conv.weight.grad.any()


@pytest.mark.parametrize("changed", [{}, {"supervise_layers": False}, {"layers": (0, 1, 0)}, {"semantic": "light"}])
def test_all_that_is_trained_gets_gradients_whatever_is_supervised(changed: dict[str, Any]) -> None:
    """Processes that train together wait for the gradient of every trainable tensor."""
    head = small(**changed).train()
    head.loss(head(levels(64, 64), (64, 64)), targets(64, 64))["loss"].backward()
    assert not [name for name, value in head.named_parameters() if value.requires_grad and value.grad is None]


def test_parts_of_the_loss_add_up() -> None:
    head = small().train()
    losses = head.loss(head(levels(64, 64), (64, 64)), targets(64, 64))
    assert set(losses) == {"loss", "classes", "dice", "masks", "pixels", "semantic"}
    torch.testing.assert_close(losses["loss"], sum(v for k, v in losses.items() if k != "loss"))


def test_the_least_weight_of_a_query_is_an_option() -> None:
    plain, firm = small(), small(least_weight=1.0)
    output = plain.train()(levels(64, 64), (64, 64))
    first, second = (head.loss(output, targets(64, 64), torch.Generator().manual_seed(0)) for head in (plain, firm))
    assert second["classes"] > first["classes"] and second["dice"] == first["dice"]


def test_weights_scale_the_parts() -> None:
    plain, scaled = small(), small(dice_weight=6.0, mask_weight=0.0)
    output = plain.train()(levels(64, 64), (64, 64))
    first, second = (head.loss(output, targets(64, 64), torch.Generator().manual_seed(0)) for head in (plain, scaled))
    torch.testing.assert_close(second["dice"], 2 * first["dice"])
    assert second["masks"] == 0 and second["pixels"] == first["pixels"]


def test_class_weights_count() -> None:
    plain, weighted = small(), small(weights=(5.0, 5.0, 5.0))
    output = plain.train()(levels(64, 64), (64, 64))
    first, second = (head.loss(output, targets(64, 64), torch.Generator().manual_seed(0)) for head in (plain, weighted))
    torch.testing.assert_close(second["semantic"], 5 * first["semantic"])
    assert second["classes"] > first["classes"]


def test_nothing_is_learned_from_ignored_images() -> None:
    head = small().train()
    images = [level.requires_grad_() for level in levels(64, 64)]
    losses = head.loss(head(images, (64, 64)), targets(64, 64, known=False))
    assert losses["loss"] == 0
    losses["loss"].backward()
    gradients = [p.grad for p in [*head.parameters(), *images] if p.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)


def test_loss_depends_on_the_generator_alone() -> None:
    head = small().train()
    output = head(levels(64, 64), (64, 64))
    found = [head.loss(output, targets(64, 64), torch.Generator().manual_seed(seed))["pixels"] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_evaluation_can_be_scored_by_the_loss() -> None:
    head = small().eval()
    losses = head.loss(head(levels(64, 64), (64, 64)), targets(64, 64))
    assert "semantic" not in losses and torch.isfinite(losses["loss"])


def test_one_image_can_be_trained_on() -> None:
    head = small().train()  # its pooled map has a single value per channel
    assert torch.isfinite(head(levels(32, 32, images=1), (32, 32)).semantic).all()


def test_mixed_precision_keeps_losses_in_float32() -> None:
    head = small().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head.loss(head(levels(64, 64), (64, 64)), targets(64, 64))
    assert losses["loss"].dtype == torch.float32 and torch.isfinite(losses["loss"])
    losses["loss"].backward()


def test_light_and_no_auxiliary_head() -> None:
    head = small(semantic="light").train()
    output = head(levels(64, 96), (64, 96))
    assert output.semantic.shape == (2, CLASSES, 2, 3)
    assert torch.isfinite(head.loss(output, targets(64, 96))["semantic"])
    assert small(semantic="none").train()(levels(64, 64), (64, 64)).semantic is None


def test_branches_start_empty() -> None:
    head = small()
    blocks = [module for module in head.modules() if isinstance(module, Block)]
    layers = layers_of(head)
    empty: list[Any] = [block.widen for block in blocks]
    empty += [part for layer in layers for part in (layer.update.out, layer.attention.out, layer.contract)]
    assert len(blocks) == 5 and not any(part.norm.weight.any() for part in empty)
    assert all(bool((p.mask_norm.weight == 0.1).all()) for p in head.modules() if isinstance(p, Predictor))
    depth = [layer.pixel_in.conv.weight for layer in layers]
    assert all(float(w.abs().max()) <= 2 * math.sqrt(2 / w.shape[1]) for w in depth)


def test_most_queries_start_without_an_object() -> None:
    head = small().eval()
    certainty = head(levels(64, 64), (64, 64)).classes.softmax(-1)[..., -1]
    torch.testing.assert_close(certainty, torch.full_like(certainty, 0.9), atol=0.02, rtol=0)


def test_norms_have_the_constants_of_the_family() -> None:
    norms = [module for module in small().modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_corners_are_aligned_where_the_inspected_side_is_odd() -> None:
    ramp = torch.arange(3.0).expand(1, 1, 3, 3)
    assert resize(ramp, (5, 5), 3)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2]
    assert resize(ramp, (6, 6), 2)[0, 0, 0, 1] == 0.25
    assert resize(ramp, (3, 3), 2) is ramp


def test_targets_are_read_at_multiples_of_the_stride() -> None:
    labels = torch.arange(65).expand(1, 65, 65)
    assert sampled(labels, (17, 17), 4)[0, 0].tolist() == list(range(0, 65, 4))
    assert sampled(labels, (3, 3), 32)[0, 0].tolist() == [0, 32, 64]
    assert sampled(labels, (5, 7), 4).shape == (1, 5, 7)
    assert torch.equal(sampled(moved(labels), (5, 7), 4), sampled(labels, (5, 7), 4))  # where there is no float64


def test_panoptic_takes_published_thresholds_unless_told() -> None:
    head = small().eval()
    classes = torch.tensor([[[4.0, 0.0, 0.0, 0.0], [0.0, 1.6, 0.0, 0.0]] + [[0.0, 0.0, 0.0, 9.0]] * (QUERIES - 2)])
    masks = torch.full((1, QUERIES, 16, 16), -9.0)
    masks[:, 0, :, :8], masks[:, 1, :, 8:] = 9.0, 9.0
    output = MaskOutput(classes=classes, masks=masks)
    assert head.panoptic(output, (64, 64), PanopticConfig())[0].classes.tolist() == [0, 1]
    strict = PanopticConfig(stuff_threshold=0.7)
    assert head.panoptic(output, (64, 64), strict)[0].classes.tolist() == [0]
    [objects] = head.instances(output, (64, 64), top=5)
    assert set(objects.classes.tolist()) == {0} and objects.masks.shape[1:] == (64, 64)
    torch.testing.assert_close(head.mask_probabilities(output, (64, 64)).sum(1), torch.ones(1, 64, 64))


def test_official_names_fit_with_and_without_the_auxiliary_head() -> None:
    """Names of a light auxiliary head, inside of a whole checkpoint."""
    head = small(semantic="light")
    ours = head.state_dict()
    official = {f"sem_seg_head.{name}": value for name, value in ours.items() if not name.startswith("semantic.")}
    official = {name.replace(".decoder.", ".predictor."): value for name, value in official.items()}
    official |= {"backbone.stem.conv1.weight": torch.zeros(1), "criterion.empty_weight": torch.ones(1)}
    load_official(small(semantic="none"), official, HEAD_KEYMAPS["kmax"])
    places = {"depthwise": "0", "hidden": "1", "classifier": "2.conv"}
    for name, value in ours.items():
        part, _, rest = name.removeprefix("semantic.").partition(".")
        if name.startswith("semantic."):
            official[f"sem_seg_head.predictor._auxiliary_semantic_predictor.{places[part]}.{rest}"] = value
    assert load_official(head, official, HEAD_KEYMAPS["kmax"]).fits


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"queries": 0}, "queries=0 must be at least 1"),
        ({"heads": 3}, "key_width=8 must be a multiple of heads=3"),
        ({"axial_heads": 3}, "stage_widths: 8 of axial blocks must be a multiple of axial_heads=3"),
        ({"stage_widths": (8, 8)}, r"stage_widths=\[8, 8\] must have 4 entries"),
        ({"layers": (0, 0)}, r"layers=\[0, 0\] must be"),
        ({"layers": (1,) * 5}, "must not have more entries than stage_layers"),
        ({"drop_path": 1.0}, "drop_path=1 must be at least 0 and below 1"),
        ({"dice_weight": -1.0}, "dice_weight=-1 must be 0 or more"),
        ({"pixel_temperature": 0.0}, "pixel_temperature=0 must be above 0"),
        ({"least_weight": -1.0}, "least_weight=-1 must be 0 or more"),
        ({"semantic_projections": (4,)}, r"semantic_projections=\[4\] must be two numbers"),
    ],
)
def test_wrong_options_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changed)


def test_several_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match="2 problems"):
        small(queries=0, drop_path=2.0)


def test_five_levels_as_for_cityscapes() -> None:
    channels, strides = (6, 4, 8, 10, 12), (4, 4, 8, 16, 32)
    options = {"stage_layers": (1, 1, 1, 1, 1), "stage_widths": (8, 8, 4, 4, 4)}
    blocks = ("axial", "axial", "bottleneck", "bottleneck", "bottleneck")
    head = small(channels, strides, **options, stage_blocks=blocks)
    assert head.places == [4, 3, 2, 1, 0]
    assert head.pixel_decoder.fusions[2].fine is None  # its level has the wanted width already
    assert head.eval()(levels(64, 64, channels, strides), (64, 64)).masks.shape[2:] == (16, 16)


@pytest.mark.slow
def test_the_graph_can_be_exported_and_compiled_whole() -> None:
    head = lively(small()).eval()
    maps = [level[:1] for level in levels(64, 96)]

    class Masks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, *given: Tensor) -> Tensor:
            output: MaskOutput = self.head(list(given), (64, 96))
            return output.masks

    with torch.no_grad():
        expected = Masks()(*maps)
        exported = torch.export.export(Masks(), tuple(maps)).module()(*maps)
        compiled = torch.compile(Masks(), fullgraph=True, backend="eager")(*maps)
    torch.testing.assert_close(exported, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-3)


class Pooled(torch.nn.Module):
    """Images to levels, as simple as can be."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [torch.nn.functional.avg_pool2d(images, 32)]


@pytest.mark.parametrize("form", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_files_give_the_scores_of_classes_for_any_number_of_images(form: str, tmp_path: Path) -> None:
    """At a size that was never computed before: nothing that tracing left may be met afterwards."""
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    options = {"stage_layers": (1,), "stage_widths": (8,), "stage_blocks": ("axial",), "layers": (1,)}
    head = lively(small((3,), (32,), **options, semantic="none")).eval()
    size = (288, 352) if form == "onnx" else (352, 416)
    spec = ExportSpec(
        module=ClassMap(Segmenter(Pooled(), head)),  # type: ignore[arg-type]
        examples=[{"images": torch.randn(images, 3, *size)} for images in (2, 1, 3)],
        dynamic={"images": {0: "batch"}},
        outputs=["scores"],
    )
    checks, path = export_checked(spec, tmp_path / f"model.{form}", formats(form), {})
    assert all(row.ok for row in checks) and path.name == f"model.{form}"


@pytest.mark.slow
def test_segments_are_learned() -> None:
    head = small(pixel_samples=0, semantic_samples=0).train()
    wanted = targets(64, 64)
    codes = (wanted.labels % 254)[:, None].float()  # labels 0 to 2, and 1 where ignored
    images = [level / 4 + codes[..., ::stride, ::stride] for level, stride in zip(levels(64, 64), STRIDES, strict=True)]
    optimiser = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        head.loss(head(images, (64, 64)), wanted)["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        found = head.class_scores(head(images, (64, 64)), (64, 64)).argmax(1)
    known = wanted.labels != 255
    assert (found == wanted.labels)[known].float().mean() > 0.9


def test_the_published_configuration_is_the_default() -> None:
    config = KMaXConfig()
    assert list(config.problems()) == []
    assert (config.queries, config.layers, config.stage_layers) == (128, (2, 2, 2), (1, 5, 1, 1))
    assert dataclasses.replace(config, semantic="light", queries=256).semantic == "light"
