import json

import pytest
import torch
from conftest import SHARED
from detectron2.modeling import build_model
from released import (
    read_prompts,
    register_reference_architecture,
    released_checkpoint,
    released_config,
    released_retinanet,
)  # fmt: skip
from torch import nn
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2.builder import build_model_with_weights, optimize_for_inference
from denseclip_d2.checkpoint import DenseCLIPCheckpointer, released
from denseclip_d2.checkpoint.clip import resize_positions
from denseclip_d2.checkpoint.load_report import LoadReport
from denseclip_d2.data import get_class_names
from denseclip_d2.export.safetensors import export
from denseclip_d2.language.prompts import tokenize_names

CONFIGS = {
    "retinanet_clip_r50_fpn_1x_coco": "COCO-Detection/clip_retinanet_RN50_FPN_1x",
    "retinanet_clip_r101_fpn_1x_coco": "COCO-Detection/clip_retinanet_RN101_FPN_1x",
    "retinanet_denseclip_r50_fpn_1x_coco": "COCO-Detection/denseclip_retinanet_RN50_FPN_1x",
    "retinanet_denseclip_r101_fpn_1x_coco": "COCO-Detection/denseclip_retinanet_RN101_FPN_1x",
    "mask_rcnn_clip_r50_fpn_1x_coco": "COCO-InstanceSegmentation/clip_mask_rcnn_RN50_FPN_1x",
    "mask_rcnn_clip_r101_fpn_1x_coco": "COCO-InstanceSegmentation/clip_mask_rcnn_RN101_FPN_1x",
    "mask_rcnn_denseclip_r50_fpn_1x_coco": "COCO-InstanceSegmentation/denseclip_mask_rcnn_RN50_FPN_1x",
    "mask_rcnn_denseclip_r101_fpn_1x_coco": "COCO-InstanceSegmentation/denseclip_mask_rcnn_RN101_FPN_1x",
    "fpn_clipres50_512x512_80k": "ADE20K-SemanticSegmentation/clip_semantic_fpn_RN50_80k",
    "fpn_clipres101_512x512_80k": "ADE20K-SemanticSegmentation/clip_semantic_fpn_RN101_80k",
    "fpn_clipvit-b_640x640_80k": "ADE20K-SemanticSegmentation/clip_semantic_fpn_ViT-B-16_80k",
    "denseclip_fpn_res50_512x512_80k": "ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN50_80k",
    "denseclip_fpn_res101_512x512_80k": "ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN101_80k",
    "denseclip_fpn_vit-b_640x640_80k": "ADE20K-SemanticSegmentation/denseclip_semantic_fpn_ViT-B-16_80k",
}


def full_size_model(name: str, *opts) -> nn.Module:
    """Return the model of a config with shapes and without values."""
    return build_model(prepared_cfg(f"configs/{name}.yaml", [*opts, "MODEL.DEVICE", "meta"]))


def key_list(name: str) -> dict[str, torch.Tensor]:
    """Return every key and shape of a released checkpoint without values."""
    path = SHARED / "reference" / "keys" / f"{name}.json"
    if not path.exists():
        pytest.skip("the released checkpoints' keys are not here (../shared/reference)")
    shapes = json.loads(path.read_text())["state_dict"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_released_checkpoint_has_its_place(name):
    """No key is missing, left over or of another shape. Reshaped keys are logged."""
    weights, model = key_list(name), full_size_model(CONFIGS[name])
    converted, reshaped = released.convert_released(weights, model, name)
    assert not resize_positions(converted, model)
    report = LoadReport.compare(converted, model.state_dict(), reshaped)
    assert (report.missing, report.left_over, report.misshapen) == ((), (), {})
    assert len(report.matched) == len(weights)
    text = "backbone.language.text_encoder.positional_embedding"
    assert (text in reshaped) == ("denseclip" in name)
    assert ("head.cls_score.weight" in reshaped) == ("retinanet" in name)
    if text in reshaped:
        assert f"{text}: from 13 to 77 positions" in str(report)


def assert_boxes_are_the_recorded(model: nn.Module, record) -> None:
    image = (record.inputs["img"] * model.pixel_std + model.pixel_mean)[0]
    with torch.no_grad():
        found = model([{"image": image}])[0]["instances"]
    boxes, scores = record.outputs["det_boxes0"].split([4, 1], dim=1)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # MMDetection returns empty boxes too
    assert_close(found.scores, scores[kept, 0], atol=1e-5, rtol=1e-4)
    assert_close(found.pred_boxes.tensor, boxes[kept], atol=1e-3, rtol=1e-4)
    assert torch.equal(found.pred_classes, record.outputs["det_labels0"][kept])


def test_a_released_checkpoint_exported_gives_the_recorded_boxes(reference, tmp_path):
    """Inference uses only the file of tools/convert_checkpoint.py and its header."""
    record = reference("det_full_tiny")
    model, exported = released_retinanet(record, tmp_path), str(tmp_path / "model.safetensors")
    source = str(tmp_path / "released.pth")
    export(model, released_config(), model.backbone.language.class_names, source=source, output=exported)
    cfg = prepared_cfg(exported, [])
    again = optimize_for_inference(cfg, build_model_with_weights(cfg))
    read_prompts(again.backbone.language, record.inputs["texts"])
    assert_boxes_are_the_recorded(again, record)


def test_without_the_anchors_order_boxes_are_others(reference, tmp_path, monkeypatch):
    record = reference("det_full_tiny")
    monkeypatch.setattr(released, "_reorder_anchors", lambda weights: {})
    with pytest.raises(AssertionError):
        assert_boxes_are_the_recorded(released_retinanet(record, tmp_path), record)


def test_with_detectron2s_p7_the_pyramid_is_another(reference, tmp_path, monkeypatch):
    """A config with another P7 is refused with the name of the key."""
    record = reference("det_full_tiny")
    with pytest.raises(ValueError, match="outputs need MODEL.DENSECLIP.FPN_P7_RELU False"):
        released_retinanet(record, tmp_path, "MODEL.DENSECLIP.FPN_P7_RELU", True)
    monkeypatch.setattr(released, "_check_settings", lambda weights, model, path: None)
    with_relu = released_retinanet(record, tmp_path, "MODEL.DENSECLIP.FPN_P7_RELU", True)
    with torch.no_grad():
        pyramid = with_relu.backbone(record.inputs["img"])
    assert_close(pyramid["p6"], record.outputs["fpn3"], atol=1e-4, rtol=1e-4)
    with pytest.raises(AssertionError):
        assert_close(pyramid["p7"], record.outputs["fpn4"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("VISUAL.POS_EMBED", "interpolate", "VISUAL.POS_EMBED crop"),
        ("SCORE_MAP.CONCAT_LOGITS", False, "SCORE_MAP.CONCAT_LOGITS True"),
        ("SCORE_MAP.TAU", 0.1, "SCORE_MAP.TAU 0.07"),
        ("CONTEXT_DECODER.HEADS", 8, "CONTEXT_DECODER.HEADS 4"),
    ],
)
def test_settings_that_no_shape_shows_are_asked_for(reference, tmp_path, key, value, needed):
    with pytest.raises(ValueError, match=f"outputs need MODEL.DENSECLIP.{needed}"):
        released_retinanet(reference("det_full_tiny"), tmp_path, f"MODEL.DENSECLIP.{key}", value)


def test_a_model_of_another_kind_is_refused_by_name(reference, tmp_path):
    path = released_checkpoint(reference("det_full_tiny"), tmp_path)
    for config in ("denseclip_mask_rcnn_tiny", "denseclip_retinanet_tiny"):
        model = build_model(prepared_cfg(f"configs/Shapes/{config}.yaml", []))
        expected = (
            "released RetinaNet on DenseCLIP.*model is DenseCLIPMaskRCNN" if "mask" in config else "FPN_P7"
        )
        with pytest.raises(ValueError, match=expected):
            DenseCLIPCheckpointer(model).load(path)
    plain = ("RetinaNetGlobalNorm", "MODEL.BACKBONE.NAME", "build_clip_retinanet_fpn_backbone")
    opts = ["MODEL.META_ARCHITECTURE", *plain, "MODEL.DENSECLIP.FPN_P7_RELU", "False"]
    model = build_model(prepared_cfg("configs/Shapes/denseclip_retinanet_tiny.yaml", opts))
    with pytest.raises(ValueError, match="RetinaNet on DenseCLIP.*RetinaNetGlobalNorm on FPN"):
        DenseCLIPCheckpointer(model).load(path)


def test_prompts_longer_than_the_released_positions_are_refused(reference, tmp_path):
    """13 positions: 8 contexts leave 5 for a name."""
    register_reference_architecture(tmp_path)
    weights = key_list("retinanet_denseclip_r50_fpn_1x_coco")
    model = full_size_model(
        "COCO-Detection/denseclip_retinanet_RN50_FPN_1x", "MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS", "7"
    )
    with pytest.raises(ValueError, match=r"13 positions.*need 15.*MAX_NAME_TOKENS to 5"):
        released.convert_released(weights, model, "released.pth")


@pytest.mark.parametrize("doubled", [False, True])
def test_the_released_vits_second_class_embedding_is_kept(doubled):
    """It is in its position if the config does not add it again. Both reproduce the authors' outputs."""
    opts = ["MODEL.DENSECLIP.CLIP_MODEL", "ViT-tiny-quickgelu", "MODEL.DENSECLIP.VISUAL.NORM", "BN"]
    opts += ["MODEL.DENSECLIP.VISUAL.DOUBLE_CLASS_EMBEDDING", str(doubled)]
    model = build_model(prepared_cfg("configs/Shapes/clip_semantic_fpn_tiny.yaml", opts)).eval()
    visual = model.backbone.bottom_up
    weights = {f"backbone.bottom_up.{k}": v.clone() for k, v in visual.state_dict().items()}
    with torch.no_grad():
        visual.double_class_embedding = True
        expected = visual(torch.ones(1, 3, 64, 64))["res5"]
        visual.double_class_embedding = doubled
        assert bool(released._add_class_embedding(weights, model)) != doubled
        model.load_state_dict(weights, strict=False)
        assert_close(visual(torch.ones(1, 3, 64, 64))["res5"], expected)


def test_the_released_segmentors_prompts_are_theirs(reference):
    """MMSegmentation's names of ADE20K's classes. Ten differ from Detectron2's."""
    record = reference("tokenizer")
    cfg = prepared_cfg("configs/ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN50_80k.yaml", [])
    ids = tokenize_names(get_class_names(cfg), cfg.MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS)
    assert torch.equal(ids, record.outputs["ade_5"].long())
