import csv
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from denseclip_d2.shapes.captions import ALIKE, ImageCaptionPairs, caption, write_pairs
from denseclip_d2.shapes.vocabulary import SHAPES, SHAPES_192


def test_pairs_depend_on_the_seed_and_not_on_their_number():
    few, many = ImageCaptionPairs(3, seed=5), ImageCaptionPairs(20, seed=5)
    other = ImageCaptionPairs(3, seed=6)
    for i in range(3):
        assert few[i][1] == many[i][1]
        assert few[i][0].tobytes() == many[i][0].tobytes()
        assert few[i][0].tobytes() != other[i][0].tobytes()
    assert len([*few]) == 3


def test_captions_name_only_objects_of_the_image():
    pairs = ImageCaptionPairs(60, seed=0, side=96, vocabulary=SHAPES)
    captions = [title for _, title in pairs]
    named = [[word for word in SHAPES.outlines if word in title] for title in captions]
    assert max(map(len, named)) > 1
    assert sum(not names for names in named) < 10  # images without objects
    for image, title in (pairs[i] for i in range(10)):
        colors = {word for word in SHAPES.colors if word in title}
        pixels = np.asarray(image).reshape(-1, 3).astype(int)
        for word in colors:
            assert (np.abs(pixels - SHAPES.colors[word]).max(axis=1) < 30).any()


def test_neighbors_share_color_and_texture():
    pairs = ImageCaptionPairs(2 * ALIKE, seed=0)
    commonest = []
    for start in (0, ALIKE):
        titles = [pairs[start + i][1] for i in range(ALIKE)]
        words = Counter(word for title in titles for word in set(title.split()))
        color = max(SHAPES_192.colors, key=lambda word: words[word])
        texture = max(SHAPES_192.textures, key=lambda word: words[word])
        assert min(words[color], words[texture]) > ALIKE / 2
        assert max(words[outline] for outline in SHAPES_192.outlines) < words[texture]
        commonest.append((color, texture))
    assert commonest[0] != commonest[1]


def test_neighbors_share_sentence_and_number_of_objects():
    pairs = ImageCaptionPairs(12 * ALIKE, seed=0)
    titles = [title for _, title in pairs]
    beginnings, several = [], []
    for start in range(0, len(titles), ALIKE):
        named = [x for x in titles[start : start + ALIKE] if any(word in x for word in SHAPES_192.outlines)]
        beginnings.append({re.split(r"\ban? (?!picture|image)", title)[0] for title in named})
        several.append(sum(len(re.findall("|".join(SHAPES_192.outlines), title)) > 1 for title in named))
    assert all(len(found) == 1 for found in beginnings)
    assert len(set.union(*beginnings)) > 2
    assert min(several) <= 2  # a crowd may be beside a single object
    assert max(several) >= ALIKE / 3


def test_captions_vary_in_wording_order_and_number():
    rng = np.random.default_rng(0)
    names = ["red solid circle", "orange dotted star"]
    captions = {caption(rng, names, "there is {}") for _ in range(3000)}
    assert len(captions) > 60
    assert all(title.startswith("there is ") for title in captions)
    captions = {title.removeprefix("there is ") for title in captions}
    assert {
        "a red solid circle",
        "an orange dotted star",
        "a circle",
        "a red circle",
        "a dotted star",
    } <= captions
    orders = {
        title.find("red") < title.find("orange") for title in captions if "red" in title and "orange" in title
    }
    assert orders == {True, False}
    assert caption(rng, [], "{}") in ("nothing", "a grey background")


def test_the_table_fits_open_clips_trainer(tmp_path):
    pairs = ImageCaptionPairs(4, seed=1, vocabulary=SHAPES_192)
    write_pairs(pairs, tmp_path / "pairs")
    with (tmp_path / "pairs" / "captions.tsv").open(newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t")]
    assert [row["title"] for row in rows] == [title for _, title in pairs]
    for row, (image, _) in zip(rows, pairs, strict=True):
        assert np.array_equal(Image.open(tmp_path / "pairs" / row["filepath"]), image)
    with pytest.raises(FileExistsError, match="delete it"):
        write_pairs(pairs, tmp_path / "pairs")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


@pytest.mark.parametrize("kwargs", [{"num_pairs": 0}, {"seed": -1}, {"side": 32}])
def test_invalid_arguments_are_refused(kwargs):
    with pytest.raises(ValueError, match="at least 1 pair"):
        ImageCaptionPairs(**{"num_pairs": 1, "seed": 0, **kwargs})
