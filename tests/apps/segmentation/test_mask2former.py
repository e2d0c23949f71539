"""The network of Mask2Former: forms agree, any levels and sizes, what carries gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.mask2former_config import Mask2FormerConfig
from apps.segmentation.models.mask2former_decoder import PackedAttention, literally_visible, visible_cells
from apps.segmentation.models.mask2former_pixel_decoder import (
    DeformableAttention,
    cell_centres,
    plan_levels,
    sine_positions,
)
from backbones.attention import dispatch
from checkpoints.official.mask2former import HEADS, KEYMAPS
from graftwork.errors import ConfigError, ShapeError

SWIN = HeadInfo(channels=(8, 12, 16, 20), strides=(4, 8, 16, 32), classes=5, things=(0, 1))


def small(**options):
    values = {"width": 16, "mask_width": 12, "queries": 7, "layers": 4, "heads": 2, "mlp": 24, "encoder_layers": 2}
    values |= {"encoder_heads": 4, "encoder_points": 2, "encoder_mlp": 20, "groups": 4, "merge_groups": 2}
    return Mask2FormerConfig(**values | {"loss_points": 40} | options)


def levels_of(info, size=(45, 70), batch=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, -(-size[0] // stride), -(-size[1] // stride), generator=generator).to(dtype)
        for channels, stride in zip(info.channels, info.strides, strict=True)
    ]


def built(info=SWIN, **options):
    torch.manual_seed(1)
    head = small(**options).build(info)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def test_sizes_of_published_models():
    with torch.device("meta"):
        for channels, millions in (((256, 512, 1024, 2048), 6.04), ((96, 192, 384, 768), 5.42)):
            head = Mask2FormerConfig().build(HeadInfo(channels=channels, strides=(4, 8, 16, 32), classes=133))
            assert count(head.pixel_decoder) / 1e6 == pytest.approx(millions, abs=0.005)
            assert count(head.decoder) / 1e6 == pytest.approx(14.49, abs=0.005)
            assert head.pixel_decoder.encoder.layers[0].expand.out_features == 1024


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", [(45, 70), (32, 32), (64, 96), (33, 129)])
@pytest.mark.parametrize("training", [True, False])
def test_forms_agree_at_any_size(size, training):
    head = built().double().train(training)
    inputs = [level.requires_grad_() for level in levels_of(SWIN, size, dtype=torch.float64)]
    found = {}
    for form in ("auto", "math"):
        with dispatch.force(form):
            output = head(inputs, size)
            everything = [output, *output.auxiliary]
            total = sum((one.masks.square().mean() + one.classes.square().mean()) for one in everything)
            found[form] = [tensor for one in everything for tensor in (one.classes, one.masks)]
            found[form] += torch.autograd.grad(total, inputs)
    torch.testing.assert_close(found["auto"], found["math"])
    assert len(output.auxiliary) == (4 if training else 0)
    assert output.masks.shape == (2, 7, -(-size[0] // 4), -(-size[1] // 4))


@settings(max_examples=25, deadline=None)
@given(
    queries=st.integers(1, 5),
    height=st.integers(2, 12),
    width=st.integers(2, 12),
    seed=st.integers(0, 99),
)
def test_masks_of_attention_from_low_resolution(queries, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    kernels = torch.randn(2, queries, 6, dtype=torch.float64, generator=generator)
    features = torch.randn(2, 6, height, width, dtype=torch.float64, generator=generator)
    features[0] = features[0].abs()
    kernels[0, 0] = -kernels[0, 0].abs()  # a mask that covers nothing
    size = (max(1, height // 2), max(1, width // 3))
    small_map = F.interpolate(features, size=size, mode="bilinear", align_corners=False).flatten(2)
    fast = visible_cells(kernels, small_map)
    literal = literally_visible(torch.einsum("bnm,bmhw->bnhw", kernels, features), size, heads=3)
    assert fast.shape == (2, 1, queries, size[0] * size[1])
    close = (kernels @ small_map).abs()[:, None] < 1e-5
    assert bool((fast.expand_as(literal) == literal).logical_or(close).all())
    assert bool(fast[0, 0, 0].all())


def test_masks_of_attention_carry_no_gradient():
    """What a layer's mask lets through is a choice: mask layers are trained by the loss of their masks alone."""
    head = built(deep_supervision=False).train()
    output = head(levels_of(SWIN), (45, 70))
    output.classes.sum().backward()
    assert all(layer.weight.grad is None for layer in head.decoder.mask_layers)
    assert head.pixel_decoder.mask_features.weight.grad is None
    assert head.decoder.query_features.grad.abs().sum() > 0


def test_attention_of_torch_is_the_same():
    torch.manual_seed(0)
    ours, theirs = PackedAttention(12, 3).double(), torch.nn.MultiheadAttention(12, 3, batch_first=True).double()
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), (theirs.in_proj_weight, theirs.in_proj_bias), strict=False):
            torch.nn.init.normal_(mine)
            other.copy_(mine)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    q, k, v = (torch.randn(2, tokens, 12, dtype=torch.float64) for tokens in (4, 9, 9))
    mask = torch.rand(2, 1, 4, 9) > 0.4
    mask[..., 0] = True
    expected = theirs(q, k, v, attn_mask=~mask.expand(-1, 3, -1, -1).flatten(0, 1), need_weights=False)[0]
    torch.testing.assert_close(ours(q, k, v, mask), expected)


def test_positions_by_the_formula():
    """Rows first; counted from 1, the last one at 2 pi; sines and cosines take turns at the same wave."""
    found = sine_positions(3, 5, 8, torch.device("cpu")).view(3, 5, 8)
    for row, column, index in ((0, 0, 0), (2, 4, 1), (1, 3, 2), (2, 1, 5), (0, 4, 7)):
        place, length, i = (row + 1, 3, index) if index < 4 else (column + 1, 5, index - 4)
        angle = torch.tensor(place / (length + 1e-6) * 2 * torch.pi / 10000 ** (2 * (i // 2) / 4))
        torch.testing.assert_close(found[row, column, index], angle.cos() if i % 2 else angle.sin())


def test_points_begin_on_rays():
    module = DeformableAttention(16, 3, 8, 4)
    fan = module.offsets.bias.view(8, 3, 4, 2)
    torch.testing.assert_close(fan[0, 1], torch.tensor([[1.0, 0.0], [2, 0], [3, 0], [4, 0]]))
    torch.testing.assert_close(fan[3, 0, 1], torch.tensor([-2.0, 2.0]))
    assert float(module.offsets.weight.detach().abs().max()) == 0
    centres = cell_centres(((2, 4), (1, 1)), torch.device("cpu"))
    torch.testing.assert_close(centres[[0, 7, 8]], torch.tensor([[0.125, 0.25], [0.875, 0.75], [0.5, 0.5]]))


@pytest.mark.parametrize(
    ("strides", "encoded", "merged", "stride"),
    [
        ((4, 8, 16, 32), (3, 2, 1), (0,), 4),
        ((2, 4, 8, 16, 32), (4, 3, 2), (1,), 4),
        ((8, 16, 32), (2, 1, 0), (), 8),
        ((16,), (0,), (), 16),
        ((4, 8), (1,), (0,), 4),
        ((4,), (0,), (), 4),
        ((7, 14, 28), (2, 1), (0,), 7),
        ((16, 16, 16, 16), (3, 2, 1), (), 16),
        ((2,), (0,), (), 2),
    ],
)
def test_levels_of_any_backbone(strides, encoded, merged, stride):
    info = HeadInfo(channels=tuple(6 + 2 * i for i in range(len(strides))), strides=strides, classes=3)
    plan = plan_levels(info)
    assert (plan.encoded, plan.merged, plan.stride) == (encoded, merged, stride)
    head = built(info).eval()
    output = head(levels_of(info, (37, 50)), (37, 50))
    assert output.masks.shape == (2, 7, -(-37 // stride), -(-50 // stride))
    assert head.class_scores(output, (37, 50)).shape == (2, 3, 37, 50)


def test_fewer_encoded_levels_are_read_after_merging():
    """Official option of fewer levels in the encoder: the decoder still reads strides 32, 16 and 8."""
    head = built(encoder_levels=2).eval()
    assert (head.pixel_decoder.plan.encoded, head.pixel_decoder.plan.merged) == ((3, 2), (1, 0))
    maps = head.pixel_decoder(levels_of(SWIN, (64, 64))).maps
    assert [found.shape[-1] for found in maps] == [2, 4, 8]


@pytest.mark.parametrize(
    ("strides", "most", "encoded", "merged"),
    [
        ((4, 8, 16, 32), 4, (3, 2, 1, 0), ()),
        ((2, 4, 8, 16, 32), 5, (4, 3, 2, 1), ()),
        ((4, 16, 32), 4, (2, 1, 0), ()),
        ((4, 8), 3, (1,), (0,)),
        ((8, 16, 32), 4, (2, 1, 0), ()),
    ],
)
def test_more_encoded_levels_are_finer_ones(strides, most, encoded, merged):
    """Official option of four features in the encoder: nothing is merged, the decoder reads three maps as ever."""
    info = HeadInfo(channels=tuple(6 + 2 * i for i in range(len(strides))), strides=strides, classes=3)
    plan = plan_levels(info, most)
    assert (plan.encoded, plan.merged, plan.read) == (encoded, merged, min(3, len(encoded)))
    head = built(info, encoder_levels=most).eval()
    decoded = head.pixel_decoder(levels_of(info, (64, 64)))
    assert [found.shape[-1] for found in decoded.maps] == [64 // strides[level] for level in encoded[:3]]
    assert decoded.mask_features.shape[-1] == 64 // plan.stride


@pytest.mark.parametrize("info", [((), ()), ((8,), (4, 8)), ((8, 0), (4, 8))])
def test_no_levels_is_an_error(info):
    with pytest.raises(ConfigError, match="a channel number and a stride of each level"):
        small().build(HeadInfo(channels=info[0], strides=info[1], classes=3))


def test_wrong_levels_are_an_error():
    head = built()
    with pytest.raises(ShapeError, match=r"level 3 of the backbone: expected \[batch, 20, height, width\], got none"):
        head(levels_of(SWIN)[:3], (45, 70))
    with pytest.raises(ShapeError, match=r"level 0 .* expected \[batch, 8, height, width\], got \[2, 12"):
        head(levels_of(SWIN)[1:] + levels_of(SWIN)[:1], (45, 70))
    with pytest.raises(ShapeError, match="maps: expected 3"):
        head.decoder([torch.zeros(1, 16, 2, 2)], torch.zeros(1, 12, 4, 4))


def test_options_out_of_range_are_listed():
    config = Mask2FormerConfig(width=30, heads=0, dropout=1.0, oversample=0.5, exit_layer=9, query_width=-1)
    with pytest.raises(ConfigError) as error:
        config.build(SWIN)
    for text in ("width=30 must be a multiple of groups=32; try width=32", "heads=0", "dropout=1", "oversample=0.5"):
        assert text in str(error.value)
    assert "exit_layer=9 must be from 0 to encoder_layers=6" in str(error.value)
    assert "query_width=-1" in str(error.value)
    assert list(Mask2FormerConfig().problems()) == []


@pytest.mark.parametrize("options", [{"norm_first": True}, {"project": True}, {"query_width": 24}, {"dropout": 0.5}])
def test_options_run_and_train(options):
    head = built(**options).train()
    output = head(levels_of(SWIN), (45, 70))
    (output.masks.mean() + output.classes.mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "options", [{"project": True, "layers": 2}, {"query_width": 24, "layers": 1}, {"exit_layer": 1}]
)
def test_all_that_is_trained_gets_gradients_whatever_is_read(options):
    """Processes that train together wait for the gradient of every trainable tensor."""
    head = built(**options).train()
    output = head(levels_of(SWIN), (45, 70))
    sum(one.masks.mean() + one.classes.mean() for one in (output, *output.auxiliary)).backward()
    assert not [name for name, value in head.named_parameters() if value.requires_grad and value.grad is None]


def test_encoder_stays_in_float32_under_autocast():
    head = built().eval()
    seen = []
    handle = head.pixel_decoder.encoder.layers[1].register_forward_hook(lambda *found: seen.append(found[-1]))
    levels = levels_of(SWIN)
    with torch.no_grad():
        expected = head.pixel_decoder(levels).mask_features
        with torch.autocast("cpu", torch.bfloat16):
            mixed = head([level.bfloat16() for level in levels], (45, 70))
            again = head.pixel_decoder(levels).mask_features
    handle.remove()
    assert all(tokens.dtype == torch.float32 for tokens in seen)
    torch.testing.assert_close(again, expected)
    assert mixed.masks.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("exits", ["none", "gate"])
def test_exported_graph_gives_the_same_for_any_batch(exits):
    head = built(exits=exits, layers=1, encoder_layers=1 + (exits == "gate")).eval()
    levels = levels_of(SWIN, (40, 60), batch=3)
    shapes = {"levels": tuple({0: torch.export.Dim("batch")} for _ in levels)}
    program = torch.export.export(Scores(head), tuple(levels), dynamic_shapes=shapes, strict=False)
    for batch in (3, 2):
        some = [level[:batch] for level in levels]
        with torch.no_grad():
            expected = head.class_scores(head(some, (40, 60)), (40, 60))
            torch.testing.assert_close(program.module()(*some), expected, atol=1e-4, rtol=1e-4)


class Scores(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, *levels):
        return self.head.class_scores(self.head(levels, (40, 60)), (40, 60))


def test_half_types_run_in_their_own():
    head = built(exits="gate").bfloat16().eval()
    output = head([level.bfloat16() for level in levels_of(SWIN)], (45, 70))
    assert output.masks.dtype == torch.bfloat16 and output.masks.isfinite().all()


def official(key):
    """Our key of a head under its official name."""
    rows = [("pixel_decoder.projections.", "pixel_decoder.input_proj."), ("level_positions", "level_embed")]
    rows += [("pixel_decoder.level_embed", "pixel_decoder.transformer.level_embed")]
    rows += [("pixel_decoder.encoder.", "pixel_decoder.transformer.encoder.")]
    rows += [(f".attention.{a}.", f".self_attn.{b}.") for a, b in (("offsets", "sampling_offsets"),)]
    rows += [(".attention.weights.", ".self_attn.attention_weights."), (".attention.value.", ".self_attn.value_proj.")]
    rows += [(".attention.out.", ".self_attn.output_proj.")]
    if ".encoder." in key:
        rows += [(".attention_norm.", ".norm1."), (".mlp_norm.", ".norm2."), (".expand", ".linear1")]
        rows += [(".contract", ".linear2")]
    rows += [("merges.0.lateral_norm.", "adapter_1.norm."), ("merges.0.lateral.", "adapter_1.")]
    rows += [("merges.0.smooth_norm.", "layer_1.norm."), ("merges.0.smooth.", "layer_1.")]
    for ours, theirs in rows:
        key = key.replace(ours, theirs)
    return key


def test_keys_of_old_checkpoints():
    """The first versions had no ``pixel_decoder.`` and other names of the queries; a wrapper's prefix may be there."""
    head = built()
    pixel = {key: value for key, value in head.state_dict().items() if key.startswith("pixel_decoder.")}
    old = {f"module.sem_seg_head.{official(k).removeprefix('pixel_decoder.')}": value for k, value in pixel.items()}
    old["module.sem_seg_head.predictor.static_query.weight"] = head.decoder.query_features.detach()
    old["module.criterion.empty_weight"] = torch.ones(6)
    old["module.backbone.layers.0.downsample.norm.weight"] = torch.ones(3)
    translated = HEADS["mask2former"].translate(old)
    assert set(translated.tensors) == {*pixel, "decoder.query_features"}
    whole = KEYMAPS["mask2former"].translate(old)
    assert set(whole.tensors) == {f"head.{key}" for key in translated.tensors} | {
        "backbone.trunk.layers.1.downsample.norm.weight"
    }


def test_keys_of_backbones():
    rename = KEYMAPS["mask2former"].rename
    assert rename("backbone.layers.2.blocks.0.attn.qkv.weight") == "backbone.trunk.layers.2.blocks.0.attn.qkv.weight"
    assert rename("backbone.norm2.weight") == "backbone.output_norms.2.weight"
    assert rename("backbone.stem.conv1.norm.weight") == "backbone.trunk.bn1.weight"
    assert rename("backbone.res3.0.shortcut.norm.bias") == "backbone.trunk.layer2.0.downsample.1.bias"
    assert rename("backbone.res5.2.conv3.weight") == "backbone.trunk.layer4.2.conv3.weight"
