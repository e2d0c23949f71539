"""Whole images where memory does, tiles where it does not, and smaller ones after a failed allocation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apps.superres import restore
from apps.superres.config import TileConfig
from apps.superres.restore import Restorer
from graftwork.errors import UserError


class Net(nn.Module):
    """Sees two pixels to each side; scale 2; cannot take more than ``most`` pixels at once."""

    receptive_radius = 2
    tile_multiple = 4

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.most, self.seen = nn.Conv2d(3, 12, 5, padding=2), most, []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape[2:]))
        if images.shape[2] * images.shape[3] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return nn.functional.pixel_shuffle(self.conv(images), 2)


def whole(images: Tensor) -> Tensor:
    with torch.no_grad():
        return Net()(images)


@pytest.fixture
def photo() -> Tensor:
    return torch.rand(1, 3, 90, 70, generator=torch.Generator().manual_seed(1))


def test_small_images_are_one_pass(photo):
    net = Net()
    assert torch.equal(Restorer(net, 2)(photo), whole(photo))
    assert net.seen[-1] == (90, 70)


def test_tiles_of_a_given_size_give_the_same(photo):
    net = Net()
    restored = Restorer(net, 2, TileConfig(size=32))(photo)
    torch.testing.assert_close(restored, whole(photo), rtol=1e-5, atol=1e-6)
    assert max(net.seen) == (32, 32) and len(net.seen) > 6


def test_tiles_are_chosen_by_the_memory_of_a_pass(photo, monkeypatch):
    net = Net()
    restorer = Restorer(net, 2)
    monkeypatch.setattr(restore, "free_memory", lambda: 1_000_000)
    tile = restorer.tile_for(photo)
    assert 0 < tile < 90 and tile % 4 == 0
    assert restorer._cost(photo, torch.device("cpu")) * tile * tile <= 500_000
    torch.testing.assert_close(restorer(photo), whole(photo), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(restore, "free_memory", lambda: 10**9)
    assert restorer.tile_for(photo) == 0


class Keeping(Net):
    """Makes a table at its first call, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = None

    def forward(self, images: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.ones(10**6)
        return super().forward(images)


def test_the_cost_of_a_pixel_does_not_depend_on_what_was_called_before(photo):
    net = Keeping()
    fresh = Restorer(net, 2)._cost(photo, torch.device("cpu"))
    assert fresh == Restorer(net, 2)._cost(photo, torch.device("cpu")) < 10**6 / restore.PROBE**2


def test_networks_that_see_everything_say_that_tiles_differ(photo, caplog):
    net = Net()
    Restorer(net, 2, TileConfig(size=32))(photo)
    assert "differ" not in caplog.text
    net.receptive_radius = None
    restorer = Restorer(net, 2, TileConfig(size=80, margin=4))
    restorer(photo[..., :70, :])
    assert "differ" not in caplog.text  # in one piece
    for _ in range(2):
        restorer(photo)
    assert caplog.text.count("their scores, differ slightly from those of whole images (--tiles.size 90 takes") == 1


def test_smaller_tiles_after_memory_ran_out(photo, caplog):
    net = Net(most=64 * 64)
    restored = Restorer(net, 2)(photo)
    torch.testing.assert_close(restored, whole(photo), rtol=1e-5, atol=1e-6)
    assert "going on with tiles of" in caplog.text
    with pytest.raises(UserError, match="memory does not do even for tiles of"):
        Restorer(Net(most=100), 2, TileConfig(size=90))(photo)


def test_other_errors_are_not_hidden(photo):
    with pytest.raises(RuntimeError, match="expected input"):
        Restorer(Net(), 2)(photo[:, :2])


def test_an_ensemble_of_tiles(photo):
    from apps.superres.tiles import self_ensemble

    with torch.no_grad():
        expected = self_ensemble(Net(), photo)
    tiled = Restorer(Net(), 2, TileConfig(size=32, ensemble=True))(photo)
    torch.testing.assert_close(tiled, expected, rtol=1e-5, atol=1e-6)


def test_values_out_of_range_are_named():
    assert list(TileConfig(size=-1, margin=-2, blend=-1).problems()) == [
        "size=-1 must be 0 (automatic) or more",
        "margin=-2 must be -1 (automatic) or more",
        "blend=-1 must be 0 or more",
    ]
