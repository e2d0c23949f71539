"""Heads of pixels: equal to their literal forms, on any pyramid, in training, half types and other runtimes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apps.segmentation.losses import dice
from apps.segmentation.models.blocks import BatchNorm, ConvNormAct, NormAct
from apps.segmentation.models.config import HEADS
from apps.segmentation.models.decode import DecodeHead
from apps.segmentation.models.fusion import fuse
from apps.segmentation.models.head import PixelOutput, Targets
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.pixel_config import FCNConfig, PixelHeadConfig, SegFormerConfig, UNetConfig, UPerNetConfig
from apps.segmentation.models.unet import WindowUpsample
from apps.segmentation.models.upernet import pool
from checkpoints.keymap import compare, load_official
from checkpoints.official.segmentation import HEAD_KEYMAPS, KEYMAPS, by_neighbours
from datamodules.segmentation.info import IGNORED
from graftwork.errors import ConfigError, ShapeError

CHANNELS = (6, 8, 12, 10, 16)
STRIDES = (4, 8, 16, 32, 64)
CONFIGS: dict[str, PixelHeadConfig] = {
    "upernet": UPerNetConfig(channels=8, auxiliary_channels=8),
    "segformer": SegFormerConfig(channels=8),
    "fcn": FCNConfig(channels=8, auxiliary_channels=8),
    "unet": UNetConfig(channels=8, widest=16),
    "unet_wau": UNetConfig(channels=8, widest=16, upsample="wau"),
}


def build(config: PixelHeadConfig, levels: int = 4, classes: int = 5, weights: tuple[float, ...] = ()) -> DecodeHead:
    info = HeadInfo(channels=CHANNELS[:levels], strides=STRIDES[:levels], classes=classes, weights=weights)
    head: DecodeHead = config.build(info)  # type: ignore[attr-defined]
    return head


def randomised(head: nn.Module) -> nn.Module:
    """Statistics and affine parameters of norms that are no longer those of the beginning."""
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return head


def pyramid(levels: int = 4, height: int = 65, width: int = 47, batch: int = 2) -> list[Tensor]:
    sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES[:levels]]
    return [torch.randn(batch, c, *size) for c, size in zip(CHANNELS, sizes, strict=False)]


# -- the convolution over levels --------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    kernel=st.sampled_from([1, 3, 5]),
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    target=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    corners=st.booleans(),
)
def test_levels_are_fused_as_if_resized_and_joined(
    kernel: int, sizes: list[tuple[int, int]], target: tuple[int, int], corners: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apps.segmentation.models.fusion.MATRIX_COST", 0)  # levels this small would be convolved
        _check_fusion(kernel, sizes, target, corners)


def _check_fusion(kernel: int, sizes: list[tuple[int, int]], target: tuple[int, int], corners: bool) -> None:
    levels = [torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    weight = torch.randn(4, 3 * len(levels), kernel, kernel, dtype=torch.float64, requires_grad=True)
    fast = fuse(levels, weight, target, align_corners=corners)
    literal = fuse(levels, weight, target, align_corners=corners, literal=True)
    torch.testing.assert_close(fast, literal)
    seed = torch.randn_like(fast)
    ours, theirs = (torch.autograd.grad(result, [*levels, weight], seed) for result in (fast, literal))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["upernet", "segformer"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_fast_and_literal_heads_agree(name: str, norm: Any, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.segmentation.models.fusion.MATRIX_COST", 0)
    head = randomised(build(_replaced(CONFIGS[name], norm=norm, dropout=0.0))).double().train(training)
    literal = copy.deepcopy(head)
    literal.literal = True  # type: ignore[assignment]
    levels = [level.double() for level in pyramid()]
    results = []
    for form in (head, literal):
        inputs = [level.clone().requires_grad_() for level in levels]
        logits = form(inputs, (65, 47)).logits
        used = [parameter for name, parameter in form.named_parameters() if not name.startswith("auxiliary")]
        results.append([logits, *torch.autograd.grad(logits.square().sum(), [*inputs, *used])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def _replaced(config: PixelHeadConfig, **values: Any) -> PixelHeadConfig:
    changed = copy.copy(config)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed


def test_a_folded_norm_is_the_norm() -> None:
    block = ConvNormAct(6, 8)
    randomised(block).eval()
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(block(x), F.relu(block.norm(block.conv(x))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("corners", [False, True])
def test_levels_are_fused_bicubically_as_if_resized_and_joined(corners: bool, training: bool) -> None:
    config = SegFormerConfig(channels=8, interpolation="bicubic", dropout=0.0, align_corners=corners)
    head = randomised(build(config)).double().train(training)
    literal = copy.deepcopy(head)
    literal.literal = True  # type: ignore[assignment]
    levels = [level.double() for level in pyramid()]
    found = head(levels, (65, 47)).logits
    torch.testing.assert_close(found, literal(levels, (65, 47)).logits)
    mixed = [lateral(level) for lateral, level in zip(literal.laterals, levels, strict=True)]  # type: ignore[arg-type]
    size = levels[0].shape[2:]
    alike = [F.interpolate(m, size=size, mode="bicubic", align_corners=corners) for m in mixed[1:]]
    joined = torch.cat([mixed[0], *alike], 1)
    torch.testing.assert_close(found, literal.classifier(literal.fusion(joined)))  # type: ignore[operator]


def test_a_wide_kernel_over_bicubic_levels() -> None:
    level, weight = torch.randn(1, 512, 6, 5, dtype=torch.float64), torch.randn(2, 512, 3, 3, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(level, size=(24, 19), mode="bicubic"), weight, padding=1)
    torch.testing.assert_close(fuse([level], weight, (24, 19), mode="bicubic"), expected)


def test_taps_are_taken_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr("apps.segmentation.models.fusion._by_taps", lambda level, *_: taken.append(level.shape[1]))
    for channels in (8, 512):
        level, weight = torch.empty(1, channels, 64, 64), torch.empty(4, channels, 3, 3)
        fuse([level], weight, (128, 128))
    assert taken == [512]


@pytest.mark.parametrize("scale", [1, 2, 3, 6])
def test_pooling_by_matrices_is_adaptive_pooling(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for height, width in ((2, 2), (7, 5), (16, 13)):
        x = torch.randn(2, 3, height, width)
        expected = pool(x, scale)
        with monkeypatch.context() as patch:
            patch.setattr("apps.segmentation.models.upernet.exporting", lambda: True)
            torch.testing.assert_close(pool(x, scale), expected)


# -- any pyramid ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 4, 5])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_head_takes_any_pyramid_and_learns(config: PixelHeadConfig, levels: int) -> None:
    head = build(config, levels)
    maps = pyramid(levels)
    output = head(maps, (65, 47))
    finest = -1 if isinstance(config, FCNConfig) else 0
    assert output.logits.shape == (2, 5, *maps[finest].shape[2:])
    assert len(output.auxiliary) == (config.auxiliary_weight > 0)
    labels = torch.randint(0, 5, (2, 65, 47))
    losses = head.loss(output, Targets(labels, []))
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    parts = sum(value for name, value in losses.items() if name != "loss")
    torch.testing.assert_close(losses["loss"], torch.as_tensor(parts))
    head.eval()
    result = head(maps, (65, 47))
    assert result.auxiliary == ()
    scores = head.class_scores(result, (65, 47))
    assert scores.shape == (2, 5, 65, 47)
    torch.testing.assert_close(head.probabilities(scores).sum(1), torch.ones(2, 65, 47))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_head_takes_a_batch_of_one_and_ignored_labels(config: PixelHeadConfig) -> None:
    """UPerNet pools to one position: a batch norm has one value per channel then."""
    head = build(config).train()
    output = head(pyramid(batch=1, height=32, width=32), (32, 32))
    losses = head.loss(output, Targets(torch.full((1, 32, 32), IGNORED), []))
    losses["loss"].backward()
    assert float(losses["loss"].detach()) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_head_runs_in_bfloat16(config: PixelHeadConfig) -> None:
    head = randomised(build(config)).eval()
    levels = pyramid()
    with torch.no_grad():
        expected = head(levels, (65, 47)).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = head(levels, (65, 47))
        scores = head.class_scores(found, (65, 47))
    assert scores.dtype == torch.float32
    assert float((found.logits.float() - expected).abs().max()) < 0.05 * float(expected.abs().max()) + 0.02


def test_chosen_levels() -> None:
    head = build(UPerNetConfig(channels=8, in_levels=(1, -1), auxiliary_weight=0.0))
    assert head.chosen == (1, 3) and head.in_channels == [8, 10]
    maps = pyramid()
    assert head(maps, (65, 47)).logits.shape[2:] == maps[1].shape[2:]
    joined = build(FCNConfig(channels=8, in_levels=(0, 2), auxiliary_weight=0.0))
    assert joined(maps, (65, 47)).logits.shape[2:] == maps[0].shape[2:]


class Scores(nn.Module):
    """A head as exporters want it: levels to scores of classes."""

    def __init__(self, head: DecodeHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, *levels: Tensor) -> Tensor:
        return self.head.class_scores(self.head(levels, (65, 47)), (65, 47))


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_head_runs_in_another_runtime(config: PixelHeadConfig, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = Scores(randomised(build(config)).eval())  # type: ignore[arg-type]
    batch = {0: torch.export.Dim("batch")}
    program = torch.onnx.export(
        model, tuple(pyramid()), dynamo=True, dynamic_shapes={"levels": (batch,) * 4}, verbose=False
    )
    assert program is not None
    program.save(tmp_path / "head.onnx")
    session = runtime.InferenceSession(tmp_path / "head.onnx")
    levels = pyramid(batch=3)
    names = [value.name for value in session.get_inputs()]
    (found,) = session.run(None, {name: level.numpy() for name, level in zip(names, levels, strict=True)})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(*levels), rtol=1e-4, atol=1e-5)


# -- the parts that are more than layers ------------------------------------------------------------------------------


def test_a_norm_of_single_values_uses_its_running_statistics() -> None:
    norm = BatchNorm(3).train()
    x = torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm2d(3).train()(x)
    before = copy.deepcopy(norm.state_dict())
    found = norm(x)
    torch.testing.assert_close(found, copy.deepcopy(norm).eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    pair = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(norm(pair), nn.BatchNorm2d(3).train()(pair))


def test_norms() -> None:
    assert isinstance(NormAct("group", 4).build(6), nn.GroupNorm)
    assert NormAct("group", 4).build(6).num_groups == 2
    assert ConvNormAct(2, 4, after=NormAct("none")).conv.bias is not None
    assert ConvNormAct(2, 4).conv.bias is None
    synced = NormAct("sync").build(4).train()
    synced(torch.randn(1, 4, 1, 1))
    assert synced(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize("name", ["upernet", "segformer", "fcn", "unet"])
def test_options_of_norms_and_activations_reach_every_block(name: str) -> None:
    for norm in ("batch", "sync", "group"):
        values = {"norm": norm, "groups": 4, "norm_eps": 0.01, "norm_momentum": 0.3, "activation": "gelu"}
        head = build(_replaced(CONFIGS[name], **values))
        norms = [m for m in head.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | nn.GroupNorm)]
        assert norms and {norm.eps for norm in norms} == {0.01}
        assert norm == "group" or {norm.momentum for norm in norms} == {0.3}
        blocks = [m for m in head.modules() if isinstance(m, ConvNormAct)]
        other = [block for block in blocks if not isinstance(block.activation, nn.GELU)]
        assert other == ([head.fusion] if name == "segformer" else [])  # as in mmsegmentation


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("leaky_relu", F.leaky_relu),
        ("gelu", F.gelu),
        ("silu", F.silu),
        ("relu", F.relu),
        ("none", lambda x: x),
    ],
)
def test_activations(name: Any, function: Any) -> None:
    x = torch.randn(2, 6, 5, 4)
    for norm in ("batch", "group"):
        block = ConvNormAct(6, 8, after=NormAct(norm, 4, 0.1, activation=name))
        randomised(block).eval()
        expected = function(block.norm(block.conv(x)))
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(block.fuse([x], (5, 4)), expected, rtol=1e-4, atol=1e-5)


def test_window_upsampling_reads_the_window_in_the_same_place() -> None:
    """The literal form: every finer position attends to the coarse positions of its own window."""
    layer = WindowUpsample(6, 4, 8, 2, window=3, heads=2).double().eval()
    nn.init.normal_(layer.positions)
    coarse, fine = torch.randn(1, 6, 4, 5, dtype=torch.float64), torch.randn(1, 4, 7, 10, dtype=torch.float64)
    read = layer._attend(coarse.permute(0, 2, 3, 1), fine.permute(0, 2, 3, 1))[0]
    queries = layer.queries(layer.fine_norm(fine.permute(0, 2, 3, 1)))[0]
    keys, values = layer.keys_values(layer.coarse_norm(coarse.permute(0, 2, 3, 1)))[0].chunk(2, -1)
    for y, x in ((0, 0), (6, 9), (3, 5), (5, 6), (2, 2)):
        own = (y // 2, x // 2)
        spots = [(r, c) for r in range(4) for c in range(5) if (r // 3, c // 3) == (own[0] // 3, own[1] // 3)]
        mixed = []
        for head in range(2):
            part = slice(head * 4, head * 4 + 4)
            rows = [(own[0] - r + 2) * 5 + own[1] - c + 2 for r, c in spots]
            logits = torch.stack([queries[y, x, part] @ keys[r, c, part] / 2 for r, c in spots])
            shares = (logits + layer.positions[rows, head]).softmax(0)
            mixed.append(shares @ torch.stack([values[r, c, part] for r, c in spots]))
        torch.testing.assert_close(read[y, x], layer.out(torch.cat(mixed)))


def test_class_weights_of_the_data_and_hard_pixels_count() -> None:
    output = PixelOutput(torch.randn(2, 5, 8, 8))
    labels = torch.randint(0, 5, (2, 8, 8))
    weights = (0.5, 1.0, 2.0, 3.0, 0.1)
    head = build(_replaced(CONFIGS["segformer"], dice_weight=2.0), weights=weights)
    losses = head.loss(output, Targets(labels, []))
    torch.testing.assert_close(losses["ce"], F.cross_entropy(output.logits, labels, torch.tensor(weights)))
    assert set(losses) == {"loss", "ce", "dice"} and "class_weights" not in head.state_dict()
    hard = build(_replaced(CONFIGS["segformer"], hard_threshold=0.1, hard_least=1))
    assert (
        hard.loss(output, Targets(labels, []))["ce"]
        > build(CONFIGS["segformer"]).loss(output, Targets(labels, []))["ce"]
    )


# -- a single logit for two classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_a_single_logit_gives_two_classes(threshold: float) -> None:
    head = build(_replaced(CONFIGS["segformer"], binary_threshold=threshold), classes=2).eval()
    output = head(pyramid(), (65, 47))
    assert output.logits.shape == (2, 1, 17, 12)
    output = PixelOutput(output.logits * 100 + 0.3)
    logits = F.interpolate(output.logits, size=(65, 47), mode="bilinear")
    scores = head.class_scores(output, (65, 47))
    above = logits[:, 0].sigmoid() > threshold
    assert 0 < above.sum() < above.numel() and torch.equal(scores.argmax(1) == 1, above)
    if threshold == 0.5:
        torch.testing.assert_close(head.probabilities(scores)[:, 1:], logits.sigmoid())


def test_losses_of_a_single_logit_are_binary() -> None:
    logits, labels = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
    labels[:, :2] = IGNORED
    valid, targets = labels != IGNORED, Targets(labels, [])
    each = F.binary_cross_entropy_with_logits(logits[:, 0], (labels == 1).float(), reduction="none")
    config = _replaced(CONFIGS["segformer"], binary_threshold=0.3, dice_weight=2.0, dice_activation="sigmoid")
    losses = build(config, classes=2).loss(PixelOutput(logits), targets)
    torch.testing.assert_close(losses["ce"], each[valid].mean())
    torch.testing.assert_close(losses["dice"], 2 * dice(logits, labels, activation="sigmoid"))
    weighted = build(config, classes=2, weights=(0.5, 3.0)).loss(PixelOutput(logits), targets)
    weights = torch.tensor([0.5, 3.0])[labels[valid]]
    torch.testing.assert_close(weighted["ce"], (weights * each[valid]).sum() / weights.sum())
    softmax = build(_replaced(config, dice_activation="softmax"), classes=2).loss(PixelOutput(logits), targets)
    chances = torch.cat([-logits, torch.zeros_like(logits)], 1)
    torch.testing.assert_close(softmax["dice"], 2 * dice(chances, labels))


def test_a_binary_checkpoint_fills_both_heads() -> None:
    config = _replaced(CONFIGS["upernet"], binary_threshold=0.3)
    head = build(config, classes=2)
    official = official_upernet(outputs=1)
    assert load_official(head, official, HEAD_KEYMAPS["upernet"]).fits
    assert torch.equal(head.classifier.weight, official["decode_head.conv_seg.weight"])
    losses = head.train().loss(head(pyramid(), (65, 47)), Targets(torch.randint(0, 2, (2, 65, 47)), []))
    losses["loss"].backward()
    assert set(losses) == {"loss", "ce", "aux"} and head.classifier.weight.grad is not None
    with pytest.raises(ConfigError, match=r"binary_threshold=0\.3 .* two classes, but the data have 5.*Set"):
        build(config)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (UPerNetConfig(channels=0), "channels=0"),
        (UPerNetConfig(pool_scales=(0, 2)), "pool_scales"),
        (UPerNetConfig(in_levels=(1, 1)), "twice"),
        (SegFormerConfig(dropout=1.0), "dropout=1"),
        (SegFormerConfig(binary_threshold=1.0), "binary_threshold=1"),
        (SegFormerConfig(norm_eps=0.0), "norm_eps=0"),
        (SegFormerConfig(norm_momentum=0.0), "norm_momentum=0"),
        (SegFormerConfig(cross_entropy_weight=0), "leave no loss"),
        (SegFormerConfig(hard_threshold=2), "hard_threshold"),
        (FCNConfig(kernel=2), "kernel=2"),
        (FCNConfig(in_levels=()), "in_levels"),
        (UNetConfig(upsample="wau", heads=3), "heads=3 must divide"),
        (UNetConfig(widest=8), "widest=8"),
    ],
)
def test_problems_name_the_value(config: PixelHeadConfig, message: str) -> None:
    assert any(message in problem for problem in config.problems())


def test_the_defaults_have_no_problems() -> None:
    for config in (UPerNetConfig(), SegFormerConfig(), FCNConfig(), UNetConfig(), UNetConfig(upsample="wau")):
        assert not list(config.problems())
    assert {HEADS.name_of(config) for config in CONFIGS.values()} == {"upernet", "segformer", "fcn", "unet"}


def test_levels_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"in_levels=\[0, 4\].*4 that"):
        build(UPerNetConfig(in_levels=(0, 4)))
    with pytest.raises(ConfigError, match=r"convs=0.*16.*Set channels=16"):
        build(FCNConfig(convs=0, channels=8), levels=5)
    with pytest.raises(ShapeError, match=r"expected channels \[6, 8, 12, 10\], got \[6, 8, 12\]"):
        build(CONFIGS["upernet"])(pyramid(3), (65, 47))
    layer = WindowUpsample(6, 4, 8, 2, window=3, heads=2)
    with pytest.raises(ShapeError, match="9 x 4 does not belong above one of 4 x 2"):
        layer(torch.randn(1, 6, 4, 2), torch.randn(1, 4, 9, 4))


# -- official names ---------------------------------------------------------------------------------------------------


def official_upernet(width: int = 8, outputs: int = 5) -> dict[str, Tensor]:
    """Names and shapes of a checkpoint of mmsegmentation, its second head included."""

    def block(name: str, channels: int, kernel: int) -> dict[str, Tensor]:
        norm = {f"{name}.bn.{part}": torch.randn(width) for part in ("weight", "bias", "running_mean")}
        counts = {f"{name}.bn.running_var": torch.rand(width), f"{name}.bn.num_batches_tracked": torch.tensor(1)}
        return {f"{name}.conv.weight": torch.randn(width, channels, kernel, kernel), **norm, **counts}

    found = block("decode_head.bottleneck", 10 + 4 * width, 3) | block("decode_head.fpn_bottleneck", 4 * width, 3)
    for index in range(4):
        found |= block(f"decode_head.psp_modules.{index}.1", 10, 1)
    for index in range(3):
        found |= block(f"decode_head.lateral_convs.{index}", CHANNELS[index], 1)
        found |= block(f"decode_head.fpn_convs.{index}", width, 3)
    found |= block("auxiliary_head.convs.0", CHANNELS[2], 3)
    for part in ("decode_head", "auxiliary_head"):
        found[f"{part}.conv_seg.weight"] = torch.randn(outputs, width, 1, 1)
        found[f"{part}.conv_seg.bias"] = torch.randn(outputs)
    return found


def test_a_whole_checkpoint_fills_both_heads() -> None:
    head = build(CONFIGS["upernet"])
    official = official_upernet() | {"backbone.norm0.weight": torch.zeros(6), "data_preprocessor.mean": torch.zeros(3)}
    report = load_official(head, official, HEAD_KEYMAPS["upernet"])
    assert report.fits and set(report.dropped) == {"backbone.norm0.weight", "data_preprocessor.mean"}
    assert torch.equal(head.classifier.bias, official["decode_head.conv_seg.bias"])
    assert head.auxiliary is not None
    assert torch.equal(head.auxiliary.classifier.bias, official["auxiliary_head.conv_seg.bias"])
    names = KEYMAPS["upernet"].translate(official_upernet()).tensors
    assert set(names) == {f"head.{name}" for name in head.state_dict()}


def test_merging_neighbours_is_that_of_an_unfold() -> None:
    x, weight = torch.randn(1, 3, 4, 6), torch.randn(5, 12)
    expected = F.linear(F.unfold(x, 2, stride=2).transpose(1, 2), weight)  # channel by channel
    nhwc = x.permute(0, 2, 3, 1)
    joined = torch.cat([nhwc[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
    found = F.linear(joined.flatten(1, 2), by_neighbours(weight))
    torch.testing.assert_close(found, expected)


def official_swin(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our Swin under the names of mmsegmentation, written apart from the key map."""
    found = {}
    for name, tensor in ours.items():
        if name.startswith("output_norms."):
            _, level, kind = name.split(".")
            found[f"backbone.norm{level}.{kind}"] = tensor
            continue
        words = name.removeprefix("trunk.").split(".")
        if words[0] == "patch_embed":
            key = ".".join(["patch_embed", {"proj": "projection"}.get(words[1], words[1]), words[2]])
        elif words[2] == "downsample":
            key = ".".join(["stages", str(int(words[1]) - 1), *words[2:]])
            tensor = tensor.unflatten(-1, (2, 2, -1)).movedim((-3, -2), (-1, -2)).flatten(-3)
        else:
            inner = {"fc1": "layers.0.0", "fc2": "layers.1"}
            rest = [{"attn": "attn.w_msa", "mlp": "ffn", **inner}.get(word, word) for word in words[4:]]
            key = ".".join(["stages", words[1], "blocks", words[3], *rest])
        found[f"backbone.{key}"] = tensor
    found["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(49, 49)
    return found


def test_a_swin_of_mmsegmentation_finds_its_place() -> None:
    from backbones.vision.create import create_backbone

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = create_backbone("swin_tiny", output_norms=True)

    model = Whole()
    tensors = model.backbone.state_dict()
    translation = KEYMAPS["upernet"].translate(official_swin(tensors))
    assert compare(model, translation).fits
    assert all(torch.equal(translation.tensors[f"backbone.{name}"], tensor) for name, tensor in tensors.items())
