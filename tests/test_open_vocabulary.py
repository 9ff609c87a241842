"""Names at test time: guidance of fixed width, and heads that classify by text embeddings."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from denseclip_d2.builder import build_model, build_model_with_weights
from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.config import load_config
from denseclip_d2.engine import Trainer
from denseclip_d2.evaluation.build import check_test_sets
from denseclip_d2.evaluation.seen import with_seen_and_unseen
from denseclip_d2.export.safetensors import export
from denseclip_d2.export.support import check_exportable
from denseclip_d2.guidance import TextClassifier
from denseclip_d2.guidance.features import seen_text
from denseclip_d2.inference import Predictor
from denseclip_d2.shapes.dataset import generate_shapes, register_shapes

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
    predictor.set_names([])
    assert_close(predictor(array)["sem_seg"], before["sem_seg"])
    with pytest.raises(ValueError, match="more than once: 'tree'"):
        predictor.set_names(["tree"], stuff=["tree"])
    with pytest.raises(ValueError, match="labels no stuff"):
        open_model("retinanet").set_class_names(["dog"], stuff_names=["tree"])


def test_the_order_of_stuff_is_the_order_of_labels():
    model = open_model("panoptic_fpn").eval()
    with torch.no_grad():
        before = model([image()])[0]["sem_seg"]
        model.set_class_names(NAMES, stuff_names=["background", "night sky"])
        after = model([image()])[0]["sem_seg"]
    assert_close(after, before[[0, 2, 1]])


def test_a_learned_name_is_not_read():
    model = open_model("semantic_fpn").eval()
    with torch.no_grad():
        before = model.backbone(torch.zeros(1, 3, 64, 64))["text_embeddings"]
        model.backbone.language.learned.embedding.fill_(2)
        after = model.backbone(torch.zeros(1, 3, 64, 64))["text_embeddings"]
    assert torch.equal(before[:, :3], after[:, :3])
    assert (after[:, 3] == 2).all()


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
    assert (len(first), len(two), predictor.class_names) == (3, 2, ("dog", "background"))
    encoded = []
    predictor.model.backbone.language.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    again = predictor([array, array], names=("background", "red circle", "green square"))
    assert torch.equal(again[0]["sem_seg"], first) and not encoded  # each name is encoded once
    predictor.set_names(["red circle", "dog|hound"])
    assert predictor(array)["sem_seg"].shape == (2, 64, 96)
    with pytest.raises(ValueError, match=r"names takes a list of names, such as \['dog'\]"):
        predictor(array, names="dog")


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
    classifier.set_names(["dog", "blue cross", "red circle"])
    assert_close(classifier(x, text), plain + torch.tensor([0.0, 3.0, 1.0, 0.0])[:, None])


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


def test_weights_of_a_text_classifier_start_training_on_other_classes(tmp_path):
    model = open_model("retinanet")
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    other = open_model("retinanet", ["dog", "cat"])
    report = DenseCLIPCheckpointer(other, for_training=True)
    report.load(str(tmp_path / "model.pth"))
    theirs = model.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in other.state_dict().items())


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
    predictor.set_names(["dog"], background=True)
    assert predictor.class_names == ("dog", "background")
    predictor.set_names([])
    assert predictor.class_names == (*NAMES, "background")
    boxes = Predictor(shapes_config("retinanet", tmp_path))
    boxes.set_names(["dog"], background=True)
    assert boxes.class_names == ("dog",)


def evaluated(system: str, folder, test: str) -> tuple[torch.nn.Module, dict]:
    cfg = shapes_config(system, folder)
    cfg.merge_from_list(["DATASETS.TEST", (test,), "OUTPUT_DIR", str(folder), "DATALOADER.NUM_WORKERS", 0])
    model = build_model_with_weights(cfg).eval()
    check_test_sets(cfg)
    return model, Trainer.test(cfg, model)


def test_boxes_are_evaluated_with_the_names_of_the_test_set(small_shapes, tmp_path):
    """The model was built for three other classes."""
    _, _, val = small_shapes
    model, results = evaluated("retinanet", tmp_path, val)
    assert "AP-red solid circle" in results["bbox"] and "AP_seen" not in results["bbox"]
    assert results["bbox"]["AP_unseen"] >= 0  # the model was trained on other names
    assert model.backbone.language.class_names == NAMES and model.num_classes == 3


def test_labels_are_evaluated_with_the_names_of_the_test_set(semantic_shapes, tmp_path):
    model, results = evaluated("semantic_fpn", tmp_path, "val")
    assert "IoU-red solid circle" in results["sem_seg"]
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


@pytest.mark.parametrize("format", ["onnx", "torchscript", "torch_export"])
def test_such_models_are_not_exported_yet(format, tmp_path):
    with pytest.raises(ValueError, match="CLASSIFIER is 'text'.*not support yet"):
        check_exportable(shapes_config("retinanet", tmp_path), format)
