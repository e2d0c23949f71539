"""A trained model on images of any size: whole, or in tiles where memory would not do.

Shape legend: B batch, C channels, H height, W width of the input; s scale.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from apps.core.callbacks.memory import is_out_of_memory
from apps.core.run.machine import free_memory
from apps.superres.config import TileConfig
from apps.superres.tiles import restore_in_tiles, self_ensemble
from backbones.timing import peak_memory
from graftwork.errors import UserError

logger = logging.getLogger(__name__)

PROBE = 64
"""Side of the image that the cost of a pixel is measured on."""
MOST_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
"""Memory that one pass may take at most, whatever is free: larger tiles are not faster."""
DEFAULT_MARGIN = 32
"""Of models that see further than any margin, in input pixels."""
SMALLEST_TILE = 32


class Restorer:
    """Applies a model to images of any size.

    Args:
        model: From [B, C, h, w] to [B, C, s * h, s * w]; may tell ``receptive_radius`` (input pixels that an output
            pixel depends on, to each side; None for all) and ``tile_multiple`` (of its windows).
        scale: Output pixels per input pixel and side.
        config: How to cut.
    """

    def __init__(self, model: nn.Module, scale: int, config: TileConfig | None = None) -> None:
        self.model, self.scale, self.config = model, scale, config or TileConfig()
        self.align = int(getattr(model, "tile_multiple", 1))
        self._bytes_per_pixel = 0.0
        self._said: set[int] = set()

    @property
    def margin(self) -> int:
        """Pixels around each tile that are read for context only."""
        if self.config.margin >= 0:
            return self.config.margin
        radius = getattr(self.model, "receptive_radius", None)
        return DEFAULT_MARGIN if radius is None else int(radius)

    def __call__(self, images: Tensor) -> Tensor:
        """Restore images.

        Args:
            images: [B, C, H, W] in [0, 1], on any device; the model runs where its weights are.

        Returns:
            [B, C, s * H, s * W] in float32, not clamped; on the model's device, or on the CPU where tiles were used.

        Raises:
            UserError: Memory does not do even for the smallest tile.
        """
        height, width = images.shape[2:]
        tile = self.config.size or self.tile_for(images)
        if tile >= max(height, width):
            tile = 0
        while True:
            try:
                return self._once(images, tile)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                tile = self._smaller(tile or max(height, width), error)

    def _once(self, images: Tensor, tile: int) -> Tensor:
        device = next(self.model.parameters(), images).device
        run = (lambda part: self_ensemble(self.model, part)) if self.config.ensemble else self.model
        with torch.no_grad():
            if not tile:
                restored: Tensor = run(images.to(device)).float()
                return restored
            self._say(tile, images)
            options = {"tile": tile, "margin": self.margin, "blend": self.config.blend, "align": self.align}
            return restore_in_tiles(run, images, self.scale, device=device, **options)

    def tile_for(self, images: Tensor) -> int:
        """Side of the largest tiles that fit into memory; 0 where the whole image does."""
        batch, _, height, width = images.shape
        device = next(self.model.parameters(), images).device
        pixels = self._budget(device) / max(self._cost(images, device) * batch, 1e-9)
        if height * width <= pixels:
            return 0
        tile = max(int(pixels**0.5), self._least)
        return tile - tile % self.align

    @property
    def _least(self) -> int:
        """Side of the smallest tiles that are worth while: twice what their margins read."""
        least = max(SMALLEST_TILE, 4 * self.margin, 2 * self.margin + 3 * self.config.blend)
        return least + -least % self.align + self.align

    def _cost(self, images: Tensor, device: torch.device) -> float:
        """Bytes per input pixel and image in one pass, measured once on a small image."""
        if not self._bytes_per_pixel:
            probe = torch.zeros(1, images.shape[1], PROBE, PROBE, device=device)
            with torch.no_grad():
                self.model(probe)  # what it makes once and keeps is no cost of a pixel
                self._bytes_per_pixel = peak_memory(lambda: self.model(probe), device) / PROBE**2
        return self._bytes_per_pixel

    def _budget(self, device: torch.device) -> float:
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        else:
            free = free_memory() or MOST_BYTES["cpu"]
        return min(0.5 * free, MOST_BYTES.get(device.type, MOST_BYTES["cpu"]))

    def _smaller(self, tile: int, error: BaseException) -> int:
        """Half a tile, after memory ran out."""
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        half = tile // 2 - tile // 2 % self.align
        least = 2 * self.margin + max(self.align, 3 * self.config.blend)
        if half < max(least, SMALLEST_TILE):
            mend = "Close other programs, or use a smaller model"
            raise UserError(f"memory does not do even for tiles of {tile} pixels", mend=mend) from error
        logger.warning("out of memory: going on with tiles of %d pixels", half)
        return half

    def _say(self, tile: int, images: Tensor) -> None:
        height, width = images.shape[2:]
        if not self._said and getattr(self.model, "receptive_radius", None) is None:
            text = (
                "this network sees the whole image: in tiles its results, and their scores, differ slightly from those "
                "of whole images (--tiles.size %d takes this one whole where memory allows)"
            )
            logger.warning(text, max(height, width))
        if tile not in self._said:
            self._said.add(tile)
            logger.info("%d x %d pixels in tiles of %d with margins of %d", height, width, tile, self.margin)
