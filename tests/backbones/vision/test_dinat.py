"""NAT and DiNAT: sizes, dilations, padding, official weights, and the fast operator inside whole models."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.nn.functional as F

from backbones import attention
from backbones.attention.neighborhood import neighborhood_attention
from backbones.timing import peak_memory
from backbones.vision import create_backbone, create_classifier
from backbones.vision.classifier import Classifier
from backbones.vision.config import BACKBONES
from backbones.vision.dinat import DiNAT, DiNAT_s, DiNATIsotropic
from backbones.vision.dinat_blocks import NeighborhoodAttention, PatchMerging, PatchTokenizer
from backbones.vision.dinat_dilations import block_dilations
from backbones.vision.variants import VARIANTS
from backbones.vision.weights import load_tensors
from checkpoints.keymap import load_official
from checkpoints.official.dinat import KEYMAPS
from graftwork.errors import ConfigError, WeightsError

OURS = [name for name, variant in VARIANTS.items() if variant.family in KEYMAPS]
SMALL = {"width": 8, "depths": (2, 1, 2), "heads": (1, 2, 4), "kernel_size": 3, "mlp_ratio": 2.0}
DILATIONS = ((1, 3), (1,), (1, 2))
LAYOUTS = {
    "dinat": (DiNAT, SMALL),
    "dinat_s": (DiNAT_s, SMALL),
    "dinat_isotropic": (DiNATIsotropic, {**SMALL, "depths": (3,), "heads": (2,), "patch": 8}),
}


def small(family="dinat", seed=0, **changes):
    """A small network whose every parameter matters."""
    layout, sizes = LAYOUTS[family]
    torch.manual_seed(seed)
    network = layout(**{"dilations": DILATIONS[: len(sizes["depths"])], **sizes, **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def images(height=70, width=50, batch=2, dtype=torch.float64):
    return torch.randn(batch, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", OURS)
def test_sizes_are_those_of_the_paper(name):
    with torch.device("meta"):
        classifier = create_classifier(name)
    variant = VARIANTS[name]
    assert sum(parameter.numel() for parameter in classifier.parameters()) == variant.parameters
    assert classifier.backbone.channels[-1] == variant.channels[-1]
    widths = {block.attention.qkv.in_features // block.attention.heads for block in blocks(classifier)}
    assert widths == {32}


def blocks(model):
    backbone = getattr(model, "backbone", model)
    return [block for stage in backbone.stages for block in stage.blocks]


# -- dilations ---------------------------------------------------------------------------------------------------------


def dilations_of(name, **options):
    with torch.device("meta"):
        stages = create_backbone(name, **options).stages
    return [[block.attention.dilation for block in stage.blocks] for stage in stages]


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("nat_mini", [[1], [1], [1], [1]]),
        ("dinat_mini", [[1, 8], [1, 4], [1, 2], [1]]),
        ("dinat_s_tiny", [[1, 8], [1, 4], [1, 2], [1]]),
        ("dinat_large_384", [[1, 13], [1, 6], [1, 3], [1]]),
        ("dinat_large_384_11x11", [[1, 8], [1, 4], [1, 2], [1]]),
        ("nat_isotropic_small", [[1]]),
        ("dinat_isotropic_small", [[1, 2]]),
    ],
)
def test_published_dilations(name, lists):
    for found, level, depth in zip(dilations_of(name), lists, VARIANTS[name].values["depths"], strict=True):
        assert found == list(itertools.islice(itertools.cycle(level), depth))


@pytest.mark.parametrize("written", [list, json.dumps, lambda lists: f" {lists} "])
def test_lists_of_dilations_repeat_and_may_be_text(written):
    lists = [[1, 16, 1], [1, 4, 1, 8], [1, 2, 1, 3, 1, 4], [1, 2, 1, 2, 1]]
    found = dilations_of("dinat_tiny", dilations=written(lists))
    assert found == [lists[0], lists[1], lists[2] * 3, lists[3]]
    assert dilations_of("dinat_isotropic_small", dilations=written([1, 3])) == [[1, 3] * 6]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("publishd", r"'publishd' is neither published nor auto nor a list"),
        ("{}", r"'\{\}' is no list"),
        ("[[1,8],[1,4]]", r"are 2 lists for 4 levels"),
        ([[1, 8], [1, 4], [], [1]], r"level 2: expected a list of numbers, got \[\]"),
        ([[1, 8], [1, 0], [1], [1]], r"level 1: 0 in \[1, 0\] is no integer of at least 1"),
        ([[1, 8], [1, "2"], [1], [1]], r"level 1: '2' in"),
        ([[1, 2, 3, 4], [1], [1], [1]], r"level 0: \[1, 2, 3, 4\] are 4 for 3 blocks"),
    ],
)
def test_bad_dilations_are_named(option, message):
    with pytest.raises(ConfigError, match=message):
        dilations_of("dinat_mini", dilations=option)


def test_configuration_tells_all_bad_dilations_at_once_before_anything_is_built():
    config = BACKBONES.get("dinat_mini")(dilations=[[1, 0], [1, 2, 3, 4, 5], [True], [1]], drop_path=1.0)
    assert list(config.problems()) == [
        "drop_path=1.0 must be at least 0 and below 1",
        "dilations of level 0: 0 in [1, 0] is no integer of at least 1",
        "dilations of level 1: [1, 2, 3, 4, 5] are 5 for 4 blocks",
        "dilations of level 2: True in [True] is no integer of at least 1",
    ]
    with pytest.raises(ConfigError, match=r"(?s)dilations of level 0.*dilations of level 1.*Use published, auto"):
        block_dilations([[0], [1, 1]], depths=(1, 1), strides=(4, 8), kernel_size=3, image_size=64)
    for good in ("published", "auto", "[[1],[1],[1],[1]]", ((1,), (1, 2), (1,), (1,))):
        assert not list(BACKBONES.get("dinat_mini")(dilations=good).problems())


def test_auto_dilations_follow_the_map():
    sizes = ((56, 56), (128, 30), (6, 13), (14, 49))
    layer = NeighborhoodAttention(8, 2, 7, None)
    assert [layer.steps(*size) for size in sizes] == [(8, 8), (18, 4), (1, 1), (2, 7)]
    lists = block_dilations("auto", depths=(3, 2), strides=(4, 8), kernel_size=7, image_size=224)
    assert lists == [[1, None, 1], [1, None]]


def test_auto_equals_published_at_the_published_size():
    torch.manual_seed(0)
    published, auto = (create_backbone("dinat_mini", dilations=option).eval() for option in ("published", "auto"))
    auto.load_state_dict(published.state_dict())
    pixels = images(224, 224, 1, torch.float32)
    with torch.no_grad():
        for ours, theirs in zip(auto(pixels), published(pixels), strict=True):
            torch.testing.assert_close(ours, theirs)


# -- layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 9), (9, 4), (3, 3), (8, 8)])
def test_small_maps_are_padded_before_the_projection(size):
    torch.manual_seed(0)
    layer = NeighborhoodAttention(8, 2, 3, 2).double()
    torch.nn.init.normal_(layer.qkv.bias)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, max(0, 6 - size[1]), 0, max(0, 6 - size[0])))
    q, k, v = layer.qkv(padded).unflatten(3, (3, 2, 4)).unbind(3)
    mixed = neighborhood_attention(q, k, v, kernel_size=3, dilation=2, bias=layer.rpb, backend="math")
    expected = layer.out(mixed.flatten(3))[:, : size[0], : size[1]]
    torch.testing.assert_close(layer(x), expected)


def test_padding_is_seen_by_real_positions():
    layer = NeighborhoodAttention(8, 2, 3, 2)
    x = torch.randn(1, 4, 4, 8)
    with torch.no_grad():
        torch.nn.init.zeros_(layer.qkv.bias)
        before = layer(x)
        layer.qkv.bias[16:] = 1.0  # values of padded positions
        assert not torch.allclose(layer(x), before)


def test_merging_stacks_even_and_odd_positions_in_order():
    layer = PatchMerging(1, 4)
    torch.nn.init.eye_(layer.reduction.weight)
    layer.norm = torch.nn.Identity()
    x = torch.arange(6.0).reshape(1, 2, 3, 1)  # 0 1 2 / 3 4 5
    assert layer(x).tolist() == [[[[0, 3, 1, 4], [2, 5, 0, 0]]]]


def test_patches_are_zero_padded_at_the_bottom_and_right():
    layer = PatchTokenizer(3, 4, 4)
    pixels = images(70, 50, 1, torch.float32)
    torch.testing.assert_close(layer(pixels), layer(F.pad(pixels, (0, 2, 0, 2))))


def test_tables_of_positions_do_not_decay_and_start_small():
    backbone = small()
    fresh = DiNAT(**SMALL)
    tables = {name: value for name, value in backbone.named_parameters() if name.endswith("rpb")}
    assert len(tables) == sum(SMALL["depths"])
    assert all(value._no_weight_decay for value in tables.values())
    for name, value in fresh.named_parameters():
        if name.endswith("rpb") or (value.dim() == 2 and "norm" not in name):
            assert 0.005 < value.std() < 0.04, name
        if name.endswith((".qkv.bias", ".out.bias", ".expand.bias", ".contract.bias")):
            assert not value.any(), name


@pytest.mark.parametrize(("name", "scaled"), [("nat_small", True), ("dinat_small", False), ("dinat_base", True)])
def test_layer_scale_where_the_paper_has_it(name, scaled):
    backbone = create_backbone(name, out_indices=(0,))
    factors = {key: value for key, value in backbone.named_parameters() if key.endswith("_scale")}
    assert bool(factors) == scaled
    assert all(value.detach().unique().tolist() == pytest.approx([1e-5]) for value in factors.values())


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="3 heads do not divide the width 8"):
        DiNAT(**{**SMALL, "heads": (3, 2, 4)})
    with pytest.raises(ConfigError, match=r"heads=\(1, 2\) must name as many levels as depths=\(2, 1, 2\)"):
        DiNAT(**{**SMALL, "heads": (1, 2)})
    with pytest.raises(ConfigError, match=r"dilations=\[\[1\]\] must be a list for each of the levels"):
        DiNAT(**SMALL, dilations=[[1]])


# -- whole models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("size", [(70, 50), (33, 97), (32, 32)])
def test_fast_and_literal_models_agree(family, size):
    network = small(family, layer_scale=0.5).double().train()
    found = []
    for form in ("auto", "math"):
        network.zero_grad()
        with attention.force(form):
            maps = network(images(*size))
            sum(level.cos().sum() for level in maps).backward()
        found.append([*maps, *(parameter.grad for parameter in network.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", LAYOUTS)
def test_checkpointing_gives_equal_gradients(family):
    found = []
    for checkpointing in (False, True):
        network = small(family, checkpointing=checkpointing, drop_path=0.3).train()
        torch.manual_seed(2)
        sum(level.square().sum() for level in network(images(dtype=torch.float32))).backward()
        found.append([parameter.grad for parameter in network.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_options_of_the_projection():
    network = small(qkv_bias=False, scale=0.1).double().eval()
    assert not any(name.endswith("qkv.bias") for name, _ in network.named_parameters())
    other = small(qkv_bias=False).double().eval()
    other.load_state_dict(network.state_dict())
    assert not torch.allclose(network(images())[0], other(images())[0])


def test_memory_grows_with_the_image_and_not_with_its_square():
    network = small().eval()

    def step(side):
        return lambda: network(images(side, side, 1, torch.float32))[-1].sum().backward()

    assert peak_memory(step(256)) < 4.3 * peak_memory(step(128))


# -- weights -----------------------------------------------------------------------------------------------------------


def official_state(family, depths, width=8, kernel=3, heads=(1, 2, 4), ratio=2, layer_scale=False, dense=False):
    """A state dict with the official names and shapes, written out from their description."""
    stage = {"dinat": "levels", "dinat_s": "layers", "dinat_isotropic": "blocks"}[family]
    shapes = {"patch_embed.norm": (width,), "norm": (width * 2 ** (len(depths) - 1),)}
    if family == "dinat":
        shapes |= {"patch_embed.proj.0": (width // 2, 3, 3, 3), "patch_embed.proj.1": (width, width // 2, 3, 3)}
    else:
        side = 4 if family == "dinat_s" else 8
        shapes |= {"patch_embed.proj": (width, 3, side, side)}
    for level, depth in enumerate(depths):
        wide = width * 2**level
        for block in range(depth):
            name = f"blocks.{block}" if stage == "blocks" else f"{stage}.{level}.blocks.{block}"
            shapes |= {f"{name}.{norm}": (wide,) for norm in ("norm1", "norm2")}
            shapes |= {f"{name}.attn.qkv": (3 * wide, wide), f"{name}.attn.proj": (wide, wide)}
            shapes |= {f"{name}.mlp.fc1": (ratio * wide, wide), f"{name}.mlp.fc2": (wide, ratio * wide)}
            shapes[f"{name}.attn.rpb"] = (heads[level], 2 * kernel - 1, 2 * kernel - 1)
            if layer_scale:
                shapes |= {f"{name}.{gamma}": (wide,) for gamma in ("gamma1", "gamma2")}
        if level < len(depths) - 1:
            name = f"{stage}.{level}.downsample"
            convolution = family == "dinat"
            shapes[f"{name}.norm"] = (2 * wide if convolution else 4 * wide,)
            shapes[f"{name}.reduction"] = (2 * wide, wide, 3, 3) if convolution else (2 * wide, 4 * wide)
        if dense:
            shapes[f"norm{level}"] = (wide,)
    if dense:
        del shapes["norm"]
    else:
        shapes["head"] = (10, shapes["norm"][0])
    state = {}
    for name, shape in shapes.items():
        if name.endswith(("rpb", "gamma1", "gamma2")):
            state[name] = torch.randn(shape)
            continue
        state[f"{name}.weight"] = torch.randn(shape)
        if not name.endswith("reduction"):
            state[f"{name}.bias"] = torch.randn(shape[0])
    return state


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("layer_scale", [False, True])
def test_official_classifiers_load_whole(family, layer_scale):
    layout, sizes = LAYOUTS[family]
    network = layout(**sizes, layer_scale=0.5 * layer_scale)
    state = official_state(family, sizes["depths"], heads=sizes["heads"], layer_scale=layer_scale)
    classifier = Classifier(network, 10)
    report = load_official(classifier, state, KEYMAPS[family])
    assert report.fits
    loaded = classifier.state_dict()
    found = {official: loaded[ours] for ours, keys in report.renamed.items() for official in keys}
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_downsamplers_belong_to_the_level_they_make():
    names = {key: KEYMAPS["nat"].rename(key) for key in official_state("dinat", (2, 1, 2))}
    assert names["levels.0.downsample.reduction.weight"] == "backbone.stages.1.downsample.reduction.weight"
    assert names["levels.1.blocks.0.attn.rpb"] == "backbone.stages.1.blocks.0.attention.rpb"
    assert names["levels.0.blocks.1.attn.proj.bias"] == "backbone.stages.0.blocks.1.attention.out.bias"
    assert names["norm.weight"] == "head.norm.weight" and names["head.bias"] == "head.linear.bias"


def test_official_dense_weights_fill_output_norms():
    state = official_state("dinat", SMALL["depths"], dense=True)
    network = DiNAT(**SMALL, output_norms=True)
    wrapped = {f"backbone.{key}": value for key, value in state.items()}
    outcome = load_tensors(network, {**wrapped, "decode_head.conv_seg.weight": torch.zeros(3)}, "dinat")
    assert not outcome.left
    for level in range(3):
        assert torch.equal(network.output_norms[str(level)].weight, state[f"norm{level}.weight"])


def test_tables_of_another_kernel_are_interpolated():
    state = official_state("dinat", SMALL["depths"], kernel=7)
    smooth = torch.linspace(-1, 1, 13)[:, None] + torch.linspace(0, 1, 13)
    for key, value in state.items():
        if key.endswith("rpb"):
            value.copy_(smooth)
    network = DiNAT(**{**SMALL, "kernel_size": 11})
    outcome = load_tensors(network, state, "dinat")
    assert len(outcome.fitted) == sum(SMALL["depths"])
    for block in blocks(network):
        table = block.attention.rpb.detach()
        assert table.shape[1:] == (21, 21)
        expected = F.interpolate(smooth[None, None], size=(21, 21), mode="bicubic")[0, 0]
        torch.testing.assert_close(table, expected.expand_as(table))
        assert (table.diff(dim=1) > 0).all()


def test_tables_of_other_heads_are_refused():
    state = official_state("dinat", SMALL["depths"], heads=(2, 2, 4))
    with pytest.raises(WeightsError, match=r"attention.rpb is \[2, 5, 5\] there, \[1, 5, 5\] in the model"):
        load_tensors(DiNAT(**SMALL), state, "dinat")


def test_weights_are_the_same_for_every_list_of_dilations():
    with torch.device("meta"):
        networks = [create_backbone("dinat_mini", dilations=option) for option in ("auto", "published")]
    assert networks[0].state_dict().keys() == networks[1].state_dict().keys()


# -- graphs ------------------------------------------------------------------------------------------------------------


class Levels(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels):
        return tuple(self.backbone(pixels))


SIDES = {axis: torch.export.Dim(f"side{axis}", min=32, max=512) for axis in (2, 3)}


@pytest.mark.parametrize(
    ("family", "sides"),
    [
        ("dinat", {}),
        pytest.param("dinat", SIDES, marks=pytest.mark.slow),
        pytest.param("dinat_s", SIDES, marks=pytest.mark.slow),
    ],
    ids=["dinat", "dinat-any-size", "dinat_s-any-size"],
)
def test_exported_for_any_batch_and_size(family, sides):
    network = small(family, depths=(1, 1), heads=(1, 2), dilations=((2,), (3,))).eval()
    dims = {0: torch.export.Dim("batch"), **sides}
    program = torch.export.export(Levels(network), (images(dtype=torch.float32),), dynamic_shapes=(dims,))
    for batch, height, width in ((5, 33, 70), (1, 96, 64)) if sides else ((5, 70, 50), (1, 70, 50)):
        pixels = images(height, width, batch, torch.float32)
        with torch.no_grad():
            for ours, theirs in zip(program.module()(pixels), network(pixels), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_one_graph_when_compiled():
    network, pixels = small(depths=(1, 1), heads=(1, 2), dilations=((None,), (2,))).eval(), images(dtype=torch.float32)
    compiled = torch.compile(Levels(network), fullgraph=True, backend="eager")
    with torch.no_grad():
        for ours, theirs in zip(compiled(pixels), network(pixels), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
