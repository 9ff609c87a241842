"""Names at test time: guidance of fixed width, and heads that classify by text embeddings."""

import copy
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partialmethod
from itertools import repeat

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import needs_a_compiler
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2.builder import build_model, build_model_with_weights
from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.cli import demo
from denseclip_d2.cli.parser import parse_args
from denseclip_d2.config import load_config
from denseclip_d2.data.class_names import names_to_find
from denseclip_d2.engine import Trainer
from denseclip_d2.evaluation.build import check_test_sets
from denseclip_d2.evaluation.seen import only_seen_and_unseen, with_seen_and_unseen
from denseclip_d2.export.safetensors import export
from denseclip_d2.export.support import check_exportable
from denseclip_d2.guidance import CLIPScores, GeometricEnsemble, TextClassifier
from denseclip_d2.guidance.features import seen_text
from denseclip_d2.inference import Predictor, with_tta
from denseclip_d2.report.page import write_report
from denseclip_d2.shapes.dataset import CLASS_NAMES, generate_shapes, register_shapes
from denseclip_d2.visual.clip_resnet import CLIPResNet
from denseclip_d2.visualization import panels
from denseclip_d2.visualization.panels import image_panels
from denseclip_d2.visualization.video import write_video

NAMES = ("red circle", "green square", "blue cross")
TEXT = ["MODEL.DENSECLIP.CLASSIFIER", "text", "MODEL.DENSECLIP.SCORE_MAP.CONCAT", "text"]
STUFF = ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHeadWithDropout", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]
STUFF += ["MODEL.DENSECLIP.STUFF_NAMES", ("night sky", "background")]
AGNOSTIC = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True]
SYSTEMS = {
    "semantic_fpn": ("configs/Shapes/denseclip_semantic_fpn_tiny.yaml", "SEM_SEG_HEAD", []),
    "retinanet": ("configs/Shapes/denseclip_retinanet_tiny.yaml", "RETINANET", []),
    "fcos": ("configs/Shapes/systems/fcos.yaml", "FCOS", []),
    "mask_rcnn": ("configs/Shapes/denseclip_mask_rcnn_tiny.yaml", "ROI_HEADS", AGNOSTIC),
    "cascade": ("configs/Shapes/systems/cascade_mask_rcnn.yaml", "ROI_HEADS", AGNOSTIC),
    "panoptic_fpn": ("configs/Shapes/systems/panoptic_fpn.yaml", "ROI_HEADS", [*AGNOSTIC, *STUFF]),
}


def open_model(system: str, names=NAMES, *more):
    file, section, opts = SYSTEMS[system]
    names = (*names, "background") if section == "SEM_SEG_HEAD" else tuple(names)
    opts = [*TEXT, *opts, f"MODEL.{section}.NUM_CLASSES", len(names), "MODEL.DENSECLIP.CLASS_NAMES", names]
    torch.manual_seed(0)
    return build_model(load_config(file, [*opts, "MODEL.WEIGHTS", "", *more]))


def shapes_config(system: str, folder) -> CfgNode:
    """Return the config of :func:`open_model`, with its weights in a file."""
    file, section, opts = SYSTEMS[system]
    names = (*NAMES, "background") if section == "SEM_SEG_HEAD" else NAMES
    torch.save({"model": open_model(system).state_dict()}, folder / "model.pth")
    opts = [*TEXT, *opts, f"MODEL.{section}.NUM_CLASSES", len(names), "MODEL.DENSECLIP.CLASS_NAMES", names]
    return load_config(file, [*opts, "MODEL.WEIGHTS", str(folder / "model.pth"), "DATASETS.TEST", ()])


def image(*, labels: bool = False, objects: bool = False) -> dict:
    x = {"image": torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255}
    if labels:
        x["sem_seg"] = torch.zeros(64, 96, dtype=torch.long)
        x["sem_seg"][:20] = 2
    if objects:
        instances = Instances((64, 96))
        instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 90.0, 60.0]]))
        instances.gt_classes = torch.tensor([0, 2])
        x["instances"] = instances
    return x


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_trains_in_bfloat16_with_boxes_in_float32(system):
    model, x = open_model(system).train(), image(labels=True, objects=True)
    corners = x["instances"].gt_boxes.tensor[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()
    x["instances"].gt_masks = PolygonMasks([[polygon] for polygon in corners])
    with EventStorage(), torch.autocast("cpu", torch.bfloat16):
        losses = model([x, x])
        boxes = [y["instances"].pred_boxes.tensor for y in model.eval()([x]) if "instances" in y]
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(x.dtype == torch.float32 for x in boxes)


def test_boxes_of_fcos_keep_their_pixels_in_bfloat16():
    transform, boxes = open_model("fcos").box2box_transform, torch.tensor([[512.0, 300, 544, 332]])
    deltas = torch.rand(1, 4).bfloat16()
    exact = Box2BoxTransformLinear(normalize_by_size=True).apply_deltas(deltas.float(), boxes)
    assert_close(transform.apply_deltas(deltas, boxes), exact, atol=0, rtol=0)


def test_logits_are_scaled_cosines_with_the_names():
    classifier = TextClassifier(8, scale=7.0)
    x, text = torch.randn(2, 8, 3, 5), torch.randn(2, 4, 8)
    expected = 7 * torch.einsum("bchw,bkc->bkhw", F.normalize(x, dim=1), F.normalize(text, dim=2))
    assert_close(classifier(x, text), expected)
    assert_close(classifier(x, text[:1, [2, 0]]), classifier(x, text[:1])[:, [2, 0]])


def test_a_prior_and_a_learned_background_are_added():
    classifier = TextClassifier(8, background=True, prior=0.01)
    logits = classifier(torch.zeros(1, 8, 5), torch.randn(1, 3, 8))
    assert_close(logits.sigmoid(), torch.full((1, 4, 5), 0.01))


def test_seen_text_has_the_width_of_the_text_whatever_the_number_of_names():
    text = torch.randn(1, 6, 16)
    logits = torch.full((2, 6, 3, 4), -100.0)
    logits[:, 4] = 100.0
    expected = F.normalize(text[0, 4], dim=0)[None, :, None, None].expand(2, -1, 3, 4) * 4
    assert_close(seen_text(logits, text), expected)
    assert seen_text(torch.randn(2, 900, 3, 4), torch.randn(2, 900, 16)).shape == (2, 16, 3, 4)


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_weight_depends_on_the_number_of_names(system):
    few, many = open_model(system), open_model(system, [f"thing {i}" for i in range(20)])
    shapes = {name: x.shape for name, x in few.state_dict().items()}
    assert shapes == {name: x.shape for name, x in many.state_dict().items()}


@pytest.mark.parametrize("system", SYSTEMS)
def test_training_reaches_the_classifier_and_the_text(system):
    model = open_model(system).train()
    semantic = system == "semantic_fpn"
    inputs = image(labels=semantic or system == "panoptic_fpn", objects=not semantic)
    if hasattr(model, "roi_heads"):
        model.roi_heads.mask_on = False
    with EventStorage():
        losses = model([inputs, inputs])
    assert "loss_pixel_text" in losses
    sum(loss for name, loss in losses.items() if name != "loss_pixel_text").backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name for name, _ in model.named_parameters() if "classifier" in name} <= learned
    assert "backbone.language.contexts" in learned


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_model_given_names_is_the_model_built_with_them(system):
    names = ("a", "yellow star", "red circle", "dog", "violet bar")
    given, built = open_model(system).eval(), open_model(system, names).eval()
    built.load_state_dict(given.state_dict())
    given.set_class_names(built.backbone.language.class_names)
    with torch.no_grad():
        (ours,), (theirs,) = given([image()]), built([image()])
    if "sem_seg" in ours:
        assert ours["sem_seg"].shape == (6 if system == "semantic_fpn" else 3, 64, 96)
        assert_close(ours["sem_seg"], theirs["sem_seg"])
    if "instances" in ours:
        assert_close(ours["instances"].scores, theirs["instances"].scores)
        assert_close(ours["instances"].pred_boxes.tensor, theirs["instances"].pred_boxes.tensor)
        assert torch.equal(ours["instances"].pred_classes, theirs["instances"].pred_classes)


def test_the_order_of_names_is_the_order_of_classes():
    model = open_model("semantic_fpn").eval()
    with torch.no_grad():
        before = model([image()])[0]["sem_seg"]
        model.set_class_names(["background", "blue cross", "red circle", "green square"])
        after = model([image()])[0]["sem_seg"]
    assert_close(after, before[[3, 2, 0, 1]])


def test_a_panoptic_model_takes_names_of_things_and_of_stuff(tmp_path):
    predictor = Predictor(shapes_config("panoptic_fpn", tmp_path))
    array = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    before = predictor(array)
    predictor.set_names(["dog", "red circle"], stuff=["background", "snow", "night sky", "road"])
    given = predictor(array)
    assert given["sem_seg"].shape == (5, 64, 96)  # and Detectron2's label of all things
    assert {x["category_id"] for x in given["panoptic_seg"][1] if not x["isthing"]} <= {1, 2, 3, 4}
    assert predictor.class_names == ("dog", "red circle")
    predictor.set_names(["dog"])
    assert predictor(array)["sem_seg"].shape == (3, 64, 96)  # the stuff of the training
    predictor.set_names(None)
    assert_close(predictor(array)["sem_seg"], before["sem_seg"])
    with pytest.raises(ValueError, match="more than once: 'tree'.*stuff count too: tree"):
        predictor.set_names(["tree"], stuff=["tree"])
    predictor.set_names(["night sky"], stuff=["snow"])  # before, "night sky" was stuff
    assert predictor(array)["sem_seg"].shape == (2, 64, 96)
    for names, stuff in (([], None), (["dog"], []), ([], ["snow"])):
        with pytest.raises(ValueError, match="No class names"):
            predictor.set_names(names, stuff=stuff)
    with pytest.raises(ValueError, match="No class names"):
        predictor(array, names=[])
    assert predictor.class_names == ("night sky",)
    with pytest.raises(ValueError, match="at least one name of stuff"):
        open_model("panoptic_fpn").set_class_names(["dog"], stuff_names=[])
    with pytest.raises(ValueError, match="labels no stuff"):
        open_model("retinanet").set_class_names(["dog"], stuff_names=["tree"])


def test_the_order_of_stuff_is_the_order_of_labels():
    model = open_model("panoptic_fpn").eval()
    with torch.no_grad():
        before = model([image()])[0]["sem_seg"]
        model.set_class_names(NAMES, stuff_names=["background", "night sky"])
        after = model([image()])[0]["sem_seg"]
    assert_close(after, before[[0, 2, 1]])


@pytest.mark.parametrize("system", ["retinanet", "mask_rcnn"])
def test_detectors_read_background_as_any_word(system):
    model = open_model(system).eval()
    with torch.no_grad():
        model.set_class_names(["dog", "background"])
        text = model.backbone(torch.zeros(1, 3, 64, 64))["text_embeddings"]
        word = model.backbone.language.encode_names(["background"], model.backbone.language.contexts)
    assert not [name for name in model.state_dict() if "learned" in name]
    assert F.cosine_similarity(text[0, 1], word[0, 0], dim=0) > 0.9


def test_weights_of_detectors_with_a_learned_name_are_read(tmp_path):
    model = open_model("retinanet")
    weights = {**model.state_dict(), "backbone.language.learned.embedding": torch.zeros(32)}
    torch.save({"model": weights}, tmp_path / "model.pth")
    fresh = open_model("retinanet")
    DenseCLIPCheckpointer(fresh, for_training=False).load(str(tmp_path / "model.pth"))
    assert_close(fresh.state_dict(), model.state_dict())


def test_a_learned_name_is_not_read():
    model = open_model("semantic_fpn").eval()
    with torch.no_grad():
        before = model.backbone(torch.zeros(1, 3, 64, 64))["text_embeddings"]
        model.backbone.language.learned.embedding.fill_(2)
        after = model.backbone(torch.zeros(1, 3, 64, 64))["text_embeddings"]
        model.set_class_names(["dog", " Background"])
        given = model.backbone(torch.zeros(1, 3, 64, 64))["text_embeddings"]
    assert torch.equal(before[:, :3], after[:, :3])
    assert (after[:, 3] == 2).all() and (given[:, 1] == 2).all()


def test_other_names_need_a_text_classifier():
    model = build_model(load_config(SYSTEMS["semantic_fpn"][0], []))
    with pytest.raises(ValueError, match="learned weights for each of its classes"):
        model.set_class_names(["dog"])
    model.backbone.language.precompute_()  # converting these weights otherwise would not help
    with pytest.raises(ValueError, match="learned weights for each of its classes"):
        model.set_class_names(["dog"])
    model = open_model("retinanet")
    model.backbone.language.precompute_()
    with pytest.raises(ValueError, match="Convert the weights without --precompute-text"):
        model.set_class_names(["dog"])


def test_seen_classes_are_those_of_the_model_if_the_config_has_none(semantic_shapes, tmp_path):
    opts = [*TEXT, "MODEL.WEIGHTS", "", "DATASETS.TRAIN", ("train",), "DATASETS.TEST", ("val",)]
    cfg = load_config(SYSTEMS["semantic_fpn"][0], [*opts, "OUTPUT_DIR", str(tmp_path)])
    assert not cfg.MODEL.DENSECLIP.CLASS_NAMES
    results = Trainer.test(cfg, build_model(cfg).eval())["sem_seg"]
    assert "IoU_seen" in results and "IoU_unseen" not in results


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "No class names"),
        (["", "a"], "empty"),
        (["a", "a"], "more than once"),
        (["word " * 90], "tokens"),
    ],
)
def test_bad_names_end_in_words(names, message):
    with pytest.raises(ValueError, match=message):
        open_model("retinanet").set_class_names(names)


@pytest.mark.parametrize(
    ("system", "opts", "message"),
    [
        ("mask_rcnn", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False], "CLS_AGNOSTIC_BBOX_REG True"),
        ("mask_rcnn", ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False], "CLS_AGNOSTIC_MASK True"),
        ("mask_rcnn", ["MODEL.ROI_HEADS.NAME", "Res5ROIHeads"], "one of StandardROIHeads, CascadeROIHeads"),
        (
            "retinanet",
            ["MODEL.BACKBONE.NAME", "build_clip_retinanet_fpn_backbone"],
            "language-guided backbone",
        ),
        ("semantic_fpn", ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"], "SemSegFPNHeadWithDropout"),
        ("panoptic_fpn", ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"], "SemSegFPNHeadWithDropout"),
    ],
)
def test_what_cannot_classify_by_text_is_refused(system, opts, message):
    with pytest.raises(ValueError, match=f"CLASSIFIER 'text' needs .*{message}"):
        open_model(system, NAMES, *opts)


def test_the_predictor_takes_names_per_call(tmp_path):
    predictor = Predictor(shapes_config("semantic_fpn", tmp_path))
    array = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    first = predictor(array, names=["background", "red circle", "green square"])["sem_seg"]
    two = predictor(array, names=["dog", "background"])["sem_seg"]
    assert (len(first), len(two)) == (3, 2)
    encoded = []
    predictor.model.backbone.language.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    again = predictor([array, array], names=("background", "red circle", "green square"))
    assert torch.equal(again[0]["sem_seg"], first) and not encoded  # each name is encoded once
    assert len(predictor(array)["sem_seg"]) == 4  # the names of the training
    predictor.set_names(["red circle", "dog|hound"])
    assert predictor(array)["sem_seg"].shape == (2, 64, 96)


def test_each_image_can_have_names_of_its_own(tmp_path):
    predictor = Predictor(shapes_config("semantic_fpn", tmp_path))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(4)]
    names = [["dog", "tree"], ["a", "b", "c"], None, ["tree", "dog"]]
    expected = [predictor(x, names=own)["sem_seg"] for x, own in zip(images, names, strict=True)]
    assert [len(x) for x in expected] == [2, 3, 4, 2]
    predictor.batch_size = 3
    ways = (
        predictor(images, names=names),
        predictor(iter(images), names=iter(names)),
        predictor.stream(((x, ["sea"]) for x in images), names=names),
    )
    for outputs in ways:
        for output, own in zip(outputs, expected, strict=True):
            assert_close(output["sem_seg"], own)
    assert output["score_maps"].shape == (1, 64, 96)
    with pytest.raises(ValueError, match="3 lists of names for 4 images"):
        predictor(images, names=names[:3])
    with pytest.raises(ValueError, match="names ended before the images"):
        list(predictor(iter(images), names=iter(names[:3])))


def test_streams_and_threads_keep_their_names_apart(tmp_path):
    predictor = Predictor(shapes_config("semantic_fpn", tmp_path))
    array = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    lists = [["dog"], ["dog", "tree"], None]
    first, *others = (predictor(repeat(array), names=names) for names in lists)
    for _ in range(2):
        assert len(next(first)["sem_seg"]) == 1
        assert [len(next(stream)["sem_seg"]) for stream in others] == [2, 4]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda names: predictor(array, names=names)["sem_seg"], lists * 5))
        with predictor._names.given(predictor.model, ("dog",)):
            asked = threads.submit(lambda: predictor.class_names)
            assert not wait([asked], timeout=0.1).done
    assert asked.result() == (*NAMES, "background")
    assert [len(x) for x in found] == [1, 2, 4] * 5
    for a, b in zip(found, found[3:], strict=False):
        assert_close(a, b)
    assert_close(copy.deepcopy(predictor)(array, names=["dog", "tree"])["sem_seg"], found[1])


@pytest.mark.parametrize(
    "mode, precision",
    [
        ("post", "float32"),
        ("template", "float32"),
        ("pre", "float32"),
        ("post", "bfloat16"),
        ("post", "float16"),
    ],
)
def test_a_predictor_given_names_is_the_predictor_built_with_them(mode, precision, tmp_path):
    names = ("dog", "red circle", "sofa|couch", "background")
    opts = ["MODEL.DENSECLIP.PROMPT.MODE", mode, "MODEL.DENSECLIP.PROMPT.CONTEXT_INIT", ""]
    model = open_model("semantic_fpn", NAMES, *opts)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    opts = [*TEXT, *opts, "MODEL.WEIGHTS", str(tmp_path / "model.pth"), "TEST.PRECISION", precision]
    built, given = (
        Predictor(
            load_config(
                SYSTEMS["semantic_fpn"][0],
                [*opts, "MODEL.DENSECLIP.CLASS_NAMES", x, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(x)],
            )
        )
        for x in (names, (*NAMES, "background"))
    )
    array = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    before = given(array)["sem_seg"]
    expected, found = built(array)["sem_seg"], given(array, names=names)["sem_seg"]
    assert expected.dtype == found.dtype
    tolerance = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.1}[precision]
    assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(given(array)["sem_seg"], before)


@pytest.mark.parametrize(
    "options",
    [
        ["TEST.SLIDING_WINDOW.ENABLED", True],
        pytest.param(["MODEL.COMPILE", True], marks=needs_a_compiler),
    ],
)
def test_windows_and_compiled_models_take_names(options, tmp_path, monkeypatch):
    monkeypatch.setattr(CLIPResNet, "compile", partialmethod(nn.Module.compile, backend="eager"))
    cfg = shapes_config("semantic_fpn", tmp_path)
    array = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    plain = Predictor(cfg)(array, names=["dog", "tree"])["sem_seg"]
    cfg.merge_from_list([*options, "TEST.SLIDING_WINDOW.SIZE", (640, 640)])
    output = Predictor(cfg)(array, ["sea"], names=["dog", "tree"])
    assert_close(output["sem_seg"], plain)
    assert output["score_maps"].shape == (1, 64, 96)


@pytest.mark.parametrize("system", ["semantic_fpn", "retinanet", "mask_rcnn"])
def test_test_time_augmentation_takes_more_names_than_the_model_was_built_with(system):
    file, section, _ = SYSTEMS[system]
    cfg = load_config(file, ["TEST.AUG.MIN_SIZES", (64,), f"MODEL.{section}.NUM_CLASSES", 3])
    model = open_model(system).eval()
    model.set_class_names([f"thing {i}" for i in range(40)])
    for module in model.modules():
        if isinstance(module, TextClassifier) and module.background is not None:
            nn.init.zeros_(module.background)
            nn.init.constant_(module.log_scale, 3)
    with torch.no_grad():
        (output,) = with_tta(cfg, model)([{**image(), "height": 64, "width": 96}])
    if system == "semantic_fpn":
        assert output["sem_seg"].shape == (40, 64, 96)
    else:
        assert output["instances"].pred_classes.max() > 3


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory):
    return Predictor(shapes_config("semantic_fpn", tmp_path_factory.mktemp("segmentor")))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("dog", r"names takes a list of names, such as \['dog'\]"),
        (3, "names takes a list of names, not 3"),
        ([], "No class names"),
        ([[]], "No class names"),
        (["dog", "  "], "The name of class 1 is empty"),
        (["dog", "Dog "], "more than once: 'dog'"),
        (["dog|hound", "Hound"], "more than once: 'hound'"),
        (["dog|Dog"], "more than once: 'dog'"),
        (["&", "&amp;"], "read the same to CLIP's tokenizer.*'&amp;'"),
        (["dog, tree"], r"has a comma.*'dog', 'tree'.*'dog\|tree'"),
        (["dog, "], r"has a comma.*own: 'dog'\. .*"),
        (["dog", 3], "Names must be strings, not 3"),
        ([["dog", None]], "Names must be strings, not None"),
        (["dog", "<end_of_text>"], "special token"),
        (["word " * 90], "Shorten the names, such as 'word word"),
        (["dog|"], "empty synonym"),
    ],
)
def test_the_predictor_refuses_bad_names_and_keeps_its_own(names, message, segmentor):
    """Also before the first image of a generator."""
    array = np.zeros((32, 32, 3), np.uint8)
    for call in (lambda: segmentor(array, names=names), lambda: segmentor(repeat(array), names=names)):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "MODEL.DENSECLIP.CLASS_NAMES" not in str(error.value)
    with pytest.raises(ValueError):
        segmentor.set_names(names)
    assert segmentor.class_names == (*NAMES, "background")
    assert len(segmentor(array)["sem_seg"]) == 4


def test_synonyms_share_the_mean_of_their_embeddings():
    language = open_model("retinanet").eval().backbone.language
    sofa, couch = language.encode_names(["sofa", "couch"], language.contexts)[0]
    ((both,),) = language.encode_names(["sofa | couch"], language.contexts)
    assert_close(both, (sofa + couch) / 2)
    with pytest.raises(ValueError, match="empty synonym"):
        language.encode_names(["sofa|"], language.contexts)


def test_names_for_a_while_leave_the_model_as_it_was():
    model = open_model("mask_rcnn").eval()
    with torch.no_grad():
        (before,) = model([image()])
        with model.given_names(["dog"]):
            (one,) = model([image()])
        (after,) = model([image()])
    assert not one["instances"].pred_classes.any()
    assert torch.equal(before["instances"].scores, after["instances"].scores)
    assert model.roi_heads.num_classes == 3


def test_a_bias_goes_with_its_name():
    classifier = TextClassifier(8, background=True, biased_names=NAMES)
    x, text = torch.randn(1, 8, 5), torch.randn(1, 3, 8)
    plain = classifier(x, text)
    assert_close(classifier.name_bias.bias, torch.zeros(3), check_stride=False)
    count_biases(classifier)
    biases = torch.tensor([1.0, 2.0, 3.0, 0.0])[:, None]
    assert_close(classifier(x, text), plain + biases)  # the background has none
    with torch.inference_mode():  # as a user may predict between iterations
        classifier.set_names(["dog", "Blue  cross", "red circle"])
    logits = classifier(x, text)
    assert_close(logits, plain + torch.tensor([0.0, 3.0, 1.0, 0.0])[:, None])
    logits.sum().backward()
    assert classifier.name_bias.bias.grad.tolist() == [5, 0, 5]


def count_biases(classifier: TextClassifier) -> None:
    with torch.no_grad():
        classifier.name_bias.bias.copy_(torch.arange(1.0, len(classifier.name_bias.bias) + 1))


@pytest.mark.parametrize("system", SYSTEMS)
def test_heads_learn_biases_of_the_names_of_the_training(system):
    model = open_model(system, NAMES, "MODEL.DENSECLIP.NAME_BIAS", True).eval()
    biased = {name: m for name, m in model.named_modules() if isinstance(m, TextClassifier)}
    for classifier in biased.values():
        count_biases(classifier)
    model.set_class_names(["blue cross", "dog"])
    for name, classifier in biased.items():
        stuff = system == "panoptic_fpn" and "sem_seg_head" in name
        assert classifier.name_bias().tolist() == ([1, 2] if stuff else [3, 0])
    with torch.no_grad():
        model([image()])


@pytest.mark.parametrize("system", SYSTEMS)
def test_weights_of_a_text_classifier_start_training_on_other_classes(system, tmp_path, caplog):
    model = open_model(system)
    for parameter in model.parameters():
        parameter.data += 0.01
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    other = open_model(system, ["dog", "cat"])
    with caplog.at_level("INFO"):
        DenseCLIPCheckpointer(other, for_training=True).load(str(tmp_path / "model.pth"))
    theirs = model.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in other.state_dict().items())
    assert re.search(rf"all +{len(theirs)}( +0)+$", caplog.text, re.MULTILINE)


def test_exported_weights_of_a_text_classifier_lose_no_more_than_biases_of_other_names(tmp_path):
    biased = ["MODEL.DENSECLIP.NAME_BIAS", True]
    model, other = (
        open_model("retinanet", NAMES, *biased),
        open_model("retinanet", ["dog", "cat", "ox"], *biased),
    )
    for each in (model, other):
        count_biases(each.head.classifier)
    with torch.no_grad():
        model.head.classifier.name_bias.bias += 1
        other.head.cls_score.weight.zero_()
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    path = str(tmp_path / "model.safetensors")
    export(
        model, load_config(SYSTEMS["retinanet"][0], TEXT), NAMES, source=f"{tmp_path}/model.pth", output=path
    )
    DenseCLIPCheckpointer(other, for_training=True).load(path)
    assert torch.equal(other.head.cls_score.weight, model.head.cls_score.weight)
    assert other.head.classifier.name_bias.bias.tolist() == [1, 2, 3]


def test_a_page_or_demo_gets_the_background_with_its_names(tmp_path):
    predictor = Predictor(shapes_config("semantic_fpn", tmp_path))
    assert predictor.takes_names
    predictor.set_names(predictor.with_background(["dog"]))
    assert predictor.class_names == ("dog", "background")
    assert predictor.with_background(["Background", "dog"]) == ["Background", "dog"]
    with pytest.raises(ValueError, match=r"such as \['dog'\]"):
        predictor.with_background("dog")
    predictor.set_names(None)
    assert predictor.class_names == (*NAMES, "background")
    boxes = Predictor(shapes_config("retinanet", tmp_path))
    assert boxes.with_background(["dog"]) == ["dog"]


def test_the_demo_finds_names_in_a_dataset_in_images_and_in_videos(small_shapes, tmp_path):
    root, _, val = small_shapes
    cfg = shapes_config("retinanet", tmp_path)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    image = str(next((root / "val").iterdir()))
    write_video(tmp_path / "clip.mp4", [np.zeros((64, 96, 3), np.uint8)] * 3, 10)

    def categories(out: str, *args: str) -> dict[int, str]:
        """Run the demo, and return the names of the classes found by their ids."""
        args = ("--config-file", str(tmp_path / "config.yaml"), "--output", str(tmp_path / out), *args)
        assert demo.main(parse_args(demo.build_parser(), args)) == 0
        found = json.loads((tmp_path / out / "detections.json").read_text())
        return {category["id"]: category["name"] for category in found["categories"]}

    of_dataset = ("--dataset", val, "--count", "1")
    assert categories("typed", *of_dataset, "--names", "dog", "sofa|couch") == {0: "dog", 1: "sofa|couch"}
    ids = MetadataCatalog.get(val).thing_dataset_id_to_contiguous_id
    assert categories("own", *of_dataset) == dict(zip(ids, CLASS_NAMES, strict=True))
    inputs = ("--input", image, str(tmp_path / "clip.mp4"))
    assert categories("both", *inputs, "--names", "dog", "MODEL.DEVICE", "cpu") == {0: "dog"}
    assert (tmp_path / "both/clip.mp4").exists()
    assert categories("trained", *inputs) == dict(enumerate(NAMES))
    with pytest.raises(ValueError, match="'dog, cat' has a comma"):
        categories("bad", *inputs, "--names", "dog, cat")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("kind", ["annotations", "sem_seg_file_name"])
def test_the_ground_truth_is_drawn_with_its_own_names(kind, tmp_path, monkeypatch):
    """In the colors of the names that the model was given, if it was given them."""
    drawn = {}
    for function in ("draw_annotations", "draw_detections", "draw_label_map", "draw_legend"):
        monkeypatch.setattr(panels, function, lambda *args, f=function, **_: drawn.setdefault(f, args)[0])
    monkeypatch.setattr(panels, "Panel", lambda image: image)
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "labels.png")
    record = {"annotations": [{"category_id": 1}, {"category_id": 0}]}
    outputs = {"instances": Instances((1, 3))}
    if kind != "annotations":
        record, outputs = {kind: str(tmp_path / "labels.png")}, {"sem_seg": torch.eye(3)[:, None]}
    array, names = np.zeros((1, 3, 3), np.uint8), ["dog", "cat", "tree"]
    image_panels(array, outputs, names, record=record, true_names=["sea", "cat"])
    if kind == "annotations":
        _, truth, found = drawn["draw_annotations"]
        assert [found[a["category_id"]] for a in truth] == ["cat", "sea"] and found[:3] == names
    else:
        _, labels, number = drawn["draw_label_map"]
        assert (labels.tolist(), number) == ([[3, 1, 4]], 4)
        assert drawn["draw_legend"] == ([0, 1, 2, 3], [*names, "sea"])


def evaluated(system: str, folder, test: str) -> tuple[torch.nn.Module, dict]:
    cfg = shapes_config(system, folder)
    cfg.merge_from_list(["DATASETS.TEST", (test,), "OUTPUT_DIR", str(folder), "DATALOADER.NUM_WORKERS", 0])
    model = build_model_with_weights(cfg).eval()
    check_test_sets(cfg)
    (folder / "config.yaml").write_text(cfg.dump())
    return model, Trainer.test(cfg, model)


def test_boxes_are_evaluated_with_the_names_of_the_test_set(small_shapes, tmp_path, caplog):
    """The model was built for three other classes."""
    _, _, val = small_shapes
    caplog.set_level("INFO")
    model, results = evaluated("retinanet", tmp_path, val)
    assert "AP-red solid circle" in results["bbox"] and "AP_seen" not in results["bbox"]
    assert results["bbox"]["AP_unseen"] >= 0  # the model was trained on other names
    assert "AP_unseen" in caplog.text
    assert model.backbone.language.class_names == NAMES and model.num_classes == 3
    drawn = re.findall("score map: ([a-z ]+)", write_report(tmp_path).read_text())  # of the report's images
    assert drawn and {*drawn} <= {*CLASS_NAMES}


@pytest.mark.parametrize("trained", [False, True])
def test_own_data_are_evaluated_with_their_names(small_shapes, trained, tmp_path):
    """With and without the data that the model was trained on."""
    root, train, _ = small_shapes
    coco = json.loads((root / "annotations/instances_val.json").read_text())
    for category in coco["categories"]:
        category["name"] = f"thing {category['id']}"
    (tmp_path / "own.json").write_text(json.dumps(coco))
    opts = [
        *TEXT,
        "MODEL.WEIGHTS",
        "",
        "DATASETS.CUSTOM.VAL",
        (str(tmp_path / "own.json"), str(root / "val")),
    ]
    if trained:
        source = str(root / "annotations/instances_train.json"), str(root / "train")
        opts += ["DATASETS.CUSTOM.TRAIN", source]
    opts += ["DATASETS.TRAIN", (train,)] if not trained else []
    cfg = prepared_cfg(SYSTEMS["retinanet"][0], [*opts, "OUTPUT_DIR", str(tmp_path)])
    check_test_sets(cfg)
    results = Trainer.test(cfg, build_model(cfg).eval())
    assert {"AP-thing 1", "AP_unseen"} <= {*results["bbox"]} and "AP_seen" not in results["bbox"]


def test_the_classes_of_the_training_are_evaluated_by_the_words_of_the_config(small_shapes, tmp_path):
    """Words in place of those of the data set, also of weights that hold their text embeddings alone."""
    _, train, val = small_shapes
    words = [f"{name}|thing {i}" for i, name in enumerate(CLASS_NAMES)]
    opts = [*TEXT, "DATASETS.TRAIN", (train,), "DATASETS.TEST", (val,), "MODEL.DENSECLIP.CLASS_NAMES", words]
    cfg = prepared_cfg(SYSTEMS["retinanet"][0], [*opts, "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", ""])
    model, read = build_model(cfg).eval(), []
    language = model.backbone.language.precompute_()
    model.backbone.register_forward_hook(lambda *_: read.append(language.class_names))
    results = Trainer.test(cfg, model)
    assert {*read} == {tuple(words)}
    assert {"AP-red solid circle", "AP_seen"} <= {*results["bbox"]} and "AP_unseen" not in results["bbox"]
    assert names_to_find(cfg, val) == tuple(words)
    cfg.MODEL.DENSECLIP.CLASS_NAMES = words[1:]  # of a model of other classes
    assert names_to_find(cfg, val) == tuple(CLASS_NAMES)


def test_labels_are_evaluated_with_the_names_of_the_test_set(semantic_shapes, tmp_path):
    model, results = evaluated("semantic_fpn", tmp_path, "val")
    assert "IoU-red solid circle" in results["sem_seg"]
    drawn = re.findall("score map: ([a-z ]+)", write_report(tmp_path).read_text())
    assert drawn and {*drawn} <= {*CLASS_NAMES, "background"}
    assert model.backbone.language.class_names == (*NAMES, "background")


def test_a_panoptic_model_is_evaluated_with_the_things_and_stuff_of_the_test_set(
    tmp_path, catalogs, panopticapi
):
    generate_shapes(tmp_path / "shapes", num_train=1, num_val=2, seed=3)
    register_shapes(tmp_path / "shapes")
    model, results = evaluated("panoptic_fpn", tmp_path, "shapes_panoptic_val_separated")
    assert "AP-red solid circle" in results["bbox"] and results["bbox"]["AP_unseen"] >= 0
    assert "IoU-background" in results["sem_seg"]
    assert "IoU_unseen" not in results["sem_seg"]  # all things, and the background, are no class of either
    assert model.backbone.language.stuff_names == ("night sky", "background")


def test_names_of_stuff_and_labels_are_as_many():
    with pytest.raises(ValueError, match="2 names of stuff for MODEL.SEM_SEG_HEAD.NUM_CLASSES = 9"):
        open_model("panoptic_fpn", NAMES, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 9)


def test_metrics_of_seen_and_unseen_classes_are_means_over_them():
    metrics = {
        "mIoU": 1.0,
        "IoU-a": 20.0,
        "IoU-b": 40.0,
        "IoU-c": 9.0,
        "IoU-d": math.nan,
        "IoU-background": 99.0,
    }
    found = with_seen_and_unseen({"sem_seg": metrics}, ("a", "b", "background"), {"background"})
    assert found == {"sem_seg": {**metrics, "IoU_seen": 30.0, "IoU_unseen": 9.0}}


def test_a_class_is_seen_if_training_had_one_of_its_synonyms():
    metrics = {
        "IoU-dining table|table": 6.0,
        "IoU-TV, telly": 4.0,
        "IoU-motorbike": 3.0,
        "IoU-sofa, bench": 1.0,
    }
    found = with_seen_and_unseen({"sem_seg": metrics}, ("table", "tv", "motorcycle", "couch|sofas"))
    assert only_seen_and_unseen(found) == {"sem_seg": {"IoU_seen": 5.0, "IoU_unseen": 2.0}}


def mixture(weights, words=None, logits=None, stride: int = 32) -> CLIPScores:
    words = torch.arange(len(weights)) if words is None else torch.tensor(words)
    return CLIPScores(
        torch.zeros(1, len(weights), 1, 1) if logits is None else logits, words, weights, stride
    )


def test_the_ensemble_of_sigmoids_keeps_the_greatest():
    p, q = torch.tensor([[0.9, 0.2, 0.4]]), torch.tensor([[0.1, 0.3, 0.6]])
    for b in (torch.zeros(3), torch.ones(3), torch.tensor([0.0, 1.0, 0.25])):
        mean = p ** (1 - b) * q**b
        assert_close(mixture(b).mix_sigmoid(p.logit(), q.log()).sigmoid(), 0.9 * mean / mean.max())


def test_the_ensemble_of_a_softmax_keeps_the_background_and_shares_the_rest():
    p, q = torch.tensor([[0.3, 0.1, 0.2, 0.4]]), torch.tensor([[0.5, 0.1, 0.4]])
    for b in (0.0, 0.25, 1.0):
        mean = p[:, :3] ** (1 - b) * q**b
        expected = torch.cat([0.6 * mean / mean.sum(), p[:, 3:]], dim=1)
        logits = mixture(torch.full((3,), b)).mix_softmax(p.log() + 5, q.log())
        assert_close(logits.softmax(dim=1), expected)
    unequal = mixture(torch.tensor([0.0, 0.0, 1.0])).mix_softmax(p.log(), q.log()).softmax(dim=1)
    assert_close(unequal, torch.tensor([[0.225, 0.075, 0.3, 0.4]]))


def test_names_of_the_training_have_alpha_others_beta_and_a_learned_name_neither():
    ensemble = GeometricEnsemble(("sofa|couch", "dog", "background"), 0.2, 0.6, "background")
    scores = torch.randn(1, 4, 2, 3)
    clip = ensemble(scores, ("Dog", "background", "cat", "settee|couch"), tau=0.1, stride=32)
    assert clip.words.tolist() == [0, 2, 3]
    assert_close(clip.weights, torch.tensor([0.2, 0.6, 0.2]))
    assert_close(clip.resized((2, 3)), (scores[:, [0, 2, 3]] / 0.1).log_softmax(dim=1))
    logits = torch.randn(1, 4, 2, 3)
    kept = clip.mix_softmax(logits, clip.resized((2, 3))).softmax(dim=1)[:, 1]
    assert_close(kept, logits.softmax(dim=1)[:, 1])
    assert ensemble(scores[:, :1], ("Background",), tau=0.1, stride=32) is None  # nothing is mixed


def test_the_score_map_is_averaged_over_a_box():
    logits = torch.zeros(2, 2, 4, 4)
    logits[1, 0, :, :2], logits[1, 1, :, 2:] = 3.0, 5.0
    boxes = [Boxes(torch.zeros(0, 4)), Boxes(torch.tensor([[0.0, 0, 48, 128], [0, 0, 128, 128]]))]
    found = mixture(torch.ones(2), logits=logits).in_boxes(boxes)
    assert_close(found[0], torch.tensor([3.0, 0.0]).log_softmax(dim=0))
    assert_close(found[1], torch.tensor([1.5, 2.5]).log_softmax(dim=0), rtol=0.05, atol=0)


ENSEMBLE = "MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE."


@pytest.mark.parametrize("system", SYSTEMS)
def test_with_one_the_score_map_alone_classifies(system):
    model = open_model(system, NAMES, ENSEMBLE + "ALPHA", 1.0).eval()
    with torch.no_grad():
        features = model.backbone(torch.rand(1, 3, 64, 96))
        clip, text = features["clip_scores"], features["text_embeddings"]
        if system == "semantic_fpn":
            found = model.sem_seg_head.layers(features).softmax(dim=1)
            found, expected = found[:, :3] / (1 - found[:, 3:]), clip.resized((16, 24)).exp()
        elif system in ("retinanet", "fcos"):
            logits = model.head([features[name] for name in model.head_in_features], text, clip)[0][0]
            found = logits.sigmoid().unflatten(1, (-1, 3))  # anchors, names
            found = found / found.amax(dim=2, keepdim=True)
            q = clip.resized(found.shape[3:]).exp()[:, None]
            expected = (q / q.amax(dim=2, keepdim=True)).expand_as(found)
        else:
            predictor = model.roi_heads.box_predictor
            predictor = predictor[0] if system == "cascade" else predictor
            boxes = [Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0], [0.0, 0.0, 90.0, 60.0]]))]
            x = torch.randn(2, predictor.cls_score.in_features)
            found = predictor(x, text, boxes, clip)[0].softmax(dim=1)
            found, expected = found[:, :3] / (1 - found[:, 3:]), clip.in_boxes(boxes).exp()
    assert_close(found, expected)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_mixes_names_that_it_was_not_trained_on(system):
    model = open_model(system, NAMES, ENSEMBLE + "BETA", 0.5).eval()
    if system in ("mask_rcnn", "cascade"):
        model.roi_heads.mask_on = False
    model.test_score_thresh = 0.0  # of dense detectors, whose initial scores are low

    def scores() -> list[torch.Tensor]:
        ensemble, found = model.backbone.ensemble, []
        for model.backbone.ensemble in (replace(ensemble, beta=0.0), ensemble):
            (output,) = model([image()])
            if system == "semantic_fpn":
                found.append(output["sem_seg"].softmax(dim=0))
            else:
                scores, classes = output["instances"].scores, output["instances"].pred_classes
                found.append(scores.new_zeros(3).index_add(0, classes, scores))
        return found

    with torch.no_grad():
        assert_close(*scores())
        model.set_class_names(["dog", "red circle", "yellow star"])
        without, with_clip = scores()
    assert not torch.allclose(without, with_clip)


def test_the_ensemble_needs_heads_that_classify_by_text():
    with pytest.raises(ValueError, match="GEOMETRIC_ENSEMBLE mixes .*CLASSIFIER is 'kway'"):
        load_config(SYSTEMS["retinanet"][0], [ENSEMBLE + "BETA", 0.5])


def test_an_ensemble_is_not_exported(tmp_path):
    cfg = shapes_config("retinanet", tmp_path)
    cfg.MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE.BETA = 0.5
    with pytest.raises(ValueError, match="GEOMETRIC_ENSEMBLE mixes by names.*to 0"):
        check_exportable(cfg, "onnx")
