"""What every restoration network takes and gives, and the frame that most of them share.

Shape legend of this folder: B batch, C channels of images, D features, H x W input, s scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apps.superres.models.normalise import ImageRange
from apps.superres.models.padding import pad_to_multiple
from apps.superres.models.upsample import ResidualReconstruction, begin_at_zero, reconstruction
from graftwork.errors import ShapeError

if TYPE_CHECKING:
    from apps.superres.models.info import ImageInfo


class RestorationNetwork(nn.Module):
    """Base of every network: images of any size in, images of ``scale`` times the sides out.

    Args:
        info: Scale and channels.
        receptive_radius: See below.
        tile_multiple: See below.

    Attributes:
        scale: Output pixels per input pixel and side.
        channels: Channels of input and output.
        receptive_radius: Input pixels to each side that an output pixel depends on; None for all of the image.
        tile_multiple: Sides of tiles should be multiples of it; other sizes are padded inside.
    """

    def __init__(self, info: ImageInfo, *, receptive_radius: int | None, tile_multiple: int = 1) -> None:
        super().__init__()
        self.scale = info.scale
        self.channels = info.channels
        self.receptive_radius = receptive_radius
        self.tile_multiple = tile_multiple

    def forward(self, images: Tensor) -> Tensor:
        """Restore images.

        Args:
            images: [B, C, H, W] in [0, 1]; any H and W from 1.

        Returns:
            [B, C, s * H, s * W], not clamped to [0, 1].

        Raises:
            ShapeError: Images of another rank or number of channels, or without pixels; the message names both.
        """
        raise NotImplementedError

    def check_images(self, images: Tensor) -> None:
        """Refuse what :meth:`forward` cannot take."""
        if images.dim() != 4 or images.shape[1] != self.channels or 0 in images.shape[2:]:
            raise ShapeError(
                f"images of {type(self).__name__}: expected [batch, {self.channels}, height, width] with sides of at "
                f"least 1 pixel, got {list(images.shape)}",
                mend="Build the model for the channels of your images: ImageInfo(scale=..., channels=...)",
            )


class ResidualTrunk(RestorationNetwork):
    """Shallow convolution, deep features added to its result, and a reconstruction: the frame from SwinIR on.

    A subclass builds its layers and gives :meth:`deep`. Images are padded to multiples of ``tile_multiple`` before and
    the result is cropped.

    Args:
        info: Scale and channels.
        width: D, features.
        upsampler: Kind of the last layers, see :func:`apps.superres.models.upsample.reconstruction`.
        image_range: Length of the range that images are brought to.
        shallow_bias: The first convolution has a bias.
        receptive_radius: See :class:`RestorationNetwork`.
        tile_multiple: See :class:`RestorationNetwork`.
        image_skip: Add the image, enlarged by cubic interpolation, to the result; the last convolution then begins at
            zero, so that training starts from the interpolated image.

    Raises:
        ConfigError: The upsampler cannot give the scale.

    Source: Liang et al. 2021 (SwinIR), section 3; the skip is that of Kim et al. 2016 (VDSR).
    """

    def __init__(
        self,
        info: ImageInfo,
        *,
        width: int,
        upsampler: str,
        image_range: float = 1.0,
        shallow_bias: bool = True,
        receptive_radius: int | None = None,
        tile_multiple: int = 1,
        image_skip: bool = False,
    ) -> None:
        super().__init__(info, receptive_radius=receptive_radius, tile_multiple=tile_multiple)
        self.range = ImageRange(info.channels, image_range)
        self.shallow = nn.Conv2d(info.channels, width, 3, padding=1, bias=shallow_bias)
        self.reconstruction = reconstruction(upsampler, width, info)
        self.image_skip = image_skip and info.scale > 1
        if self.image_skip:
            begin_at_zero(self.reconstruction)

    def forward(self, images: Tensor) -> Tensor:
        """Restore images, see :meth:`RestorationNetwork.forward`."""
        self.check_images(images)
        height, width = images.shape[-2:]
        x = self.range.centre(self.padded(images))
        x = x.contiguous(memory_format=torch.channels_last)
        restored = self.reconstruction(self.features(x))
        if isinstance(self.reconstruction, ResidualReconstruction):
            restored = restored + x
        if self.image_skip:
            restored = restored + F.interpolate(x, scale_factor=self.scale, mode="bicubic")
        return self.range.restore(restored)[..., : height * self.scale, : width * self.scale]

    def padded(self, images: Tensor) -> Tensor:
        """Images continued to the right and to the bottom to a size that the layers take."""
        return pad_to_multiple(images, self.tile_multiple)

    def features(self, x: Tensor) -> Tensor:
        """Shallow and deep features together, of centred images [B, C, H, W], [B, D, H, W]."""
        shallow: Tensor = self.shallow(x)
        return shallow + self.deep(shallow)

    def deep(self, shallow: Tensor) -> Tensor:
        """Deep features, the last convolution included, [B, D, H, W] to the same; both sides fit ``tile_multiple``."""
        raise NotImplementedError


def inference_form(model: nn.Module) -> nn.Module:
    """A network in its fastest form of the same function, in evaluation mode; a copy where it has such a form."""
    model.eval()
    merge: Callable[[], nn.Module] | None = getattr(model, "merge", None)
    return model if merge is None else merge()


def run_block(block: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    """One block; with ``checkpointing`` it is computed again in the backward pass, and its activations not kept."""
    if checkpointing and torch.is_grad_enabled():
        result: Tensor = checkpoint(block, x, use_reentrant=False)
    else:
        result = block(x)
    return result
