# ruff: noqa: E501  (a table is wide)
import json
import subprocess
import sys

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from denseclip_d2.builder import build_model
from denseclip_d2.config import add_denseclip_config, load_config
from denseclip_d2.config.checks import leaves
from denseclip_d2.config.rules import DETECTRON2, OWN
from denseclip_d2.data import get_class_names
from denseclip_d2.data.checks import load_datasets

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"

# Key, value, and how the error goes on after the key.
BAD = [
    ("MODEL.DENSECLIP.CLIP_MODEL", "RN51", " = 'RN51' is not an architecture open_clip knows. Near it: RN"),
    ("MODEL.DENSECLIP.CLIP_MODEL", None, " is None; it needs a value, such as its default, 'RN50-quickgelu'."),
    ("MODEL.DENSECLIP.CLASS_NAMES", (1, 2), " is (1, 2); it has to be a list, each a string."),
    ("MODEL.DENSECLIP.LOSS_WEIGHT", -1.0, " is -1.0; it has to be a number of at least 0."),
    ("MODEL.DENSECLIP.LOSS_WEIGHT", float("nan"), " is nan; it has to be a number of at least 0."),
    ("MODEL.DENSECLIP.LOSS_TARGET", "boxes", " is 'boxes'; it has to be one of 'box', 'mask'."),
    ("MODEL.DENSECLIP.KERNELS", None, " is None; it needs a value, such as its default, True."),
    ("MODEL.DENSECLIP.FPN_P7_RELU", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.VISUAL.NORM", "", " is ''; it has to be one of 'BN', 'SyncBN'"),
    ("MODEL.DENSECLIP.VISUAL.NORM", "BatchNorm", " is 'BatchNorm'; it has to be one of 'BN', 'SyncBN'"),
    ("MODEL.DENSECLIP.VISUAL.FREEZE_AT", 6, " is 6; it has to be a whole number of at least 0 and at most 5."),
    ("MODEL.DENSECLIP.VISUAL.FREEZE_AT", -1, " is -1; it has to be a whole number"),
    ("MODEL.DENSECLIP.VISUAL.POSITION", "cut", " is 'cut'; it has to be one of 'interpolate', 'crop'."),
    ("MODEL.DENSECLIP.VISUAL.RESOLUTION", -1, " is -1; it has to be a whole number of at least 0."),
    ("MODEL.DENSECLIP.VISUAL.RESOLUTION", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.VISUAL.DENSE", "query", " is 'query'; it has to be one of 'attention', 'value'."),
    ("MODEL.DENSECLIP.VISUAL.RES5_DILATION", 4, " is 4; it has to be a whole number of at least 1 and at most 2."),
    ("MODEL.DENSECLIP.PROMPT.CONTEXT_STD", 0.0, " is 0.0; it has to be a number above 0."),
    ("MODEL.DENSECLIP.VISUAL.DROP_PATH_RATE", 1.0, " is 1.0; it has to be a number of at least 0 and below 1."),
    ("MODEL.DENSECLIP.VISUAL.WINDOW_SIZE", -1, " is -1; it has to be a whole number of at least 0."),
    ("MODEL.DENSECLIP.VISUAL.GLOBAL_BLOCKS", (-1,), " is (-1,); it has to be a list, each a whole number of at least 0."),
    ("MODEL.DENSECLIP.VISUAL.DOUBLE_CLASS_EMBEDDING", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.PROMPT.MODE", "after", " is 'after'; it has to be one of 'post', 'pre'"),
    ("MODEL.DENSECLIP.PROMPT.NUM_CONTEXTS", None, " is None; it needs a value, such as its default, 8."),
    ("MODEL.DENSECLIP.PROMPT.NUM_CONTEXTS", -1, " is -1; it has to be a whole number of at least 0."),
    ("MODEL.DENSECLIP.PROMPT.NAME_LENGTH", 2, " is 2; it has to be a whole number"),
    ("MODEL.DENSECLIP.PROMPT.TEMPLATE", "a photo", " is 'a photo'; it has to be a sentence with {}"),
    ("MODEL.DENSECLIP.PROMPT.FOLDED", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.WIDTH", -1, " is -1; it has to be a whole number of at least 1."),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.WIDTH", 66, " is 66, which its 4 HEADS cannot share equally"),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.HEADS", None, " is None; it needs a value, such as its default, 4."),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.HEADS", 0, " is 0; it has to be a whole number of at least 1."),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.LAYERS", 0, " is 0; it has to be a whole number of at least 1."),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.DROPOUT", 1.5, " is 1.5; it has to be a number of at least 0 and below 1."),
    ("MODEL.DENSECLIP.SCORE_MAP.LEVEL", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.SCORE_MAP.TAU", 0.0, " is 0.0; it has to be a number above 0."),
    ("MODEL.DENSECLIP.SCORE_MAP.CONCAT_LOGITS", None, " is None; it needs a value"),
    ("MODEL.CHANNELS_LAST", None, " is None; it needs a value"),
    ("MODEL.SEM_SEG_HEAD.DROPOUT", -0.1, " is -0.1; it has to be a number"),
    ("INPUT.SCALE_RANGE_TRAIN", (0.5,), " is (0.5,); it has to be 2 values, each a number above 0."),
    ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.0, " is 0.0; it has to be a number above 0 and at most 1."),
    ("SOLVER.AMP.PRECISION", "half", " is 'half'; it has to be one of 'float16', 'bfloat16'."),
    ("SOLVER.OPTIMIZER", "LION", " is 'LION'; it has to be one of 'ADAMW', 'SGD'."),
    ("DATALOADER.RANDOM_SUBSET_RATIO", 0.0, " is 0.0; it has to be a number above 0 and at most 1."),
    ("SOLVER.CONTEXT_MULTIPLIER", -1.0, " is -1.0; it has to be a number of at least 0."),
    ("SOLVER.VISUAL_MULTIPLIER", float("inf"), " is inf; it has to be a number of at least 0."),
    ("SOLVER.NO_WEIGHT_DECAY", (None,), " is (None,); it has to be a list, each a string."),
    ("SOLVER.KEEP_CHECKPOINTS", -2, " is -2; it has to be a whole number of at least 0."),
    ("DATASETS.SEMANTIC_FOLDERS", (3,), " is (3,); it has to be a list, each a string."),
    ("TEST.SLIDING_WINDOW.SIZE", (0, 64), " is (0, 64); it has to be a list, each a whole number of at least 1."),
    ("TEST.SLIDING_WINDOW.MAX_PIXELS", 0, " is 0; it has to be a whole number of at least 1."),
    ("MODEL.META_ARCHITECTURE", "x", " is 'x', which is not registered. Near it: none. There are: "),
    ("MODEL.META_ARCHITECTURE", None, " is None; it needs a value"),
    ("MODEL.META_ARCHITECTURE", "DenseCLIPRetinanet", " is 'DenseCLIPRetinanet', which is not registered. Near it: Dense"),
    ("MODEL.META_ARCHITECTURE", "", " is '', which is not registered."),
    ("MODEL.ROI_HEADS.NAME", "PrecomputedProposals", " is 'PrecomputedProposals', which is not registered."),
    ("MODEL.BACKBONE.NAME", "nan", " is 'nan', which is not registered."),
    ("MODEL.ROI_HEADS.NAME", "StandardHeads", " is 'StandardHeads', which is not registered. Near it: StandardROIHeads"),
    ("MODEL.SEM_SEG_HEAD.NAME", None, " is None; it needs a value"),
    ("MODEL.FPN.IN_FEATURES", None, " is None; it needs a value"),
    ("MODEL.FPN.OUT_CHANNELS", 0, " is 0; it has to be a whole number of at least 1."),
    ("MODEL.RETINANET.NUM_CLASSES", 0, " is 0; it has to be a whole number of at least 1."),
    ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], " is [1.0, 0.0, 1.0]; it has to be a list, each a number above 0."),
    ("MODEL.DEVICE", "gpu", " is 'gpu'; it has to be a device of torch's"),
    ("INPUT.MIN_SIZE_TRAIN", (-8,), " is (-8,); it has to be "),
    ("INPUT.FORMAT", "rgb", " is 'rgb'; it has to be one of 'RGB', 'BGR'"),
    ("SOLVER.IMS_PER_BATCH", -1, " is -1; it has to be a whole number of at least 1."),
    ("SOLVER.BASE_LR", -0.1, " is -0.1; it has to be a number of at least 0."),
    ("SOLVER.BASE_LR", None, " is None; it needs a value"),
    ("SOLVER.LR_SCHEDULER_NAME", "Cosine", " is 'Cosine'; it has to be one of 'WarmupMultiStepLR'"),
    ("DATALOADER.NUM_WORKERS", -1, " is -1; it has to be a whole number of at least 0."),
    ("TEST.DETECTIONS_PER_IMAGE", 0, " is 0; it has to be a whole number of at least 1."),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "error"), BAD, ids=lambda x: str(x)[:40])
def test_bad_values_end_before_a_model_is_built_and_name_their_key(key, value, error):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the words are compared below)
        load_config(CONFIG, [key, value])
    assert str(caught.value).startswith(key + error), caught.value
    assert "\n" not in str(caught.value)


def test_values_set_in_python_are_checked_as_well():
    cfg = load_config(CONFIG, [])
    cfg.MODEL.DENSECLIP.SCORE_MAP.TAU = "warm"
    with pytest.raises(ValueError, match="SCORE_MAP.TAU is 'warm'; it has to be a number above 0"):
        build_model(cfg)


def test_every_key_of_this_project_has_a_rule_that_its_default_keeps():
    cfg = get_cfg()
    before = dict(leaves(cfg))
    add_denseclip_config(cfg)
    values = dict(leaves(cfg))
    assert OWN.keys() == values.keys() - before.keys()
    for key, rule in {**OWN, **DETECTRON2}.items():
        assert rule.accepts(values[key]), key


def test_a_tool_says_it_in_one_line():
    command = [sys.executable, "tools/train_net.py", "--config-file", CONFIG, "SOLVER.IMS_PER_BATCH", "-1"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "error: SOLVER.IMS_PER_BATCH is -1" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("category", "words"),
    [
        ({"id": 7, "name": 12}, "category 7 has the name 12"),
        ({"id": 7, "name": ["a", "b"]}, r"category 7 has the name \['a', 'b'\]"),
        ({"id": 7}, "category 7 has no name"),
    ],
)
def test_a_category_that_has_no_word_for_a_name_is_named_with_its_file(tmp_path, category, words):
    path = tmp_path / "instances.json"
    image = {"id": 1, "file_name": "a.png", "height": 8, "width": 8}
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    path.write_text(json.dumps({"images": [image], "annotations": [annotation], "categories": [category]}))
    name = f"categories_{tmp_path.name}"
    register_coco_instances(name, {}, str(path), str(tmp_path))
    with pytest.raises(ValueError, match=f"instances.json: {words}"):
        load_datasets([name], filter_empty=True, check_images=False)
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(json_file=str(path), evaluator_type="coco")
    cfg = load_config(CONFIG, ["DATASETS.TRAIN", (name,)])
    with pytest.raises(ValueError, match=f"instances.json: {words}"):
        get_class_names(cfg)
