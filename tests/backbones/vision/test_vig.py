"""ViG and ViG-H: the mixer written out, sizes of images and tables, initial weights, official names and arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones.attention import force
from backbones.timing import peak_memory
from backbones.vision.classifier import Classifier
from backbones.vision.measure import parameters
from backbones.vision.variants import VARIANTS
from backbones.vision.vig import ViG, ViGH
from backbones.vision.vig_blocks import GatedLinearMixer2d, hidden_width
from backbones.vision.weights import load_tensors
from checkpoints.keymap import compare
from checkpoints.official.vig import KEYMAPS
from graftwork.errors import ConfigError

PLAIN_CALL = {
    "img_size": 112,
    "patch_size": 16,
    "stride": 16,
    "depth": 2,
    "num_heads": 2,
    "embed_dim": 32,
    "num_classes": 10,
    "if_cls_token": False,
    "use_middle_cls_token": False,
    "classification_mode": "avgpool",
    "if_abs_pos_embed": True,
    "use_out_act": True,
    "use_out_gate": False,
    "use_swiglu": True,
    "use_act_in_conv": False,
    "rope_mode": "none",
    "drop_path_rate": 0.1,
    "expand_k": 0.25,
    "expand_v": 1.0,
    "patch_embed_version": "v2",
}
PYRAMID_CALL = {
    "dims": 16,
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 4],
    "use_act_in_conv": False,
    "use_out_act": False,
    "rope_mode": "none",
    "mlp_ratio": 4.0,
    "gmlp": True,
    "norm_layer": "ln2d",
    "downsample_version": "v3",
    "patchembed_version": "v2",
}


def plain(**options):
    torch.manual_seed(0)
    return ViG(**{"width": 16, "depth": 2, "heads": 2, "image_size": 64, "out_activation": True} | options)


def pyramid(**options):
    torch.manual_seed(0)
    return ViGH(**{"channels": (8, 16), "depths": (1, 2), "heads": (1, 2)} | options)


def shaken(module):
    """Weights that are nowhere zero or alike, so that every one of them matters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def images(height, width, batch=1, dtype=torch.float32):
    return torch.randn(batch, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


BOTH = pytest.mark.parametrize("build", [plain, pyramid], ids=["plain", "pyramid"])


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if "vig" in variant.family])
def test_published_variants_have_their_parameters(name):
    assert parameters(name) == VARIANTS[name].parameters > 0


# -- the mixer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", [(True, False), (False, True)])
def test_mixer_written_out(activations):
    torch.manual_seed(0)
    mixer = shaken(GatedLinearMixer2d(12, 3, conv_activation=activations[0], out_activation=activations[1]).double())
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    near = F.conv2d(x.permute(0, 3, 1, 2), mixer.local.weight, padding=1, groups=12)
    near = (F.silu(near) if activations[0] else near).permute(0, 2, 3, 1).reshape(2, 12, 12)
    q, k, v = mixer.qkv(near).split([6, 6, 12], dim=-1)
    decays = torch.sigmoid(mixer.gate(near)) ** (1 / 16)
    read = torch.zeros(2, 12, 3, 4, dtype=torch.float64)
    for sample in range(2):
        for head in range(3):
            key, value = slice(2 * head, 2 * head + 2), slice(4 * head, 4 * head + 4)
            for order, shift in ((range(12), 0), (reversed(range(12)), 6)):
                state = torch.zeros(2, 4, dtype=torch.float64)
                for t in order:
                    decay = decays[sample, t, key.start + shift : key.stop + shift]
                    state = decay[:, None] * state + torch.outer(k[sample, t, key], v[sample, t, value])
                    read[sample, t, head] += q[sample, t, key] @ state * 2**-0.5 / 2
    local = near.unflatten(-1, (3, 4))
    read, local = (
        part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        for part, norm in ((read, mixer.read_norm), (local, mixer.local_norm))
    )
    share = torch.sigmoid(mixer.blend(near)).unflatten(-1, (3, 4))
    mixed = (share * read + (1 - share) * local).flatten(-2)
    expected = mixer.out(F.silu(mixed) if activations[1] else mixed).reshape(2, 3, 4, 12)
    torch.testing.assert_close(mixer(x), expected)


def test_turned_maps_with_swapped_gates_are_turned():
    """Turning the map by 180 degrees reverses the order of the tokens."""
    torch.manual_seed(0)
    mixer = shaken(GatedLinearMixer2d(8, 2).double())
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    out = mixer(x)
    with torch.no_grad():
        mixer.local.weight.copy_(mixer.local.weight.flip(2, 3))
        for parameter in (mixer.gate[1].weight, mixer.gate[1].bias):
            parameter.copy_(torch.cat(list(reversed(parameter.chunk(2)))))
    torch.testing.assert_close(mixer(x.flip(1, 2)).flip(1, 2), out)


def test_fresh_gates_fade_by_half_in_sixteen_tokens():
    mixer = GatedLinearMixer2d(16, 2)
    mixer.reset()
    fading = mixer.log_gates(torch.zeros(1, 3, 16)).exp()
    torch.testing.assert_close(fading, torch.full_like(fading, 2 ** (-1 / 16)))


def test_gates_are_not_made_in_half_precision():
    mixer = GatedLinearMixer2d(16, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mixer.log_gates(torch.randn(1, 3, 16)).dtype == torch.float32


def test_heads_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="width=16 must be a multiple of heads=3"):
        GatedLinearMixer2d(16, 3)
    with pytest.raises(ConfigError, match="key channels=4 must be a multiple of heads=8"):
        GatedLinearMixer2d(16, 8, key_ratio=0.25)
    with pytest.raises(ConfigError, match=r"heads=\[1\] must have as many entries as channels=\[8, 16\]"):
        pyramid(heads=(1,))


def test_hidden_channels_are_two_thirds_rounded_up():
    assert [hidden_width(width, 256) for width in (192, 384, 768)] == [512, 1024, 2048]
    assert [hidden_width(width, 32) for width in (96, 192, 128)] == [256, 512, 352]


# -- whole models ----------------------------------------------------------------------------------------------------


@BOTH
def test_fast_and_literal_forms_agree_in_maps_and_gradients(build):
    backbone, given = shaken(build().double()), images(65, 47, 2, torch.float64).requires_grad_()
    results = []
    for form in ("auto", "math"):
        with force(form):
            maps = backbone(given)
            loss = sum((level * level.detach().cos()).sum() for level in maps)
            results.append([*maps, *torch.autograd.grad(loss, [given, *backbone.parameters()])])
    for fast, literal in zip(*results, strict=True):
        torch.testing.assert_close(fast, literal, rtol=1e-7, atol=1e-9)


@BOTH
def test_checkpointing_gives_the_same_gradients(build):
    results = []
    for checkpointing in (False, True):
        backbone = shaken(build(checkpointing=checkpointing))
        backbone(images(40, 64))[-1].square().sum().backward()
        results.append([parameter.grad for parameter in backbone.parameters() if parameter.grad is not None])
    for kept, again in zip(*results, strict=True):
        torch.testing.assert_close(kept, again)


@BOTH
def test_norms_on_outputs_do_not_change_what_flows_on(build):
    given, bare = images(64, 64), build().eval()
    normed = build(output_norms=True).eval()
    normed.load_state_dict(bare.state_dict(), strict=False)
    for with_norm, level, norm in zip(normed(given), bare(given), normed.output_norms.values(), strict=True):
        torch.testing.assert_close(with_norm, norm(level))
        assert norm.eps == 1e-5


def test_branches_are_dropped_in_training_only():
    backbone = pyramid(drop_path=0.2)
    rates = [block.drop_path.rate for stage in backbone.built_stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    given = images(64, 64, 8)
    assert not torch.equal(backbone(given)[-1], backbone(given)[-1])
    backbone.eval()
    assert torch.equal(backbone(given)[-1], backbone(given)[-1])


def test_memory_grows_linearly_with_the_pixels():
    backbone = pyramid()
    peaks = [peak_memory(lambda s=side: backbone(images(s, s))[-1].sum().backward()) for side in (64, 128)]
    assert 3 < peaks[1] / peaks[0] < 4.5


# -- sizes of images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (39, 64), (38, 71), (160, 65)])
def test_a_started_patch_counts(size):
    (level,) = plain()(images(*size))
    assert level.shape == (1, 16, -(-size[0] // 16), -(-size[1] // 16))


@pytest.mark.parametrize("size", [(64, 48), (39, 71), (47, 64)])
def test_sizes_of_the_official_model_are_computed_like_there(size):
    stem = plain().stem
    first, second, given = stem.first, stem.second, images(*size)
    x = F.conv2d(given, first.conv.weight, first.conv.bias, stride=8, padding=1).permute(0, 2, 3, 1)
    x = F.silu(F.layer_norm(x, (8,), first.norm.weight, first.norm.bias, 1e-5)).permute(0, 3, 1, 2)
    x = F.conv2d(x, second.conv.weight, second.conv.bias, stride=2, padding=1).permute(0, 2, 3, 1)
    x = F.layer_norm(x, (16,), second.norm.weight, second.norm.bias, 1e-5)
    torch.testing.assert_close(stem(given), x)


@pytest.mark.parametrize("rest", [1, 6])
def test_zeros_stand_for_pixels_that_a_started_patch_lacks(rest):
    stem, given = plain().stem, images(32 + rest, 48)
    torch.testing.assert_close(stem(given), stem(F.pad(given, (0, 0, 0, 7 - rest))))


def test_other_images_get_the_table_of_positions_interpolated():
    backbone = plain().eval()
    with torch.no_grad():
        backbone.pos_embed.copy_(torch.randn(16))  # the same at every position
        bare = plain(positions=False).eval()
        bare.load_state_dict({k: v for k, v in backbone.state_dict().items() if k != "pos_embed"})
        assert bare.pos_embed is None
        seen = []
        for model in (backbone, bare):
            hook = model.stages[0].blocks[0].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
            model(images(80, 48))
            hook.remove()
    torch.testing.assert_close(seen[0], seen[1] + backbone.pos_embed[0, 0])


def test_table_of_positions_is_not_decayed_and_fits_other_grids():
    backbone = plain(image_size=(96, 64))
    assert backbone.pos_embed.shape == (1, 6 * 4, 16) and backbone.pos_embed._no_weight_decay
    wanted, found = backbone.pos_embed, torch.randn(1, 9, 16)
    table = F.interpolate(found.reshape(1, 3, 3, 16).permute(0, 3, 1, 2), (6, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(backbone.fit_tensor("pos_embed", found, wanted), table.permute(0, 2, 3, 1).flatten(1, 2))
    assert backbone.fit_tensor("pos_embed", torch.randn(1, 8, 16), wanted) is None
    assert backbone.fit_tensor("pos_embed", torch.randn(1, 9, 8), wanted) is None
    assert backbone.fit_tensor("stages.0.blocks.0.mixer.qkv.weight", found, wanted) is None


# -- initial weights -------------------------------------------------------------------------------------------------


def limit(weight, fan_in, fan_out):
    """How far beyond the bound of small Xavier weights a tensor reaches; their largest is near it."""
    return float(weight.detach().abs().max()) / (2**-2.5 * (6 / (fan_in + fan_out)) ** 0.5)


def test_initial_weights_of_the_plain_model():
    block = plain(width=96, heads=3).stages[0].blocks[0]
    for linear in (block.mixer.qkv, block.mixer.gate[0], block.mixer.gate[1], block.mixer.blend, block.mixer.out):
        assert 0.95 < limit(linear.weight, linear.in_features, linear.out_features) <= 1
    assert 0.95 < limit(block.mixer.local.weight, 9, 9 * 96) <= 1
    assert block.mlp.expand.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not block.mixer.gate[1].bias.any() and not block.mixer.blend.bias.any()


def test_initial_weights_of_the_pyramid():
    block = pyramid(channels=(96,), depths=(1,), heads=(3,)).stages[0].blocks[0]
    for linear in (block.mixer.qkv, block.mixer.gate[1], block.mixer.out, block.mlp.expand, block.mlp.contract):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert 0.95 < limit(block.mixer.local.weight, 9, 9 * 96) <= 1
    assert not block.mixer.gate[1].bias.any() and not block.mixer.blend.bias.any()


# -- official names and arguments ------------------------------------------------------------------------------------

MIXER = {
    "in_proj.0.weight": "local.weight",
    "qkv_proj.weight": "qkv.weight",
    "gk_proj.0.weight": "gate.0.weight",
    "gk_proj.1.weight": "gate.1.weight",
    "gk_proj.1.bias": "gate.1.bias",
    "g_proj.weight": "blend.weight",
    "g_proj.bias": "blend.bias",
    "g_norm.weight": "read_norm.weight",
    "l_norm.weight": "local_norm.weight",
    "o_proj.weight": "out.weight",
}
LINEAR = ("weight", "bias")


def plain_names(depth):
    """Official key to ours."""
    names = {"pos_embed": "backbone.pos_embed", "norm.weight": "head.norm.weight"}
    parts = {"0": "first.conv", "1": "first.norm", "3": "second.conv", "4": "second.norm"}
    names |= {f"patch_embed.proj.{a}.{x}": f"backbone.stem.{b}.{x}" for a, b in parts.items() for x in LINEAR}
    names |= {f"head.{x}": f"head.linear.{x}" for x in LINEAR}
    for i in range(depth):
        ours, theirs = f"backbone.stages.0.blocks.{i}", f"blocks.{i}"
        names |= {f"{theirs}.attn.{a}": f"{ours}.mixer.{b}" for a, b in MIXER.items()}
        names |= {f"{theirs}.attn_norm.weight": f"{ours}.mixer_norm.weight"}
        names |= {f"{theirs}.mlp_norm.weight": f"{ours}.mlp_norm.weight"}
        names |= {f"{theirs}.mlp.gate_proj.weight": f"{ours}.mlp.expand.weight"}
        names |= {f"{theirs}.mlp.down_proj.weight": f"{ours}.mlp.contract.weight"}
    return names


def pyramid_names(depths):
    names = {f"classifier.norm.{x}": f"head.norm.{x}" for x in LINEAR}
    names |= {f"classifier.head.{x}": f"head.linear.{x}" for x in LINEAR}
    parts = {"0": "first.conv", "2": "first.norm", "5": "second.conv", "7": "second.norm"}
    names |= {f"patch_embed.{a}.{x}": f"backbone.stem.{b}.{x}" for a, b in parts.items() for x in LINEAR}
    for level, depth in enumerate(depths):
        names |= {f"outnorm{level}.{x}": f"backbone.output_norms.{level}.{x}" for x in LINEAR}
        for j in range(depth):
            ours, theirs = f"backbone.stages.{level}.blocks.{j}", f"layers.{level}.blocks.{j}"
            names |= {f"{theirs}.op.{a}": f"{ours}.mixer.{b}" for a, b in MIXER.items()}
            names |= {f"{theirs}.norm.{x}": f"{ours}.mixer_norm.{x}" for x in LINEAR}
            names |= {f"{theirs}.norm2.{x}": f"{ours}.mlp_norm.{x}" for x in LINEAR}
            names |= {f"{theirs}.mlp.fc1.weight": f"{ours}.mlp.expand.weight"}
            names |= {f"{theirs}.mlp.fc2.weight": f"{ours}.mlp.contract.weight"}
        if level + 1 < len(depths):
            for a, b in (("1", "conv"), ("3", "norm")):
                ours, theirs = f"backbone.stages.{level + 1}.downsample", f"layers.{level}.downsample"
                names |= {f"{theirs}.{a}.{x}": f"{ours}.{b}.{x}" for x in LINEAR}
    return names


@pytest.mark.parametrize("family", ["vig", "vig_h"])
def test_official_tensors_make_the_same_classifier(family):
    if family == "vig":
        build, names = (lambda: ViG.from_official(PLAIN_CALL)), plain_names(2)
    else:
        build, names = (lambda: ViGH.from_official(PYRAMID_CALL, output_norms=True)), pyramid_names([1, 1, 2])
    ours = shaken(Classifier(build(), 10)).eval()
    state = ours.state_dict()
    official = {theirs: state[name] for theirs, name in names.items()}
    assert compare(ours, KEYMAPS[family].translate(official)).fits
    twin = Classifier(build(), 10).eval()
    outcome = load_tensors(twin, official, family)
    assert len(outcome.loaded) == len(state) and not outcome.fitted
    assert torch.equal(twin(images(48, 64)), ours(images(48, 64)))


def test_official_tensors_of_another_image_size_are_fitted():
    small, large = (ViG.from_official({**PLAIN_CALL, "img_size": side}) for side in (64, 112))
    outcome = load_tensors(Classifier(large, 10), Classifier(small, 10).state_dict(), "vig")
    assert outcome.fitted == ["backbone.pos_embed"]


def test_official_arguments_are_read():
    backbone = ViG.from_official(PLAIN_CALL, out_indices=(0,))
    mixer = backbone.stages[0].blocks[1].mixer
    assert backbone.grid == (7, 7) and mixer.key_width == 8 and mixer.out_activation and not mixer.conv_activation
    assert backbone.stages[0].blocks[1].drop_path.rate == pytest.approx(0.1)
    assert ViG.from_official({"embed_dim": 16, "num_heads": 2, "depth": 1}).stages[0].blocks[0].mixer.conv_activation
    assert ViG.from_official({**PLAIN_CALL, "if_abs_pos_embed": False}).pos_embed is None
    assert ViGH.from_official(PYRAMID_CALL).channels == (16, 32, 64)
    assert ViGH.from_official({**PYRAMID_CALL, "mlp_ratio": 3.0}).stages[2].blocks[0].mlp.contract.in_features == 128


@pytest.mark.parametrize(
    ("build", "call", "message"),
    [
        (ViG, PLAIN_CALL | {"expand_v": 2.0}, r"expand_v=2.0: only expand_v=1.0 is in released models"),
        (
            ViG,
            PLAIN_CALL | {"if_cls_token": True, "rope_mode": "x"},
            r"if_cls_token=True: it is not in .*rope_mode='x'",
        ),
        (ViG, PLAIN_CALL | {"patch_embed_version": "v1"}, r"only patch_embed_version='v2'"),
        (ViG, PLAIN_CALL | {"classification_mode": "cls_token"}, r"only classification_mode='avgpool'"),
        (ViGH, PYRAMID_CALL | {"gmlp": False}, r"only gmlp=True"),
        (ViGH, PYRAMID_CALL | {"norm_layer": "bn"}, r"only norm_layer='ln2d'"),
        (ViGH, PYRAMID_CALL | {"downsample_version": "v1"}, r"only downsample_version='v3'"),
    ],
)
def test_official_arguments_of_no_released_model_are_refused(build, call, message):
    with pytest.raises(ConfigError, match=message):
        build.from_official(call)


def test_classifier_head_normalises_by_root_mean_square():
    head = Classifier(plain(), 5).head
    assert isinstance(head.norm, nn.RMSNorm) and head.norm.eps == 1e-6
    assert Classifier(pyramid(), 5).head.norm.eps == 1e-5
