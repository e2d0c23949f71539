"""Which training images an epoch shows, where images with rare classes come more often.

Shape legend: N images, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STREAM = 1
"""Sets these draws apart from the order of samples, which has the same seed and epoch."""


def image_weights(present: NDArray[np.bool_], power: float) -> NDArray[np.float64]:
    """How often each image should come, relative to one that has the most frequent class alone.

    Args:
        present: Whether a class occurs in an image, [N, C].
        power: Exponent of the ratio of images with the most frequent class to images with a class.

    Returns:
        [N], at least 1: the largest over the classes of an image.

    Source: Gupta et al. 2019 (LVIS), appendix B; there power is 0.5 and the ratio is to a fixed share.
    """
    images = present.sum(0)  # C
    ratio = images.max(initial=1) / np.maximum(images, 1)
    return np.where(present, ratio**power, 1.0).max(axis=1, initial=1.0)


class BalancedOrder:
    """The image that stands at each index of an epoch; a function of seed and epoch.

    Each image comes as often as its weight says, rounded up or down at random, and an epoch has as many samples as
    there are images.

    Args:
        weights: Of each image, [N].
        seed: Seed of the run.
    """

    def __init__(self, weights: NDArray[np.float64], seed: int) -> None:
        self.weights, self.seed = weights, seed
        self._epoch = -1
        self._images: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def image(self, epoch: int, index: int) -> int:
        """Number of the image at an index."""
        if epoch != self._epoch:
            self._epoch, self._images = epoch, self.images(epoch)
        return int(self._images[index])

    def images(self, epoch: int) -> NDArray[np.int64]:
        """Number of the image at every index, by systematic resampling over a random order, [N]."""
        count = len(self.weights)
        random = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, _STREAM)))
        order = random.permutation(count)
        edges = np.cumsum(self.weights[order])
        at = (np.arange(count) + random.random()) * edges[-1] / count
        return order[np.searchsorted(edges, at, side="right").clip(max=count - 1)]
