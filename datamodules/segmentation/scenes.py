"""Street scenes from a renderer: a pinhole camera over a street, with everything in it labelled.

Pixels of the ground and of facades are coloured by where they are in the street, in metres; trees, cars, people and
signs are cut-outs that stand on the ground, the near ones over the far ones. Light, haze, colours, camera and noise
differ from scene to scene.

Shape legend: H, W sides of the picture; h, w those of a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float64]
Mask = NDArray[np.bool_]

NAMES = ("sky", "road", "pavement", "building", "tree", "car", "person", "sign")
PALETTE = (
    (70, 130, 180),
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (107, 142, 35),
    (0, 0, 142),
    (220, 20, 60),
    (220, 220, 0),
)
THINGS = (5, 6, 7)
SKY, ROAD, PAVEMENT, BUILDING, TREE, CAR, PERSON, SIGN = range(8)

VOID = -1
MIN_PX = 10
"""Of an object with fewer pixels in view nothing is said: they are void."""

_FINE = 2
"""The picture is drawn this much larger and averaged, so that edges mix colours as a camera does."""


class Scene(NamedTuple):
    """A picture and what is in it.

    Args:
        image: [H, W, 3] uint8.
        segments: Number of the segment of every pixel, [H, W] int32; -1 is void.
        classes: Label of segment 0, 1, ...
    """

    image: NDArray[np.uint8]
    segments: NDArray[np.int32]
    classes: tuple[int, ...]


class Camera(NamedTuple):
    """A pinhole camera that looks along the street.

    Args:
        focal: Pixels per metre at a distance of one metre.
        height: Above the ground, in metres.
        horizon: Row of the horizon.
        centre: Column that the street runs to.
    """

    focal: float
    height: float
    horizon: float
    centre: float


class Street(NamedTuple):
    """Distances from the middle of the road, in metres.

    Args:
        kerb: Where the pavement begins.
        facades: Where it ends.
    """

    kerb: float
    facades: float


@dataclass
class Canvas:
    """What has been drawn so far.

    Args:
        colour: From 0 to 1, [H, W, 3].
        segments: [H, W]; -1 is void.
        haze: Colour of what is far away, [3].
        sight: Distance in which the haze takes up most of a colour, in metres.
        classes: Label of each segment.
    """

    colour: Pixels
    segments: NDArray[np.int32]
    haze: Pixels
    sight: float
    classes: list[int] = field(default_factory=list)
    _stuff: dict[int, int] = field(default_factory=dict)

    def segment(self, label: int) -> int:
        """Number of the segment to draw with: one for all of a stuff class, a new one for every thing."""
        if label in THINGS:
            self.classes.append(label)
            return len(self.classes) - 1
        if label not in self._stuff:
            self._stuff[label] = len(self.classes)
            self.classes.append(label)
        return self._stuff[label]

    def paint(self, place: tuple[slice, slice], inside: Mask, colour: Any, distance: Any, segment: int) -> None:
        """Colour some pixels of a part of the picture.

        Args:
            place: Rows and columns of the part.
            inside: Pixels of the part, [h, w].
            colour: [3] or [h, w, 3].
            distance: In metres, a number or [h, w].
            segment: What the pixels are.
        """
        clear = np.broadcast_to(np.exp(-np.asarray(distance, dtype=np.float64) / self.sight), inside.shape)[inside]
        own = np.broadcast_to(colour, (*inside.shape, 3))[inside]  # pixels, 3
        self.colour[place][inside] = self.haze + clear[:, None] * (own - self.haze)
        self.segments[place][inside] = segment


def draw_scene(random: np.random.Generator, height: int, width: int) -> Scene:
    """A scene.

    Args:
        random: Where it is drawn from.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
    """
    rows, columns = height * _FINE, width * _FINE
    camera = Camera(
        focal=random.uniform(0.55, 0.9) * columns,
        height=random.uniform(1.2, 2.4),
        horizon=random.uniform(0.32, 0.52) * rows,
        centre=random.uniform(0.3, 0.7) * columns,
    )
    kerb = random.uniform(2.8, 5.0)
    street = Street(kerb, kerb + random.uniform(1.8, 4.0))
    haze = random.uniform(0.6, 0.9) * np.array([0.95, 1.0, 1.08])
    canvas = Canvas(
        np.zeros((rows, columns, 3)), np.full((rows, columns), VOID, np.int32), haze, random.uniform(40, 160)
    )
    draw_sky(canvas, random, camera)
    for side in (-1, 1):
        draw_facades(canvas, random, camera, side * street.facades)
    draw_ground(canvas, random, camera, street)
    for _, draw in sorted(cutouts(random, camera, street), key=lambda pair: -pair[0]):
        draw(canvas)
    if random.random() < 0.3:
        draw_bonnet(canvas, random)
    return finished(canvas, random)


def draw_sky(canvas: Canvas, random: np.random.Generator, camera: Camera) -> None:
    """Sky down to the horizon, with clouds."""
    rows = int(np.ceil(camera.horizon))
    columns = canvas.colour.shape[1]
    up = 1 - np.arange(rows)[:, None] / max(camera.horizon, 1)  # h, 1
    blue = np.array([0.45, 0.65, 0.95]) * random.uniform(0.6, 1.0)
    clouds = np.clip(smooth_noise(random, (rows, columns), 24) + random.uniform(-0.8, 0.5), 0, 1)[..., None]
    colour = canvas.haze + up[..., None] * (blue - canvas.haze)
    place = (slice(0, rows), slice(0, columns))
    white = 0.95 * np.ones(3)
    canvas.paint(
        place, np.ones((rows, columns), bool), colour + clouds * (white - colour) * 0.8, 0, canvas.segment(SKY)
    )


def draw_facades(canvas: Canvas, random: np.random.Generator, camera: Camera, offset: float) -> None:
    """A row of houses, or gaps between them, along one side of the street.

    Args:
        canvas: Drawn on.
        random: Where heights, widths and colours are drawn from.
        camera: The camera.
        offset: Distance of the row from the camera, negative on the left, in metres.
    """
    rows, columns = canvas.colour.shape[:2]
    across = np.arange(columns) + 0.5 - camera.centre
    hit = across * np.sign(offset) > 1e-6
    distance = np.where(hit, camera.focal * offset / np.where(hit, across, 1.0), np.inf)  # W, along the street
    near, segment = random.uniform(-6, 0), canvas.segment(BUILDING)
    while near < 90:
        deep, tall = random.uniform(6, 16), random.uniform(4, 16)
        if random.random() < 0.85:
            chosen = np.flatnonzero((distance >= max(near, 0.5)) & (distance < near + deep))
            if len(chosen):
                strip = (slice(0, rows), slice(int(chosen[0]), int(chosen[-1]) + 1))
                house(canvas, random, camera, strip, distance[strip[1]], tall, segment)
        near += deep


def house(
    canvas: Canvas,
    random: np.random.Generator,
    camera: Camera,
    strip: tuple[slice, slice],
    distance: Pixels,
    tall: float,
    segment: int,
) -> None:
    """One facade with windows, from the ground up.

    Args:
        canvas: Drawn on.
        random: Where colours are drawn from.
        camera: The camera.
        strip: Rows and columns it is seen in.
        distance: Of each column, [w], in metres.
        tall: Height, in metres.
        segment: What its pixels are.
    """
    rows = np.arange(canvas.colour.shape[0])[:, None] + 0.5
    up = camera.height - (rows - camera.horizon) * distance / camera.focal  # h, w: metres above the ground
    inside = (up >= 0) & (up <= tall)
    wall = random.uniform(0.25, 0.75) * random.uniform([0.85, 0.75, 0.65], [1.1, 1.05, 1.05])
    glass = wall * 0.45 if random.random() < 0.7 else np.array([0.85, 0.8, 0.55])
    pitch, storey = random.uniform(1.6, 3.0), random.uniform(2.6, 3.4)
    along = np.broadcast_to(distance % pitch < 0.5 * pitch, up.shape)
    windows = along & (up % storey > 0.3 * storey) & (up % storey < 0.75 * storey) & (up < tall - 0.5)
    canvas.paint(strip, inside, np.where(windows[..., None], glass, wall), distance[None], segment)


def draw_ground(canvas: Canvas, random: np.random.Generator, camera: Camera, street: Street) -> None:
    """Road with a broken line, and pavements that end at the facades."""
    rows, columns = canvas.colour.shape[:2]
    first = int(np.floor(camera.horizon)) + 1
    place = (slice(first, rows), slice(0, columns))
    down = np.arange(first, rows)[:, None] + 0.5 - camera.horizon
    distance = camera.focal * camera.height / down  # h, 1
    across = (np.arange(columns) + 0.5 - camera.centre) * distance / camera.focal  # h, w
    ground = np.abs(across) < street.facades
    far = (np.abs(across) >= street.facades) & (canvas.segments[place] == VOID)  # seen through gaps
    road = np.abs(across) < street.kerb
    grey = random.uniform(0.25, 0.42)
    asphalt = grey * random.uniform(0.95, 1.05, 3)
    stone = np.clip(grey * random.uniform(0.85, 1.7), 0.2, 0.75) * random.uniform(0.92, 1.08, 3)
    slabs = 1 - 0.12 * ((across % 0.8 < 0.06) | (distance % 0.8 < 0.06))
    grain = 1 + 0.1 * smooth_noise(random, (rows - first, columns), 5)
    line = (np.abs(across) < 0.09) & (distance % 5 < 2.5) & (random.random() < 0.8)
    colour = np.where(line[..., None], 0.8, asphalt) * grain[..., None]
    canvas.paint(place, road, colour, distance, canvas.segment(ROAD))
    canvas.paint(place, (ground & ~road) | far, stone * (slabs * grain)[..., None], distance, canvas.segment(PAVEMENT))


Drawing = Callable[[Canvas], None]


def cutouts(random: np.random.Generator, camera: Camera, street: Street) -> Iterator[tuple[float, Drawing]]:
    """Distance and drawing of everything that stands in the street."""
    kinds: list[tuple[int, Any, tuple[float, float], tuple[float, float]]] = [
        (int(random.integers(0, 5)), tree, (6, 45), (street.kerb + 0.4, street.facades)),
        (int(random.integers(1, 6)), car, (5, 30), (0.8, street.kerb - 1.0)),
        (int(random.integers(1, 5)), person, (4, 16), (0.5 * street.kerb, street.facades)),
        (int(random.integers(1, 4)), sign, (4, 16), (street.kerb + 0.2, street.kerb + 0.9)),
    ]
    for count, kind, (near, far), (low, high) in kinds:
        for _ in range(count):
            distance = float(np.exp(random.uniform(np.log(near), np.log(far))))
            side = -1 if random.random() < 0.5 else 1
            offset = side * float(random.uniform(low, max(low, high)))
            yield distance, _drawing(kind, random.spawn(1)[0], camera, distance, offset)


def _drawing(kind: Any, random: np.random.Generator, camera: Camera, distance: float, offset: float) -> Drawing:
    return lambda canvas: kind(Cutout(canvas, camera, distance, offset, random))


class Cutout:
    """A flat figure that stands on the ground and faces the camera.

    Args:
        canvas: Drawn on.
        camera: The camera.
        distance: From the camera, in metres.
        offset: From the middle of the street, in metres; positive to the right.
        random: Where its size and colours are drawn from.
    """

    def __init__(
        self, canvas: Canvas, camera: Camera, distance: float, offset: float, random: np.random.Generator
    ) -> None:
        self.canvas, self.random, self.distance = canvas, random, distance
        self.scale = camera.focal / distance
        self.foot = camera.horizon + camera.height * self.scale
        self.middle = camera.centre + offset * self.scale

    def area(self, half_width: float, height: float, below: float = 0.0) -> tuple[tuple[slice, slice], Pixels, Pixels]:
        """The part of the picture around the figure.

        Args:
            half_width: To each side of its middle, in metres.
            height: In metres.
            below: What is drawn below its foot, in metres.

        Returns:
            Rows and columns; metres to the right of the middle, [1, w]; metres above the ground, [h, 1].
        """
        rows, columns = self.canvas.colour.shape[:2]
        top, bottom = self.foot - height * self.scale, self.foot + below * self.scale
        left, right = self.middle - half_width * self.scale, self.middle + half_width * self.scale
        down = slice(*(int(np.clip(edge, 0, rows)) for edge in (np.floor(top), np.ceil(bottom))))
        over = slice(*(int(np.clip(edge, 0, columns)) for edge in (np.floor(left), np.ceil(right))))
        aside = (np.arange(over.start, over.stop)[None] + 0.5 - self.middle) / self.scale
        up = (self.foot - np.arange(down.start, down.stop)[:, None] - 0.5) / self.scale
        return (down, over), aside, up

    def paint(self, place: tuple[slice, slice], inside: Mask, colour: Any, segment: int) -> None:
        """Colour the pixels of a part that are inside."""
        self.canvas.paint(place, inside, colour, self.distance, segment)

    def shadow(self, half_width: float) -> None:
        """Darken the ground below the foot; what the ground is stays."""
        place, aside, up = self.area(half_width, 0.15, 0.25)
        self.canvas.colour[place][(aside / half_width) ** 2 + (up / 0.2) ** 2 < 1] *= 0.55


def tree(cutout: Cutout) -> None:
    """A trunk and a crown of leaves."""
    random = cutout.random
    tall, radius = random.uniform(4, 9), random.uniform(1.2, 2.4)
    segment = cutout.canvas.segment(TREE)
    cutout.shadow(0.8)
    place, aside, up = cutout.area(radius * 1.3, tall + radius)
    trunk = (np.abs(aside) < 0.16) & (up < tall)
    cutout.paint(place, trunk, np.array([0.3, 0.22, 0.15]) * random.uniform(0.7, 1.3), segment)
    if trunk.size == 0:
        return
    leaves = smooth_noise(random, trunk.shape, max(2, int(0.5 * cutout.scale)))
    reach = np.hypot(aside, (up - tall) * 0.85) / radius
    green = np.array([0.22, 0.42, 0.14]) * random.uniform(0.6, 1.3) * random.uniform(0.85, 1.15, 3)
    cutout.paint(place, reach < 1 + 0.25 * leaves, green * (1 + 0.35 * leaves)[..., None], segment)


def car(cutout: Cutout) -> None:
    """A car from behind or from the front, or from the side where it crosses."""
    random = cutout.random
    half = 0.9 if random.random() < 0.75 else 2.1
    tall, waist = random.uniform(1.35, 1.8), random.uniform(0.8, 0.95)
    segment = cutout.canvas.segment(CAR)
    cutout.shadow(half * 1.05)
    place, aside, up = cutout.area(half, tall)
    body = (np.abs(aside) < half) & (up > 0.22) & (up < waist)
    roof = (np.abs(aside) < half * (0.92 - 0.35 * (up - waist) / (tall - waist))) & (up >= waist) & (up < tall)
    wheels = (np.abs(np.abs(aside) - 0.72 * half) < 0.16) & (up < 0.35)
    hues = np.array([[0.75, 0.1, 0.1], [0.1, 0.2, 0.6], [0.85, 0.85, 0.85], [0.1, 0.1, 0.12], [0.5, 0.5, 0.55]])
    paint = hues[random.integers(len(hues))] * random.uniform(0.8, 1.15)
    cutout.paint(place, body | roof, paint * (0.8 + 0.25 * up / tall)[..., None], segment)
    glass = roof & (np.abs(aside) < 0.72 * half) & (up > waist + 0.06) & (up < tall - 0.1)
    cutout.paint(place, glass, np.array([0.12, 0.16, 0.2]) * random.uniform(0.7, 1.6), segment)
    cutout.paint(place, wheels, 0.06 * np.ones(3), segment)
    lights = (np.abs(np.abs(aside) - 0.75 * half) < 0.14) & (np.abs(up - 0.65) < 0.09)
    cutout.paint(place, lights, np.array([0.8, 0.1, 0.08] if random.random() < 0.5 else [0.95, 0.95, 0.8]), segment)


def person(cutout: Cutout) -> None:
    """Somebody on foot."""
    random = cutout.random
    tall, step = random.uniform(1.4, 1.95), random.uniform(0.02, 0.3)
    segment = cutout.canvas.segment(PERSON)
    cutout.shadow(0.35)
    place, aside, up = cutout.area(0.45, tall)
    legs = (np.abs(np.abs(aside) - step * (1 - up / (0.48 * tall))) < 0.1) & (up < 0.5 * tall)
    trunk = (np.abs(aside) < 0.24 - 0.06 * (up / tall)) & (up >= 0.46 * tall) & (up < 0.84 * tall)
    head = np.hypot(aside, up - 0.92 * tall) < 0.13
    trousers, coat = (random.uniform(0.08, 0.7) * random.uniform(0.5, 1.3, 3) for _ in range(2))
    skin = np.array([0.85, 0.65, 0.52]) * random.uniform(0.4, 1.05)
    for inside, colour in ((legs, trousers), (trunk, coat), (head, skin)):
        cutout.paint(place, inside, colour, segment)


def sign(cutout: Cutout) -> None:
    """A pole with a round, three-cornered or square plate."""
    random = cutout.random
    tall, radius = random.uniform(2.2, 3.0), random.uniform(0.32, 0.5)
    segment = cutout.canvas.segment(SIGN)
    place, aside, up = cutout.area(radius, tall + radius)
    pole = (np.abs(aside) < 0.06) & (up < tall)
    cutout.paint(place, pole, 0.5 * random.uniform(0.6, 1.3) * np.ones(3), segment)
    over = up - tall
    shape = int(random.integers(3))
    if shape == 0:
        reach = np.hypot(aside, over)
    elif shape == 1:
        reach = np.maximum(np.abs(aside) * 2 + over, -over * 1.6)
    else:
        reach = np.maximum(np.abs(aside), np.abs(over))
    rim, inside = ([0.8, 0.08, 0.1], [0.95, 0.95, 0.95]) if shape < 2 else ([0.9, 0.9, 0.9], [0.1, 0.25, 0.7])
    cutout.paint(place, reach < radius, np.array(rim), segment)
    cutout.paint(place, reach < 0.65 * radius, np.array(inside), segment)


def draw_bonnet(canvas: Canvas, random: np.random.Generator) -> None:
    """The bonnet of the car that the camera is in, which is void."""
    rows, columns = canvas.colour.shape[:2]
    aside = (np.arange(columns)[None] - random.uniform(0.35, 0.65) * columns) / (0.5 * columns)
    edge = rows * (1 - random.uniform(0.06, 0.12) * np.sqrt(np.clip(1 - aside**2, 0, 1)))
    inside = np.arange(rows)[:, None] > edge
    shine = 0.12 + 0.1 * np.clip(1 - np.abs(aside), 0, 1)
    place = (slice(0, rows), slice(0, columns))
    canvas.paint(place, inside, np.broadcast_to(shine[..., None], (*inside.shape, 3)), 0, VOID)


def finished(canvas: Canvas, random: np.random.Generator) -> Scene:
    """The canvas as a photograph: light and shade over it, averaged to its size, with the noise of a sensor."""
    rows, columns = (side // _FINE for side in canvas.segments.shape)
    light = random.uniform(0.75, 1.15) * random.uniform(0.94, 1.06, 3)
    shade = 1 + 0.18 * smooth_noise(random, (rows, columns), 40)[..., None]
    fine = canvas.colour.reshape(rows, _FINE, columns, _FINE, 3)  # rows, 2, columns, 2, 3
    colour = fine.mean((1, 3)) * light * shade
    colour += random.uniform(0.01, 0.045) * random.standard_normal(colour.shape)
    segments = canvas.segments[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE].copy()
    counts = np.bincount(segments[segments >= 0], minlength=len(canvas.classes))
    kept = [number for number, count in enumerate(counts) if count >= MIN_PX]
    table = np.full(len(canvas.classes) + 1, VOID, np.int32)  # the last one is that of void
    table[kept] = np.arange(len(kept))
    image = np.rint(255 * np.clip(colour, 0, 1)).astype(np.uint8)
    return Scene(image, table[segments], tuple(canvas.classes[number] for number in kept))


def smooth_noise(random: np.random.Generator, shape: tuple[int, ...], spacing: int) -> Pixels:
    """Random hills and valleys from -1 to 1.

    Args:
        random: Where they are drawn from.
        shape: Height and width.
        spacing: Pixels between the points that are drawn; bilinear in between.
    """
    height, width = shape[:2]
    points = random.uniform(-1, 1, (height // spacing + 2, width // spacing + 2))
    down, across = np.arange(height) / spacing, np.arange(width) / spacing
    top, left = down.astype(int), across.astype(int)
    lower, right = (down - top)[:, None], (across - left)[None]
    upper_row = points[top][:, left] * (1 - right) + points[top][:, left + 1] * right
    lower_row = points[top + 1][:, left] * (1 - right) + points[top + 1][:, left + 1] * right
    return np.asarray(upper_row * (1 - lower) + lower_row * lower)
