"""A teacher over the augmented training images of a student's run, its outputs stored for every epoch."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apps.classification.config import ClassificationConfig
from apps.classification.models.config import ClassifierConfig
from apps.classification.module import ClassificationModule
from apps.classification.teacher_store import TeacherStore, describe
from apps.core.inference.load import choose_device, load
from apps.core.report.numbers import duration
from datamodules.classification.datamodule import ClassificationData
from datamodules.classification.info import ClassificationInfo
from datamodules.guard import GuardedLoader
from graftwork.errors import ConfigError, UserError

log = logging.getLogger(__name__)

COMMIT_S = 20.0
"""Seconds between two places that a killed command goes on from."""


def teach(config: ClassificationConfig, weights: str, folder: Path, epochs: int, top: int) -> Iterator[str]:
    """Store a teacher's outputs, epoch by epoch.

    Args:
        config: Configuration of the student's run; ``data`` and ``seed`` decide the images.
        weights: The teacher, a checkpoint or a run folder; empty for the configured model.
        folder: Folder of the store; what it holds already of the same teacher and images is not made again.
        epochs: Epochs to store.
        top: Classes to keep of each output.

    Yields:
        A line about each epoch, and one about the store.

    Raises:
        UserError: The data, the teacher or the store cannot be used; the message says why.
    """
    data: ClassificationData = config.data.build(seed=config.seed)
    data.setup()
    info = data.info
    teacher = open_teacher(config, weights, info)
    teacher.to(choose_device(config.trainer.accelerator))
    facts = {"weights": weights or str(config.model.backbone.weights), "digest": weights_digest(teacher)}
    kept = min(top, len(info.classes))
    header = describe(config.data, info, config.seed, data.layout.splits["train"], facts, kept=kept, epochs=epochs)
    store = TeacherStore.create(folder, header)
    for epoch in range(epochs):
        started = time.perf_counter()
        hits, images = store_epoch(store, teacher, data, epoch)
        accuracy = f"teacher's accuracy {100 * hits / images:.2f} %" if images else "stored before"
        yield f"epoch {epoch + 1}/{epochs}: {images:,} images, {accuracy}, {duration(time.perf_counter() - started)}"
    yield f"store: {folder}"


def open_teacher(config: ClassificationConfig, weights: str, info: ClassificationInfo) -> ClassificationModule:
    """The teacher of some weights, or the configured model, in evaluation mode.

    Raises:
        ConfigError: It knows other classes than the data, or has never learnt anything.
        WeightsError: The weights cannot be read.
    """
    if not weights:
        backbone = config.model.backbone if isinstance(config.model, ClassifierConfig) else None
        if not (getattr(backbone, "weights", "") or getattr(backbone, "pretrained", False)):
            mend = "Give a checkpoint, or set --model.backbone.weights or --model.backbone.pretrained true"
            raise ConfigError("the teacher has not learnt anything", "--weights", mend)
        return ClassificationModule(config, info).eval()
    module: ClassificationModule = load("classification", weights, device="cpu").module
    if module.info.classes != info.classes:
        text = f"the teacher knows {len(module.info.classes)} classes, the data has {len(info.classes)} or others"
        raise ConfigError(text, weights, "Choose a teacher that was trained on these classes, in this order")
    return module


def weights_digest(module: ClassificationModule) -> str:
    """Hash of a model's weights, so that one teacher never goes on with the store of another."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in module.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def store_epoch(
    store: TeacherStore, teacher: ClassificationModule, data: ClassificationData, epoch: int
) -> tuple[int, int]:
    """Store what is missing of an epoch.

    Returns:
        Images whose most probable class was right, and images.
    """
    done = store.progress().get(epoch, 0)
    hits = images = 0
    committed = time.monotonic()
    with torch.inference_mode():
        for count, batch in batches(data, epoch, done):
            pixels = rescaled(batch["image"], data.info, teacher.info)
            logits = teacher.predict_batch({"image": pixels.to(teacher.device)}).cpu()
            if not logits.isfinite().all():
                raise UserError(
                    "the teacher's output is not finite", mend="Check its weights: was its training stable?"
                )
            store.write(epoch, batch["index"], logits.log_softmax(1))
            hits += int((logits.argmax(1) == batch["label"]).sum())
            images, done = images + len(logits), done + count
            if time.monotonic() - committed >= COMMIT_S:
                store.commit(epoch, done)
                committed = time.monotonic()
    store.commit(epoch, done)
    return hits, images


def batches(data: ClassificationData, epoch: int, first: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Augmented training images of an epoch from number ``first`` on, in order of their number.

    Yields:
        How many numbers a batch stands for, and the batch; where corrupt files are skipped it holds others twice.
    """
    dataset, size = data.split("train"), data.eval_batch_size
    starts = range(first, len(dataset), size)
    keys = [[(epoch, index) for index in range(start, min(start + size, len(dataset)))] for start in starts]

    def skipped(file: str) -> None:
        log.warning("skipped %s", file)

    loader = GuardedLoader(dataset, keys, data.collate, num_workers=data.num_workers, seed=data.seed, on_skip=skipped)
    yield from zip(map(len, keys), loader, strict=True)


def rescaled(images: Tensor, ours: ClassificationInfo, theirs: ClassificationInfo) -> Tensor:
    """Standardised images brought from one scale of the channels to another, [B, C, H, W] to the same."""
    if (ours.mean, ours.std) == (theirs.mean, theirs.std):
        return images
    mean, std = (torch.tensor(values)[:, None, None] for values in (ours.mean, ours.std))
    their_mean, their_std = (torch.tensor(values)[:, None, None] for values in (theirs.mean, theirs.std))
    return (images * std + mean - their_mean) / their_std
