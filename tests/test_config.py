# ruff: noqa: E501  (a table is wide)
import json
from functools import reduce
from pathlib import Path

import pytest
import torch
from detectron2 import modeling
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from processes import run_script

from denseclip_d2.builder import build_model
from denseclip_d2.config import add_denseclip_config, check_config, load_config, prepare_run, set_pixels
from denseclip_d2.config.checks import leaves
from denseclip_d2.config.projects import PROJECTS, default_config
from denseclip_d2.config.rules import RULES, rule_of
from denseclip_d2.data import get_class_names
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.engine.errors import format_error
from denseclip_d2.engine.lr_scheduler import build_lr_scheduler
from denseclip_d2.shapes.dataset import CLASS_NAMES

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"

# Key, value, and the error message after the key
BAD = [
    ("MODEL.DENSECLIP.CLIP_MODEL", "RN51", " = 'RN51' is not an architecture that open_clip knows. Near it: RN"),
    ("MODEL.DENSECLIP.CLIP_MODEL", None, " is None; it needs a value, such as its default, 'RN50-quickgelu'."),
    ("MODEL.DENSECLIP.CLASS_NAMES", (1, 2), " is (1, 2); it has to be a list, each a string."),
    ("MODEL.DENSECLIP.LOSS_WEIGHT", -1.0, " is -1.0; it has to be a number of at least 0."),
    ("MODEL.DENSECLIP.LOSS_WEIGHT", float("nan"), " is nan; it has to be a number of at least 0."),
    ("MODEL.DENSECLIP.LOSS_TARGET", "boxes", " is 'boxes'; it has to be one of 'box', 'mask'."),
    ("MODEL.DENSECLIP.FUSED_OPS", None, " is None; it needs a value, such as its default, True."),
    ("MODEL.DENSECLIP.FPN_P7_RELU", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.VISUAL.NORM", "", " is ''; it has to be one of 'BN', 'SyncBN'"),
    ("MODEL.DENSECLIP.VISUAL.NORM", "BatchNorm", " is 'BatchNorm'; it has to be one of 'BN', 'SyncBN'"),
    ("MODEL.DENSECLIP.VISUAL.FREEZE_AT", 6, " is 6; it has to be a whole number of at least 0 and at most 5."),
    ("MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE.BETA", 1.5, " is 1.5; it has to be a number of at least 0 and at most 1."),
    ("MODEL.DENSECLIP.VISUAL.FREEZE_AT", -1, " is -1; it has to be a whole number"),
    ("MODEL.DENSECLIP.VISUAL.POS_EMBED", "cut", " is 'cut'; it has to be one of 'interpolate', 'crop'."),
    ("MODEL.DENSECLIP.VISUAL.RESOLUTION", -1, " is -1; it has to be a whole number of at least 0."),
    ("MODEL.DENSECLIP.VISUAL.RESOLUTION", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.VISUAL.DENSE_FEATURES", "query", " is 'query'; it has to be one of 'attention', 'value', 'value-smoothed', 'query-query'"),
    ("MODEL.DENSECLIP.VISUAL.RES5_DILATION", 4, " is 4; it has to be a whole number of at least 1 and at most 2."),
    ("MODEL.DENSECLIP.PROMPT.CONTEXT_STD", 0.0, " is 0.0; it has to be a number above 0."),
    ("MODEL.DENSECLIP.VISUAL.DROP_PATH_RATE", 1.0, " is 1.0; it has to be a number of at least 0 and below 1."),
    ("MODEL.DENSECLIP.VISUAL.WINDOW_SIZE", -1, " is -1; it has to be a whole number of at least 0."),
    ("MODEL.DENSECLIP.VISUAL.GLOBAL_ATTN_INDEXES", (-1,), " is (-1,); it has to be a list, each a whole number of at least 0."),
    ("MODEL.DENSECLIP.VISUAL.DOUBLE_CLASS_EMBEDDING", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.PROMPT.MODE", "after", " is 'after'; it has to be one of 'post', 'pre'"),
    ("MODEL.DENSECLIP.PROMPT.N_CTX", None, " is None; it needs a value, such as its default, 8."),
    ("MODEL.DENSECLIP.PROMPT.N_CTX", -1, " is -1; it has to be a whole number of at least 0."),
    ("MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS", 2, " is 2; it has to be a whole number"),
    ("MODEL.DENSECLIP.PROMPT.TEMPLATE", "a photo", " is 'a photo'; it has to be a sentence with {}"),
    ("MODEL.DENSECLIP.PROMPT.TEMPLATES", ("a {}", "imagnet"), " is ('a {}', 'imagnet'); it has to be a list, each a sentence with {} in place of the name or one of 'imagenet'"),
    ("MODEL.DENSECLIP.PROMPT.PRECOMPUTED", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.WIDTH", -1, " is -1; it has to be a whole number of at least 1."),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.WIDTH", 66, " is 66, which its 4 HEADS cannot share equally"),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.HEADS", None, " is None; it needs a value, such as its default, 4."),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.HEADS", 0, " is 0; it has to be a whole number of at least 1."),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.LAYERS", 0, " is 0; it has to be a whole number of at least 1."),
    ("MODEL.DENSECLIP.CONTEXT_DECODER.DROPOUT", 1.5, " is 1.5; it has to be a number of at least 0 and below 1."),
    ("MODEL.DENSECLIP.SCORE_MAP.LEVEL", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.SCORE_MAP.TAU", 0.0, " is 0.0; it has to be a number above 0."),
    ("MODEL.DENSECLIP.SCORE_MAP.CONCAT_LOGITS", None, " is None; it needs a value"),
    ("MODEL.DENSECLIP.SCORE_MAP.DENOISE", 1.0, " is 1.0; it has to be a number of at least 0 and below 1."),
    ("MODEL.CHANNELS_LAST", None, " is None; it needs a value"),
    ("MODEL.SEM_SEG_HEAD.DROPOUT", -0.1, " is -0.1; it has to be a number"),
    ("INPUT.SCALE_RANGE_TRAIN", (0.5,), " is (0.5,); it has to be 2 values, each a number above 0."),
    ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.0, " is 0.0; it has to be a number above 0 and at most 1."),
    ("SOLVER.AMP.PRECISION", "half", " is 'half'; it has to be one of 'float16', 'bfloat16'."),
    ("SOLVER.OPTIMIZER", "LION", " is 'LION'; it has to be one of 'ADAMW', 'ADAMW8BIT', 'SGD'."),
    ("DATALOADER.RANDOM_SUBSET_RATIO", 0.0, " is 0.0; it has to be a number above 0 and at most 1."),
    ("SOLVER.CONTEXT_MULTIPLIER", -1.0, " is -1.0; it has to be a number of at least 0."),
    ("SOLVER.VISUAL_MULTIPLIER", float("inf"), " is inf; it has to be a number of at least 0."),
    ("SOLVER.NO_WEIGHT_DECAY", (None,), " is (None,); it has to be a list, each a string."),
    ("SOLVER.MAX_TO_KEEP", -2, " is -2; it has to be a whole number of at least 0."),
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
    ("MODEL.DEVICE", "gpu", " is 'gpu'; it has to be a device of torch,"),
    ("INPUT.MIN_SIZE_TRAIN", (-8,), " is (-8,); it has to be "),
    ("INPUT.FORMAT", "rgb", " is 'rgb'; it has to be one of 'RGB', 'BGR'"),
    ("INPUT.FORMAT", "L", " is 'L'; it has to be one of 'RGB', 'BGR'."),
    ("INPUT.FORMAT", "YUV-BT.601", " is 'YUV-BT.601'; it has to be one of 'RGB', 'BGR'."),
    ("INPUT.CROP.TYPE", "random", " is 'random'; it has to be one of 'relative', 'relative_range'"),
    ("MODEL.PIXEL_MEAN", [110.0], " and PIXEL_STD have 1 and 3 values; INPUT.FORMAT 'RGB' has 3 channels"),
    ("MODEL.DEVICE", "xpu", " is 'xpu', where torch cannot compute. This machine has 0 GPUs for CUDA: set"),
    ("SOLVER.MAX_ITER", 0, " is 0; it has to be a whole number of at least 1."),
    ("SOLVER.STEPS", (3, 1), " is (3, 1); it has to be in increasing order."),
    ("SOLVER.STEPS", (0, 1), " is (0, 1); it has to be a list, each a whole number of at least 1."),
    ("SOLVER", 5, " is 5, and a section: set one of its keys, such as SOLVER.AMP."),
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


@pytest.mark.parametrize("projects", [(), tuple(PROJECTS)], ids=["", "projects"])
def test_whole_numbers_are_taken_for_every_fraction(projects, tmp_path, panopticapi):
    """On the command line and in files, for keys of this project, Detectron2 and its projects."""
    fractions = [key for key, default in leaves(default_config(projects)) if type(default) is float]
    assert len(fractions) > 50
    by_list, by_file = default_config(projects), default_config(projects)
    by_list.merge_from_list([x for key in fractions for x in (key, "1")])
    content: dict = {}
    for key in fractions:
        *sections, name = key.split(".")
        reduce(lambda node, section: node.setdefault(section, {}), sections, content)[name] = 1
    (tmp_path / "base.yaml").write_text(json.dumps({"VERSION": 2, **content}), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("_BASE_: base.yaml", encoding="utf-8")
    by_file.merge_from_file(str(tmp_path / "config.yaml"))
    for cfg in (by_list, by_file):
        values = dict(leaves(cfg))
        assert {(type(values[key]), values[key]) for key in fractions} == {(float, 1.0)}


def test_numbers_in_lists_stay_what_they_are_but_yamls_1e_4_is_one(tmp_path):
    """Detectron2 distinguishes pixels from fractions by the type."""
    path = tmp_path / "config.yaml"
    lists = "{CROP: {SIZE: [128, 160]}, SCALE_RANGE_TRAIN: [1e-1, 2]}"
    path.write_text(f'_BASE_: "{Path(CONFIG).resolve()}"\nINPUT: {lists}\nSOLVER: {{BASE_LR: 1e-4}}\n')
    cfg = load_config(str(path), ["OUTPUT_DIR", "2024"])
    assert repr(cfg.INPUT.CROP.SIZE) == "[128, 160]"
    assert repr(cfg.INPUT.SCALE_RANGE_TRAIN) == "(0.1, 2)"
    assert (cfg.SOLVER.BASE_LR, cfg.OUTPUT_DIR) == (1e-4, "2024")


NO_CONFIGS = [
    ("SOLVER:\n\tBASE_LR: 0.1\n", r"{}, line 2: .*found character '\\t'.* indented with spaces\."),
    ("", "{} is empty; a config file holds keys with values"),
    ("# nothing\n", "{} is empty"),
    ("- a\n- b\n", "{} holds a list; a config file holds keys"),
    ("RetinaNet\n", "{} holds one value; a config file holds keys"),
    ("SEED: [\n", "{}, line 2: .*expected the node content"),
    ("SEED: 1\n---\nSEED: 2\n", "{}, line 2: expected a single document"),
    ("SEED: \x07\n", "{}: .*special characters are not allowed"),
    ("_BASE_: config.yaml\n", "A config file is its own _BASE_: {} -> {}. Remove _BASE_"),
    ("_BASE_: other.yaml\n", "A config file is its own _BASE_: {} -> .*other.yaml -> {}. Remove"),
    ("_BASE_: nowhere.yaml\n", "{}: there is no file .*nowhere.yaml, its _BASE_. A relative path starts"),
    ("_BASE_: .\n", "{}: there is no file .*, its _BASE_"),
    ("_BASE_: 5\n", "{}: _BASE_ has to be the path"),
    ("_BASE_:\n  a: b\n", "{}: _BASE_ has to be the path"),
    ("1: 2\n", "{}, line 1: the key '1' is not a word"),
    ("SOLVER:\n  STEPS: []\nSOLVER:\n  MAX_ITER: 3\n", "{}, line 3: SOLVER is in line 1 already"),
    ("SOLVER: 5\n", "SOLVER is 5, and a section"),
    ("SOLVER:\n", "SOLVER is None, and a section"),
    ("SEED: {{A: 1}}\n", "SEED has keys below it, but is no section"),
    ("SOLVER: {{STEPS: !!python/object/apply:nowhere.f []}}\n", "{}, line 1: .*cannot find module 'nowhere'"),
]


@pytest.mark.parametrize(("text", "error"), NO_CONFIGS, ids=lambda x: x[:20])
def test_a_file_that_is_no_config_is_named_in_one_line(text, error, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("{{", "{").replace("}}", "}"), encoding="utf-8")
    (tmp_path / "other.yaml").write_text("_BASE_: config.yaml\n", encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=error.replace("{}", str(path))) as caught:
        load_config(str(path), [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le"])
def test_a_file_is_read_in_the_encoding_that_it_tells(encoding, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f'# größer\n_BASE_: "{Path(CONFIG).resolve()}"\nSEED: 7\n', encoding=encoding)
    if encoding == "latin-1":
        with pytest.raises(ValueError, match=f"{path}, line 1: byte 0xf6 is not UTF-8. Save the file as"):
            load_config(str(path), [])
    elif encoding == "utf-16-le":  # without a byte order mark
        with pytest.raises(ValueError, match=f"{path}.* Save "):
            load_config(str(path), [])
    else:
        assert load_config(str(path), []).SEED == 7


def test_a_gpu_that_is_not_there(monkeypatch):
    assert load_config(CONFIG, ["MODEL.DEVICE", "cuda:0"]).MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert load_config(CONFIG, ["MODEL.DEVICE", "cuda:0"]).MODEL.DEVICE == "cuda:0"
    with pytest.raises(
        ValueError, match="MODEL.DEVICE is 'cuda:3'.* has 1 GPUs for CUDA: set .* to cuda, or"
    ):
        load_config(CONFIG, ["MODEL.DEVICE", "cuda:3"])


@pytest.mark.parametrize(
    ("kind", "size", "fits"),
    [
        ("absolute", (64, 64), True),
        ("absolute", (0.5, 0.5), False),
        ("relative", (1, 0.5), True),
        ("relative_range", (64, 64), False),
    ],
)
def test_a_crop_is_in_pixels_or_parts_as_its_type_says(kind, size, fits):
    opts = ["INPUT.CROP.TYPE", kind, "INPUT.CROP.SIZE", size]
    load_config(CONFIG, opts)  # disabled
    if fits:
        load_config(CONFIG, [*opts, "INPUT.CROP.ENABLED", True])
        return
    with pytest.raises(ValueError, match=rf"INPUT.CROP.SIZE is .*; with INPUT.CROP.TYPE '{kind}' it has"):
        load_config(CONFIG, [*opts, "INPUT.CROP.ENABLED", True])


@pytest.mark.parametrize("max_iter", [3, 4, 5, 9])
def test_steps_at_the_end_and_beyond_change_nothing(max_iter):
    cfg = load_config(
        CONFIG, ["SOLVER.STEPS", (2, 4, 8), "SOLVER.MAX_ITER", max_iter, "SOLVER.WARMUP_ITERS", 0]
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(max_iter):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [cfg.SOLVER.GAMMA ** sum(step <= i for step in (2, 4, 8)) for i in range(max_iter)]
    assert rates == pytest.approx(expected)


def test_an_option_after_the_keys_is_named():
    with pytest.raises(ValueError, match="--resume stands among the config keys: options go before"):
        load_config(CONFIG, ["SEED", "1", "--resume"])


def test_values_set_in_python_can_be_checked_as_well():
    cfg = load_config(CONFIG, [])
    cfg.MODEL.DENSECLIP.SCORE_MAP.TAU = "warm"
    with pytest.raises(ValueError, match="SCORE_MAP.TAU is 'warm'; it has to be a number above 0"):
        check_config(cfg)


def test_every_key_of_this_project_has_a_rule_that_its_default_keeps():
    cfg = get_cfg()
    before = dict(leaves(cfg))
    add_denseclip_config(cfg)
    values = dict(leaves(cfg))
    assert values.keys() >= RULES.keys()
    for key in {*values} - {*before} | {*RULES}:
        rule = rule_of(key, values[key])
        assert rule is not None and rule.accepts(values[key]), key


def test_words_for_contexts_need_a_mode_that_learns_contexts():
    with pytest.raises(ValueError, match=r"PROMPT.CONTEXT_INIT is 'a', but PROMPT.MODE 'pre' learns no"):
        load_config(CONFIG, ["MODEL.DENSECLIP.PROMPT.MODE", "pre"])


def test_loading_a_config_touches_no_dataset(tmp_path, catalogs):
    missing = {"DATASETS.SEMANTIC_FOLDERS": (str(tmp_path),), "DATASETS.CUSTOM.TRAIN": (str(tmp_path), "x")}
    cfg = load_config(CONFIG, [x for pair in missing.items() for x in pair])
    assert (cfg.MODEL.DENSECLIP.CLASS_NAMES, cfg.SOLVER.MAX_ITER) == ((), 1000)
    assert not DatasetCatalog.list() and not MetadataCatalog.list()
    for pair in missing.items():
        with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
            prepare_run(CONFIG, pair)


def test_a_run_has_the_names_of_its_dataset_in_its_config(tmp_path, caplog):
    cfg = load_config(CONFIG, [])
    prepared, reference = prepare_run(CONFIG, [])
    assert (
        prepared.MODEL.DENSECLIP.CLASS_NAMES == CLASS_NAMES == build_model(cfg).backbone.language.class_names
    )
    assert prepared.MODEL.DENSECLIP == reference.MODEL.DENSECLIP != cfg.MODEL.DENSECLIP
    names = tuple(name.upper() for name in CLASS_NAMES)
    prepared, reference = prepare_run(CONFIG, ["MODEL.DENSECLIP.CLASS_NAMES", names])
    assert names == prepared.MODEL.DENSECLIP.CLASS_NAMES
    assert reference.MODEL.DENSECLIP.CLASS_NAMES == ()  # the person's names are a departure
    file = tmp_path / "config.yaml"  # as of an earlier run
    file.write_text(prepared.dump())
    assert (
        names
        == prepare_run(str(file), ["DATASETS.TRAIN", ("coco_2017_train",)]).cfg.MODEL.DENSECLIP.CLASS_NAMES
    )
    assert f"({names[0]}, ...), not those of coco_2017_train (person, ...)" in caplog.text
    prepared, _ = prepare_run(CONFIG, ["DATASETS.TRAIN", ("not_there",)])
    assert prepared.MODEL.DENSECLIP.CLASS_NAMES == ()
    with pytest.raises(ValueError, match="'not_there', which is not registered"):
        build_model(prepared)


def test_a_config_made_by_hand_is_told_how_to_get_what_it_lacks():
    cfg = get_cfg()
    add_denseclip_config(cfg)
    cfg.merge_from_file(CONFIG)
    cfg.MODEL.DEVICE = "cpu"
    assert build_model(cfg).pixel_mean.flatten()[0] == pytest.approx(122.7709383)
    with pytest.raises(ValueError, match=r"PIXEL_MEAN is \[\].* `denseclip_d2.config.set_pixels\(cfg\)`"):
        modeling.build_model(cfg)
    set_pixels(cfg)
    with pytest.raises(
        ValueError, match=r"CLASS_NAMES is empty.* `denseclip_d2.data.get_class_names\(cfg\)`"
    ):
        modeling.build_model(cfg)
    cfg.MODEL.DENSECLIP.CLASS_NAMES = get_class_names(cfg)
    assert modeling.build_model(cfg).backbone.language.class_names == CLASS_NAMES


def test_a_tool_says_it_in_one_line():
    failed = run_script("tools/train_net.py", "--config-file", CONFIG, "SOLVER.IMS_PER_BATCH", -1)
    assert failed.returncode == 1
    assert "error: SOLVER.IMS_PER_BATCH is -1" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_mistyped_key_is_told_with_the_keys_near_it(tmp_path):
    with pytest.raises(ValueError, match=r"Non-existent key: SOLVER.MAX_ITERS. .*did you mean MAX_ITER\b"):
        load_config(CONFIG, ["SOLVER.MAX_ITERS", "5"])
    with pytest.raises(ValueError, match=r"Non-existent key: TWELVE$"):
        load_config(CONFIG, ["TWELVE", "5"])
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {DENSECLIP: {CLAS_NAMES: [cat]}}\n")
    with pytest.raises(ValueError, match=r"key: MODEL.DENSECLIP.CLAS_NAMES. .*did you mean CLASS_NAMES\b"):
        load_config(str(path), [])


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


@pytest.mark.parametrize(
    ("key", "text", "error"),
    [
        ("SOLVER.MAX_ITER", "10k", "'10k'; it has to be a whole number, such as 1000."),
        ("SOLVER.MAX_ITER", "1e3", "1000.0; it has to be a whole number, such as 1000."),
        ("SOLVER.BASE_LR", "0,001", "'0,001'; it has to be a number, such as 0.001."),
        ("SEED", "True", "True; it has to be a whole number, such as 1."),
        ("MODEL.MASK_ON", "yes", "'yes'; it has to be True or False, such as False."),
        ("MODEL.MASK_ON", "1", "1; it has to be True or False, such as False."),
        ("OUTPUT_DIR", "True", "True; it has to be a string, such as \"'True'\"."),
        ("SOLVER.STEPS", "5", '5; it has to be a list, such as "(5,)".'),
        ("SOLVER.STEPS", "(5", "'(5'; it has to be a list, such as \"(5,)\"."),
        ("DATASETS.TRAIN", "my", "'my'; it has to be a list, such as \"('my',)\"."),
        ("MODEL.PIXEL_MEAN", "0", '0; it has to be a list, such as "(0,)".'),
    ],
)
def test_a_value_of_another_type_than_the_default_is_told_in_a_line(key, text, error):
    with pytest.raises(ValueError) as raised:
        load_config(CONFIG, [key, text])
    assert format_error(raised.value) == f"{key} is {error}"


def test_the_advice_for_a_value_of_another_type_leads_on_from_a_file(tmp_path):
    path = tmp_path / "config.yaml"
    base = f"_BASE_: {Path(CONFIG).resolve()}\n"
    path.write_text(base + "MODEL: {DENSECLIP: {CLASS_NAMES: 'cat, dog'}}\n")
    with pytest.raises(ValueError, match=r"CLASS_NAMES is 'cat, dog'; it has to be a list") as raised:
        load_config(str(path), [])
    advice = str(raised.value).partition("such as ")[2].rstrip(".")
    path.write_text(base + f"MODEL: {{DENSECLIP: {{CLASS_NAMES: {advice}}}}}\n")
    assert load_config(str(path), []).MODEL.DENSECLIP.CLASS_NAMES == ("cat", "dog")
    assert load_config(CONFIG, ["MODEL.DENSECLIP.CLASS_NAMES", advice[1:-1]])  # as a shell passes it
