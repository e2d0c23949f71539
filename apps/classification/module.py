"""Training and evaluation of classifiers: steps, metrics, pictures; no maths."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.classification.config import ClassificationConfig
from apps.classification.losses import cross_entropy, distillation
from apps.classification.metrics import ClassificationMetrics
from apps.classification.mixing import mix
from apps.classification.models.config import PositionsConfig
from apps.classification.teacher_store import TeacherStore
from apps.classification.visualise import draw_activation, draw_confusion, draw_guesses
from apps.core.checkpoints.read import WeightsMeta
from apps.core.protocols import ExportSpec, Picture
from apps.core.run.module import GraftModule
from backbones.vision.base import VisionBackbone
from backbones.vision.classifier import Classifier
from backbones.vision.weights import load_tensors
from datamodules.classification.datamodule import ClassificationData
from datamodules.classification.info import ClassificationInfo
from datamodules.classification.transforms import restored
from graftwork.errors import WeightsError

log = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]

FINE_TUNE = "Fine-tune it first: fit --model.name classifier --model.backbone.weights RUN/checkpoints/best.ckpt"


class ImageModule(GraftModule):
    """What the tasks on images share: facts about the data, pictures of images, example batches.

    Args:
        config: The app's configuration.
        info: The datamodule's ``info``, or the plain dict a checkpoint keeps of it.
    """

    config: ClassificationConfig
    info: ClassificationInfo

    def __init__(self, config: ClassificationConfig, info: ClassificationInfo | Mapping[str, Any]) -> None:
        super().__init__(config, ClassificationInfo.from_plain(info) if isinstance(info, Mapping) else info)

    def build_model(self) -> nn.Module:
        """The configured model for the images and classes of these data."""
        model: nn.Module = self.config.model.build(self.info)
        return model

    def on_fit_start(self) -> None:
        """Say so where published weights expect another scale of the pixels."""
        options, info = getattr(self.config.model, "backbone", None), self.info
        begins = getattr(options, "pretrained", False) or getattr(options, "weights", "")
        backbone = getattr(self.model, "backbone", None)
        if not begins or not isinstance(backbone, VisionBackbone) or info.channels != len(backbone.mean):
            return
        wanted, found = (tuple(backbone.mean), tuple(backbone.std)), (info.mean, info.std)
        if wanted != found:
            mean, std = (",".join(f"{value:g}" for value in values) for values in wanted)
            log.warning(
                "published weights of this backbone expect --data.mean %s --data.std %s, not %s", mean, std, found
            )

    @property
    def epoch(self) -> int:
        """Epoch of the training; 0 outside of one."""
        return self.trainer.current_epoch if self._trainer is not None else 0

    def pixels(self, image: Tensor) -> Any:
        """A standardised image [C, H, W] as an array [H, W, C] from 0 to 1."""
        return restored(image.detach().cpu(), self.info).permute(1, 2, 0).numpy()

    def example_batch(self, batch_size: int) -> dict[str, Tensor]:
        """Random images of the configured size, for benchmarks and exports."""
        info, generator = self.info, torch.Generator().manual_seed(0)
        size = (batch_size, info.channels, info.image_size, info.image_size)
        return {
            "image": torch.randn(size, generator=generator),
            "label": torch.randint(len(info.classes), (batch_size,), generator=generator),
            "index": torch.arange(batch_size),
        }


class ClassificationModule(ImageModule):
    """A classifier in Lightning's loop; its predictions are logits, [B, classes] float32."""

    def __init__(self, config: ClassificationConfig, info: ClassificationInfo | Mapping[str, Any]) -> None:
        super().__init__(config, info)
        self._teacher: TeacherStore | None = None

    @property
    def teacher(self) -> TeacherStore | None:
        """The stored teacher, opened where it is first needed: only training needs it.

        Raises:
            DataError: There is none in the folder, or it was never finished.
            ConfigError: It saw other images.
        """
        if self._teacher is None and self.config.distill.store:
            self._teacher = TeacherStore.open(self.config.distill.store)
            self._teacher.refuse_other(self.config.data, self.info, self.config.seed)
        return self._teacher

    def on_fit_start(self) -> None:
        """Check that the teacher saw these very files, and let its stored epochs of images come again and again."""
        super().on_fit_start()
        if self.teacher is not None:
            data: ClassificationData = self.trainer.datamodule  # type: ignore[attr-defined]
            self.teacher.refuse_other_files(data.layout.splits["train"])
            data.repeat_epochs(self.teacher.epochs)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of one batch, and its parts."""
        images, targets, mixing = batch["image"], batch["label"], self.config.mix
        if mixing.active:
            # torch's generator is seeded from seed, epoch and batch right before the step
            random = np.random.default_rng(int(torch.randint(2**62, ())))
            images, targets = mix(images, targets, len(self.info.classes), mixing, random)
        logits = self.model(images)
        loss = cross_entropy(logits, targets, self.config.smoothing)
        return {"loss": loss} if self.teacher is None else self._distilled(self.teacher, logits, loss, batch)

    def _distilled(self, teacher: TeacherStore, logits: Tensor, labels_loss: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The loss beside a teacher, whose accuracy and agreement with the student on the batch are logged."""
        settings = self.config.distill
        targets = teacher.targets(self.epoch, batch["index"])
        teacher_loss = distillation(logits, targets, settings.temperature)
        guess = targets.indices[:, 0]
        return {
            "loss": settings.weight * teacher_loss + (1 - settings.weight) * labels_loss,
            "labels_loss": labels_loss,
            "teacher_loss": teacher_loss,
            "teacher_top1": 100 * (guess == batch["label"]).float().mean(),
            "agreement": 100 * (logits.argmax(1) == guess).float().mean(),
        }

    def predict_batch(self, batch: Batch) -> Tensor:
        """Logits that metrics and pictures read."""
        logits: Tensor = self.model(batch["image"])
        return logits.float()

    def metric_suite(self, split: str) -> ClassificationMetrics:
        """Streaming metrics of a split."""
        return ClassificationMetrics(self.info)

    def sample_scores(self, batch: Batch, prediction: Tensor) -> Tensor:
        """How improbable the right class was held, [B]: 0 is best, 1 is worst."""
        return 1 - prediction.softmax(1).gather(1, batch["label"][:, None])[:, 0]

    # -- pictures -------------------------------------------------------------------------------------------------

    def guesses(self, logits: Tensor) -> tuple[list[str], list[float]]:
        """The most probable classes of one image and their probabilities, from logits [classes]."""
        top = logits.float().softmax(0).topk(min(self.config.top, len(logits)))
        return [self.info.classes[i] for i in top.indices.tolist()], top.values.tolist()

    def render(self, sample: Batch, prediction: Tensor) -> list[Picture]:
        """One image with its most probable classes."""
        index, truth = int(sample["index"]), self.info.classes[int(sample["label"])]
        names, probabilities = self.guesses(prediction)
        figure = draw_guesses(self.pixels(sample["image"]), names, probabilities, truth)
        verdict = "right" if names[0] == truth else f"taken for {names[0]}"
        caption = f"Image {index} of the split, {truth}: {verdict} with {100 * probabilities[0]:.0f} %."
        return [Picture(f"image_{index}", caption, figure)]

    def summary_pictures(self) -> list[Picture]:
        """Which classes are taken for which."""
        suite = self.suites.get("test") or self.suites.get("val")
        matrix = suite.matrix() if isinstance(suite, ClassificationMetrics) and suite.count() else None
        if matrix is None:
            return []
        figure = draw_confusion(matrix.numpy(), self.info.classes)
        return [Picture("confusion", "Which classes (rows) are taken for which (columns).", figure)]

    def sample_pictures(self, sample: Batch) -> list[Picture]:
        """What speaks for the class of one image, where the last map has more than one position."""
        training = self.training  # a test that follows a fit ends in the mode of the fit
        activation = self.eval().activation(sample["image"])
        self.train(training)
        if activation is None:
            return []
        cells, name = activation
        figure = draw_activation(self.pixels(sample["image"]), cells.cpu().numpy(), name)
        caption = f"Where the best image speaks for {name}: activation of the last map, weighted by gradients."
        return [Picture("activation", caption, figure)]

    def activation(self, image: Tensor) -> tuple[Tensor, str] | None:
        """Class-activation map of the most probable class of an image.

        Args:
            image: Standardised, [C, H, W].

        Returns:
            [h, w] of the last map, 0 and above, and the name of the class; None where the model has no backbone, its
            head reads no map, or the map has one position.

        Source: Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2; with a mean over positions as the last step but
        one it is the class-activation map of Zhou et al. 2016.
        """
        model = self.model
        if not isinstance(model, Classifier):
            return None
        with torch.no_grad():
            features = model.backbone.features(image[None].to(self.device))
        if not isinstance(features, Tensor) or features.dim() != 4 or features.shape[2] * features.shape[3] == 1:
            return None
        with torch.enable_grad():
            features = features.detach().clone().requires_grad_()
            logits = model.head(features)[0]
            (gradient,) = torch.autograd.grad(logits.max(), features)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        return (weights * features).sum(1)[0].relu().detach(), self.info.classes[int(logits.argmax())]

    # -- weights and export ---------------------------------------------------------------------------------------

    def load_weights(self, state: Mapping[str, Tensor], meta: WeightsMeta) -> None:
        """Load tensors.

        Raises:
            WeightsError: They do not fit, or belong to a model of other classes, or of the same in another order.
        """
        trained = (meta.info or {}).get("classes")
        if trained is not None and list(trained) != list(self.info.classes):
            raise _other_classes(list(trained), list(self.info.classes), str(meta.path))
        super().load_weights(state, meta)

    def _load_official(self, state: Mapping[str, Tensor], meta: WeightsMeta) -> None:
        if not isinstance(self.model, Classifier):
            super()._load_official(state, meta)
            return
        family = getattr(getattr(self.config.model.backbone, "facts", None), "family", "")
        outcome = load_tensors(self.model, state, family, where=str(meta.path))
        if left := [name for name in outcome.left if name.startswith("head.")]:
            raise WeightsError(
                f"has no head for the {len(self.info.classes)} classes of these data ({left[0]} does not fit)",
                str(meta.path),
                f"To start from its backbone: fit --model.backbone.weights {meta.path}",
            )

    def export_spec(self) -> ExportSpec:
        """Any number of images in one call; their size is fixed."""
        info = self.info
        return ExportSpec(
            module=self.model,
            examples=[{"images": self.example_batch(size)["image"]} for size in (2, 1, 5)],
            dynamic={"images": {0: "batch"}},
            outputs=["logits"],
            notes={
                "classes": json.dumps(info.classes, ensure_ascii=False),
                "mean": json.dumps(info.mean),
                "std": json.dumps(info.std),
                "image_size": str(info.image_size),
                "values": "images from 0 to 1, less the mean, by the deviation of every channel",
            },
        )


def create_module(config: ClassificationConfig, info: ClassificationInfo | Mapping[str, Any]) -> ImageModule:
    """The module that trains the configured model."""
    if isinstance(config.model, PositionsConfig):
        from apps.classification.pretraining import PositionsModule

        return PositionsModule(config, info)
    return ClassificationModule(config, info)


def _other_classes(trained: list[str], wanted: list[str], where: str) -> WeightsError:
    mend = f"To start from its backbone: fit --model.backbone.weights {where}"
    if sorted(trained) == sorted(wanted):
        return WeightsError("was trained on the same classes in another order", where, "Order them by a classes.txt")
    missing = [name for name in trained if name not in wanted] or [name for name in wanted if name not in trained]
    text = f"was trained on {len(trained)} classes, these data have {len(wanted)}; '{missing[0]}' is in one list alone"
    return WeightsError(text, where, mend)
