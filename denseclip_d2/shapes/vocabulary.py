"""The worlds of generated shapes: what colors, textures and outlines there are, and how often."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np

BACKGROUND = "background"  # the class of pixels without objects


@dataclass(frozen=True, eq=False)
class World:
    """Objects that are a color, a texture and an outline, of which every combination is a class.

    Attributes:
        name: what its datasets are called: "<name>_train" and so on.
        colors: RGB by name.
        textures: of ``shapes_scene.TEXTURES``.
        outlines: vertices by name, (n, 2): angle, and distance from the middle in radii of the object.
        num_held_out: how many classes the datasets "<name>_seen_train" and so on have no labels of.
        tail: 0 for classes that are equally frequent; s for frequencies of 1, 2^-s, 3^-s, ...
    """

    name: str
    colors: Mapping[str, tuple[int, int, int]]
    textures: tuple[str, ...]
    outlines: Mapping[str, np.ndarray]
    tail: float = field(default=0.0)
    num_held_out: int = 0

    @cached_property
    def classes(self) -> tuple[tuple[str, str, str], ...]:
        """Color, texture and outline of each class; the outline varies fastest."""
        return tuple(itertools.product(self.colors, self.textures, self.outlines))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Such as "red striped circle"; COCO category ids are the positions plus one."""
        return tuple(" ".join(words) for words in self.classes)

    @cached_property
    def semantic_class_names(self) -> tuple[str, ...]:
        """The classes of the label images."""
        return (*self.class_names, BACKGROUND)

    @cached_property
    def frequencies(self) -> np.ndarray:
        """Part of the objects that each class has. Which classes are rare is drawn by lot."""
        weights = np.arange(1, len(self.classes) + 1) ** -self.tail
        ranks = np.random.default_rng(len(self.classes)).permutation(len(self.classes))
        return weights[ranks] / weights.sum()

    @cached_property
    def held_out(self) -> tuple[str, ...]:
        """Classes drawn by lot to be described by captions and never labeled."""
        chosen = np.random.default_rng([len(self.classes), 1]).permutation(len(self.classes))
        return tuple(self.class_names[i] for i in sorted(chosen[: self.num_held_out]))

    @cached_property
    def seen_class_names(self) -> tuple[str, ...]:
        """The classes but for those held out."""
        return tuple(name for name in self.class_names if name not in self.held_out)

    def sample_class(self, rng: np.random.Generator) -> int:
        """The position of a random class."""
        if self.tail == 0:
            return int(rng.integers(len(self.classes)))
        return int(rng.choice(len(self.classes), p=self.frequencies))


@dataclass(frozen=True, eq=False)
class LeaningWorld(World):
    """A world most of whose objects are of some classes, all equally frequent.

    Attributes:
        favored: positions of these classes.
        part: of the objects that they have, beside what they would have.
    """

    favored: tuple[int, ...] = ()
    part: float = 0.8

    @cached_property
    def frequencies(self) -> np.ndarray:
        usual = super().frequencies
        favor = np.isin(np.arange(len(usual)), self.favored) / len(self.favored)
        return self.part * favor + (1 - self.part) * usual

    def sample_class(self, rng: np.random.Generator) -> int:
        return int(rng.choice(len(self.classes), p=self.frequencies))


def leaning(world: World, rng: np.random.Generator) -> LeaningWorld:
    """The world with a color and a texture, drawn by lot, that most objects have."""
    color, texture = rng.choice(list(world.colors)), rng.choice(world.textures)
    favored = tuple(i for i, (c, t, _) in enumerate(world.classes) if (c, t) == (color, texture))
    values = {f.name: getattr(world, f.name) for f in fields(world)}
    return LeaningWorld(**values, favored=favored)


def _regular(corners: int) -> np.ndarray:
    return np.stack([2 * np.pi * np.arange(corners) / corners, np.ones(corners)], axis=1)


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    """A polygon of (x, y), as large as the unit circle around it allows."""
    x, y = np.array(points).T
    distance = np.hypot(x, y)
    return np.stack([np.arctan2(y, x), distance / distance.max()], axis=1)


_STAR = _regular(10) * np.array([[1.0, 1.0], [1.0, 0.45]] * 5)
_BAR = _polygon((3, 1), (-3, 1), (-3, -1), (3, -1))
_CROSS = _polygon(
    (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1), (-1, -3), (1, -3), (1, -1), (3, -1)
)  # fmt: skip

SHAPES = World(
    "shapes",
    colors={"red": (205, 35, 35), "green": (30, 155, 50), "blue": (40, 70, 215)},
    textures=("solid", "striped"),
    outlines={"circle": _regular(32), "square": _regular(4), "triangle": _regular(3)},
)
"""18 classes, equally frequent."""

SHAPES_192 = World(
    "shapes192",
    colors={
        **SHAPES.colors,
        "yellow": (235, 205, 40),
        "purple": (125, 40, 165),
        "orange": (240, 125, 25),
        "cyan": (50, 190, 205),
        "black": (20, 20, 20),
    },  # fmt: skip
    textures=(*SHAPES.textures, "checked", "dotted"),
    outlines={**SHAPES.outlines, "star": _STAR, "cross": _CROSS, "bar": _BAR},
    tail=0.7,
    num_held_out=24,
)
"""192 classes, the 18 of :data:`SHAPES` among them; the commonest is 40 times as frequent as the rarest.

Of 24 the datasets "shapes192_seen_*" have no labels; each of their words is in others.
"""

WORLDS = {world.name: world for world in (SHAPES, SHAPES_192)}
