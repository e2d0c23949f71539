"""Early exits on real images: their qualities, and a model with a gate.

Shape legend: I images, K exits, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apps.core.checkpoints.read import stored_config, weights_path
from apps.core.cli.resolve import resolve
from apps.core.cli.schema import to_plain
from apps.core.inference.load import choose_device, load_module
from apps.core.run.atomic import check_place, replace_file
from apps.core.task import VerbOptions
from apps.segmentation.config import TASK, SegmentationConfig
from apps.segmentation.confusion import ConfusionCounts, class_areas, class_scores
from apps.segmentation.models.early_exit import ExitGate, ExitRecord, fit_gate, rate_exits
from apps.segmentation.models.head import MaskOutput, Panoptic
from apps.segmentation.models.mask2former import Mask2Former
from apps.segmentation.models.segmenter import continued, size_of
from apps.segmentation.module import SegmentationModule
from apps.segmentation.panoptic_quality import PanopticQuality, overlaps
from checkpoints.safe import read_safe, safe_bytes
from checkpoints.zoo import sha256
from datamodules.segmentation.dataset import EvaluationImages
from graftwork.errors import ConfigError, WeightsError

Sample = Mapping[str, Any]
TRAINING = ("batch_size", "eval_batch_size", "num_workers", "crop", "augment", "balance", "count")
"""Options of data that whole images do not depend on."""


def add_gate(
    weights: str, output: Path, records: Path, *, price: float, images: int, changes: Mapping[str, Any]
) -> Iterator[str]:
    """Write a parent with a gate that was taught for a price.

    Args:
        weights: The parent, a checkpoint or a run folder.
        output: File to write.
        records: File of qualities; read if it is there and of this parent, these data and as many images, else made.
        price: Quality that a layer must bring.
        images: Training images to look at; 0 for all.
        changes: Options that win over the parent's, for instance ``data.root``.

    Yields:
        A line about each step.

    Raises:
        UserError: The weights, the data or a file cannot be used; the message says why.
    """
    check_place(output, "--output")
    stored = stored_config(weights, TASK.name)
    if stored is None:
        raise WeightsError("does not hold the configuration of its model", weights, "Give a checkpoint of a run")
    config: SegmentationConfig = resolve(SegmentationConfig, [stored], changes)
    if getattr(config.model.head, "exits", "") != "sample":
        mend = "Train one first: fit --model.head mask2former --model.head.exits sample"
        raise ConfigError("the model is no parent with early exits", weights, mend)
    loaded = load_module(TASK, config, VerbOptions(weights=weights), need_weights=True)
    module: SegmentationModule = loaded.module.to(choose_device(config.trainer.accelerator))
    source = _source(weights, config, images)
    record, changed = _read(records, source) if records.is_file() else (None, [])
    if record is not None and not changed:
        yield f"qualities: {len(record.features)} images of {records}"
    else:
        if changed:
            yield f"qualities in {records} are not known to be of the same {' and '.join(changed)}: they are made anew"
        check_place(records, "--records")
        record = rate_images(module, training_images(config, images))
        tensors = {"features": record.features.contiguous(), "qualities": record.qualities.contiguous()}
        replace_file(records, safe_bytes(tensors, {"task": "exits of segmentation", "source": source}), "--records")
        yield f"qualities: {len(record.features)} training images, kept in {records}"
    means = ", ".join(f"{100 * value:.2f}" for value in record.qualities.mean(0).tolist())
    yield f"mean quality of each exit: {means} %"
    gate = ExitGate(record.features.shape[1], record.qualities.shape[1])
    report = fit_gate(gate, record, price)
    yield (
        f"gate: {report.depth:.2f} of {record.qualities.shape[1]} layers, quality {100 * report.quality:.2f} % "
        f"(all layers: {100 * report.full_quality:.2f} %), the best one for {100 * report.accuracy:.0f} % of images"
    )
    replace_file(output, safe_bytes(_with_gate(module, gate), _story(config, module)), "--output")
    yield f"written: {output}"


def training_images(config: SegmentationConfig, count: int) -> Iterator[Sample]:
    """Whole training images, evenly spread over the split.

    Args:
        config: Its ``data`` says which.
        count: How many; 0 for all.
    """
    data = config.data.build(seed=config.seed)
    data.setup()
    found = EvaluationImages(data.layout.splits["train"], data.info)
    total = len(found)
    count = min(count, total) or total
    return (found[number * total // count] for number in range(count))


def rate_images(module: SegmentationModule, samples: Iterator[Sample]) -> ExitRecord:
    """Qualities of all exits for images, one at a time: panoptic quality where there are segments, else mean IoU."""
    head, current = _head(module), list[Sample]()

    def levels() -> Iterator[Sequence[Tensor]]:
        for sample in samples:
            current[:] = [sample]
            yield module.model.backbone(continued(sample["image"][None].to(module.device)))

    def rate(output: MaskOutput, number: int) -> Tensor:
        return torch.tensor([image_quality(module, output, current[0])])

    return rate_exits(head, levels(), rate)


def image_quality(module: SegmentationModule, output: MaskOutput, sample: Sample) -> float:
    """Quality of one image, from 0 to 1; 0 where nothing is labelled and nothing was found."""
    head, size = _head(module), size_of(sample["image"])
    padded = size_of(continued(sample["image"][None]))
    if module.tells_objects:
        found = head.panoptic(output, padded, module.config.panoptic)[0]
        return _panoptic_quality(found, sample, size, len(module.info.classes))
    labels = head.class_scores(output, padded)[..., : size[0], : size[1]].argmax(1)
    counts = ConfusionCounts(len(module.info.classes)).to(labels.device)
    counts.update(labels, sample["mask"][None].to(labels.device))
    return _known(float(class_scores(class_areas(counts.compute())).iou.nanmean()))


def _panoptic_quality(found: Panoptic, sample: Sample, size: tuple[int, int], classes: int) -> float:
    segments, truth = found.segments[: size[0], : size[1]].cpu(), sample["segments"]
    quality = PanopticQuality(classes)
    overlap = overlaps(segments, truth, len(found.classes), len(sample["segment_classes"]))
    quality.update(overlap, found.classes.cpu(), sample["segment_classes"], sample["segment_crowd"])
    return _known(quality.compute().mean()[0])


def _known(value: float) -> float:
    return value if value == value else 0.0


def _head(module: SegmentationModule) -> Mask2Former:
    head = module.model.head
    if not isinstance(head, Mask2Former):
        raise ConfigError(f"{type(head).__name__} has no early exits", mend="Use --model.head mask2former")
    return head


def _read(records: Path, source: Mapping[str, Any]) -> tuple[ExitRecord, list[str]]:
    """Qualities of a file, and what of their source is another than ``source`` or not known."""
    tensors, story = read_safe(records)
    if set(tensors) != {"features", "qualities"}:
        raise WeightsError("holds no qualities of exits", str(records), "Give another file by --records")
    known = story.get("source", {})
    changed = [name for name, value in source.items() if known.get(name) != value]
    return ExitRecord(tensors["features"], tensors["qualities"]), changed


def _source(weights: str, config: SegmentationConfig, images: int) -> dict[str, Any]:
    """What qualities depend on, in plain values."""
    plain = to_plain(config)
    data = {name: value for name, value in plain["data"].items() if name not in TRAINING}
    if data.get("root"):
        data["root"] = str(Path(data["root"]).expanduser().resolve())
    return {
        "weights": sha256(weights_path(weights)),
        "data": data,
        "number of images": images,
        "rules of segments": plain["panoptic"],
    }


def _with_gate(module: SegmentationModule, gate: ExitGate) -> dict[str, Tensor]:
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    return state | {f"model.head.gate.{name}": value for name, value in gate.state_dict().items()}


def _story(config: SegmentationConfig, module: SegmentationModule) -> dict[str, Any]:
    plain = copy.deepcopy(to_plain(config))
    plain["model"]["head"]["exits"] = "gate"
    return {"task": TASK.name, "config": plain, "info": module.info.plain()}
