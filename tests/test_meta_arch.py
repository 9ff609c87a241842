import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from released import released_retinanet
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2.guidance import region_targets
from denseclip_d2.meta_arch import DenseCLIPRetinaNet

RETINANET = "configs/Shapes/denseclip_retinanet_tiny.yaml"
MASK_RCNN = "configs/Shapes/denseclip_mask_rcnn_tiny.yaml"
LOSSES = {
    RETINANET: {"loss_cls", "loss_box_reg", "loss_pixel_text"},
    MASK_RCNN: {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc", "loss_pixel_text"},
}


@pytest.fixture
def released(reference, tmp_path):
    record = reference("det_full_tiny")
    return released_retinanet(record, tmp_path), record


def pixels(model, record) -> list[dict]:
    """Return the recorded, already normalized images in the format of Detectron2's mapper."""
    images = record.inputs["img"] * model.pixel_std + model.pixel_mean
    return [{"image": image} for image in images]


def ground_truth(boxes, classes, size=(96, 160)) -> Instances:
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes)


def test_pyramid_logits_deltas_and_score_map_equal_the_original(released):
    model, record = released
    with torch.no_grad():
        features = model.backbone(record.inputs["img"])
        logits, deltas = model.head([features[f] for f in model.head_in_features])
    scores = torch.nn.functional.interpolate(features["score_map"], scale_factor=8, mode="bilinear")
    assert_close(scores / 0.07, record.outputs["score_map0"], atol=1e-4, rtol=1e-4)
    for i in range(5):
        assert_close(features[f"p{i + 3}"], record.outputs[f"fpn{i}"], atol=1e-4, rtol=1e-4)
        for name, ours in (("cls", logits[i]), ("reg", deltas[i])):
            theirs = record.outputs[f"{name}{i}"].unflatten(1, (3, 3, -1)).transpose(1, 2).flatten(1, 3)
            assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_losses_equal_the_original(released):
    model, record = released
    inputs = pixels(model, record)
    for i, x in enumerate(inputs):
        x["instances"] = ground_truth(record.inputs[f"boxes{i}"], record.inputs[f"labels{i}"])
    model.training = True  # only the model: the recording has running statistics and no dropout
    with EventStorage() as storage, torch.no_grad():
        losses = model(inputs)
        positive = storage.latest()["num_pos_anchors"][0] * len(inputs)
    # Detectron2 divides by a running mean of the number of positive anchors, MMDetection by the number.
    scale = model.loss_normalizer / positive
    assert_close(losses["loss_cls"] * scale, record.outputs["loss_cls"].sum(), atol=1e-4, rtol=1e-4)
    assert_close(losses["loss_box_reg"] * scale, record.outputs["loss_bbox"].sum(), atol=1e-4, rtol=1e-4)
    assert_close(losses["loss_pixel_text"], record.outputs["loss_seg"], atol=1e-4, rtol=1e-4)


def test_boxes_equal_the_original(released):
    model, record = released
    with torch.no_grad():
        instances = model(pixels(model, record)[:1])[0]["instances"]
    boxes, scores = record.outputs["det_boxes0"].split([4, 1], dim=1)
    kept = Boxes(
        boxes
    ).nonempty()  # MMDetection returns boxes that are empty after clipping. Detectron2 does not.
    assert (len(boxes), len(instances)) == (100, kept.sum()) == (100, 98)
    assert_close(instances.scores, scores[kept, 0], atol=1e-5, rtol=1e-4)
    assert_close(instances.pred_boxes.tensor, boxes[kept], atol=1e-3, rtol=1e-4)
    assert_close(instances.pred_classes, record.outputs["det_labels0"][kept])


def shapes_model(config: str = RETINANET, **keys):
    return build_model(prepared_cfg(config, [str(x) for pair in keys.items() for x in pair]))


def random_input(height: int, width: int, boxes, classes) -> dict:
    """Return a random image with boxes, and masks that fill the boxes."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances = ground_truth(boxes, torch.tensor(classes, dtype=torch.int64), (height, width))
    if len(boxes):  # Detectron2's mapper returns no masks for an image without objects.
        instances.gt_masks = PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]].numpy()] for box in boxes])
    return {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), "instances": instances}


@pytest.mark.parametrize("config", [RETINANET, MASK_RCNN], ids=["RetinaNet", "Mask R-CNN"])
@pytest.mark.parametrize(
    "inputs",
    [
        [random_input(96, 128, [], []), random_input(64, 64, [], [])],
        [random_input(96, 128, [], []), random_input(64, 64, [[4, 4, 50, 60]], [17])],
        [random_input(96, 128, [[10, 10, 12, 13], [0, 0, 3, 3]], [0, 1]) for _ in range(2)],
        [random_input(120, 1, [[0, 10, 1, 60]], [3]), random_input(1, 120, [[5, 0, 60, 1]], [4])],
        [random_input(1, 1, [], []), random_input(1, 1, [[0, 0, 1, 1]], [5])],
    ],
    ids=["no boxes", "half without boxes", "boxes under 4 pixels", "one pixel wide", "one pixel"],
)
def test_odd_inputs_train_and_test_without_nan(config, inputs):
    model = shapes_model(config)
    with EventStorage():
        losses = model(inputs)
    assert set(losses) == LOSSES[config]
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        outputs = model.eval()(inputs)
    assert all(torch.isfinite(x["instances"].pred_boxes.tensor).all() for x in outputs)


@pytest.mark.parametrize("config", [RETINANET, MASK_RCNN], ids=["RetinaNet", "Mask R-CNN"])
def test_infinite_pixels_do_not_crash_inference(config):
    with torch.no_grad():
        model = shapes_model(config).eval()
        for value in (float("inf"), float("nan")):
            outputs = model([{"image": torch.full((3, 64, 64), value)}])
            assert len(outputs) == 1


def test_the_pixel_text_loss_has_its_weight():
    inputs = [random_input(96, 128, [[10, 10, 80, 90]], [3])]
    model = shapes_model().eval()
    model.training = True
    with EventStorage(), torch.no_grad():
        whole = model(inputs)["loss_pixel_text"]
        model.pixel_text_weight = 0.25
        quarter = model(inputs)["loss_pixel_text"]
    assert whole > 0
    assert_close(quarter, whole / 4)
    assert shapes_model(**{"MODEL.DENSECLIP.LOSS_WEIGHT": 0.5}).pixel_text_weight == 0.5


def test_arguments_beside_a_config_replace_its_values():
    """As everywhere in Detectron2."""
    cfg = prepared_cfg(
        RETINANET, ["MODEL.DENSECLIP.LOSS_WEIGHT", "0.5", "MODEL.DENSECLIP.LOSS_TYPE", "softmax"]
    )
    model = DenseCLIPRetinaNet(cfg, pixel_text_weight=2.0)
    assert (model.pixel_text_weight, model.pixel_text_kind) == (2.0, "softmax")


def test_masks_are_a_tighter_target_than_boxes():
    """If a mask fills half of its box, the loss uses half of the pixels."""
    inputs = [random_input(96, 128, [[16, 16, 80, 80]], [3])]
    inputs[0]["instances"].gt_masks = PolygonMasks([[np.array([16, 16, 80, 16, 16, 80], dtype=np.float64)]])
    model = shapes_model(MASK_RCNN, **{"MODEL.DENSECLIP.LOSS_TARGET": "mask"})
    boxed = shapes_model(MASK_RCNN)
    instances = inputs[0]["instances"]
    by_box = region_targets([instances.gt_boxes], [instances.gt_classes], 18, (24, 32))
    by_mask = region_targets([model._shapes(instances)], [instances.gt_classes], 18, (24, 32))
    assert by_box.sum() == 16 * 16
    assert (by_mask & ~by_box).sum() == 0
    assert by_mask.sum().item() == pytest.approx(16 * 16 / 2, rel=0.15)
    with EventStorage():
        assert model(inputs * 2)["loss_pixel_text"] != boxed(inputs * 2)["loss_pixel_text"]


def test_images_without_objects_count_for_nothing_in_the_mask_target():
    model = shapes_model(MASK_RCNN, **{"MODEL.DENSECLIP.LOSS_TARGET": "mask"})
    inputs = [random_input(96, 128, [], []), random_input(96, 128, [[4, 4, 50, 60]], [17])]
    with EventStorage():
        losses = model(inputs)
    assert losses["loss_pixel_text"] > 0
    assert [len(model._shapes(x["instances"])) for x in inputs] == [0, 1]


def test_a_mask_target_without_masks_is_refused():
    model = shapes_model(MASK_RCNN, **{"MODEL.DENSECLIP.LOSS_TARGET": "mask"})
    boxed = ground_truth(torch.tensor([[4.0, 4.0, 50.0, 60.0]]), torch.tensor([3]))
    with pytest.raises(ValueError, match="no segmentation"):
        model._shapes(boxed)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"MODEL.DENSECLIP.LOSS_TARGET": "mask"}, "MASK_ON True"),
        ({"MODEL.DENSECLIP.LOSS_TARGET": "polygon"}, "one of 'box', 'mask'"),
    ],
)
def test_a_target_that_cannot_be_made_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        shapes_model(**keys)


def test_guidance_needs_no_meta_architecture_of_its_own():
    """Detectron2's RetinaNet trains on the language-guided pyramid without the auxiliary loss."""
    model = shapes_model(**{"MODEL.META_ARCHITECTURE": "RetinaNet"})
    with EventStorage():
        losses = model([random_input(96, 128, [[10, 10, 80, 90]], [3]) for _ in range(2)])
    assert set(losses) == {"loss_cls", "loss_box_reg"}


@pytest.mark.parametrize(
    "names, message",
    [
        ("('dog', 'cat', 'cow')", "3 class names for MODEL.RETINANET.NUM_CLASSES = 18"),
        ("('dog', 'dog')", "more than once"),
        ("('dog', '')", "class 1 is empty"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        shapes_model(**{"MODEL.DENSECLIP.CLASS_NAMES": names})


def test_a_name_longer_than_the_prompt_is_refused():
    with pytest.raises(ValueError, match="MAX_NAME_TOKENS = 4"):
        shapes_model(**{"MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS": 4})


@pytest.mark.parametrize(
    "config, millions",
    [
        ("COCO-Detection/clip_retinanet_RN50_FPN_1x", 37.99),
        ("COCO-Detection/denseclip_retinanet_RN50_FPN_1x", 60.45),
        ("COCO-Detection/clip_retinanet_RN101_FPN_1x", 56.98),
        ("COCO-Detection/denseclip_retinanet_RN101_FPN_1x", 78.00),
        ("COCO-InstanceSegmentation/clip_mask_rcnn_RN50_FPN_1x", 44.42),
        ("COCO-InstanceSegmentation/denseclip_mask_rcnn_RN50_FPN_1x", 66.69),
        ("COCO-InstanceSegmentation/clip_mask_rcnn_RN101_FPN_1x", 63.41),
        ("COCO-InstanceSegmentation/denseclip_mask_rcnn_RN101_FPN_1x", 84.24),
        ("ADE20K-SemanticSegmentation/clip_semantic_fpn_RN50_80k", 31.04),
        ("ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN50_80k", 50.25),
        ("ADE20K-SemanticSegmentation/clip_semantic_fpn_RN101_80k", 50.03),
        ("ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN101_80k", 67.80),
    ],
)
def test_parameters_are_as_many_as_published(config, millions):
    """Without the text encoder (METHOD: table of published results)."""
    model = build_model(prepared_cfg(f"configs/{config}.yaml", []))
    count = sum(p.numel() for name, p in model.named_parameters() if "text_encoder" not in name)
    assert count / 1e6 == pytest.approx(millions, rel=1e-3)


def test_the_softmax_loss_is_a_key():
    inputs = [random_input(96, 128, [[10, 10, 80, 90], [30, 5, 60, 70]], [3, 5])]
    losses = {}
    for kind in ("binary", "softmax"):
        torch.manual_seed(0)
        model = shapes_model(**{"MODEL.DENSECLIP.LOSS_TYPE": kind})
        with EventStorage():
            losses[kind] = model(inputs * 2)
    assert losses["binary"]["loss_cls"] == losses["softmax"]["loss_cls"]
    assert losses["softmax"]["loss_pixel_text"] > 2 * losses["binary"]["loss_pixel_text"]


def test_kernels_can_be_switched_off():
    """The definition has the same losses, and no custom operator runs."""
    inputs = [random_input(96, 128, [[10, 10, 80, 90], [30, 5, 60, 70]], [3, 5])]
    losses, operators = {}, {}
    for kernels in (True, False):
        torch.manual_seed(0)
        model = shapes_model(**{"MODEL.DENSECLIP.FUSED_OPS": kernels})
        with EventStorage(), torch.profiler.profile() as profile:
            losses[kernels] = model(inputs * 2)
        operators[kernels] = {x.key for x in profile.key_averages() if x.key.startswith("denseclip_d2::")}
    assert "denseclip_d2::pixel_text_bce" in operators[True]
    assert not operators[False]
    assert_close(losses[True], losses[False], rtol=1e-5, atol=1e-6)
