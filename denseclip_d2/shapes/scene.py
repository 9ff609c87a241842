"""The images of the "shapes" dataset: sample objects and paint them.

Lengths are in pixels. Points are (x, y) from the top left corner of the image, which is the corner of pixel
(0, 0). Colors are RGB in 0..255.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .vocabulary import SHAPES, Vocabulary


def _stripes(across: np.ndarray, along: np.ndarray) -> np.ndarray:
    return np.floor(across).astype(int) % 2


def _checks(across: np.ndarray, along: np.ndarray) -> np.ndarray:
    return (np.floor(across) + np.floor(along)).astype(int) % 2


def _dots(across: np.ndarray, along: np.ndarray) -> np.ndarray:
    return (np.hypot(across / 1.6 % 1 - 0.5, along / 1.6 % 1 - 0.5) < 0.33).astype(int)


# Functions of distances in band widths. They return 0 for the first color, 1 for the second.
TEXTURES = {"solid": _stripes, "striped": _stripes, "checked": _checks, "dotted": _dots}

IMAGE_SIDES = (96, 112, 128, 144, 160)
OBJECT_SIZES = (16.0, 64.0)  # diameter of the circumscribed circle
MAX_OBJECTS = 5
EMPTY_FRACTION = 0.04
CROWD_FRACTION = 0.06
MIN_UNSHARED = 0.6  # fraction of an object's pixels that no other object covers

CROWD_MEMBERS = (6, 10)
CROWD_MEMBER_SIZES = (8.0, 12.0)
CROWD_GRID = (4, 3)  # cells across and down
CROWD_CELL = 14.0  # holds the largest member, moved by up to one pixel, so that members never touch

_SUPERSAMPLING = 4
_PLACEMENT_ATTEMPTS = 20


@dataclass(frozen=True)
class _Shape:
    """One polygon and its paint."""

    polygon: np.ndarray  # (n, 2) vertices
    texture: str  # a key of TEXTURES
    colors: np.ndarray  # (2, 3) uint8, equal if solid
    band: float  # width of a band
    angle: float  # direction across the bands, in radians


@dataclass(frozen=True)
class Instance:
    """The content of one annotation: a shape, or the many shapes of a crowd."""

    category: int  # position in the vocabulary's class_names
    shapes: list[_Shape]
    mask: np.ndarray  # (height, width) bool, the pixels at least half covered
    is_crowd: bool


def sample_instances(
    rng: np.random.Generator,
    height: int,
    width: int,
    vocabulary: Vocabulary = SHAPES,
    max_objects: int = MAX_OBJECTS,
) -> list[Instance]:
    """Return the instances of one image in painting order. Instances without enough room are left out."""
    kind = rng.random()
    if kind < EMPTY_FRACTION:
        return []
    samplers = [_sample_object] * int(rng.integers(1, max_objects, endpoint=True))
    if kind < EMPTY_FRACTION + CROWD_FRACTION:
        samplers.insert(0, _sample_crowd)  # first, while the image has most room

    instances: list[Instance] = []
    for sampler in samplers:
        for _ in range(_PLACEMENT_ATTEMPTS):
            candidate = sampler(rng, height, width, vocabulary)
            if _overlap_is_moderate([*instances, candidate]):
                instances.append(candidate)
                break
    return instances


def _overlap_is_moderate(instances: list[Instance]) -> bool:
    """Return whether each instance has enough pixels to itself.

    Visible pixels are not enough: a small object on a large one of the same color cannot be told from it.
    """
    layers = np.sum([instance.mask for instance in instances], axis=0)
    return all((layers[instance.mask] == 1).mean() >= MIN_UNSHARED for instance in instances)


def _sample_object(rng: np.random.Generator, height: int, width: int, vocabulary: Vocabulary) -> Instance:
    """Return a single object of any class that lies within the image."""
    category = vocabulary.sample_class(rng)
    size = rng.uniform(*OBJECT_SIZES)
    center = rng.uniform(size / 2, np.array([width, height]) - size / 2)
    shape = _sample_shape(rng, vocabulary, category, center, size)
    return Instance(category, [shape], _mask([shape.polygon], height, width), is_crowd=False)


def _sample_crowd(rng: np.random.Generator, height: int, width: int, vocabulary: Vocabulary) -> Instance:
    """Return tiny shapes of one class on random cells of a grid that lies within the image."""
    category = vocabulary.sample_class(rng)
    columns, rows = CROWD_GRID
    origin = rng.uniform(0, np.array([width, height]) - CROWD_CELL * np.array(CROWD_GRID))
    members = rng.integers(*CROWD_MEMBERS, endpoint=True)
    shapes = []
    for cell in rng.choice(columns * rows, size=members, replace=False):
        row, column = divmod(int(cell), columns)
        center = origin + CROWD_CELL * np.array([column + 0.5, row + 0.5]) + rng.uniform(-1, 1, size=2)
        shapes.append(_sample_shape(rng, vocabulary, category, center, rng.uniform(*CROWD_MEMBER_SIZES)))
    mask = _mask([shape.polygon for shape in shapes], height, width)
    return Instance(category, shapes, mask, is_crowd=True)


def _sample_shape(
    rng: np.random.Generator, vocabulary: Vocabulary, category: int, center: np.ndarray, size: float
) -> _Shape:
    """Return a randomly rotated shape with jittered color. Its circumscribed circle has this diameter."""
    color_name, texture, outline = vocabulary.classes[category]
    angles, radii = vocabulary.outlines[outline].T
    angles = rng.uniform(0, 2 * np.pi) + angles
    polygon = center + size / 2 * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    color = np.clip(vocabulary.colors[color_name] + rng.uniform(-15, 15, size=3), 0, 255)
    other = color if texture == "solid" else 0.1 * color + 0.9 * 255
    return _Shape(
        polygon=polygon.round(2),  # so that the painted polygon is the annotated one
        texture=texture,
        colors=np.stack([color, other]).astype(np.uint8),
        band=min(rng.uniform(4, 5), size / 4),  # so that even the smallest shape shows some bands
        angle=rng.uniform(0, np.pi),
    )


def sample_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return (height, width, 3) uint8, a noisy gradient of grays that no object color resembles."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    ramp = x * np.cos(angle) + y * np.sin(angle)
    gray = rng.uniform(90, 150) + rng.uniform(0, 50) * ramp + rng.normal(0, 5, size=(height, width))
    tint = rng.uniform(-6, 6, size=3)
    return np.clip(gray[..., None] + tint, 0, 255).astype(np.uint8)


def render(background: np.ndarray, instances: Iterable[Instance]) -> Image.Image:
    """Paint the instances in order over a (height, width, 3) uint8 background, antialiased."""
    height, width, _ = background.shape
    canvas = background.repeat(_SUPERSAMPLING, axis=0).repeat(_SUPERSAMPLING, axis=1)
    for shape in itertools.chain.from_iterable(instance.shapes for instance in instances):
        y, x = np.nonzero(np.asarray(_draw([shape.polygon], height, width)))
        across = (x * np.cos(shape.angle) + y * np.sin(shape.angle)) / _SUPERSAMPLING
        along = (y * np.cos(shape.angle) - x * np.sin(shape.angle)) / _SUPERSAMPLING
        canvas[y, x] = shape.colors[TEXTURES[shape.texture](across / shape.band, along / shape.band)]
    return Image.fromarray(canvas).reduce(_SUPERSAMPLING)


def draw_scene(
    rng: np.random.Generator,
    height: int,
    width: int,
    vocabulary: Vocabulary = SHAPES,
    max_objects: int = MAX_OBJECTS,
) -> tuple[list[Instance], Image.Image]:
    """Return the instances of :func:`sample_instances`, and their image on a background."""
    instances = sample_instances(rng, height, width, vocabulary, max_objects)
    return instances, render(sample_background(rng, height, width), instances)


def _mask(polygons: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return (height, width) bool, the pixels at least half covered by (n, 2) polygons."""
    return np.asarray(_draw(polygons, height, width).reduce(_SUPERSAMPLING)) >= 128


def _draw(polygons: Iterable[np.ndarray], height: int, width: int) -> Image.Image:
    """Return a supersampled image of (n, 2) polygons in 255 on 0."""
    image = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        # Pillow counts from the center of the first pixel, COCO from its corner.
        draw.polygon((polygon * _SUPERSAMPLING - 0.5).ravel().tolist(), fill=255)
    return image
