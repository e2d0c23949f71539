"""BiFormer and BiFormerSTL: kinds of token mixing, padding, official names, and literal operators beside fast ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from backbones import attention
from backbones.attention.attend import attend
from backbones.attention.routed import routed_attention
from backbones.vision import create_backbone, create_classifier
from backbones.vision.biformer import BiFormer, BiFormerSTL
from backbones.vision.biformer_blocks import (
    BiFormerBlock,
    ConvolutionMixer,
    DepthwiseConvolution,
    FullAttention,
    RoutedAttention,
    token_mixer,
)
from backbones.vision.classifier import Classifier
from backbones.vision.variants import VARIANTS
from checkpoints.keymap import load_official
from checkpoints.official.biformer import KEYMAPS
from graftwork.errors import ConfigError, ShapeError, WeightsError

VARIANT_NAMES = [name for name, variant in VARIANTS.items() if variant.family in KEYMAPS]
FAMILIES = {"biformer": BiFormer, "biformer_stl": BiFormerSTL}
SMALL = {
    "channels": (8, 8, 16, 16),
    "depths": (1, 2, 1, 1),
    "topks": (1, 3, 6, -2),
    "regions": 3,
    "head_width": 4,
    "mlp_ratio": 2.0,
    "lepe_kernel": 3,
}


def small(family="biformer", seed=0, **changes):
    """A small network whose every parameter and statistic matters."""
    torch.manual_seed(seed)
    network = FAMILIES[family](**{**SMALL, **changes})
    shake(network)
    return network.eval()


def shake(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith(("mean", "var")):
                buffer.add_(0.3 * torch.rand_like(buffer))


def images(height=70, width=50, batch=2, dtype=torch.float64):
    return torch.randn(batch, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


def features(height=8, width=10, channels=16, batch=2):
    return torch.randn(batch, height, width, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", VARIANT_NAMES)
def test_sizes_are_those_of_the_paper(name):
    with torch.device("meta"):
        classifier = create_classifier(name)
    variant = VARIANTS[name]
    assert sum(parameter.numel() for parameter in classifier.parameters()) == variant.parameters
    mixers = [stage.blocks[0].attention for stage in classifier.backbone.built_stages]
    assert [mixer.topk for mixer in mixers[:3]] == [1, 4, 16]
    assert [mixer.heads for mixer in mixers[:3]] == [width // 32 for width in variant.channels[:3]]
    assert isinstance(mixers[3], FullAttention) and mixers[3].lepe is not None
    assert isinstance(classifier.head.norm, torch.nn.BatchNorm2d)
    assert all(block.mlp_norm.eps == 1e-6 for block in classifier.backbone.stages[2].blocks)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 99)])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_size_gives_maps_of_the_promised_sizes(family, size, training):
    network = small(family, regions=7).train(training)
    maps = network(images(*size, dtype=torch.float32))
    sizes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]
    expected = [(2, width, *sides) for width, sides in zip(SMALL["channels"], sizes, strict=True)]
    assert [tuple(level.shape) for level in maps] == expected
    assert all(level.isfinite().all() for level in maps)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(96, 96), (70, 50)])
def test_fast_and_literal_operators_agree_in_the_whole_model(family, size):
    network, results = small(family).double(), []
    for backend in ("auto", "math"):
        with attention.force(backend):
            attention.reset_used()
            maps = network(images(*size))
            used = attention.used()
        assert used["routed_attention"][0]["backend"] == ("math" if backend == "math" else "fast")
        assert used["attend"][0]["backend"] == ("math" if backend == "math" else "sdpa")
        loss = sum(level.square().mean() for level in maps)
        results.append([*maps, *torch.autograd.grad(loss, list(network.parameters()))])
    for fast, literal in zip(*results, strict=True):
        torch.testing.assert_close(fast, literal, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_the_same_gradients(family):
    gradients = []
    for checkpointing in (False, True):
        network = small(family, checkpointing=checkpointing).double().train()
        loss = sum(level.square().mean() for level in network(images()))
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept)


def test_one_region_per_side_is_full_attention():
    mixer = RoutedAttention(16, heads=2, regions=1, topk=1).double()
    x = features()
    q, k, v = mixer.qkv(x).unflatten(3, (3, 2, 8)).unbind(3)
    full = attend(*(part.flatten(1, 2) for part in (q, k, v)), scale=16**-0.5).view(x.shape)
    torch.testing.assert_close(mixer(x), mixer.out(full + mixer.lepe(v.flatten(3))))


def test_routed_attention_step_by_step():
    """Queries, keys and values in this order, heads of consecutive channels, the filter on the whole map of values."""
    mixer = RoutedAttention(16, heads=2, regions=(4, 5), topk=3, qk_width=8, lepe_kernel=5).double()
    shake(mixer)
    x = features()
    q, k, v = (x @ mixer.qkv.weight.T + mixer.qkv.bias).split((8, 8, 16), dim=3)
    heads = (part.unflatten(3, (2, -1)) for part in (q, k, v))
    mixed = routed_attention(*heads, regions=(4, 5), topk=3, scale=8**-0.5, backend="math").flatten(3)
    filtered = F.conv2d(v.permute(0, 3, 1, 2), mixer.lepe.weight, mixer.lepe.bias, padding=2, groups=16)
    expected = (mixed + filtered.permute(0, 2, 3, 1)) @ mixer.out.weight.T + mixer.out.bias
    torch.testing.assert_close(mixer(x), expected)
    assert mixer.routes(x).shape == (2, 20, 3)


PADDED = {(7, 10): (8, 12), (2, 3): (4, 4), (8, 9): (8, 12), (1, 1): (4, 4)}


@pytest.mark.parametrize(("size", "padded"), PADDED.items())
def test_padding_is_seen_and_cut_off(size, padded):
    mixer = RoutedAttention(16, heads=2, regions=4, topk=5).double()
    shake(mixer)
    x = features(*size)
    filled = x.new_zeros(2, *padded, 16)
    filled[:, : size[0], : size[1]] = x
    torch.testing.assert_close(mixer(x), mixer(filled)[:, : size[0], : size[1]])
    assert mixer.routes(x).shape == (2, 16, 5)
    if size == (7, 10):  # padding is no mask: its keys and values are the biases
        mixer.qkv.bias.data += 1
        changed = mixer(x)
        mixer.qkv.bias.data -= 1
        assert not torch.allclose(changed, mixer(x))


def test_full_attention_filters_its_input():
    mixer = FullAttention(16, lepe_kernel=3).double()
    shake(mixer)
    x = features()
    q, k, v = (x.flatten(1, 2) @ mixer.qkv.weight.T).unflatten(2, (3, 8, 2)).unbind(2)
    full = attend(q, k, v, scale=2**-0.5, backend="math").flatten(2).view(x.shape)
    torch.testing.assert_close(mixer(x), mixer.out(full + mixer.lepe(x)))
    plain = FullAttention(16).double()
    plain.load_state_dict(mixer.state_dict(), strict=False)
    torch.testing.assert_close(plain(x), plain.out(full))


def test_token_mixing_by_number():
    kinds = {3: RoutedAttention, 0: ConvolutionMixer, -1: FullAttention, -2: FullAttention}
    for topk, kind in kinds.items():
        mixer = token_mixer(16, topk, regions=2, head_width=4).double()
        assert type(mixer) is kind
        assert mixer(features()).shape == (2, 8, 10, 16)
    assert token_mixer(16, -1, regions=2).lepe is None
    assert token_mixer(16, 1, regions=2, head_width=4, lepe_kernel=0).lepe is None
    assert token_mixer(16, 1, regions=2, head_width=4, qk_width=8).heads == 2


def test_convolutions_in_the_place_of_attention():
    mixer = ConvolutionMixer(16).double()
    x = features()
    inside = F.linear(x, mixer.enter.weight, mixer.enter.bias).permute(0, 3, 1, 2)
    inside = F.conv2d(inside, mixer.depthwise.weight, mixer.depthwise.bias, padding=2, groups=16).permute(0, 2, 3, 1)
    torch.testing.assert_close(mixer(x), F.linear(inside, mixer.leave.weight, mixer.leave.bias))


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("convolution", [True, False])
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_blocks_add_their_branches(pre_norm, convolution, scale):
    block = BiFormerBlock(
        16, ConvolutionMixer(16), layer_scale=scale, mlp_convolution=convolution, pre_norm=pre_norm, mlp_ratio=2.5
    ).double()
    shake(block)
    first = block.attention_scale if scale else 1.0
    second = block.mlp_scale if scale else 1.0
    x = features().permute(0, 3, 1, 2)
    y = F.conv2d(x, block.position.weight, block.position.bias, padding=1, groups=16)
    y = (x + y).permute(0, 2, 3, 1)

    def mlp(tokens):
        hidden = F.linear(tokens, block.mlp.expand.weight, block.mlp.expand.bias)
        hidden = block.mlp.depthwise(hidden) if convolution else hidden
        return F.linear(F.gelu(hidden), block.mlp.contract.weight, block.mlp.contract.bias)

    if pre_norm:
        y = y + first * block.attention(block.attention_norm(y))
        y = y + second * mlp(block.mlp_norm(y))
    else:
        y = block.attention_norm(y + first * block.attention(y))
        y = block.mlp_norm(y + second * mlp(y))
    torch.testing.assert_close(block(x), y.permute(0, 3, 1, 2))
    assert block.mlp.expand.out_features == 40


def test_output_norms_do_not_feed_the_next_stage():
    plain, normed = small(), small(output_norms=True)
    normed.load_state_dict(plain.state_dict(), strict=False)
    found, raw = normed(images(dtype=torch.float32)), plain(images(dtype=torch.float32))
    for level, norm, before in zip(found, normed.output_norms.values(), raw, strict=True):
        expected = F.layer_norm(before.permute(0, 2, 3, 1), before.shape[1:2], norm.weight, norm.bias, 1e-6)
        torch.testing.assert_close(level, expected.permute(0, 3, 1, 2))


def test_patches_are_filled_up_with_zeros():
    network = small("biformer_stl").double()
    x = images(33, 46)
    filled = F.pad(x, (0, 2, 0, 3))
    for found, expected in zip(network(x), network(filled), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("norm", ["batch", "channel"])
def test_norms_of_the_swin_layout(norm):
    network = small("biformer_stl", norm=norm)
    kinds = {type(network.stem[1]), type(network.stages[1].downsample[0]), type(network.final_norm())}
    assert len(kinds) == 1
    assert Classifier(network, 5)(images(dtype=torch.float32)).shape == (2, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_sample_does_not_see_the_others(family):
    network = small(family).double()
    together, alone = network(images()), network(images()[1:])
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one)


def test_options_reach_the_network():
    backbone = create_backbone("biformer_tiny", regions=4, drop_path=0.3, out_indices=(1,), checkpointing=True)
    assert [block.attention.regions for stage in backbone.built_stages for block in stage.blocks] == [4] * 4
    assert len(backbone.stages) == 2
    rates = [block.drop_path.rate for stage in backbone.built_stages for block in stage.blocks]
    assert rates == pytest.approx([0.3 * number / 13 for number in range(4)])  # of all fourteen blocks
    assert backbone.checkpointing


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match="topk=16 must be between 1 and the 9 regions of regions=3"):
        create_backbone("biformer_tiny", regions=3)
    with pytest.raises(ConfigError, match="topk=-3 must be a number of regions, 0, -1 or -2"):
        small(topks=(1, 1, 1, -3))
    with pytest.raises(ConfigError, match=r"depths=\[1, 2\] must have 4 entries"):
        small(depths=(1, 2))
    with pytest.raises(ConfigError, match="5 heads do not divide the widths 16 and 16"):
        token_mixer(16, 1, regions=2, head_width=3)
    with pytest.raises(ConfigError, match="0 heads do not divide the widths 8 and 8"):
        small(head_width=16)
    with pytest.raises(ConfigError, match="8 heads, which do not divide the width 12"):
        small(channels=(8, 8, 16, 12))
    with pytest.raises(ConfigError, match="kernel of a depthwise convolution must be odd, got 4"):
        DepthwiseConvolution(8, 4)
    with pytest.raises(ConfigError, match="batch"):
        small("biformer_stl", norm="bach")
    with pytest.raises(ShapeError, match="at least 32 pixels, got 31 x 40"):
        small()(images(31, 40, dtype=torch.float32))


# -- official weights -------------------------------------------------------------------------------------------------


def affine(name, *statistics):
    return [f"{name}.{part}" for part in ("weight", "bias", *statistics)]


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def official_keys(family, depths, topks):
    """The names of spec and checkpoints, listed for networks with the default options."""
    own = family == "biformer"
    keys = affine("downsample_layers.0.0") + affine("downsample_layers.0.1", *STATISTICS)
    keys += affine("downsample_layers.0.3") + affine("downsample_layers.0.4", *STATISTICS) if own else []
    for level in (1, 2, 3):
        conv, norm = (0, 1) if own else (1, 0)
        keys += affine(f"downsample_layers.{level}.{conv}") + affine(f"downsample_layers.{level}.{norm}", *STATISTICS)
    for level, (depth, topk) in enumerate(zip(depths, topks, strict=True)):
        for number in range(depth):
            block = f"stages.{level}.{number}" if own else f"stages.{level}.blocks.{number}"
            keys += affine(f"{block}.pos_embed") if own else []
            for part in ("norm1", "norm2", "mlp.0", "mlp.3" if own else "mlp.2"):
                keys += affine(f"{block}.{part}")
            if topk > 0:
                keys += affine(f"{block}.attn.qkv.qkv") + affine(f"{block}.attn.wo") + affine(f"{block}.attn.lepe")
            elif topk == 0:
                keys += [key for part in (1, 2, 3) for key in affine(f"{block}.attn.{part}")]
            else:
                keys += [f"{block}.attn.qkv.weight", *affine(f"{block}.attn.proj")]
                keys += affine(f"{block}.attn.lepe") if topk == -2 else []
    return keys + affine("norm", *STATISTICS) + affine("head")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("topks", [(1, 3, 6, -2), (0, 2, -1, -2)])
def test_official_weights_load_and_give_the_same_network(family, topks):
    keys = official_keys(family, SMALL["depths"], topks)
    rename = KEYMAPS[family].rename
    source = Classifier(small(family, topks=topks), 5).eval()
    ours = source.state_dict()
    assert sorted(rename(key) for key in keys) == sorted(ours)
    state = {key: ours[rename(key)] for key in keys}
    for key in keys:
        if key.endswith((".attn.1.weight", ".attn.3.weight")):
            state[key] = state[key][:, :, None, None]  # convolutions of kernel 1 there
    target = Classifier(small(family, seed=3, topks=topks), 5).eval()
    report = load_official(target, state, KEYMAPS[family])
    assert report.fits
    x = images(dtype=torch.float32)
    torch.testing.assert_close(target(x), source(x))


def test_official_names_of_options():
    rename = KEYMAPS["biformer"].rename
    assert rename("stages.2.11.gamma1") == "backbone.stages.2.blocks.11.attention_scale"
    assert rename("stages.2.11.gamma2") == "backbone.stages.2.blocks.11.mlp_scale"
    assert rename("stages.0.1.mlp.1.dwconv.weight") == "backbone.stages.0.blocks.1.mlp.depthwise.weight"
    assert rename("extra_norms.2.bias") == "backbone.output_norms.2.bias"
    assert rename("backbone.stages.0.1.norm1.bias") == "backbone.stages.0.blocks.1.attention_norm.bias"
    assert KEYMAPS["biformer"].is_dropped("decode_head.conv_seg.weight")
    assert not KEYMAPS["biformer"].is_dropped("head.weight")


def test_official_file_of_a_dense_model_gives_a_backbone(tmp_path):
    """Its file holds the backbone under a prefix, heads beside it, and norms on outputs instead of the classifier."""
    source = create_backbone("biformer_tiny", output_norms=True, out_indices=(0, 1, 2, 3)).eval()
    shake(source)
    ours = {f"backbone.{key}": value for key, value in source.state_dict().items()}
    keys = official_keys("biformer", (2, 2, 8, 2), (1, 4, 16, -2))
    keys = [key for key in keys if not key.startswith(("norm.", "head."))]
    keys += [f"extra_norms.{level}.{part}" for level in range(4) for part in ("weight", "bias")]
    state = {f"backbone.{key}": ours[KEYMAPS["biformer"].rename(key)] for key in keys}
    state["decode_head.conv_seg.weight"] = torch.zeros(2, 3)
    path = tmp_path / "upernet.pth"
    torch.save({"state_dict": state}, path)
    target = create_backbone("biformer_tiny", weights=path, output_norms=True).eval()
    x = images(64, 64, 1, dtype=torch.float32)
    for found, expected in zip(target(x), source(x), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(WeightsError, match="do not fit"):
        create_backbone("biformer_small", weights=path)
