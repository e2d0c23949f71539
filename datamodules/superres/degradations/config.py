"""Options of the degradations, by name. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from graftwork.components import Registry

if TYPE_CHECKING:
    from datamodules.superres.degradations.base import Degradation

PATTERNS = ("rggb", "bggr", "grbg", "gbrg", "quad", "quad_events")
"""Colour filters, row by row; ``quad`` has blocks of 2 x 2 equal filters, ``quad_events`` event pixels among them."""


@dataclass(kw_only=True)
class DegradationConfig:
    """What every degradation says of itself."""

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    """Whether its papers score luma or all channels."""
    pairs: ClassVar[bool] = False
    """Whether degraded files are read where the data has them."""

    @property
    def scale(self) -> int:
        """Pixels of the original per degraded pixel and side."""
        return 1

    @property
    def period(self) -> int:
        """Sides and corners of originals are multiples of this."""
        return self.scale

    @property
    def border(self) -> int:
        """Pixels on each side of an original that its papers do not score."""
        return 0

    @property
    def computes(self) -> bool:
        """Whether it can be computed where there is no degraded file."""
        return True

    def input_channels(self, channels: int) -> int:
        """Channels of the degraded image of an original with ``channels``."""
        return channels

    def build(self) -> Degradation:
        """The degradation itself."""
        raise NotImplementedError(f"{type(self).__name__} must build its degradation")


@dataclass(kw_only=True)
class BicubicConfig(DegradationConfig):
    """Shrunk as MATLAB's imresize does it: classical super-resolution."""

    colour: ClassVar[Literal["y", "rgb"]] = "y"
    pairs: ClassVar[bool] = True

    scale: int = 4
    """Pixels of the original per pixel and side."""
    stored: bool = True
    """Read low-resolution files where the data has them; false computes them all from the originals."""
    rounding: Literal["none", "output", "passes"] = "output"
    """Of what is computed: 'output' to 8 bits as in a file, 'passes' after each axis as MATLAB does with 8-bit images,
    'none' leaves numbers as they are."""

    @property
    def border(self) -> int:
        """As many pixels as the scale."""
        return self.scale

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if self.scale < 1:
            yield f"scale={self.scale} must be at least 1"

    def build(self) -> Degradation:
        """The degradation itself."""
        from datamodules.superres.degradations.shrink import Bicubic

        return Bicubic(self)


@dataclass(kw_only=True)
class StoredConfig(DegradationConfig):
    """Pairs of files, as the data has them: blur of a camera, real noise, rain. Nothing is computed."""

    pairs: ClassVar[bool] = True

    scale: int = 1
    """Pixels of the original per degraded pixel and side."""

    @property
    def border(self) -> int:
        """As many pixels as the scale where that is above 1."""
        return self.scale if self.scale > 1 else 0

    @property
    def computes(self) -> bool:
        """It cannot."""
        return False

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        if self.scale < 1:
            yield f"scale={self.scale} must be at least 1"

    def build(self) -> Degradation:
        """Says what is missing where a file is."""
        from datamodules.superres.degradations.shrink import Stored

        return Stored(self)


@dataclass(kw_only=True)
class GaussianNoiseConfig(DegradationConfig):
    """Gaussian noise on the clean image, neither rounded nor cut."""

    sigma: float = 25.0
    """Deviation, in levels of 255."""
    sigma_max: float | None = None
    """Blind: the deviation of each image is drawn between sigma and this."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from range_problems("sigma", self.sigma, self.sigma_max, 0, 255)

    def build(self) -> Degradation:
        """The degradation itself."""
        from datamodules.superres.degradations.noise import GaussianNoise

        return GaussianNoise(self)


@dataclass(kw_only=True)
class JpegConfig(DegradationConfig):
    """JPEG compression, in memory."""

    quality: int = 30
    """Quality of the encoder (libjpeg), from 1 to 100."""
    quality_max: int | None = None
    """Blind: the quality of each image is drawn between quality and this."""
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"
    """Of the colours."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from range_problems("quality", self.quality, self.quality_max, 1, 100)

    def build(self) -> Degradation:
        """The degradation itself."""
        from datamodules.superres.degradations.jpeg import Jpeg

        return Jpeg(self)


@dataclass(kw_only=True)
class GaussianBlurConfig(DegradationConfig):
    """Blur of a lens out of focus: a Gaussian."""

    width: float = 2.0
    """Deviation of the Gaussian, in pixels."""
    width_max: float | None = None
    """Blind: the deviation of each image is drawn between width and this."""
    sigma: float = 0.0
    """Deviation of noise that is added afterwards, in levels of 255."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from range_problems("width", self.width, self.width_max, 0.1, 50)
        yield from range_problems("sigma", self.sigma, None, 0, 255)

    def build(self) -> Degradation:
        """The degradation itself."""
        from datamodules.superres.degradations.blur import GaussianBlur

        return GaussianBlur(self)


@dataclass(kw_only=True)
class MotionBlurConfig(DegradationConfig):
    """Blur of a camera that moves along a line."""

    length: float = 15.0
    """Length of the movement, in pixels."""
    length_max: float | None = None
    """Blind: the length of each image is drawn between length and this."""
    angle: float | None = None
    """Direction in degrees, 0 across and 90 up; drawn for each image if omitted."""
    sigma: float = 0.0
    """Deviation of noise that is added afterwards, in levels of 255."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from range_problems("length", self.length, self.length_max, 1, 200)
        yield from range_problems("sigma", self.sigma, None, 0, 255)

    def build(self) -> Degradation:
        """The degradation itself."""
        from datamodules.superres.degradations.blur import MotionBlur

        return MotionBlur(self)


@dataclass(kw_only=True)
class MosaicConfig(DegradationConfig):
    """Values of a sensor behind colour filters: one colour per pixel."""

    pattern: Literal["rggb", "bggr", "grbg", "gbrg", "quad", "quad_events"] = "rggb"
    """Colours of the filters; 'quad' has blocks of 2 x 2 equal ones, in 'quad_events' one pixel of each red and blue
    block sees events in place of colours."""
    form: Literal["masked", "packed"] = "masked"
    """'masked' leaves three channels with zeros where a colour is not measured; 'packed' has a channel for each place
    of the pattern, at the resolution of whole patterns."""
    sigma: float = 0.0
    """Deviation of noise on the measured values, in levels of 255."""

    @property
    def period(self) -> int:
        """Side of the pattern."""
        return 4 if self.pattern.startswith("quad") else 2

    @property
    def scale(self) -> int:
        """1, or the side of the pattern where it is packed."""
        return self.period if self.form == "packed" else 1

    @property
    def border(self) -> int:
        """Ten pixels, as is customary."""
        return 10

    def input_channels(self, channels: int) -> int:
        """Three, or one for each place of the pattern."""
        return self.period**2 if self.form == "packed" else channels

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from range_problems("sigma", self.sigma, None, 0, 255)

    def build(self) -> Degradation:
        """The degradation itself."""
        from datamodules.superres.degradations.mosaic import Mosaic

        return Mosaic(self)


@dataclass(kw_only=True)
class RainConfig(DegradationConfig):
    """Bright streaks of rain."""

    colour: ClassVar[Literal["y", "rgb"]] = "y"

    density: float = 0.004
    """Drops per pixel."""
    length: float = 20.0
    """Length of the streaks, in pixels."""
    strength: float = 0.8
    """Brightness of the streaks, on the scale from 0 to 1."""
    tilt: float = 30.0
    """The rain of each image leans by an angle drawn between minus this and this, in degrees."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from range_problems("density", self.density, None, 0, 1)
        yield from range_problems("length", self.length, None, 1, 200)
        yield from range_problems("strength", self.strength, None, 0, 1)
        yield from range_problems("tilt", self.tilt, None, 0, 90)

    def build(self) -> Degradation:
        """The degradation itself."""
        from datamodules.superres.degradations.weather import Rain

        return Rain(self)


@dataclass(kw_only=True)
class HazeConfig(DegradationConfig):
    """Haze that thickens with a random depth."""

    thickness: float = 0.6
    """Extinction over the largest depth, at least."""
    thickness_max: float | None = 1.8
    """Blind: the extinction of each image is drawn between thickness and this."""
    airlight: float = 0.8
    """Brightness of the haze, on the scale from 0 to 1."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from range_problems("thickness", self.thickness, self.thickness_max, 0, 20)
        yield from range_problems("airlight", self.airlight, None, 0, 1)

    def build(self) -> Degradation:
        """The degradation itself."""
        from datamodules.superres.degradations.weather import Haze

        return Haze(self)


@dataclass(kw_only=True)
class ReflectionConfig(DegradationConfig):
    """A blurred other image of the data, as if reflected by a window pane."""

    strength: float = 0.2
    """Share of the other image's light, at least."""
    strength_max: float | None = 0.6
    """Blind: the share in each image is drawn between strength and this."""
    width: float = 1.0
    """Deviation of the Gaussian that blurs the reflection, in pixels, at least."""
    width_max: float | None = 4.0
    """Blind: the deviation in each image is drawn between width and this."""

    def problems(self) -> Iterator[str]:
        """Values out of range."""
        yield from range_problems("strength", self.strength, self.strength_max, 0, 1)
        yield from range_problems("width", self.width, self.width_max, 0.1, 50)

    def build(self) -> Degradation:
        """The degradation itself."""
        from datamodules.superres.degradations.reflection import Reflection

        return Reflection(self)


def range_problems(name: str, low: float, high: float | None, least: float, most: float) -> Iterator[str]:
    """Sentences for a value, or for a range ``name`` to ``name_max``, that leaves ``least`` to ``most``."""
    if not least <= low <= most:
        yield f"{name}={low:g} must be from {least:g} to {most:g}"
    elif high is not None and not low <= high <= most:
        yield f"{name}_max={high:g} must be from {name}={low:g} to {most:g}"


DEGRADATIONS = Registry(
    "degradation",
    {
        "bicubic": BicubicConfig,
        "stored": StoredConfig,
        "gaussian_noise": GaussianNoiseConfig,
        "jpeg": JpegConfig,
        "gaussian_blur": GaussianBlurConfig,
        "motion_blur": MotionBlurConfig,
        "mosaic": MosaicConfig,
        "rain": RainConfig,
        "haze": HazeConfig,
        "reflection": ReflectionConfig,
    },
    default="bicubic",
)
