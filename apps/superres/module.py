"""Training and evaluation of restoration networks: steps, metrics, pictures; no maths."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.core.checkpoints.read import WeightsMeta
from apps.core.protocols import ExportSpec, Picture
from apps.core.run.module import GraftModule
from apps.superres.attribution import local_attribution
from apps.superres.config import SuperresConfig
from apps.superres.losses import restoration_loss, supervised_loss
from apps.superres.metrics import CEILING, RestorationMetrics, trivial
from apps.superres.models.config import MODELS
from apps.superres.models.info import ImageInfo
from apps.superres.models.network import inference_form
from apps.superres.models.upsample import channels_of, scale_of
from apps.superres.quality import psnr
from apps.superres.restore import Restorer
from apps.superres.visualise import Array, draw_attribution, draw_crops, extreme_crops, plain
from checkpoints.keymap import KeyMap
from checkpoints.official.superres import KEYMAPS
from datamodules.superres.info import RestorationInfo
from graftwork.errors import ConfigError, WeightsError

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
LAST = "reconstruction"
"""The layers of a network that depend on the scale."""

EXPLAINED = 96
"""Side of the part of an image that attribution looks at, in degraded pixels."""


class SuperresModule(GraftModule):
    """A restoration network in Lightning's loop; its predictions are images, [B, C, H, W] float32, not clamped.

    Args:
        config: The app's configuration.
        info: The datamodule's ``info``, or the plain dict a checkpoint keeps of it.
    """

    config: SuperresConfig

    def __init__(self, config: SuperresConfig, info: RestorationInfo | Mapping[str, Any]) -> None:
        self.images = RestorationInfo.from_plain(info) if isinstance(info, Mapping) else info
        super().__init__(config, self.images)
        self._restorer: Restorer | None = None

    def build_model(self) -> nn.Module:
        """The configured network for the scale and channels of these images.

        Raises:
            ConfigError: The degraded images have other channels than the originals, as those of a packed mosaic.
        """
        info = self.images
        if info.degraded_channels != info.channels:
            raise ConfigError(
                f"the degraded images have {info.degraded_channels} channels, the originals {info.channels}",
                where="data.degradation",
                mend="Use --data.degradation.form masked",
            )
        model: nn.Module = self.config.model.build(ImageInfo(scale=info.scale, channels=info.channels))
        return model

    @property
    def restorer(self) -> Restorer:
        """The network on images of any size, in tiles where memory would not do."""
        if self._restorer is None:
            self._restorer = Restorer(self.model, self.images.scale, self.config.tiles)
        return self._restorer

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of one batch of patches, and its parts; of all that a network wants supervised, where it says so."""
        settings, images, truth = self.config.loss, batch["lq"], batch["gt"]
        supervised = getattr(self.model, "supervised", None)
        return supervised_loss(
            supervised(images, truth) if supervised else [(self.model(images), truth)],
            settings.kind,
            frequency_weight=settings.frequency_weight,
            focus_gamma=settings.focus_gamma,
        )

    def predict_batch(self, batch: Batch) -> Tensor:
        """Restored images that metrics and pictures read."""
        return self.restorer(batch["lq"]).to(batch["lq"].device)

    def validation_loss(self, batch: Batch, prediction: Tensor) -> Tensor:
        """The training loss of the restored images, which are whole here; of all that a network gives, the last."""
        settings = self.config.loss
        return restoration_loss(
            prediction,
            batch["gt"],
            settings.kind,
            frequency_weight=settings.frequency_weight,
            focus_gamma=settings.focus_gamma,
        )["loss"]

    def metric_suite(self, split: str) -> RestorationMetrics:
        """Streaming metrics of a split."""
        return RestorationMetrics(self.images, thorough=split == "test")

    def sample_scores(self, batch: Batch, prediction: Tensor) -> Tensor:
        """Squared error against that of the trivial restoration, [B]: below 1 is a gain, 0 is best."""
        ours = (prediction - batch["gt"]).square().mean(dim=(1, 2, 3))
        other = (trivial(batch["lq"], self.images) - batch["gt"]).square().mean(dim=(1, 2, 3))
        return ours / other.clamp(min=1e-12)

    # -- pictures -------------------------------------------------------------------------------------------------

    def render(self, sample: Batch, prediction: Tensor) -> list[Picture]:
        """Crops of the largest gain and loss, the error, and the image before and after behind a slider."""
        info, name = self.images, str(sample.get("name", sample["index"]))
        baseline = trivial(sample["lq"][None].float(), info)[0]
        restored, before = (
            psnr(image[None], sample["gt"][None]).clamp(max=CEILING) for image in (prediction, baseline)
        )
        ours, other, truth = (_pixels(image) for image in (prediction, baseline, sample["gt"]))
        degraded = _enlarged(_pixels(sample["lq"]), info.scale)
        word = "bicubic" if info.scale > 1 else "bilinear" if info.pattern else "unrestored"
        rows = [
            (title, [crop.of(image) for image in (degraded, other, ours, truth)])
            for title, crop in zip(("largest gain", "largest loss"), extreme_crops(ours, other, truth), strict=True)
        ]
        error = np.abs(ours - truth).mean(-1)
        crops = draw_crops(rows, ("degraded", word, "ours", "original"), error)
        caption = f"{name}: {float(restored - before):+.2f} dB on all channels against {word}."
        slider = f"{name}: {word} on the left, ours on the right; move the bar."
        return [
            Picture(f"crops_{name}", caption, crops),
            Picture(f"image_{name}", slider, plain(ours), before=plain(other)),
        ]

    def sample_pictures(self, sample: Batch) -> list[Picture]:
        """Which input pixels the middle of the best image depends on."""
        image = _middle(sample["lq"], EXPLAINED).to(self.device)
        training = self.training
        found = local_attribution(self.eval().model, image, self.images.scale)
        self.train(training)
        figure = draw_attribution(_pixels(image), found.weights.numpy(), found.box, found.diffusion_index)
        caption = (
            "Local attribution: the input pixels that the marked part of the output depends on (Gu and Dong 2021)."
        )
        return [Picture("attribution", caption, figure)]

    # -- weights and export ---------------------------------------------------------------------------------------

    def official_keymap(self) -> KeyMap | None:
        """The key map of the paper's own weights, where there are any."""
        return KEYMAPS.get(MODELS.name_of(self.config.model))

    def load_weights(self, state: Mapping[str, Tensor], meta: WeightsMeta) -> None:
        """Load tensors.

        Raises:
            WeightsError: They do not fit, or are those of other channels or another scale; the message names both.
        """
        trained = self._scale_of(state, meta)
        if trained is not None and trained != self.images.scale:
            raise WeightsError(
                f"these are weights for scale {trained}, the model is built for scale {self.images.scale}",
                str(meta.path),
                f"Set --data.degradation.scale {trained}, or train from them: fit --weights {meta.path}",
            )
        super().load_weights(state, meta)

    def start_from(self, state: Mapping[str, Tensor], meta: WeightsMeta) -> None:
        """Begin with weights; of those for another scale all but the last layers, as papers train x4 from x2.

        Raises:
            WeightsError: They do not fit, or are those of other channels.
        """
        trained = self._scale_of(state, meta)
        if trained is None or trained == self.images.scale:
            self.load_weights(state, meta)
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            last = self.build_model().get_submodule(LAST)
        tensors = {name: value for name, value in self._named(state, meta).items() if not name.startswith(f"{LAST}.")}
        tensors |= {f"{LAST}.{name}": value for name, value in last.state_dict().items()}
        super().load_weights(tensors, replace(meta, official=False))
        logger.info("weights for scale %d: the last layers begin anew for scale %d", trained, self.images.scale)

    def _named(self, state: Mapping[str, Tensor], meta: WeightsMeta) -> dict[str, Tensor]:
        """Weights by our names."""
        keymap = self.official_keymap()
        if meta.official:
            return dict(keymap.translate(state).tensors) if keymap is not None else {}
        return {name.removeprefix("model."): value for name, value in state.items()}

    def _scale_of(self, state: Mapping[str, Tensor], meta: WeightsMeta) -> int | None:
        """The scale that weights were trained for; None where nothing tells.

        Raises:
            WeightsError: They were trained for images of other channels.
        """
        named, ours = self._named(state, meta), self.images.channels
        channels = channels_of(named)
        if channels not in (None, ours):
            raise WeightsError(
                f"these are weights for images of {channels} channels, the model is built for {ours}",
                str(meta.path),
                f"Set --data.channels {channels}" if channels in (1, 3) else "Take weights for images like these",
            )
        known = (meta.info or {}).get("scale")
        return int(known) if known is not None else scale_of(named)

    def example_batch(self, batch_size: int) -> dict[str, Tensor]:
        """Random patches of the configured size, for benchmarks and exports."""
        info, generator = self.images, torch.Generator().manual_seed(0)
        side = info.patch
        return {
            "lq": torch.rand(batch_size, info.channels, side, side, generator=generator),
            "gt": torch.rand(batch_size, info.channels, side * info.scale, side * info.scale, generator=generator),
            "index": torch.arange(batch_size),
        }

    def export_spec(self) -> ExportSpec:
        """Any number of images of the training patches' size in one call."""
        return ExportSpec(
            module=inference_form(self.model),
            examples=[{"images": self.example_batch(size)["lq"]} for size in (2, 1, 3)],
            dynamic={"images": {0: "batch"}},
            outputs=["restored"],
            notes={"scale": str(self.images.scale), "values": "images from 0 to 1, results not clamped"},
        )


def _pixels(image: Tensor) -> Array:
    """[C, H, W] to an array [H, W, C] from 0 to 1."""
    return image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()


def _enlarged(image: Array, scale: int) -> Array:
    """Every pixel as a square."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _middle(image: Tensor, side: int) -> Tensor:
    """The middle of an image [C, H, W], at most ``side`` pixels high and wide."""
    height, width = image.shape[1:]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return image[:, top : top + side, left : left + side]
