"""Generated images of shapes with captions, to pretrain a CLIP on."""

import csv
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..utils.atomic import atomic_dir
from .scene import draw_scene
from .vocabulary import SHAPES_192, Vocabulary, biased

_SENTENCES = ("{}", "{}.", "a picture of {}", "an image of {}", "there is {} here", "{} on a grey background")
_JOINTS = (" and ", ", ", " with ", " beside ", " next to ")
_NOTHING = ("nothing", "a grey background")
ALIKE = 16  # neighboring pairs with the same sentence and favored classes
_WHOLE_FRACTION = 0.9  # of the captions, those with all attributes of an object
_MAX_OBJECTS = 3


class ImageCaptionPairs(Dataset):
    """Generated images with captions that name some or all objects, in varying words and order.

    Some captions leave out colors or textures. :data:`ALIKE` neighbors have the same sentence, the same
    maximal number of objects, and mostly objects of the same color and texture, so that outlines tell them
    apart. If all pairs differed, color and texture would identify nearly every image of a batch, and the text
    encoder would not learn outlines. A pair depends on the seed and its index, not on the number of pairs.
    """

    def __init__(self, num_pairs: int, *, seed: int, side: int = 96, vocabulary: Vocabulary = SHAPES_192):
        """
        Args:
            side: of the square images, in pixels.
            vocabulary: the vocabulary.

        Raises:
            ValueError: no pairs, a negative seed, or images too small for objects.
        """
        if num_pairs < 1 or seed < 0 or side < 64:
            raise ValueError(
                f"num_pairs={num_pairs}, seed={seed}, side={side}: at least 1 pair, a seed of at least 0 and "
                "64 pixels are needed."
            )
        self.num_pairs, self.seed, self.side, self.vocabulary = num_pairs, seed, side, vocabulary

    def __len__(self) -> int:
        return self.num_pairs

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        """Return an RGB image and its caption."""
        if not 0 <= index < self.num_pairs:
            raise IndexError(index)  # ends a loop over the pairs
        rng = np.random.default_rng([self.seed, index])
        vocabulary, sentence, max_objects = _shared_by_neighbors(self.vocabulary, self.seed, index // ALIKE)
        instances, image = draw_scene(rng, self.side, self.side, vocabulary, max_objects)
        names = [self.vocabulary.class_names[instance.category] for instance in instances]
        return image, caption(rng, names, sentence)


@lru_cache(maxsize=1)  # neighbors are read in order
def _shared_by_neighbors(vocabulary: Vocabulary, seed: int, group: int) -> tuple[Vocabulary, str, int]:
    """Return the vocabulary, the sentence and the maximal number of objects of a group of neighbors."""
    rng = np.random.default_rng([seed, group, 0])
    return biased(vocabulary, rng), str(rng.choice(_SENTENCES)), int(rng.choice([1, _MAX_OBJECTS]))


def caption(rng: np.random.Generator, names: Sequence[str], sentence: str) -> str:
    """Return the sentence with some or all of the names, in random order, in place of ``{}``."""
    if not names:
        return str(rng.choice(_NOTHING))
    named = rng.permutation(list(names))[: rng.integers(1, len(names), endpoint=True)].tolist()
    if rng.random() >= _WHOLE_FRACTION:
        named = [_with_fewer_words(rng, name) for name in named]
    words = [with_article(name) for name in named]
    listed = words[0] + "".join(str(rng.choice(_JOINTS)) + word for word in words[1:])
    return sentence.format(listed)


def _with_fewer_words(rng: np.random.Generator, name: str) -> str:
    """Return a name without some of its words. The last word stays."""
    *attributes, noun = name.split()
    return " ".join([*(word for word in attributes if rng.random() < 0.5), noun])


def with_article(name: str) -> str:
    """Return a name with its article: "an orange solid star"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def write_pairs(pairs: ImageCaptionPairs, root: Path) -> None:
    """Write ``root/images/*.png`` and ``root/captions.tsv``, the table for open_clip's trainer, atomically.

    The columns are ``filepath``, relative to ``root``, and ``title``, separated by a tab.

    Raises:
        FileExistsError: ``root`` exists.
    """
    root = root.resolve()
    if root.exists():
        raise FileExistsError(f"{root} exists: delete it or choose another directory")
    with atomic_dir(root) as partial:
        (partial / "images").mkdir()
        with (partial / "captions.tsv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, delimiter="\t")
            table.writerow(["filepath", "title"])
            for index in range(len(pairs)):
                (image, title), path = pairs[index], f"images/{index:08d}.png"
                image.save(partial / path)
                table.writerow([path, title])
