"""Depth and normals by clusters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from apps.segmentation.models import polymax
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.kmax_config import KMaXConfig
from apps.segmentation.models.polymax import ClusterHead, depth_loss, mix_clusters, normals_loss
from graftwork.errors import ConfigError, ShapeError
from tests.apps.segmentation.test_kmax import CHANNELS, SMALL, STRIDES, levels

INFO = HeadInfo(channels=CHANNELS, strides=STRIDES, classes=1)


def built(kind, **options):
    torch.manual_seed(0)
    return ClusterHead(INFO, kind, KMaXConfig(**{**SMALL, **options}))


def test_pixels_mix_values_by_their_shares():
    values, masks = torch.randn(2, 5, 3).double(), torch.randn(2, 5, 4, 6).double()
    shares = masks.exp() / masks.exp().sum(1, keepdim=True)
    torch.testing.assert_close(mix_clusters(values, masks), torch.einsum("bnv,bnhw->bvhw", values, shares))
    with pytest.raises(ShapeError, match=r"got \[2, 5, 3\] and \[2, 4, 4, 6\]"):
        mix_clusters(values, masks[:, :4])


@pytest.mark.parametrize(("kind", "width"), [("depth", 1), ("normals", 3)])
def test_heads_train_and_predict_at_any_size(kind, width):
    head = built(kind, queries=6).train()
    output = head(levels(45, 70))
    assert len(output.auxiliary) == 3 and output.values.shape == (2, 6, width)
    target = torch.rand(2, width, 45, 70) + 0.5
    target = F.normalize(target, dim=1) if kind == "normals" else target
    head.loss(output, target).backward()
    assert not [name for name, value in head.named_parameters() if value.grad is None]
    with torch.no_grad():
        found = head.eval().predict(head(levels(45, 70)), (45, 70))
    assert found.shape == (2, width, 45, 70)
    if kind == "normals":
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2, 45, 70))
    else:
        assert float(found.min()) > 0


def test_a_constant_on_all_masks_changes_nothing():
    """Pixels are shared out by a softmax over clusters, so clusters must not be chosen by the sign of their masks."""
    head = built("depth").double().eval()
    images = [level.double() for level in levels(64, 64)]
    with torch.no_grad():
        expected = head.predict(head(images), (64, 64))
        for predictor in (head.decoder.predictor, *(layer.predictor for layer in head.decoder.layers)):
            predictor.mask_norm.bias.sub_(7.0)
        torch.testing.assert_close(head.predict(head(images), (64, 64)), expected)


def test_masks_of_the_last_output_alone_are_enlarged(monkeypatch):
    head = built("depth").train()
    output, target, enlarged = head(levels(64, 96)), torch.rand(2, 1, 64, 96) + 0.5, []
    resize = polymax.resize_masks
    monkeypatch.setattr(polymax, "resize_masks", lambda *given: enlarged.append(given) or resize(*given))
    found = head.loss(output, target)
    assert len(enlarged) == 1
    layers = [depth_loss(mix_clusters(one.values, one.masks), target[..., ::4, ::4]) for one in output.auxiliary]
    expected = torch.stack([depth_loss(head.predict(output, (64, 96)), target), *layers]).mean()
    torch.testing.assert_close(found, expected)


def test_a_cluster_head_learns_two_planes():
    """Two depths in an image, told apart by the backbone's features."""
    head = built("depth", queries=4).train()
    target = torch.full((2, 1, 32, 32), 2.0)
    target[..., 16:] = 5.0
    images = [F.adaptive_avg_pool2d(target, level.shape[-2:]) - 3 + 0.1 * level for level in levels(32, 32)]
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        head.loss(head(images), target).backward()
        optimizer.step()
    with torch.no_grad():
        found = head.predict(head(images), (32, 32))  # 40 steps are few for running statistics of norms
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
        ClusterHead(INFO, "flow")
    with pytest.raises(ConfigError, match="heads=0"):
        built("depth", heads=0)


def test_other_levels_than_promised_are_refused():
    for wrong in (levels(64, 64)[1:], levels(64, 64)[::-1]):
        with pytest.raises(ShapeError, match=r"levels \[3, 2, 1, 0\]: expected channels \[12, 10, 8, 6\], got"):
            built("depth")(wrong)
