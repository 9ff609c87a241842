"""Heads that read an image's best names at test time: ``MODEL.DENSECLIP.PROMPT.NAMES_PER_IMAGE``."""

import pytest
import torch
from test_open_vocabulary import SYSTEMS, TEXT, image, open_model
from torch import Tensor, nn
from torch.testing import assert_close

from denseclip_d2.config import load_config
from denseclip_d2.meta_arch.pixel_text import captured_features

NAMES = ("red circle", "green square", "blue cross", "dog", "violet bar|bar", "a yellow star", "ring")
PER_IMAGE = "MODEL.DENSECLIP.PROMPT.NAMES_PER_IMAGE"
EVERY_SCORE = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0]
EVERY_SCORE += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 1000]
ENSEMBLE = "MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE.ALPHA"
WITH_OBJECTS = [x for x in SYSTEMS if x not in ("semantic_fpn", "panoptic_fpn")]


def some_and_all(system: str, number: int) -> tuple[nn.Module, nn.Module]:
    """Return two models with the same weights, of which the heads of the first read some names."""
    some, every = (open_model(system, NAMES, *EVERY_SCORE, PER_IMAGE, n).eval() for n in (number, 0))
    every.load_state_dict(some.state_dict())
    for model in (some, every):
        model.backbone.register_forward_hook(with_random_scores)
    return some, every


def with_random_scores(module: nn.Module, args: tuple, features: dict) -> dict:
    """Give the images different score maps: a CLIP without training sees the same in all."""
    scores = torch.rand(features["score_map"].shape, generator=torch.Generator().manual_seed(1))
    return {**features, "score_map": scores}


@torch.no_grad()
def outputs_and_scores(model: nn.Module) -> tuple[list[dict], Tensor]:
    """Return the outputs for two images, and the greatest scores (2, K) of their score maps."""
    with captured_features(model.backbone) as features:
        outputs = model([image(), {"image": image()["image"].flip(1)}])
    return outputs, features["score_map"].amax(dim=(2, 3))


@pytest.mark.parametrize("system", WITH_OBJECTS)
def test_objects_have_the_names_that_their_own_image_shows_best(system):
    some, _ = some_and_all(system, 3)
    outputs, scores = outputs_and_scores(some)
    best = [set(own.topk(3).indices.tolist()) for own in scores]
    assert best[0] != best[1]  # or the test shows nothing
    assert [set(x["instances"].pred_classes.tolist()) for x in outputs] == best


@pytest.mark.parametrize("system", ["retinanet", "fcos"])
def test_sigmoid_scores_of_these_names_are_those_among_all_names(system):
    some, every = some_and_all(system, 3)
    (own, _), scores = outputs_and_scores(some)
    (found, _), _ = outputs_and_scores(every)
    found, own = found["instances"], own["instances"][:50]
    found = found[torch.isin(found.pred_classes, scores[0].topk(3).indices)][:50]
    assert_close(own.scores, found.scores)
    assert torch.equal(own.pred_classes, found.pred_classes)
    assert_close(own.pred_boxes.tensor, found.pred_boxes.tensor)


def test_labels_are_among_the_best_names_and_the_learned_one():
    some, every = some_and_all("semantic_fpn", 3)
    outputs, scores = outputs_and_scores(some)
    expected, _ = outputs_and_scores(every)
    scores[:, len(NAMES)] = torch.inf  # "background"
    for own, found, all_names in zip(scores, outputs, expected, strict=True):
        best = own.topk(3).indices
        assert_close(found["sem_seg"][best], all_names["sem_seg"][best])
        assert torch.isin(found["sem_seg"].argmax(0), best).all()
        assert found["sem_seg"].shape == all_names["sem_seg"].shape


@pytest.mark.parametrize("system", [x for x in SYSTEMS if x != "panoptic_fpn"])
def test_as_many_names_as_there_are_change_nothing(system):
    some, every = some_and_all(system, len(NAMES) + 1)
    own, expected = (outputs_and_scores(x)[0] for x in (some, every))
    for a, b in zip(own, expected, strict=True):
        if "sem_seg" in a:
            assert torch.equal(a["sem_seg"], b["sem_seg"])
        else:
            assert torch.equal(a["instances"].scores, b["instances"].scores)


def test_heads_have_all_names_again_after_an_error():
    some, _ = some_and_all("retinanet", 3)
    with pytest.raises(KeyError):
        some([{}])
    assert some.num_classes == len(NAMES)


@pytest.mark.parametrize(
    ("system", "opts", "said"),
    [
        ("retinanet", ["MODEL.DENSECLIP.CLASSIFIER", "kway"], "a CLASSIFIER or SCORE_MAP.CONCAT"),
        ("retinanet", ["MODEL.DENSECLIP.NAME_BIAS", True], "MODEL.DENSECLIP.NAME_BIAS"),
        ("mask_rcnn", [ENSEMBLE, 0.2], "MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE"),
        ("semantic_fpn", ["TEST.SLIDING_WINDOW.ENABLED", True], "TEST.SLIDING_WINDOW"),
        ("panoptic_fpn", [], "a panoptic model"),
    ],
)
def test_what_reads_all_names_is_refused(system, opts, said):
    file, _, own = SYSTEMS[system]
    with pytest.raises(ValueError, match=f"NAMES_PER_IMAGE is 3, not for {said}.*Set it to 0"):
        load_config(file, [*TEXT, *own, PER_IMAGE, 3, *opts])
