"""Tiles cover everything once, equal one pass for models that see no further than the margin, and blend smoothly."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from apps.superres.tiles import restore_in_tiles, self_ensemble, spans
from graftwork.errors import ConfigError


class Local(nn.Module):
    """Sees three pixels to each side; scale 2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 12, 7, padding=3)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.shuffle(self.body(images))


@given(
    length=st.integers(1, 200),
    inner=st.integers(1, 40),
    margin=st.integers(0, 12),
    blend=st.integers(0, 12),
    align=st.integers(1, 9),
)
def test_tiles_cover_an_axis(length, inner, margin, blend, align):
    tile = 2 * margin + max(inner, 3 * blend) + align
    found = spans(length, tile, margin, blend, align)
    assert found[0].keep[0] == 0 and found[-1].keep[1] == length
    for span in found:
        assert 0 <= span.read[0] <= span.keep[0] < span.keep[1] <= span.read[1] <= length
        assert span.read[1] == min(span.read[0] + tile, length) and span.read[0] % align == 0
        assert span.keep[0] == 0 or span.keep[0] - span.read[0] >= margin
        assert span.keep[1] == length or span.read[1] - span.keep[1] >= margin
    for before, after in pairwise(found):
        assert before.keep[1] - after.keep[0] == blend


def test_one_tile_is_one_pass_and_an_axis_of_one_pixel_works():
    assert spans(10, 10, 2) == [((0, 10), (0, 10))]
    assert spans(1, 64, 8, 4) == [((0, 1), (0, 1))]


@pytest.mark.parametrize(("height", "width"), [(40, 57), (16, 16), (17, 90), (1, 33)])
@pytest.mark.parametrize("blend", [0, 3])
def test_tiles_equal_one_pass_within_the_margin(height, width, blend):
    model = Local().double()
    images = torch.rand(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        whole = model(images)
        tiled = restore_in_tiles(model, images, 2, tile=17, margin=3, blend=blend)
    torch.testing.assert_close(tiled, whole.float(), rtol=1e-6, atol=1e-6)


def test_a_margin_that_is_too_small_shows_at_the_seams_only():
    model, images = Local(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        difference = (restore_in_tiles(model, images, 2, tile=32, margin=0) - model(images)).abs().amax((0, 1))
    assert difference[58:70].max() > 1e-3  # the seam lies at output row 64
    assert difference[:58, :58].max() < 1e-5 and difference[70:, 70:].max() < 1e-5


@pytest.mark.parametrize("options", [{"tile": 8, "margin": 4}, {"tile": 20, "margin": 4, "blend": 5}])
def test_margins_that_leave_nothing_are_named(options):
    with pytest.raises(ConfigError, match=r"leaves too little .* Use a tile of at least"):
        restore_in_tiles(Local(), torch.rand(1, 3, 32, 32), 2, **options)
    assert spans(64, 9, 4) and spans(64, 23, 4, 5)


def test_the_ensemble_is_the_mean_over_the_eight_symmetries():
    model, images = Local(), torch.rand(1, 3, 9, 12)
    with torch.no_grad():
        mean = self_ensemble(model, images)
        for turn in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-2, -1)):
            torch.testing.assert_close(turn(self_ensemble(model, turn(images))), mean, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(mean, model(images), atol=1e-3)
        upscaled = self_ensemble(lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2), images)
    torch.testing.assert_close(upscaled, images.repeat_interleave(2, -1).repeat_interleave(2, -2))
