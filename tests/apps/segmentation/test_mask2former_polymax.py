"""Depth and normals by clusters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from apps.segmentation.models.polymax import ClusterHead, depth_loss, mix_clusters, normals_loss
from graftwork.errors import ConfigError, ShapeError
from tests.apps.segmentation.test_mask2former import SWIN, levels_of, small


def test_pixels_mix_values_by_their_shares():
    values, masks = torch.randn(2, 5, 3).double(), torch.randn(2, 5, 4, 6).double()
    shares = masks.exp() / masks.exp().sum(1, keepdim=True)
    torch.testing.assert_close(mix_clusters(values, masks), torch.einsum("bnv,bnhw->bvhw", values, shares))
    with pytest.raises(ShapeError, match=r"got \[2, 5, 3\] and \[2, 4, 4, 6\]"):
        mix_clusters(values, masks[:, :4])


@pytest.mark.parametrize(("kind", "width"), [("depth", 1), ("normals", 3)])
def test_heads_train_and_predict_at_any_size(kind, width):
    torch.manual_seed(0)
    head = ClusterHead(SWIN, kind, small(queries=6)).train()
    output = head(levels_of(SWIN, (45, 70)))
    assert len(output.auxiliary) == 4 and output.values.shape == (2, 6, width)
    target = torch.rand(2, width, 45, 70) + 0.5
    target = F.normalize(target, dim=1) if kind == "normals" else target
    head.loss(output, target).backward()
    assert head.decoder.mask_layers[0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        found = head.eval().predict(head(levels_of(SWIN, (45, 70))), (45, 70))
    assert found.shape == (2, width, 45, 70)
    if kind == "normals":
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2, 45, 70))
    else:
        assert float(found.min()) > 0


def test_a_cluster_head_learns_two_planes():
    """Two depths in an image, told apart by the backbone's features."""
    torch.manual_seed(0)
    config = small(queries=4, layers=2, encoder_layers=1, deep_supervision=True)
    head = ClusterHead(SWIN, "depth", config).train()
    target = torch.full((1, 1, 32, 32), 2.0)
    target[..., 16:] = 5.0
    levels = [
        F.adaptive_avg_pool2d(target, level.shape[-2:]) - 3 + 0.1 * level for level in levels_of(SWIN, (32, 32), 1)
    ]
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(head(levels), target).backward()
        optimizer.step()
    with torch.no_grad():
        found = head.eval().predict(head(levels), (32, 32))
    assert float((found - target).abs().mean()) < 0.6  # one plane for all would be off by 1.5


def test_depth_loss_by_the_formula():
    found, target = torch.rand(2, 1, 4, 5).double() + 0.5, torch.rand(2, 1, 4, 5).double() + 0.5
    target[0, 0, 0, :3] = torch.tensor([0.0, -1.0, torch.nan])
    known = target > 0
    error = found[known].log() - target[known].log()
    expected = (error.square().mean() - 0.85 * error.mean() ** 2).sqrt()
    torch.testing.assert_close(depth_loss(found, target), expected)
    torch.testing.assert_close(
        depth_loss(3 * target.nan_to_num(1).clamp(min=0.1), target, 1.0), torch.zeros(()).double(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("loss", [depth_loss, normals_loss])
def test_nothing_known_costs_nothing(loss):
    found = torch.rand(1, 3 if loss is normals_loss else 1, 4, 4, requires_grad=True)
    value = loss(found, torch.zeros_like(found))
    value.backward()
    assert float(value) == 0 and torch.isfinite(found.grad).all()
    with pytest.raises(ShapeError, match=r"expected the target's"):
        loss(found, torch.zeros(1, 2, 4, 4))


def test_normals_loss_by_the_formula():
    found, target = torch.randn(1, 3, 2, 2), F.normalize(torch.randn(1, 3, 2, 2), dim=1)
    target[..., 0, 0] = 0
    cosines = [
        torch.cosine_similarity(found[0, :, y, x], target[0, :, y, x], dim=0) for y, x in ((0, 1), (1, 0), (1, 1))
    ]
    torch.testing.assert_close(normals_loss(found, target), (1 - torch.stack(cosines)).mean())


def test_unknown_kind():
    with pytest.raises(ConfigError, match="kind='flow' is unknown"):
        ClusterHead(SWIN, "flow")
    with pytest.raises(ConfigError, match="heads=0"):
        ClusterHead(SWIN, "depth", small(heads=0))
