"""Configs and weights of earlier versions still load."""

import json

import yaml

from denseclip_d2 import model_zoo
from denseclip_d2.config import load_config
from denseclip_d2.config.checks import leaves
from denseclip_d2.config.projects import default_config
from denseclip_d2.guidance.model_settings import ModelSettings
from denseclip_d2.utils.old_keys import KEYS, VALUES, update_content, update_key
from denseclip_d2.utils.safetensors_file import read_header

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
SAVED = {
    "MODEL": {
        "META_ARCHITECTURE": "CLIPRetinaNet",
        "KEEP_MEMORY": False,
        "SEM_SEG_HEAD": {"NAME": "CLIPSemSegFPNHead"},
        "DENSECLIP": {
            "KERNELS": False,
            "LOSS_KIND": "softmax",
            "VISUAL": {"POSITION": "crop", "DENSE": "value", "EMBEDDING": "linear", "GLOBAL_BLOCKS": [1]},
            "PROMPT": {"FOLDED": False, "NAME_LENGTH": 7, "NUM_CONTEXTS": 1},
        },
    },
    "SOLVER": {"KEEP_BEST": "bbox/AP", "KEEP_CHECKPOINTS": 3},
    "DATASETS": {"OWN": {"HELD_OUT": 0.1, "MIN_ITER": 7}},
    "TEST": {"FAST": False},
}


def test_keys_and_values_have_successors_in_todays_config():
    cfg = dict(leaves(default_config()))
    sections = {key.rpartition(".")[0] for key in cfg}
    for old, new in KEYS.items():
        assert old not in cfg and (not new or new in cfg or new in sections), old
    assert all(key in cfg for key in VALUES)


def test_a_saved_config_loads_with_its_values(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"_BASE_": str(model_zoo.get_config_file(CONFIG[8:])), **SAVED}))
    cfg = load_config(str(file), [])
    denseclip = cfg.MODEL.DENSECLIP
    assert cfg.MODEL.META_ARCHITECTURE == "RetinaNetGlobalNorm"
    assert cfg.MODEL.SEM_SEG_HEAD.NAME == "SemSegFPNHeadWithDropout"
    assert (denseclip.FUSED_OPS, denseclip.LOSS_TYPE) == (False, "softmax")
    visual, prompt = denseclip.VISUAL, denseclip.PROMPT
    assert (visual.POS_EMBED, visual.DENSE_FEATURES, visual.PROJECTION) == ("crop", "value", "linear")
    assert tuple(visual.GLOBAL_ATTN_INDEXES) == (1,)
    assert (prompt.PRECOMPUTED, prompt.MAX_NAME_TOKENS, prompt.N_CTX) == (False, 7, 1)
    assert (cfg.SOLVER.BEST_METRIC, cfg.SOLVER.MAX_TO_KEEP) == ("bbox/AP", 3)
    assert (cfg.DATASETS.CUSTOM.VAL_FRACTION, cfg.DATASETS.CUSTOM.MIN_ITER) == (0.1, 7)
    assert cfg.TEST.OPTIMIZE_FOR_INFERENCE is False


def test_a_file_overrides_its_base_under_either_name(tmp_path):
    (tmp_path / "new.yaml").write_text("SOLVER: {BEST_METRIC: segm/AP}")
    (tmp_path / "old.yaml").write_text("_BASE_: new.yaml\nSOLVER: {KEEP_BEST: bbox/AP}")
    assert load_config(str(tmp_path / "old.yaml"), []).SOLVER.BEST_METRIC == "bbox/AP"


def test_the_command_line_takes_old_keys_too():
    cfg = load_config(CONFIG, ["SOLVER.KEEP_BEST", "bbox/AP", "MODEL.KEEP_MEMORY", "False"])
    assert cfg.SOLVER.BEST_METRIC == "bbox/AP"


def test_other_content_stays_as_it_is():
    content = {"SOLVER": {"BASE_LR": 0.1}, "MODEL": {"RESNETS": {}}, "VERSION": 2}
    assert update_content(content) == {"SOLVER": {"BASE_LR": 0.1}, "MODEL": {"RESNETS": {}}, "VERSION": 2}
    assert update_key("MODEL.WEIGHTS") == "MODEL.WEIGHTS"


def test_settings_of_old_weights_are_compared():
    old = {"MODEL.DENSECLIP.VISUAL.POSITION": "crop", "MODEL.DENSECLIP.PROMPT.FOLDED": True}
    settings = ModelSettings.from_keys(old)
    assert (settings.position, settings.precomputed_text) == ("crop", True)


def test_weights_exported_before_load():
    """The zoo's files were written by version 0.1, with the old keys in their configs and settings."""
    source = str(model_zoo.zoo.local_file(CONFIG[8:]))
    header = read_header(source)
    assert "POSITION" in yaml.safe_load(header["config"])["MODEL"]["DENSECLIP"]["VISUAL"]
    assert any(key in KEYS for key in json.loads(header["settings"]))
    assert load_config(source, []).MODEL.DENSECLIP.PROMPT.PRECOMPUTED is True
