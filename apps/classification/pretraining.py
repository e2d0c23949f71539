"""Pretraining of backbones on the positions of shuffled patches: steps, metrics, pictures; no maths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from apps.classification.losses import cross_entropy
from apps.classification.metrics import PositionMetrics
from apps.classification.models.positions import Positions, orders, shuffled
from apps.classification.module import FINE_TUNE, ImageModule
from apps.classification.visualise import draw_puzzle
from apps.core.protocols import ExportSpec, Picture
from graftwork.errors import ConfigError

Batch = Mapping[str, Tensor]


class Puzzle(NamedTuple):
    """A prediction of positions.

    Attributes:
        logits: [B, N, N]; for every place of the shuffled image the logits of where its patch was.
        order: Where it was, [B, N].
    """

    logits: Tensor
    order: Tensor


class PositionsModule(ImageModule):
    """A backbone that learns by telling where shuffled patches came from."""

    model: Positions

    def puzzle(self, batch: Batch, epoch: int) -> Puzzle:
        """Shuffle every image in its own way, and let the model tell how."""
        order = orders(batch["index"], self.model.patches, self.config.seed, epoch)
        return Puzzle(self.model(shuffled(batch["image"], order, self.model.patch)).float(), order)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross entropy over the patches of a batch, with a new order for every image in every epoch."""
        logits, order = self.puzzle(batch, self.epoch)
        return {"loss": cross_entropy(logits.flatten(0, 1), order.flatten(), self.config.smoothing)}

    def predict_batch(self, batch: Batch) -> Puzzle:
        """Predictions for the same orders at every evaluation."""
        return self.puzzle(batch, epoch=-1)

    def metric_suite(self, split: str) -> PositionMetrics:
        """Streaming metrics of a split."""
        return PositionMetrics(self.model.patches)

    def sample_scores(self, batch: Batch, prediction: Puzzle) -> Tensor:
        """Share of wrong patches of each image, [B]."""
        return (prediction.logits.argmax(2) != prediction.order).float().mean(1)

    def render(self, sample: Batch, prediction: Puzzle) -> list[Picture]:
        """One image, shuffled and put together again."""
        index, patch = int(sample["index"]), self.model.patch
        image, order = sample["image"][None].cpu(), prediction.order[None].cpu()
        guess = prediction.logits.argmax(1)[None].cpu()
        mixed = shuffled(image, order, patch)
        solved = _placed(mixed, guess, patch)
        accuracy = 100 * float((guess == order).float().mean())
        figure = draw_puzzle(self.pixels(mixed[0]), self.pixels(solved[0]), self.pixels(image[0]), accuracy)
        caption = f"Image {index} of the split: {accuracy:.0f} % of its patches right."
        return [Picture(f"image_{index}", caption, figure)]

    def export_spec(self) -> ExportSpec:
        """Nothing: positions are of no use outside of pretraining.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("model.name=positions predicts no classes", mend=FINE_TUNE)


def _placed(images: Tensor, guess: Tensor, patch: int) -> Tensor:
    """Patches where a model puts them; of several for one place the last is shown, a place without any stays dark.

    Args:
        images: Shuffled images, [B, C, H, W].
        guess: Position that each patch is put to, [B, N]; they need not be different.
        patch: Pixels per patch side.
    """
    patches = guess.shape[1]
    source = torch.full_like(guess, -1)
    for place in range(patches):
        source.scatter_(1, guess[:, place : place + 1], place)
    filled = shuffled(images, source.clamp(min=0), patch)
    cells = (source < 0).unflatten(1, (int(patches**0.5), -1))[:, None]
    empty = cells.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return filled.masked_fill(empty, -10.0)
