"""Early exits of Mask2Former's encoder: parent, derived targets, gate."""

from __future__ import annotations

import pytest
import torch

from apps.segmentation.models.early_exit import (
    ExitGate,
    ExitRecord,
    best_exits,
    draw_depth,
    exit_weight,
    fit_gate,
    rate_exits,
    utilities,
)
from apps.segmentation.models.mask2former_losses import PointLosses, Weights
from graftwork.errors import ConfigError, ShapeError
from tests.apps.segmentation.test_mask2former import SWIN, built, levels_of
from tests.apps.segmentation.test_mask2former_losses import scene

LAYERS = 3


def exiting(**options):
    return built(encoder_layers=LAYERS, **options)


def test_the_factor_grows_with_the_depth_up_to_one():
    factors = [exit_weight(depth, 6) for depth in range(1, 7)]
    assert factors == sorted(factors) and factors[-1] == 1 and factors[0] == pytest.approx(1 / 6)


def test_every_exit_is_drawn_alike():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_depth(4, generator) for _ in range(2000)]
    assert set(drawn) == {1, 2, 3, 4}
    assert all(abs(drawn.count(depth) - 500) < 80 for depth in range(1, 5))


def test_a_parent_trains_the_layers_before_the_drawn_exit():
    head = exiting(exits="sample").train()
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        head.zero_grad()
        output = head(levels_of(SWIN, (24, 20)), (24, 20))
        depth = round(float(output.weight) * LAYERS)
        seen.add(depth)
        _, targets = scene(classes=5)
        PointLosses(Weights(), points=16, stride=4)(output, targets)["loss"].backward()
        trained = [bool(layer.expand.weight.grad.abs().max() > 0) for layer in head.pixel_decoder.encoder.layers]
        assert trained == [number <= depth for number in range(1, LAYERS + 1)]
    assert seen == {1, 2, 3}
    whole = head.eval()(levels_of(SWIN), (45, 70))
    assert whole.weight is None
    torch.testing.assert_close(whole.masks, exiting().eval()(levels_of(SWIN), (45, 70)).masks)


def test_exits_of_images_are_those_of_all_at_once():
    head = exiting().eval()
    levels = levels_of(SWIN, batch=4)
    with torch.no_grad():
        by_depth = list(head.pixel_decoder.exits(levels))
        for depth in (1, 2, 3):
            torch.testing.assert_close(head.pixel_decoder(levels, depth), by_depth[depth - 1])
        mixed = head.pixel_decoder(levels, torch.tensor([2, 1, 3, 1]))
        for image, depth in enumerate((2, 1, 3, 1)):
            torch.testing.assert_close(mixed.mask_features[image], by_depth[depth - 1].mask_features[image])
    assert not torch.allclose(by_depth[0].mask_features, by_depth[2].mask_features)


def test_layers_after_an_exit_are_not_run():
    head = exiting(exits="gate").eval()
    calls = []
    for layer in head.pixel_decoder.encoder.layers:
        layer.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    levels = levels_of(SWIN, batch=3)
    head.gate.choose = lambda level: torch.tensor([1, 2, 1])
    head(levels, (45, 70))
    assert calls == [3, 1]


def test_an_untaught_gate_runs_all_layers_and_is_no_part_of_training():
    head = exiting(exits="gate")
    assert head.eval().depth(levels_of(SWIN)).shape == (2,)
    assert ExitGate(5, 4).choose(torch.randn(2, 5, 3, 3)).tolist() == [4, 4]
    assert not any(parameter.requires_grad for parameter in head.gate.parameters())


def test_a_forced_exit():
    levels = levels_of(SWIN)
    expected = exiting().eval()
    with torch.no_grad():
        found = exiting(exit_layer=2).eval()(levels, (45, 70))
        torch.testing.assert_close(found.masks, expected.decode(expected.pixel_decoder(levels, 2)).masks)
        trained = exiting(exit_layer=2).train()(levels, (45, 70))  # images leave outside of training alone
        torch.testing.assert_close(trained.masks, expected(levels, (45, 70)).masks)


def test_targets_follow_the_price():
    qualities = torch.tensor([[0.5, 0.6, 0.61], [0.3, 0.3, 0.3], [0.1, 0.2, 0.9]])
    torch.testing.assert_close(utilities(qualities, 0.05)[0], torch.tensor([0.45, 0.5, 0.46]))
    assert best_exits(qualities, 0.0).tolist() == [3, 1, 3]
    assert best_exits(qualities, 0.05).tolist() == [2, 1, 3]
    assert best_exits(qualities, 1.0).tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="price=-1"):
        best_exits(qualities, -1)


def test_rating_looks_through_every_exit_once():
    head = exiting().train()
    batches = [levels_of(SWIN, seed=seed) for seed in (0, 1)]
    seen = []

    def rate(output, number):
        assert output.auxiliary == () and not torch.is_grad_enabled()
        seen.append(number)
        return output.masks.mean((1, 2, 3)).sigmoid()

    record = rate_exits(head, batches, rate)
    assert seen == [0] * LAYERS + [1] * LAYERS and head.training
    assert record.features.shape == (4, 20) and record.qualities.shape == (4, LAYERS)
    head.eval()
    for number, levels in enumerate(batches):
        for depth in range(1, LAYERS + 1):
            with torch.no_grad():
                expected = head.decode(head.pixel_decoder(levels, depth)).masks.mean((1, 2, 3)).sigmoid()
            torch.testing.assert_close(record.qualities[2 * number : 2 * number + 2, depth - 1], expected)
    with pytest.raises(ConfigError, match="no images"):
        rate_exits(head, [], rate)
    with pytest.raises(ShapeError, match=r"expected \[2\] qualities"):
        rate_exits(head, batches, lambda output, number: torch.zeros(3))


def test_a_gate_learns_which_images_are_worth_it():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 6, generator=generator) * torch.tensor([1.0, 50, 0.01, 1, 1, 1]) + 3
    hard = features[:, 1] > 20
    qualities = torch.where(hard[:, None], torch.tensor([0.2, 0.4, 0.8]), torch.tensor([0.7, 0.71, 0.72]))
    gate = ExitGate(6, 3)
    before = torch.get_rng_state()
    report = fit_gate(gate, ExitRecord(features, qualities), 0.05)
    assert torch.equal(before, torch.get_rng_state())
    assert report.accuracy > 0.95 and report.depth < 2.2
    assert report.full_quality - report.quality < 0.03
    assert not gate.linear.weight.requires_grad
    chosen = gate(features).argmax(1) + 1
    assert float(((chosen == 3) == hard).float().mean()) > 0.95
    free = fit_gate(gate, ExitRecord(features, qualities), 0.0)
    assert free.depth == 3 and free.quality == pytest.approx(free.full_quality)
    with pytest.raises(ShapeError, match="expected 6 channels and 3 exits, got 6 and 2"):
        fit_gate(gate, ExitRecord(features, qualities[:, :2]), 0.0)
