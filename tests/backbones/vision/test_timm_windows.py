"""Swin's windows on maps of any size, TinyViT's biases when weights change."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor

timm = pytest.importorskip("timm", reason="needs the extra 'vision'")

from timm.models import swin_transformer, swin_transformer_v2, tiny_vit  # noqa: E402

from backbones.lora import add_lora, merge_lora  # noqa: E402
from backbones.vision import create_backbone  # noqa: E402
from backbones.vision import timm_windows as windows  # noqa: E402


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def swin_block(shift: int, window: int = 3) -> torch.nn.Module:
    """A mended block of 8 channels, built for a map of one window, as a last stage is."""
    block = swin_transformer.SwinTransformerBlock(
        8, (window, window), num_heads=2, window_size=window, shift_size=shift, dynamic_mask=True
    )
    windows.mend_windows(holder := torch.nn.ModuleList([block]))
    return randomised(holder)[0].eval()


def attention_by_hand(block: torch.nn.Module, x: Tensor, shift: tuple[int, int]) -> Tensor:
    """Every token with those of its window on the shifted grid, none of them from across the border."""
    (_, height, width, _), window = x.shape, block.window_size
    padded = [-(-side // step) * step for side, step in zip((height, width), window, strict=True)]
    whole = x.new_zeros(1, *padded, x.shape[3])
    whole[:, :height, :width] = x
    attn = block.attn
    q, k, v = attn.qkv(whole).reshape(*padded, 3, attn.num_heads, -1).unbind(2)
    table = attn.relative_position_bias_table.view(2 * window[0] - 1, 2 * window[1] - 1, -1)
    places = list(itertools.product(range(padded[0]), range(padded[1])))

    def area(place: tuple[int, int]) -> tuple[int, ...]:
        # the window on a grid that begins shift positions in; what lies before it is a window of its own
        return tuple((p - s) // w for p, s, w in zip(place, shift, window, strict=True))

    out = torch.zeros(*padded, x.shape[3])
    for place in places:
        mates = [mate for mate in places if area(mate) == area(place)]
        scores = torch.stack(
            [
                (q[place] * attn.scale * k[mate]).sum(-1)
                + table[place[0] - mate[0] + window[0] - 1, place[1] - mate[1] + window[1] - 1]
                for mate in mates
            ]
        )
        values = torch.stack([v[mate] for mate in mates])  # mates, heads, channels
        out[place] = (scores.softmax(0)[..., None] * values).sum(0).flatten()
    return attn.proj(out)[None, :height, :width]


@pytest.mark.parametrize(
    ("height", "width", "shift"),
    [(6, 9, (1, 1)), (7, 5, (1, 1)), (3, 7, (0, 1)), (8, 2, (1, 0)), (3, 3, (0, 0)), (2, 3, (0, 0))],
)
def test_shifted_windows_never_join_opposite_borders(height, width, shift):
    block = swin_block(shift=1)
    x = torch.randn(1, height, width, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(block._attn(x), attention_by_hand(block, x, shift), rtol=1e-4, atol=1e-5)


def test_inference_by_the_fused_kernel_equals_the_explicit_form():
    block = swin_block(shift=1)
    x = torch.randn(3, 7, 5, 8, generator=torch.Generator().manual_seed(2))
    explicit = block._attn(x)
    assert not block.attn.fused_attn
    with torch.no_grad():
        assert block.attn.fused_attn
        torch.testing.assert_close(block._attn(x), explicit, rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            rough = block._attn(x)
    assert (rough.float() - explicit).norm() < 0.05 * explicit.norm()


def test_even_blocks_do_not_shift():
    block = swin_block(shift=0)
    x = torch.randn(1, 7, 8, 8)
    torch.testing.assert_close(block._attn(x), attention_by_hand(block, x, (0, 0)), rtol=1e-4, atol=1e-5)


def test_gradients_pass_padding_and_shift():
    block = swin_block(shift=1).double()
    x = torch.randn(1, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block._attn, (x,), atol=1e-4)


@pytest.mark.parametrize("kind", [swin_transformer.SwinTransformerBlock, swin_transformer_v2.SwinTransformerV2Block])
@pytest.mark.parametrize("size", [(12, 8), (8, 4), (16, 16)])
def test_masks_are_those_of_timm_where_it_needs_no_padding(kind, size):
    block = kind(8, size, num_heads=2, window_size=4, shift_size=2, always_partition=True)
    shift = tuple(2 if side > 4 else 0 for side in size)
    block.shift_size = shift
    ours = windows.shift_mask(torch.zeros(1), size, (4, 4), shift)
    assert torch.equal(ours, block.get_attn_mask(device=torch.device("cpu"), dtype=torch.float32))


def test_masks_are_made_once_per_size_and_serve_training_after_inference():
    block = swin_block(shift=1)
    windows._kept_mask.cache_clear()
    with torch.inference_mode():
        for height in (7, 10, 7, 10, 7):
            block._attn(torch.randn(1, height, 7, 8))
    assert windows._kept_mask.cache_info().misses == 2
    x = torch.randn(1, 7, 7, 8, requires_grad=True)
    block._attn(x).sum().backward()
    assert windows._kept_mask.cache_info().misses == 2 and x.grad is not None


def test_traces_leave_no_mask_behind():
    block = swin_block(shift=1)
    windows._kept_mask.cache_clear()

    class Attends(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return self.block._attn(x)

    x = torch.randn(2, 7, 5, 8)
    program = torch.export.export(Attends(), (x,))
    assert windows._kept_mask.cache_info().currsize == 0
    torch.testing.assert_close(program.module()(x), block._attn(x))


@pytest.mark.slow
def test_larger_maps_equal_timm_with_windows_everywhere():
    bare = timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, strict_img_size=False, always_partition=True
    ).eval()
    backbone = create_backbone("swin_tiny").eval()
    state = {key.replace("layers_", "layers."): value for key, value in bare.state_dict().items()}
    backbone.trunk.load_state_dict(state)
    images = torch.randn(1, 3, 448, 448)
    with torch.no_grad():
        for ours, theirs in zip(backbone(images), bare(images), strict=True):
            torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2))


def test_the_last_stage_mixes_windows_of_a_large_map():
    torch.manual_seed(0)
    blocks = create_backbone("swin_tiny", out_indices=(-1,)).eval().trunk.layers[3].blocks
    x = torch.randn(1, 14, 7, 768)
    changed = x.clone()
    changed[:, 6, 6] += 1.0  # in the first of two windows; the second sees it through the shift alone
    with torch.no_grad():
        difference = (blocks(changed) - blocks(x)).abs().amax(-1)[0]
    assert difference[7:10].min() > 0


def test_tiny_vit_reads_its_biases_anew():
    torch.manual_seed(0)
    backbone = create_backbone("tiny_vit_5m", out_indices=(-1,)).eval()
    images = torch.randn(1, 3, 64, 64)
    tables = [p for name, p in backbone.named_parameters() if name.endswith("attention_biases")]
    assert len(tables) == 10

    def check() -> Tensor:
        """The output is that of timm's own model with these weights."""
        fresh = timm.create_model("tiny_vit_5m_224", num_classes=0).eval()
        fresh.load_state_dict(backbone.trunk.state_dict(), strict=False)
        with torch.no_grad():
            found, expected = backbone(images)[0], fresh.forward_features(images)
        torch.testing.assert_close(found, expected)
        return found

    seen = [check()]
    for table in tables:
        table.data.copy_(torch.randn_like(table))  # as averages of weights are swapped in
    seen.append(check())
    with torch.no_grad():
        for table in tables:
            table.mul_(-1)
    seen.append(check())
    state = {
        name: torch.randn_like(p) if "attention_biases" in name else p for name, p in backbone.state_dict().items()
    }
    backbone.load_state_dict(state)
    seen.append(check())
    for one, other in itertools.pairwise(seen):
        assert (one - other).abs().max() > 1e-3
    twin = pickle.loads(pickle.dumps(copy.deepcopy(backbone)))
    for table in tables:
        table.data.zero_()
    with torch.no_grad():
        torch.testing.assert_close(twin(images)[0], seen[-1])
    check()


def test_tiny_vit_biases_get_gradients_in_evaluation_mode():
    attention = tiny_vit.Attention(8, 4, num_heads=2, attn_ratio=1, resolution=(3, 3))
    windows.mend_windows(torch.nn.ModuleList([attention]))
    attention.eval()
    for _ in range(2):
        attention.zero_grad()
        attention(torch.randn(2, 9, 8)).square().sum().backward()
        assert attention.attention_biases.grad.abs().min() > 0


def test_low_rank_adapters_reach_cosine_attention():
    attention = swin_transformer_v2.WindowAttention(8, (2, 2), num_heads=2)
    windows.mend_windows(model := torch.nn.ModuleList([attention]))
    x = torch.randn(3, 4, 8)
    before = attention(x)
    add_lora(model, rank=2)
    torch.testing.assert_close(attention(x), before)
    torch.nn.init.normal_(attention.qkv.lora_up)
    adapted = attention(x)
    assert (adapted - before).abs().max() > 1e-3
    adapted.sum().backward()
    assert attention.qkv.lora_up.grad.abs().max() > 0
    merge_lora(model)
    torch.testing.assert_close(attention(x), adapted)
