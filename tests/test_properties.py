"""Properties for any input, on examples by hypothesis. The examples are the same each time.

``HYPOTHESIS_PROFILE=search pytest tests/test_properties.py`` tries other and more examples.
"""

import copy
import math
import operator
import os
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_util

from denseclip_d2.config import rules
from denseclip_d2.data.coco_annotation import Changes, normalize_annotation
from denseclip_d2.data.coco_masks import mask_area, mask_box, normalize_mask
from denseclip_d2.data.transforms import ResizeShortestEdge
from denseclip_d2.data.yolo import read_labels
from denseclip_d2.export.resize import fitted_size
from denseclip_d2.export.sizes import LARGEST, longer_halves, shorter_halves
from denseclip_d2.language.prefix_tree import build_prefix_tree
from denseclip_d2.language.text_encoder import CLIPTextEncoder

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("search", max_examples=1000, deadline=None, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

sides = st.integers(1, 4000)


@settings(max_examples=25)
@given(
    shortest=st.integers(1, 300),
    longest=st.integers(1, 1000),
    sizes=st.lists(st.tuples(*[st.integers(1, LARGEST)] * 2), min_size=1, max_size=50),
)
def test_exported_integers_give_detectron2s_sizes(shortest, longest, sizes):
    hard = np.concatenate([f(shortest, longest, LARGEST)[::97] for f in (longer_halves, shorter_halves)])
    sizes = [*sizes, *map(tuple, hard.tolist()), *map(tuple, hard[:, ::-1].tolist())]
    expected = [ResizeShortestEdge.get_output_shape(*size, shortest, longest) for size in sizes]
    assert fitted_size(torch.tensor(sizes), shortest, longest).tolist() == [*map(list, expected)]


@given(height=sides, width=sides, shortest=sides, longest=sides)
def test_a_resized_image_keeps_its_form_within_a_pixel(height, width, shortest, longest):
    new_height, new_width = ResizeShortestEdge.get_output_shape(height, width, shortest, longest)
    low, high = sorted((new_height, new_width))
    assert low >= 1 and high <= max(longest, shortest)
    if high < longest:
        assert low == shortest
    scale = new_height / height if height > width else new_width / width  # of the longer side
    assert abs(new_height - height * scale) <= 1 + scale and abs(new_width - width * scale) <= 1 + scale
    theirs = T.ResizeShortestEdge.get_output_shape(height, width, shortest, longest)
    assert (new_height, new_width) == tuple(max(side, 1) for side in theirs)


numbers = st.integers(-5000, 5000) | st.floats(-5000, 5000)


def normalized(annotation: dict, image: dict) -> tuple[dict | None, Changes]:
    """Return the annotation, or None if it is left out, and the changes."""
    annotation, changes = copy.deepcopy(annotation), Changes()
    kept = normalize_annotation(annotation, image, "annotation 1", changes)
    return annotation if kept else None, changes


@given(box=st.lists(numbers, min_size=4, max_size=4), height=sides, width=sides)
def test_a_box_is_cut_at_the_edges_left_out_or_refused(box, height, width):
    x, y, w, h = box
    annotation = {"bbox": box, "iscrowd": 0, "segmentation": []}
    if min(w, h) < 0:
        with pytest.raises(ValueError, match="negative width or height"):
            normalized(annotation, {"height": height, "width": width})
        return
    once, changes = normalized(annotation, {"height": height, "width": width})
    inside = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
    if once is None:
        assert min(inside) <= 0 and changes
        return
    x1, y1, new_w, new_h = once["bbox"]
    assert min(x1, y1) >= -1 and min(new_w, new_h) >= 0
    assert x1 + new_w <= width + 1 and y1 + new_h <= height + 1
    if once["bbox"] != box:  # the part inside the image
        assert (new_w, new_h) == inside
    twice, changes = normalized(once, {"height": height, "width": width})
    assert twice == once and "bbox" not in str(changes)


@given(
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    size=st.tuples(sides, sides),
    class_=st.integers(0, 9),
)
def test_a_box_of_fractions_comes_back_in_pixels(corners, size, class_, tmp_path_factory):
    x1, x2, y1, y2 = *sorted(corners[:2]), *sorted(corners[2:])
    file = tmp_path_factory.getbasetemp() / "box.txt"
    file.write_text(f"{class_} {(x1 + x2) / 2:.9f} {(y1 + y2) / 2:.9f} {x2 - x1:.9f} {y2 - y1:.9f}\n")
    (found,) = read_labels(file, size, 10, 0)
    width, height = size
    expected = [x1 * width, y1 * height, x2 * width, y2 * height]
    np.testing.assert_allclose(found.corners, expected, rtol=0, atol=1e-4)
    assert found.class_index == class_ and min(found.corners) >= 0
    assert found.corners[2] <= width and found.corners[3] <= height


masks = arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(masks)
def test_a_mask_of_pycocotools_is_read_and_measured(mask):
    height, width = mask.shape
    rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    assert normalize_mask(segmentation, height, width) == (segmentation, "")
    assert mask_area(segmentation, height, width) == mask.sum()
    assert mask_box(segmentation, height, width) == mask_util.toBbox(rle).tolist()
    for wrong in ((height + 1, width), (height, width + 1)):
        assert normalize_mask(segmentation, *wrong)[1].startswith("the RLE has")


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.integers(1, 10**4))
def test_the_runs_of_an_rle_are_counted_whether_compressed_or_not(runs, more):
    total = sum(runs) + more  # the last run: not empty
    size = [1, total]
    compressed = mask_util.frPyObjects({"size": size, "counts": [*runs, more]}, *size)
    for counts in ([*runs, more], compressed["counts"], compressed["counts"].decode()):
        segmentation = {"size": size, "counts": counts}
        assert normalize_mask(segmentation, *size) == (segmentation, "")
        longer = {"size": [1, total + 1], "counts": counts}
        assert normalize_mask(longer, 1, total + 1)[1] == (
            f"the runs of the RLE cover {total} pixels, the image has {total + 1}"
        )


START, END = 98, 99
names = st.lists(st.lists(st.integers(1, 5), max_size=6), min_size=1, max_size=12)


def token_ids(names: list[list[int]]) -> torch.Tensor:
    rows = [torch.tensor([START, *name, END]) for name in names]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@given(names, st.integers(0, 3), st.integers(1, 60))
def test_packed_prompts_share_each_prefix_once_and_see_their_own_alone(names, n_ctx, max_tokens):
    contexts = [-1 - i for i in range(n_ctx)]
    expected = [[START, *contexts, *name, END] for name in names]
    packs = build_prefix_tree(token_ids(names), n_ctx, max_tokens)
    found = []
    for pack in packs:
        first = len(found)
        for end in pack.ends.tolist():
            seen = (pack.mask[end] == 0).nonzero().flatten().tolist()
            assert pack.positions[seen].tolist() == [*range(len(seen))]
            for before, place in pairwise(seen):  # a token attends to itself and earlier ones
                assert (pack.mask[before] == 0).nonzero().flatten().tolist() == seen[: seen.index(place)]
            found.append(pack.ids[seen].tolist())
        prefixes = {tuple(p[: i + 1]) for p in found[first:] for i in range(len(p))}
        assert len(pack.ids) == len(prefixes)
        assert len(pack.ids) <= max_tokens or len(pack.ends) == 1
    assert found == expected


@settings(max_examples=10)
@given(names, st.integers(0, 3))
def test_packed_prompts_have_the_embeddings_of_prompts_alone(names, n_ctx):
    torch.manual_seed(0)
    encoder = CLIPTextEncoder(context_length=12, vocab_size=100, width=16, heads=2, layers=2, output_dim=8)
    contexts = torch.randn(2, n_ctx, 16) if n_ctx else None
    ids = token_ids(names)
    torch.testing.assert_close(
        encoder(ids, contexts), encoder.encode_unpacked(ids, contexts), atol=1e-5, rtol=1e-4
    )


BOUNDS = {"of at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


def follows(words: str, value: object) -> bool:
    """Return whether a value satisfies the text of a rule."""
    if match := re.fullmatch(r"(a list|\d+ values), each (.*)", words):
        count = None if match[1] == "a list" else int(match[1].split()[0])
        return (
            isinstance(value, list | tuple)
            and count in (None, len(value))
            and all(follows(match[2], x) for x in value)
        )
    if words.startswith("one of "):
        return isinstance(value, str) and value in re.findall(r"'([^']*)'", words)
    if words == "True or False":
        return value is True or value is False
    if " or " in words:
        return any(follows(part, value) for part in words.split(" or ", 1))
    if words == "a string":
        return isinstance(value, str)
    if words.startswith("a sentence with {}"):
        return isinstance(value, str) and value.count("{}") == value.count("{") == 1
    kind, *bounds = re.split(r" (?:and )?(?=of at least|above|at most|below)", words)
    types = {"a whole number": int, "a number": int | float}[kind]
    if not isinstance(value, types) or isinstance(value, bool) or not math.isfinite(value):
        return False
    return all(BOUNDS[word](value, float(limit)) for word, limit in (x.rsplit(" ", 1) for x in bounds))


strings = ["", "box", "GN", "SGD", "RGB", "bfloat16", "a {}.", "{} {}", "{0} {}", "{"]
scalars = (
    st.sampled_from([True, False, None, math.inf, -math.inf, math.nan, *strings])
    | st.integers(-3, 7)
    | st.floats(-1, 2)
)
values = scalars | st.lists(scalars, max_size=3) | st.lists(scalars, max_size=3).map(tuple)
RULES = {rule.words: rule for rule in rules.RULES.values() if rule != rules.DEVICE}


@settings(max_examples=300)
@given(values)
def test_a_rule_accepts_what_its_words_say(value):
    for words, rule in RULES.items():
        assert bool(rule.accepts(value)) == follows(words, value), words


@given(st.integers(-9, 9), st.integers(-9, 9), st.booleans(), st.booleans(), st.integers(-10, 10))
def test_bounds_are_in_or_out_as_the_words_say(low, high, above, below, value):
    for rule in (
        rules.whole(low, high),
        rules.whole(low),
        rules.number(low, high, above=above, below=below),
        rules.number(high=high, below=below),
        rules.each(rules.whole(low, high), length=1),
    ):
        for candidate in (value, float(value), [value], [value, value], value + 0.5):
            assert bool(rule.accepts(candidate)) == follows(rule.words, candidate), rule.words
