"""Stops at the first loss that is not a number, and says which samples and inputs it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from graftwork.errors import UserError


class FiniteGuard(pl.Callback):
    """Stops before the backward pass of a loss that is NaN or infinite; no checkpoint of broken weights is written.

    Reading the loss waits for the device once per batch, which a progress bar does anyway.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._number = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch, for the message."""
        self._batch, self._number = batch, batch_idx

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let go of the batch."""
        self._batch = None

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Check the loss.

        Raises:
            UserError: It is not finite.
        """
        if bool(torch.isfinite(loss).all()):
            return
        epoch, batches = trainer.current_epoch, trainer.datamodule.train_batches()  # type: ignore[attr-defined]
        samples = batches.batch(epoch, self._number)
        inputs = list(non_finite_inputs(self._batch, samples))
        raise UserError(
            f"the training loss is {float(loss.detach().sum())} in epoch {epoch}, step {trainer.global_step} "
            f"(batch {self._number}, samples {_some(samples)})" + "".join(f"; {sentence}" for sentence in inputs),
            mend=_mend(pl_module, bool(inputs)),
        )


def _mend(module: Any, in_data: bool) -> str:
    kept = "The checkpoint of before is intact"
    if in_data:
        return f"{kept}; repair these samples or leave them out, doctor checks the whole dataset"
    config = module.config
    ideas = [f"a lower --optim.lr than {config.optim.lr:g}"]
    if not config.optim.clip_norm:
        ideas.append("--optim.clip_norm 1")
    if config.trainer.precision != "32-true":
        ideas.append("--trainer.precision 32-true")
    return f"{kept}; try {' or '.join(ideas)}, then --resume last"


def non_finite_inputs(batch: Any, samples: list[int]) -> Iterator[str]:
    """A phrase for each input of a batch that holds NaN or infinity, with the samples it does so in."""
    parts = batch.items() if isinstance(batch, Mapping) else ()
    for name, value in parts:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
            wrong = ~torch.isfinite(value).flatten(1).all(1) if value.ndim > 1 else ~torch.isfinite(value)
            places = wrong.nonzero().flatten().tolist()
            if places:
                named = _some([samples[place] for place in places if place < len(samples)])
                yield f"input '{name}' is not finite in samples {named}"


def first_broken_weight(module: nn.Module) -> str | None:
    """Name of a parameter that is not finite, or None; one wait for the device."""
    named = [(name, p.detach()) for name, p in module.named_parameters() if p.is_floating_point()]
    if not named:
        return None
    fine = torch.stack([torch.isfinite(value).all().to(named[0][1].device) for _, value in named]).tolist()
    return next((name for (name, _), finite in zip(named, fine, strict=True) if not finite), None)


def _some(samples: list[int], most: int = 16) -> str:
    rest = f", ... ({len(samples)} in all)" if len(samples) > most else ""
    return ", ".join(map(str, samples[:most])) + rest
