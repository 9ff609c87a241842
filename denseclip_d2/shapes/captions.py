"""Pictures of shapes with captions, to pre-train a CLIP on."""

import csv
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..utils.atomic import atomic_dir
from .scene import draw_scene
from .vocabulary import SHAPES_192, World, leaning

_SENTENCES = ("{}", "{}.", "a picture of {}", "an image of {}", "there is {} here", "{} on a grey background")
_JOINTS = (" and ", ", ", " with ", " beside ", " next to ")
_NOTHING = ("nothing", "a grey background")
ALIKE = 16
_WHOLE_FRACTION = 0.9  # of the captions, that say all there is to say of an object
_MAX_OBJECTS = 3


class ImageCaptionPairs(Dataset):
    """Generated pictures with captions that vary in wording and in order, and name some or all objects.

    Some captions leave out colors or textures. :data:`ALIKE` neighbors are one kind of picture: of single
    objects or of several, said in the same sentence, and most objects have the same color and texture, so
    that outlines tell them apart. Where all differ, color and texture tell nearly every picture of a batch
    from the others, and a text encoder comes to take outlines for the same. The same seed gives the same
    pairs, however many there are; another seed gives others.
    """

    def __init__(self, num_pairs: int, *, seed: int, side: int = 96, world: World = SHAPES_192):
        """
        Args:
            num_pairs: how many.
            seed: non-negative.
            side: of the square pictures, in pixels.
            world: the colors, textures and outlines there are.

        Raises:
            ValueError: no pairs, a negative seed, or pictures too small for objects.
        """
        if num_pairs < 1 or seed < 0 or side < 64:
            raise ValueError(
                f"{num_pairs} pairs of seed {seed}, {side} pixels wide: at least 1 pair, a seed of at least "
                "0 and 64 pixels are needed."
            )
        self.num_pairs, self.seed, self.side, self.world = num_pairs, seed, side, world

    def __len__(self) -> int:
        return self.num_pairs

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        """A picture, RGB, and its caption."""
        if not 0 <= index < self.num_pairs:
            raise IndexError(index)  # which ends a loop over the pairs
        rng = np.random.default_rng([self.seed, index])
        world, sentence, max_objects = _shared_by_neighbors(self.world, self.seed, index // ALIKE)
        instances, image = draw_scene(rng, self.side, self.side, world, max_objects)
        names = [self.world.class_names[instance.category] for instance in instances]
        return image, caption(rng, names, sentence)


@lru_cache(maxsize=1)  # of pictures in order, all but the first have it
def _shared_by_neighbors(world: World, seed: int, group: int) -> tuple[World, str, int]:
    """The world that pictures are of, the sentence about them, and how many objects at most."""
    rng = np.random.default_rng([seed, group, 0])
    return leaning(world, rng), str(rng.choice(_SENTENCES)), int(rng.choice([1, _MAX_OBJECTS]))


def caption(rng: np.random.Generator, names: Sequence[str], sentence: str) -> str:
    """Some or all of the objects of these names, in any order, in a sentence that has ``{}`` for them."""
    if not names:
        return str(rng.choice(_NOTHING))
    named = rng.permutation(list(names))[: rng.integers(1, len(names), endpoint=True)].tolist()
    if rng.random() >= _WHOLE_FRACTION:
        named = [_with_fewer_words(rng, name) for name in named]
    words = [with_article(name) for name in named]
    listed = words[0]
    for word in words[1:]:
        listed += str(rng.choice(_JOINTS)) + word
    return sentence.format(listed)


def _with_fewer_words(rng: np.random.Generator, name: str) -> str:
    """A name without some of the words before its last."""
    *attributes, noun = name.split()
    return " ".join([*(word for word in attributes if rng.random() < 0.5), noun])


def with_article(name: str) -> str:
    """Such as "an orange solid star"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def write_pairs(pairs: ImageCaptionPairs, root: Path) -> None:
    """Writes ``root/images/*.png`` and ``root/captions.tsv``, the table that open_clip's trainer reads.

    Its columns are ``filepath``, from ``root``, and ``title``, with a tab between them. ``root`` appears when
    all is written.

    Raises:
        FileExistsError: ``root`` exists.
    """
    root = root.resolve()
    if root.exists():
        raise FileExistsError(f"{root} exists: delete it or choose another directory")
    with (
        atomic_dir(root) as partial,
        (partial / "captions.tsv").open("w", newline="", encoding="utf-8") as file,
    ):
        (partial / "images").mkdir()
        table = csv.writer(file, delimiter="\t")
        table.writerow(["filepath", "title"])
        for index in range(len(pairs)):
            (image, title), path = pairs[index], f"images/{index:08d}.png"
            image.save(partial / path)
            table.writerow([path, title])
