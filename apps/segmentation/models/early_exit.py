"""Early exits of Mask2Former's encoder: a gate says for each image how many of its layers are worth their time.

Source: Yao et al. 2024, "Efficient Transformer Encoders for Mask2Former-style models" (ECO-M2F), from the public text;
no code of it is known. Three steps:

A. A parent is trained (``exits="sample"``): every step draws the layer after which the encoder is left, and the loss
   counts by a factor that grows with the depth. One decoder serves all exits.
B. :func:`rate_exits` looks at training images through every exit of the parent and notes the quality of each.
C. :func:`fit_gate` teaches a gate the exit of the best utility, the quality less a price for each layer; the model
   stays as it is. Another price repeats this step alone.

Not stated there and chosen here: the factor k / K, a uniform draw, a gate of one linear layer on the pooled coarsest
map, Adam on features kept from step B.

Shape legend: B batch, I images, K layers of the encoder (exits), C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention.attend import without_autocast
from graftwork.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from apps.segmentation.models.head import MaskOutput
    from apps.segmentation.models.mask2former import Mask2Former

Rate = Callable[["MaskOutput", int], Tensor]
"""Quality of an output for each image of batch number ``int``, [B], from 0 to 1; higher is better."""


def exit_weight(depth: int, layers: int) -> float:
    """Factor of the loss at an exit: the share of the layers that were run, so that deep exits stay strong.

    Args:
        depth: k, from 1.
        layers: K.
    """
    return depth / layers


def draw_depth(layers: int, generator: torch.Generator | None = None) -> int:
    """A number from 1 to ``layers``, each as likely; from the CPU's generator, so that no device is waited for."""
    return int(torch.randint(1, layers + 1, (), generator=generator))


class ExitGate(nn.Module):
    """Chooses an exit from what the backbone gives, before the encoder runs.

    Its weights are no part of the model's own training: they carry no gradient outside of :func:`fit_gate`.

    Args:
        channels: Of the coarsest level.
        exits: K.
    """

    def __init__(self, channels: int, exits: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, exits)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.bias[-1] = 1.0  # until it is taught, all layers are run
        self.requires_grad_(False)

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features [B, C] to logits of exits, [B, K]."""
        return self.linear(pooled)

    def choose(self, level: Tensor) -> Tensor:
        """Layers to run for each image.

        Args:
            level: The coarsest level, [B, C, H, W].

        Returns:
            [B] int64, from 1 to K.
        """
        with torch.no_grad(), without_autocast(level):
            return self(pooled(level).to(self.linear.weight.dtype)).argmax(-1) + 1


def pooled(level: Tensor) -> Tensor:
    """Mean of a map over its positions, [B, C, H, W] to [B, C], at least float32."""
    return level.to(torch.promote_types(level.dtype, torch.float32)).mean((-2, -1))


class ExitRecord(NamedTuple):
    """What step B keeps of training images.

    Args:
        features: What the gate will see, [I, C].
        qualities: Of every exit, [I, K], from 0 to 1.
    """

    features: Tensor
    qualities: Tensor


def rate_exits(head: Mask2Former, batches: Iterable[Sequence[Tensor]], rate: Rate) -> ExitRecord:
    """Look at images through every exit (step B).

    The encoder runs once: after each layer the decoder reads what there is. Nothing takes gradients.

    Args:
        head: A parent; it is put into evaluation mode for the time.
        batches: Levels of the backbone, batch by batch.
        rate: Quality of an output for each image of a batch, given the batch's number.

    Returns:
        Features and qualities on the CPU.

    Raises:
        ConfigError: There are no batches.
        ShapeError: ``rate`` gives another number of qualities than there are images.
    """
    features: list[Tensor] = []
    qualities: list[Tensor] = []
    training = head.training
    head.eval()
    try:
        with torch.inference_mode():
            for number, levels in enumerate(batches):
                features.append(pooled(levels[head.coarsest]).cpu())
                found = [rate(head.decode(decoded), number) for decoded in head.pixel_decoder.exits(levels)]
                if any(quality.shape != (len(levels[0]),) for quality in found):
                    raise ShapeError(f"rate: expected [{len(levels[0])}] qualities, got {list(found[0].shape)}")
                qualities.append(torch.stack([quality.float().cpu() for quality in found], dim=1))
    finally:
        head.train(training)
    if not features:
        raise ConfigError("there are no images to rate exits by", mend="Give at least one batch of training images")
    return ExitRecord(torch.cat(features).clone(), torch.cat(qualities).clone())


def utilities(qualities: Tensor, price: float) -> Tensor:
    """Quality of each exit less ``price`` for each layer before it, [I, K] to the same."""
    layers = torch.arange(1, qualities.shape[1] + 1, dtype=qualities.dtype, device=qualities.device)
    return qualities - price * layers


def best_exits(qualities: Tensor, price: float) -> Tensor:
    """The exit of the highest utility, the first of equals.

    Args:
        qualities: [I, K], from 0 to 1.
        price: Quality that a layer must bring, at least 0.

    Returns:
        [I] int64, from 1 to K.

    Raises:
        ConfigError: The price is negative.
    """
    if price < 0:
        raise ConfigError(f"price={price:g} of a layer must be 0 or more")
    found = utilities(qualities, price)
    best = found == found.amax(1, keepdim=True)
    return (best.cumsum(1) == 0).sum(1) + 1  # argmax may give any of equals


class GateReport(NamedTuple):
    """How well a gate was taught.

    Args:
        loss: Cross-entropy over the images at the end.
        accuracy: Share of images for which it chooses the best exit.
        quality: Mean quality of the chosen exits.
        depth: Mean number of layers run.
        full_quality: Mean quality where all layers are run.
    """

    loss: float
    accuracy: float
    quality: float
    depth: float
    full_quality: float


def fit_gate(
    gate: ExitGate, record: ExitRecord, price: float, *, steps: int = 500, lr: float = 0.05, decay: float = 1e-3
) -> GateReport:
    """Teach a gate the best exits (step C), from nothing, by cross-entropy over all images at once.

    Args:
        gate: Changed in place.
        record: Of step B.
        price: Quality that a layer must bring; 0 asks for the best exit whatever it costs.
        steps: Of the optimiser.
        lr: Its learning rate, falling to 0 as half a cosine.
        decay: Its weight decay, on features of unit deviation.

    Returns:
        What the gate does on these images.

    Raises:
        ConfigError: The price is negative.
        ShapeError: The record is of another number of channels or exits.
    """
    layer = gate.linear
    sizes = (record.features.shape[1], record.qualities.shape[1])
    if sizes != (layer.in_features, layer.out_features):
        wanted = (layer.in_features, layer.out_features)
        raise ShapeError(f"record: expected {wanted[0]} channels and {wanted[1]} exits, got {sizes[0]} and {sizes[1]}")
    wanted_exits = best_exits(record.qualities, price) - 1
    features = record.features.double()
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    plain = (features - mean) / deviation
    weight = torch.zeros(layer.weight.shape, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(layer.bias.shape, dtype=torch.float64, requires_grad=True)
    groups: list[dict[str, Any]] = [{"params": [weight], "weight_decay": decay}, {"params": [bias]}]
    optimizer = torch.optim.AdamW(groups, lr, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(plain @ weight.T + bias, wanted_exits).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():  # a gate reads features as they are: their scale goes into its weights
        scaled = weight / deviation
        layer.weight.copy_(scaled)
        layer.bias.copy_(bias - scaled @ mean)
        return _report(plain @ weight.T + bias, record.qualities, wanted_exits)


def _report(logits: Tensor, qualities: Tensor, wanted: Tensor) -> GateReport:
    chosen = logits.argmax(1)
    return GateReport(
        loss=float(F.cross_entropy(logits, wanted)),
        accuracy=float((chosen == wanted).double().mean()),
        quality=float(qualities.gather(1, chosen[:, None]).double().mean()),
        depth=float((chosen + 1).double().mean()),
        full_quality=float(qualities[:, -1].double().mean()),
    )
