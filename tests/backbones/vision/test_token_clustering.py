"""Clusters of tokens: both forms, the paper's steps written out, what reconstruction promises, ViTs that use them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.vision.create import create_backbone, create_classifier
from backbones.vision.timm_clustering import Clustering
from backbones.vision.token_clustering import (
    cluster_tokens,
    home_cells,
    nearest_centres,
    reconstruct_tokens,
)
from graftwork.errors import ConfigError, ShapeError


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_token(x, grid, window, iterations, temperature):
    """One sample, [H, W, C]: the paper's steps for one token and one centre after the other."""
    height, width, _ = x.shape
    rows, columns = grid
    centres = F.adaptive_avg_pool2d(x.permute(2, 0, 1)[None], grid)[0].permute(1, 2, 0)
    for _ in range(iterations):
        sums, masses = torch.zeros_like(centres), torch.zeros(rows, columns, dtype=x.dtype)
        for i in range(height):
            for j in range(width):
                home = i * rows // height, j * columns // width
                near = [
                    (a, b)
                    for a in range(rows)
                    for b in range(columns)
                    if max(abs(a - home[0]), abs(b - home[1])) <= window // 2
                ]
                distances = torch.stack([(x[i, j] - centres[cell]).square().sum() for cell in near])
                for cell, share in zip(near, (-temperature * distances).softmax(0), strict=True):
                    sums[cell] += share * x[i, j]
                    masses[cell] += share
        centres = sums / masses[..., None]
    return centres.flatten(0, 1)


@pytest.mark.parametrize("backend", ["math", "auto"])
@pytest.mark.parametrize(("size", "grid", "window"), [((5, 7), (3, 4), 3), ((6, 4), (3, 2), 5), ((4, 4), (4, 4), 4)])
def test_clusters_are_those_of_the_paper(backend, size, grid, window):
    x = maps(2, *size, 3)
    found = cluster_tokens(x, grid, window=window, iterations=3, temperature=0.7, backend=backend)
    expected = torch.stack([by_token(sample, grid, window, 3, 0.7) for sample in x])
    torch.testing.assert_close(found, expected)


@settings(max_examples=25)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    window=st.integers(1, 6),
    iterations=st.integers(0, 3),
    channels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_both_forms_cluster_alike(size, shares, window, iterations, channels, seed):
    rows, columns = (1 + round(share * (side - 1)) for share, side in zip(shares, size, strict=True))
    found = []
    for backend in ("math", "auto"):
        x = maps(2, *size, channels, seed=seed).requires_grad_()
        out = cluster_tokens(x, (rows, columns), window=window, iterations=iterations, temperature=0.3, backend=backend)
        found.append((out, *torch.autograd.grad((out * maps(*out.shape, seed=1)).sum(), x)))
    for ours, literal in zip(*found, strict=True):
        torch.testing.assert_close(ours, literal)


@settings(max_examples=25)
@given(
    counts=st.tuples(st.integers(1, 12), st.integers(1, 9)),
    nearest=st.integers(1, 12),
    norm=st.sampled_from(["l2", "sum"]),
    seed=st.integers(0, 99),
)
def test_both_forms_reconstruct_alike(counts, nearest, norm, seed):
    found = []
    for backend in ("math", "auto"):
        tokens, centres = maps(2, counts[0], 3, seed=seed), maps(2, counts[1], 3, seed=seed + 1)
        leaves = [x.requires_grad_() for x in (tokens, centres, maps(2, counts[1], 4, seed=seed + 2))]
        out = reconstruct_tokens(*leaves, temperature=0.4, nearest=nearest, norm=norm, backend=backend)
        found.append((out, *torch.autograd.grad((out * maps(*out.shape, seed=1)).sum(), leaves)))
    for ours, literal in zip(*found, strict=True):
        torch.testing.assert_close(ours, literal)


def test_home_cells_are_those_of_nearest_neighbours():
    for size, grid in (((40, 40), (28, 28)), ((20, 17), (8, 5)), ((48, 9), (32, 9))):
        numbers = torch.arange(grid[0] * grid[1], dtype=torch.float64).reshape(1, 1, *grid)
        assert torch.equal(home_cells(size, grid), F.interpolate(numbers, size=size, mode="nearest")[0, 0].long())


def test_tokens_far_apart_are_their_own_centres_again():
    tokens = 100 * maps(1, 6, 6, 4)
    centres = cluster_tokens(tokens, (6, 6))
    torch.testing.assert_close(centres, tokens.flatten(1, 2))
    refined = maps(1, 36, 2, seed=5)
    torch.testing.assert_close(reconstruct_tokens(tokens.flatten(1, 2), centres, refined), refined)
    assert torch.equal(nearest_centres(tokens.flatten(1, 2), centres), torch.arange(36)[None])


def test_a_sum_of_one_keeps_constants_and_a_length_of_one_does_not():
    tokens, centres = maps(1, 10, 3), maps(1, 4, 3, seed=1)
    constant = torch.ones(1, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(
        reconstruct_tokens(tokens, centres, constant, norm="sum"), torch.ones(1, 10, 2, dtype=torch.float64)
    )
    # four almost equal weights of length one are a half each
    lifted = reconstruct_tokens(tokens, centres, constant, temperature=1e-9)
    torch.testing.assert_close(lifted, torch.full((1, 10, 2), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["math", "auto"])
@pytest.mark.parametrize("offset", [0.0, 20.0, 300.0])
def test_what_all_tokens_share_costs_no_digits(backend, offset):
    """Trained ViTs have channels that are large everywhere."""
    tokens = (5 * maps(2, 10, 9, 24) + offset).float()
    refined = maps(2, 16, 3, seed=1)
    expected = cluster_tokens(tokens.double(), (4, 4), backend="math")
    found = cluster_tokens(tokens, (4, 4), backend=backend)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-4)
    centres, flat = expected.float(), tokens.flatten(1, 2)
    expected = reconstruct_tokens(flat.double(), centres.double(), refined, nearest=16, backend="math")
    found = reconstruct_tokens(flat, centres, refined.float(), nearest=16, backend=backend)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_centres_without_tokens_are_the_same_in_both_forms():
    """A step of the cluster update in which hardly a token is left to a centre."""
    tokens = 40 * maps(1, 6, 6, 3) + 100
    literal, ours = (cluster_tokens(tokens, (3, 3), temperature=9.0, backend=form) for form in ("math", "auto"))
    torch.testing.assert_close(ours, literal)


@pytest.mark.parametrize("backend", ["math", "auto"])
def test_centres_as_near_as_the_last_kept_one_are_kept(backend):
    tokens = torch.zeros(1, 1, 2)
    centres = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [3.0, 0.0]]])
    refined = torch.eye(4)[None]
    found = reconstruct_tokens(tokens, centres, refined, nearest=1, norm="sum", backend=backend)
    torch.testing.assert_close(found, torch.tensor([[[1, 1, 1, 0]]]) / 3)


@pytest.mark.parametrize("backend", ["math", "auto"])
def test_tokens_far_from_all_centres_do_not_vanish(backend):
    tokens, centres = torch.full((1, 1, 1), 1000.0), torch.tensor([[[0.0], [1.0]]])
    found = reconstruct_tokens(tokens, centres, torch.tensor([[[3.0], [5.0]]]), backend=backend)
    torch.testing.assert_close(found, torch.tensor([[[5.0]]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_clustered_in_float32(dtype):
    half = maps(1, 8, 8, 4, dtype=torch.float32).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        centres = cluster_tokens(half, (4, 4))
        back = reconstruct_tokens(half.flatten(1, 2), centres, centres)
    assert centres.dtype == back.dtype == dtype
    torch.testing.assert_close(centres, cluster_tokens(half.float(), (4, 4)).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["math", "auto"])
def test_empty_batches_and_single_tokens(backend):
    assert cluster_tokens(torch.empty(0, 4, 4, 2), (2, 2), backend=backend).shape == (0, 4, 2)
    empty = reconstruct_tokens(*(torch.empty(0, n, 2) for n in (16, 4, 4)), backend=backend)
    assert empty.shape == (0, 16, 2)
    single = maps(3, 1, 1, 2)
    torch.testing.assert_close(cluster_tokens(single, (1, 1), backend=backend), single.flatten(1, 2))


def test_operators_are_exported():
    class Through(torch.nn.Module):
        def forward(self, x):
            centres = cluster_tokens(x, (3, 4))
            return reconstruct_tokens(x.flatten(1, 2), centres, centres)

    x = maps(1, 5, 6, 4, dtype=torch.float32)
    program = torch.export.export(Through(), (x,))
    torch.testing.assert_close(program.module()(x), Through()(x))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ShapeError, r"expected \[batch, height, width, channels\], got \[4, 4, 2\]", {"x": torch.ones(4, 4, 2)}),
        (ShapeError, "4 x 4 cannot be clustered to a finer grid of 5 x 2", {"grid": (5, 2)}),
        (ConfigError, r"grid=\(0, 2\) must have at least one row", {"grid": (0, 2)}),
        (ConfigError, "window=0 must be at least 1", {"window": 0}),
        (ConfigError, "iterations=-1 must be 0 or more", {"iterations": -1}),
        (ConfigError, "temperature=0 must be above 0", {"temperature": 0}),
    ],
)
def test_what_cannot_be_clustered_is_named(error, message, call):
    options = {"x": torch.ones(1, 4, 4, 2), "grid": (2, 2), **call}
    with pytest.raises(error, match=message):
        cluster_tokens(options.pop("x"), options.pop("grid"), **options)


@pytest.mark.parametrize(
    ("error", "message", "shapes", "options"),
    [
        (ShapeError, r"tokens: expected \[batch, tokens, channels\]", [(4, 2), (1, 3, 2), (1, 3, 2)], {}),
        (ShapeError, r"centres: expected \[1, centres, 2\]", [(1, 4, 2), (1, 3, 5), (1, 3, 2)], {}),
        (ShapeError, r"refined: expected \[1, 3, channels\]", [(1, 4, 2), (1, 3, 2), (1, 4, 2)], {}),
        (ConfigError, "nearest=0 must be at least 1", [(1, 4, 2), (1, 3, 2), (1, 3, 2)], {"nearest": 0}),
        (ConfigError, "norm=l1 must be l2 or sum", [(1, 4, 2), (1, 3, 2), (1, 3, 2)], {"norm": "l1"}),
    ],
)
def test_what_cannot_be_reconstructed_is_named(error, message, shapes, options):
    with pytest.raises(error, match=message):
        reconstruct_tokens(*(torch.ones(shape) for shape in shapes), **options)


VIT = "timm:vit_tiny_patch16_224"


def vit(name=VIT, **options):
    torch.manual_seed(0)
    return create_backbone(name, out_indices=(1, 3), **options).eval()


@torch.no_grad()
def test_a_vit_keeps_levels_before_the_clustering_and_shapes_after_it():
    images = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    plain, clustered = vit()(images), vit(cluster_after=2, cluster_grid=(3, 4))(images)
    torch.testing.assert_close(clustered[0], plain[0])
    assert clustered[1].shape == plain[1].shape
    assert not torch.allclose(clustered[1], plain[1], atol=1e-3)


@torch.no_grad()
def test_a_vit_follows_the_steps_of_the_paper():
    backbone = vit(cluster_after=2, cluster_grid=3)
    images = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    trunk = backbone.trunk
    x = trunk._pos_embed(trunk.patch_embed(images))
    for block in trunk.blocks[:2]:
        x = block(x)
    tokens = x[:, 1:]
    centres = cluster_tokens(tokens.unflatten(1, (4, 5)), (3, 3))
    x = torch.cat([x[:, :1], centres], 1)
    for block in trunk.blocks[2:4]:
        x = block(x)
    expected = reconstruct_tokens(tokens, centres, x[:, 1:]).mT.unflatten(2, (4, 5))
    torch.testing.assert_close(backbone(images)[1], expected)


@torch.no_grad()
@pytest.mark.parametrize("name", [VIT, "timm:vit_small_patch14_reg4_dinov2", "timm:deit_tiny_distilled_patch16_224"])
def test_as_many_clusters_as_tokens_change_nothing(name):
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for clustered, plain in zip(vit(name, cluster_after=1, cluster_grid=9)(images), vit(name)(images), strict=True):
        torch.testing.assert_close(clustered, plain)
    assert vit(name, cluster_after=1, cluster_grid=2)(images)[1].isfinite().all()


def test_training_sees_all_tokens():
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(vit(cluster_after=1, cluster_grid=2).train()(images), vit().train()(images))


def test_a_grid_that_is_not_given_has_two_thirds_of_the_rows():
    assert Clustering(after=10).grid_of(48, 40) == (32, 27)
    assert Clustering(after=10, grid=(28, 28)).grid_of(40, 20) == (28, 20)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("timm's swin_tiny.* is no plain ViT", lambda: create_backbone("swin_tiny", cluster_after=2)),
        ("cluster_after=4 must be from 1 to 3", lambda: vit(cluster_after=4)),
        ("is for maps and of no use to a classifier", lambda: create_classifier(VIT, classes=2, cluster_after=2)),
        ("cluster_after=-1 must be a number of blocks", lambda: vit(cluster_after=-1)),
        (r"cluster_grid=\(0, 3\) must be a side", lambda: vit(cluster_after=2, cluster_grid=(0, 3))),
        ("cluster_grid=3 is not used with cluster_after=0", lambda: vit(cluster_grid=3)),
    ],
)
def test_what_a_backbone_cannot_cluster_is_named(message, make):
    with pytest.raises(ConfigError, match=message):
        make()
