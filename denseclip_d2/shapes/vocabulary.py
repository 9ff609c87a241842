"""The vocabularies of generated shapes: colors, textures, outlines and class frequencies."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

BACKGROUND = "background"  # the class of pixels without objects
FAVORED_FRACTION = 0.8  # of the objects, in a vocabulary with favored classes


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Objects with a color, a texture and an outline. Every combination is a class.

    Attributes:
        name: prefix of the datasets' names: "<name>_train" and so on.
        colors: RGB by name.
        textures: keys of ``scene.TEXTURES``.
        outlines: (n, 2) vertices by name: angle, and distance from the center in radii of the object.
        num_held_out: number of unseen classes, which "<name>_seen_train" and so on do not label.
        tail: s, for class frequencies proportional to rank^-s; 0 makes all classes equally frequent.
        favored: positions of the classes that share :data:`FAVORED_FRACTION` of the objects.
    """

    name: str
    colors: Mapping[str, tuple[int, int, int]]
    textures: tuple[str, ...]
    outlines: Mapping[str, np.ndarray]
    tail: float = 0.0
    num_held_out: int = 0
    favored: tuple[int, ...] = ()

    @cached_property
    def classes(self) -> tuple[tuple[str, str, str], ...]:
        """Color, texture and outline of each class. The outline varies fastest."""
        return tuple(itertools.product(self.colors, self.textures, self.outlines))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names such as "red striped circle". A COCO category id is the position plus one."""
        return tuple(" ".join(words) for words in self.classes)

    @cached_property
    def semantic_class_names(self) -> tuple[str, ...]:
        """The classes of the label images."""
        return (*self.class_names, BACKGROUND)

    @cached_property
    def frequencies(self) -> np.ndarray:
        """Each class's fraction of the objects. A fixed random permutation decides which classes are rare."""
        weights = np.arange(1, len(self.classes) + 1) ** -self.tail
        ranks = np.random.default_rng(len(self.classes)).permutation(len(self.classes))
        usual = weights[ranks] / weights.sum()
        if not self.favored:
            return usual
        favor = np.isin(np.arange(len(usual)), self.favored) / len(self.favored)
        return FAVORED_FRACTION * favor + (1 - FAVORED_FRACTION) * usual

    @cached_property
    def held_out(self) -> tuple[str, ...]:
        """The unseen classes, chosen at random: captions describe them, and no label does."""
        chosen = np.random.default_rng([len(self.classes), 1]).permutation(len(self.classes))
        return tuple(self.class_names[i] for i in sorted(chosen[: self.num_held_out]))

    @cached_property
    def seen_class_names(self) -> tuple[str, ...]:
        """The classes that are not held out."""
        return tuple(name for name in self.class_names if name not in self.held_out)

    def sample_class(self, rng: np.random.Generator) -> int:
        """Return the position of a random class."""
        if self.tail == 0 and not self.favored:
            return int(rng.integers(len(self.classes)))
        return int(rng.choice(len(self.classes), p=self.frequencies))


def biased(vocabulary: Vocabulary, rng: np.random.Generator) -> Vocabulary:
    """Return the vocabulary with one random color and texture favored."""
    color, texture = rng.choice(list(vocabulary.colors)), rng.choice(vocabulary.textures)
    favored = tuple(i for i, (c, t, _) in enumerate(vocabulary.classes) if (c, t) == (color, texture))
    return replace(vocabulary, favored=favored)


def _regular(corners: int) -> np.ndarray:
    return np.stack([2 * np.pi * np.arange(corners) / corners, np.ones(corners)], axis=1)


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    """Return the outline of a polygon of (x, y), scaled into the unit circle."""
    x, y = np.array(points).T
    distance = np.hypot(x, y)
    return np.stack([np.arctan2(y, x), distance / distance.max()], axis=1)


_STAR = _regular(10) * np.array([[1.0, 1.0], [1.0, 0.45]] * 5)
_BAR = _polygon((3, 1), (-3, 1), (-3, -1), (3, -1))
_CROSS = _polygon(
    (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1), (-1, -3), (1, -3), (1, -1), (3, -1)
)  # fmt: skip

SHAPES = Vocabulary(
    "shapes",
    colors={"red": (205, 35, 35), "green": (30, 155, 50), "blue": (40, 70, 215)},
    textures=("solid", "striped"),
    outlines={"circle": _regular(32), "square": _regular(4), "triangle": _regular(3)},
)
"""18 classes, equally frequent."""

SHAPES_192 = Vocabulary(
    "shapes192",
    colors={
        **SHAPES.colors, "yellow": (235, 205, 40), "purple": (125, 40, 165), "orange": (240, 125, 25),
        "cyan": (50, 190, 205), "black": (20, 20, 20),
    },
    textures=(*SHAPES.textures, "checked", "dotted"),
    outlines={**SHAPES.outlines, "star": _STAR, "cross": _CROSS, "bar": _BAR},
    tail=0.7,
    num_held_out=24,
)  # fmt: skip
"""192 classes with the 18 of :data:`SHAPES`. The most frequent is 40 times as frequent as the rarest.

24 classes are unseen. Each of their words occurs in a seen class.
"""

VOCABULARIES = {vocabulary.name: vocabulary for vocabulary in (SHAPES, SHAPES_192)}
