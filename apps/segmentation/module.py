"""Training and evaluation of segmentation models: steps, metrics, pictures; no maths."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.core.checkpoints.read import WeightsMeta
from apps.core.protocols import ExportSpec, Picture
from apps.core.run.module import GraftModule
from apps.core.run.workload import to_device
from apps.segmentation.config import SegmentationConfig
from apps.segmentation.instances import detections
from apps.segmentation.metrics import SegmentationMetrics
from apps.segmentation.models.head import Panoptic, Size
from apps.segmentation.models.segmenter import ClassMap, Segmenter, continued, size_of
from apps.segmentation.prediction import Prediction, with_segments
from apps.segmentation.pyramid import PyramidReader
from apps.segmentation.robustness import draw_robustness, robustness
from apps.segmentation.targets import targets_of
from apps.segmentation.transkd import Distiller, Teacher, open_teacher
from apps.segmentation.visualise import Array, draw_confusion, draw_maps, draw_segmentation, outlined
from apps.segmentation.windows import Viewer, nearest, resized
from checkpoints.keymap import KeyMap
from checkpoints.official.segmentation import KEYMAPS
from datamodules.segmentation.info import IGNORED, SegmentationInfo
from datamodules.segmentation.transforms import restored
from graftwork.errors import WeightsError

log = logging.getLogger(__name__)

Batch = Mapping[str, Any]

SHOWN_QUERIES = 8
"""Masks drawn of one image."""


class SegmentationModule(GraftModule):
    """A segmentation model in Lightning's loop; its predictions are a :class:`Prediction` of whole images.

    Args:
        config: The app's configuration.
        info: The datamodule's ``info``, or the plain dict a checkpoint keeps of it.
    """

    config: SegmentationConfig
    info: SegmentationInfo
    model: Segmenter

    def __init__(self, config: SegmentationConfig, info: SegmentationInfo | Mapping[str, Any]) -> None:
        super().__init__(config, SegmentationInfo.from_plain(info) if isinstance(info, Mapping) else info)
        head = self.model.head
        self.distiller: Distiller | None = None
        self.teacher: Teacher | None = None
        self.reader: PyramidReader | None = None
        self.finds_instances = False
        self.viewer = Viewer(self.model.class_scores, head.probabilities, self.info, config.inference)

    def build_model(self) -> nn.Module:
        """The configured model for the images and classes of these data."""
        model: nn.Module = self.config.model.build(self.info)
        return model

    @property
    def tells_objects(self) -> bool:
        """Whether predictions have segments: the data tells objects apart, and the head can."""
        return self.info.panoptic and self.model.head.makes_segments

    def prepare_training(self) -> None:
        """Open the teacher of a training that has one."""
        if not self.config.distill.active or self.distiller is not None:
            return
        self.teacher = open_teacher(self.config.distill.teacher, self.info)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.distiller = self.config.distill.build(self.model.backbone, self.teacher)
        self.reader = PyramidReader(self.model.backbone)

    def trained_beside(self) -> nn.Module | None:
        """What stands between the student and its teacher."""
        return self.distiller

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of one batch of crops, and its parts."""
        images: Tensor = batch["image"]
        if self.distiller is None or self.teacher is None or self.reader is None:
            return self.model.head.loss(self.model(images), targets_of(batch))
        with self.reader.reading() as ours:
            output = self.model(images)
        theirs = self.teacher(images)
        found = self.model.head.loss(output, targets_of(batch))
        learnt = self.distiller(ours.levels, ours.embeddings, theirs.levels, theirs.embeddings, images)
        parts = {f"teacher_{name}": value for name, value in learnt.items() if name != "loss"}
        return {**found, **parts, "loss": found["loss"] + learnt["loss"]}

    def predict_batch(self, batch: Batch) -> Prediction:
        """Classes, and segments, of whole images."""
        if not self.tells_objects:
            return self.predict_classes(batch)
        images, viewer = batch["image"], self.viewer
        seen = resized(images, viewer.segment_size(size_of(images)))
        output = self.model(continued(seen))
        whole = viewer.one_view and self.config.inference.mode == "whole"
        if whole and size_of(seen) == viewer.brought_size(size_of(images)):  # the same output has the classes
            height, width = size_of(seen)
            scores = self.model.head.class_scores(output, size_of(continued(seen)))[..., :height, :width]
            found = self._classes(batch, self.model.head.probabilities(resized(scores, size_of(images))))
        else:
            found = self.predict_classes(batch)
        return self._objects(found, output, seen, batch)

    def predict_classes(self, batch: Batch) -> Prediction:
        """Classes of whole images alone."""
        return self._classes(batch, self.viewer.class_probabilities(batch["image"], batch.get("size")))

    def segments_of(self, output: Any, seen: Tensor, size: Size) -> list[Panoptic]:
        """Segments of images of ``size``, height and width; ``output`` is what the model gave for ``seen``."""
        height, width = size_of(seen)
        found = self.model.head.panoptic(output, size_of(continued(seen)), self.config.panoptic)
        return [image._replace(segments=nearest(image.segments[:height, :width], size)) for image in found]

    def _objects(self, prediction: Prediction, output: Any, seen: Tensor, batch: Batch) -> Prediction:
        """A prediction with segments and, in tests, instances; ``output`` is what the model gave for ``seen``."""
        size, own = size_of(seen), size_of(batch["image"])
        found = with_segments(prediction, self.segments_of(output, seen, own))
        if not self.finds_instances:
            return found
        objects = self.model.head.instances(output, size_of(continued(seen)))
        cut = [image._replace(masks=nearest(image.masks[:, : size[0], : size[1]], own)) for image in objects]
        return found._replace(detections=detections(cut, batch))

    def _classes(self, batch: Batch, probabilities: Tensor) -> Prediction:
        certainty, labels = probabilities.max(1)
        loss = probabilities.new_full((len(probabilities),), float("nan"), dtype=torch.float32)
        if "mask" in batch:
            loss = _surprise(probabilities.float(), batch["mask"])
        return Prediction(labels, certainty.float(), loss)

    def on_test_epoch_start(self) -> None:
        """Begin the test, with instances where they are scored."""
        super().on_test_epoch_start()
        self.finds_instances = self.tells_objects and bool(self.info.things)

    def on_test_epoch_end(self) -> None:
        """Log the test, and how it goes with corrupted images where that is asked for."""
        super().on_test_epoch_end()
        self.finds_instances = False
        wanted = self.config.corruptions
        if wanted.chosen:
            loader = self.trainer.datamodule.test_dataloader()  # type: ignore[attr-defined]
            batches = (to_device(batch, self.device) for batch in loader)
            rows = robustness(self, batches, wanted.chosen, wanted.images, self._classes_in_test)
            self.outcomes["test"].tables["mean IoU under corruptions"] = rows
            log.info("mean IoU under corruptions: %s", ", ".join(f"{r['corruption']} {r['mean']:.1f}" for r in rows))

    def _classes_in_test(self, batch: Batch) -> Prediction:
        """Classes of whole images in the precision that Lightning's test steps have."""
        precision = self.trainer.precision_plugin
        with precision.test_step_context():
            return self.predict_classes(precision.convert_input(batch))

    def validation_loss(self, batch: Batch, prediction: Prediction) -> Tensor:
        """Mean negative logarithm of the probability of the right class."""
        return prediction.loss.mean()

    def metric_suite(self, split: str) -> SegmentationMetrics:
        """Streaming metrics of a split."""
        return SegmentationMetrics(self.info, segments=self.tells_objects, thorough=split == "test")

    def unbatch(self, prediction: Prediction, index: int) -> Prediction:
        """What pictures need of one prediction, as copies on the CPU."""
        found: Prediction = super().unbatch(prediction._replace(detections=None), index)
        return found

    def sample_scores(self, batch: Batch, prediction: Prediction) -> Tensor:
        """Share of wrong pixels of each image, [B]."""
        counted = batch["mask"] != IGNORED
        wrong = (prediction.labels != batch["mask"]) & counted
        return wrong.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)

    # -- pictures -------------------------------------------------------------------------------------------------

    def pixels(self, image: Tensor) -> Array:
        """An image [C, H, W] as it was before it was standardised, [H, W, C] from 0 to 1."""
        found: Array = restored(image.detach().cpu(), self.info).permute(1, 2, 0).numpy()
        return found

    def render(self, sample: Batch, prediction: Prediction) -> list[Picture]:
        """Image, prediction, truth and what is wrong; the prediction over the image behind a slider."""
        info, name = self.info, str(sample.get("name", int(sample["index"])))
        pixels, found = self.pixels(sample["image"]), _numbers(prediction.labels)
        truth = _numbers(sample["mask"])
        shown = pixels
        if prediction.segments is not None:
            shown = outlined(pixels, _numbers(prediction.segments))
        figure = draw_segmentation(shown, found, truth, _array(prediction.certainty), info.classes, info.palette)
        share = float(self.sample_scores({"mask": sample["mask"][None]}, _batched(prediction))[0])
        return [Picture(f"segmentation_{name.replace('/', '_')}", f"{name}: {share:.1%} of the pixels wrong.", figure)]

    def summary_pictures(self) -> list[Picture]:
        """What is taken for what."""
        pictures = []
        rows = self.outcomes["test"].tables.get("mean IoU under corruptions") if "test" in self.outcomes else None
        if rows:
            caption = "Mean IoU over the severity of corruptions; 0 are images as they are."
            pictures.append(Picture("corruptions", caption, draw_robustness(rows)))
        suite = self.suites.get("test")
        matrix = suite.confusion() if isinstance(suite, SegmentationMetrics) else None
        if matrix is None or not matrix.sum():
            return pictures
        caption = "Share of the pixels of each class (rows) by the class they were given, in percent."
        return [Picture("confusion", caption, draw_confusion(matrix, self.info.classes)), *pictures]

    def sample_pictures(self, sample: Batch) -> list[Picture]:
        """Which parts of the best image the most certain queries take."""
        head = self.model.head
        if not head.makes_segments:
            return []
        image = continued(sample["image"][None].to(self.device))
        training = self.training
        with torch.no_grad():
            output = self.eval().model(image)
        self.train(training)
        certainty, classes = output.classes[0].softmax(-1)[:, :-1].max(-1)
        best = certainty.argsort(descending=True)[:SHOWN_QUERIES]
        height, width = size_of(sample["image"])
        masks = head.mask_probabilities(output, size_of(image))[0, best, :height, :width]  # type: ignore[operator]
        titles = [f"{self.info.classes[int(classes[query])]} {certainty[query]:.2f}" for query in best]
        figure = draw_maps(self.pixels(sample["image"]), _array(masks), titles)
        return [Picture("queries", "What the most certain queries take of one image, with their class.", figure)]

    # -- weights and export ---------------------------------------------------------------------------------------

    def official_keymap(self) -> KeyMap | None:
        """The key map of published weights of this head, where there is one."""
        from apps.segmentation.models.config import HEADS

        name, _, _ = HEADS.name_of(self.config.model.head).partition(":")  # mmseg:UPerHead
        return KEYMAPS.get(name)

    def load_weights(self, state: Mapping[str, Tensor], meta: WeightsMeta) -> None:
        """Load tensors.

        Raises:
            WeightsError: They do not fit, or belong to a model of other classes, or of the same in another order.
        """
        trained = (meta.info or {}).get("classes")
        if trained is not None and list(trained) != list(self.info.classes):
            raise WeightsError(
                f"was trained on {len(trained)} classes ({', '.join(trained[:3])}, ...), these data have "
                f"{len(self.info.classes)} ({', '.join(self.info.classes[:3])}, ...)",
                str(meta.path),
                f"To start from its backbone: fit --model.backbone.weights {meta.path}",
            )
        super().load_weights(state, meta)

    def example_batch(self, batch_size: int) -> dict[str, Tensor]:
        """Random crops of the configured size, for benchmarks and exports."""
        info, generator = self.info, torch.Generator().manual_seed(0)
        height, width = info.crop
        rows = torch.arange(height) * len(info.classes) // height  # every class is a band
        batch = {
            "image": torch.randn(batch_size, info.channels, height, width, generator=generator),
            "mask": rows[None, :, None].expand(batch_size, -1, width).contiguous(),
            "size": torch.tensor([[height, width]] * batch_size),
            "index": torch.arange(batch_size),
        }
        if info.panoptic:
            classes = torch.arange(len(info.classes)).expand(batch_size, -1).contiguous()
            batch |= {"segments": batch["mask"].int(), "segment_classes": classes}
            batch["segment_crowd"] = torch.zeros_like(classes, dtype=torch.bool)
        return batch

    def export_spec(self) -> ExportSpec:
        """Any number of images of the training crop's size in one call, to scores of classes."""
        info = self.info
        return ExportSpec(
            module=ClassMap(self.model),
            examples=[{"images": self.example_batch(size)["image"]} for size in (2, 1, 3)],
            dynamic={"images": {0: "batch"}},
            outputs=["scores"],
            notes={
                "classes": json.dumps(info.classes, ensure_ascii=False),
                "mean": json.dumps(info.mean),
                "std": json.dumps(info.std),
                "values": "images from 0 to 1, less the mean, by the deviation of every channel",
            },
        )


def _surprise(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean negative logarithm of the probability of the right class over the pixels that count, [B]."""
    counted = labels != IGNORED
    right = probabilities.gather(1, labels.where(counted, labels.new_zeros(()))[:, None])[:, 0]
    surprise = -right.clamp(min=1e-12).log() * counted
    return surprise.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


def _batched(prediction: Prediction) -> Prediction:
    return prediction._replace(labels=prediction.labels[None])


def _numbers(labels: Tensor) -> Array:
    return np.asarray(labels.detach().cpu())


def _array(values: Tensor) -> Array:
    found: Array = values.detach().float().cpu().numpy()
    return found
