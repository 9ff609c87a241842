"""The pictures of the "shapes" dataset: what stands in each image, sampled and painted.

Lengths are in pixels, points are (x, y) with the origin at the top left corner of the image (pixel (0, 0)
covers the unit square from it), and colors are RGB in 0..255.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .vocabulary import SHAPES, World


def _stripes(across: np.ndarray, along: np.ndarray) -> np.ndarray:
    return np.floor(across).astype(int) % 2


def _checks(across: np.ndarray, along: np.ndarray) -> np.ndarray:
    return (np.floor(across) + np.floor(along)).astype(int) % 2


def _dots(across: np.ndarray, along: np.ndarray) -> np.ndarray:
    return (np.hypot(across / 1.6 % 1 - 0.5, along / 1.6 % 1 - 0.5) < 0.33).astype(int)


# Where an object has its first and its second color, by distances in widths of a band.
TEXTURES = {"solid": _stripes, "striped": _stripes, "checked": _checks, "dotted": _dots}

IMAGE_SIDES = (96, 112, 128, 144, 160)
OBJECT_SIZES = (16.0, 64.0)  # diameter of the circumscribed circle
MAX_OBJECTS = 5
EMPTY_FRACTION = 0.04
CROWD_FRACTION = 0.06
MIN_UNSHARED = 0.6  # of an object's pixels that no other object may touch

CROWD_MEMBERS = (6, 10)
CROWD_MEMBER_SIZES = (8.0, 12.0)
CROWD_GRID = (4, 3)  # cells across and down
CROWD_CELL = 14.0  # holds the largest member, moved by up to a pixel: members never touch

_SUPERSAMPLING = 4
_PLACEMENT_ATTEMPTS = 20


@dataclass(frozen=True)
class _Shape:
    """One polygon and its paint.

    Attributes:
        polygon: (n, 2) vertices.
        texture: of ``TEXTURES``.
        colors: (2, 3) uint8, its first and its second color (equal if solid).
        band: width of a band.
        angle: direction across the bands, in radians.
    """

    polygon: np.ndarray
    texture: str
    colors: np.ndarray
    band: float
    angle: float


@dataclass(frozen=True)
class Instance:
    """What one annotation describes: a shape, or the many shapes of a crowd.

    Attributes:
        category: position in the world's ``class_names``.
        shapes: the shapes to paint.
        mask: (height, width) bool, the pixels at least half covered.
        is_crowd: whether the annotation stands for a group.
    """

    category: int
    shapes: list[_Shape]
    mask: np.ndarray
    is_crowd: bool


def sample_instances(
    rng: np.random.Generator, height: int, width: int, world: World = SHAPES, max_objects: int = MAX_OBJECTS
) -> list[Instance]:
    """The instances of one image, in painting order; those that find no room are left out."""
    kind = rng.random()
    if kind < EMPTY_FRACTION:
        return []
    samplers = [_sample_object] * int(rng.integers(1, max_objects, endpoint=True))
    if kind < EMPTY_FRACTION + CROWD_FRACTION:
        samplers.insert(0, _sample_crowd)  # first: the emptier the image, the surer its place

    instances: list[Instance] = []
    for sampler in samplers:
        for _ in range(_PLACEMENT_ATTEMPTS):
            candidate = sampler(rng, height, width, world)
            if _overlap_is_moderate([*instances, candidate]):
                instances.append(candidate)
                break
    return instances


def _overlap_is_moderate(instances: list[Instance]) -> bool:
    """Whether each instance has enough pixels to itself.

    Stricter than asking how much of each is visible: it also rejects a small object on a large one,
    which would be lost on it if their colors agree.
    """
    layers = np.sum([instance.mask for instance in instances], axis=0)
    return all((layers[instance.mask] == 1).mean() >= MIN_UNSHARED for instance in instances)


def _sample_object(rng: np.random.Generator, height: int, width: int, world: World) -> Instance:
    """A single object of any class, entirely within the image."""
    category = world.sample_class(rng)
    size = rng.uniform(*OBJECT_SIZES)
    center = rng.uniform(size / 2, np.array([width, height]) - size / 2)
    shape = _sample_shape(rng, world, category, center, size)
    return Instance(category, [shape], _mask([shape.polygon], height, width), is_crowd=False)


def _sample_crowd(rng: np.random.Generator, height: int, width: int, world: World) -> Instance:
    """A cluster of tiny shapes of one class, on random cells of a grid that lies within the image."""
    category = world.sample_class(rng)
    columns, rows = CROWD_GRID
    origin = rng.uniform(0, np.array([width, height]) - CROWD_CELL * np.array(CROWD_GRID))
    members = rng.integers(*CROWD_MEMBERS, endpoint=True)
    shapes = []
    for cell in rng.choice(columns * rows, size=members, replace=False):
        row, column = divmod(int(cell), columns)
        center = origin + CROWD_CELL * np.array([column + 0.5, row + 0.5]) + rng.uniform(-1, 1, size=2)
        shapes.append(_sample_shape(rng, world, category, center, rng.uniform(*CROWD_MEMBER_SIZES)))
    mask = _mask([shape.polygon for shape in shapes], height, width)
    return Instance(category, shapes, mask, is_crowd=True)


def _sample_shape(
    rng: np.random.Generator, world: World, category: int, center: np.ndarray, size: float
) -> _Shape:
    """A shape of a class, randomly rotated and with slightly jittered color.

    Args:
        rng: source of the random choices.
        world, category: what there is, and the position of the class in it.
        center: (2,) center of the circumscribed circle.
        size: diameter of the circumscribed circle.
    """
    color_name, texture, outline = world.classes[category]
    angles, radii = world.outlines[outline].T
    angles = rng.uniform(0, 2 * np.pi) + angles
    polygon = center + size / 2 * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    color = np.clip(world.colors[color_name] + rng.uniform(-15, 15, size=3), 0, 255)
    other = color if texture == "solid" else 0.1 * color + 0.9 * 255
    return _Shape(
        polygon=polygon.round(2),  # before painting: what is painted is what is annotated
        texture=texture,
        colors=np.stack([color, other]).astype(np.uint8),
        band=min(rng.uniform(4, 5), size / 4),  # so that even the smallest shape shows some bands
        angle=rng.uniform(0, np.pi),
    )


def sample_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A noisy gradient between two grays, (height, width, 3) uint8, far from every object color."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    ramp = x * np.cos(angle) + y * np.sin(angle)
    gray = rng.uniform(90, 150) + rng.uniform(0, 50) * ramp + rng.normal(0, 5, size=(height, width))
    tint = rng.uniform(-6, 6, size=3)
    return np.clip(gray[..., None] + tint, 0, 255).astype(np.uint8)


def render(background: np.ndarray, instances: Iterable[Instance]) -> Image.Image:
    """Paints the instances in their order over a (height, width, 3) uint8 background, antialiased."""
    height, width, _ = background.shape
    canvas = background.repeat(_SUPERSAMPLING, axis=0).repeat(_SUPERSAMPLING, axis=1)
    for shape in itertools.chain.from_iterable(instance.shapes for instance in instances):
        y, x = np.nonzero(np.asarray(_draw([shape.polygon], height, width)))
        across = (x * np.cos(shape.angle) + y * np.sin(shape.angle)) / _SUPERSAMPLING
        along = (y * np.cos(shape.angle) - x * np.sin(shape.angle)) / _SUPERSAMPLING
        canvas[y, x] = shape.colors[TEXTURES[shape.texture](across / shape.band, along / shape.band)]
    return Image.fromarray(canvas).reduce(_SUPERSAMPLING)


def draw_scene(
    rng: np.random.Generator, height: int, width: int, world: World = SHAPES, max_objects: int = MAX_OBJECTS
) -> tuple[list[Instance], Image.Image]:
    """The instances of one image, see :func:`sample_instances`, and the image of them on a background."""
    instances = sample_instances(rng, height, width, world, max_objects)
    return instances, render(sample_background(rng, height, width), instances)


def _mask(polygons: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """The pixels at least half covered by (n, 2) polygons, (height, width) bool."""
    return np.asarray(_draw(polygons, height, width).reduce(_SUPERSAMPLING)) >= 128


def _draw(polygons: Iterable[np.ndarray], height: int, width: int) -> Image.Image:
    """(n, 2) polygons in 255 on 0, supersampled."""
    image = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        # Pillow counts from the center of the first pixel, COCO from its corner.
        draw.polygon((polygon * _SUPERSAMPLING - 0.5).ravel().tolist(), fill=255)
    return image
