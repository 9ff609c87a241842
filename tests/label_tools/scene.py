"""The scene that every label tool was given: four images, four classes and five objects."""

from dataclasses import dataclass

import numpy as np

CLASSES = ("wheelbarrow", "hedge", "garden gnome", "cat")  # not in alphabetical order; "hedge" has no object
IMAGES = tuple(f"garden_{i}.png" for i in (1, 2, 3, 4))  # the last one has no object
WIDTH, HEIGHT = 64, 48


@dataclass(frozen=True)
class Object:
    """A box, a polygon or a mask.

    Attributes:
        key: what the tests call the object.
        image: file name of its image.
        label: name of its class.
        box: x, y, width, height, in pixels; for a polygon or a mask its tight box.
        polygon: x and y of each corner in turn; empty where the object is no polygon.
        filled, holes: rectangles x0, y0, x1, y1 in whole pixels that make the mask; empty without a mask.
        crowd: whether the mask stands for many objects.
    """

    key: str
    image: str
    label: str
    box: tuple[float, float, float, float]
    polygon: tuple[float, ...] = ()
    filled: tuple[tuple[int, int, int, int], ...] = ()
    holes: tuple[tuple[int, int, int, int], ...] = ()
    crowd: bool = False

    @property
    def class_id(self) -> int:
        """Return the index of the class in ``CLASSES``."""
        return CLASSES.index(self.label)

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """Return the box as x0, y0, x1, y1."""
        x, y, width, height = self.box
        return x, y, x + width, y + height

    @property
    def points(self) -> list[tuple[float, float]]:
        """Return the corners of the polygon, or of the box where there is none."""
        if self.polygon:
            return list(zip(self.polygon[::2], self.polygon[1::2], strict=True))
        return outline(self.corners)

    def mask(self) -> np.ndarray:
        """Return the mask, (H, W) of bool."""
        mask = np.zeros((HEIGHT, WIDTH), bool)
        for rectangles, value in ((self.filled, True), (self.holes, False)):
            for x0, y0, x1, y1 in rectangles:
                mask[y0:y1, x0:x1] = value
        return mask


OBJECTS = (
    Object("barrow", "garden_1.png", "wheelbarrow", (4.25, 6.5, 20.5, 15.75)),
    Object("gnome", "garden_1.png", "garden gnome", (34.5, 10.25, 12.25, 24.5)),
    Object(
        "cat",
        "garden_2.png",
        "cat",
        (10.5, 8.25, 30.0, 30.25),
        polygon=(10.5, 8.25, 40.5, 8.25, 40.5, 30.75, 25.25, 38.5, 10.5, 30.75),
    ),
    Object(
        "ring",
        "garden_3.png",
        "garden gnome",
        (8.0, 6.0, 32.0, 32.0),
        filled=((8, 6, 40, 38),),
        holes=((18, 16, 30, 28),),
    ),
    Object(
        "barrows",
        "garden_3.png",
        "wheelbarrow",
        (44.0, 4.0, 16.0, 40.0),
        filled=((44, 4, 60, 20), (44, 28, 60, 44)),
        crowd=True,
    ),
)


def outline(corners: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """Return the four points of the rectangle x0, y0, x1, y1."""
    x0, y0, x1, y1 = corners
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def objects_of(image: str) -> list[Object]:
    """Return the objects of one image."""
    return [each for each in OBJECTS if each.image == image]
