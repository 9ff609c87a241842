"""One small CLIP of every family in open_clip."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip

from denseclip_d2.clip_models import get_clip_architecture
from denseclip_d2.visual import encoder_class

CONFIG = "configs/Shapes/denseclip_semantic_fpn_tiny.yaml"
TWIN = "configs/Shapes/clip_semantic_fpn_tiny.yaml"

SMALL_TEXT = {"width": 64, "heads": 2, "layers": 2}
SIGMOID_TEXT = {
    "no_causal_mask": True, "pool_type": "last", "proj_bias": True, "context_length": 32,
    "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"},
}  # fmt: skip

I18N_TEXT = {"no_causal_mask": True, "pool_type": "last", "proj_type": "none"}
CUSTOM = {"custom_text": True}


def timm_vision(model: str, pool: str, proj: str | None, size: int) -> dict:
    return {"timm_model_name": model, "timm_pool": pool, "timm_proj": proj, "image_size": size}


VIT = {"layers": 4, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}

# By name: the vision config, the text config, and the other keys.
FAMILIES: dict[str, tuple[dict, dict, dict]] = {
    "CLIPA": (
        {**VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        {"no_causal_mask": True},
        {},
    ),
    "layer-scale": ({**VIT, "ls_init_value": 0.1}, {"ls_init_value": 0.1}, {}),
    "worldwide": (VIT, {"pool_type": "eos", "eos_id": 49407}, {"quick_gelu": True}),
    "ConvNeXt": (timm_vision("test_convnext", "", "linear", 64), {}, {}),
    "ConvNeXt-d": (timm_vision("test_convnext", "", "mlp", 64), {}, {}),
    "Swin": (timm_vision("swin_tiny_patch4_window7_224", "", "linear", 224), {}, {}),
    "Sigmoid": (
        timm_vision("test_vit", "map", "none", 160),
        SIGMOID_TEXT,
        {**CUSTOM, "init_logit_bias": -10},
    ),
    "Sigmoid-i18n": (timm_vision("test_vit", "map", "none", 160), I18N_TEXT, CUSTOM),
    "EVA02": (timm_vision("eva02_tiny_patch14_224", "token", None, 224), {}, CUSTOM),
    "PE": (timm_vision("vit_pe_core_tiny_patch16_384", "map", None, 384), {}, CUSTOM),
    "MobileCLIP": (timm_vision("fastvit_t8", "avg", None, 128), {"no_causal_mask": True}, CUSTOM),
    "MobileCLIP2-S3": (timm_vision("fastvit_mci3", "avg", None, 128), {"no_causal_mask": True}, CUSTOM),
    "ViTamin": (timm_vision("vitamin_small_224", "", "linear", 224), {}, CUSTOM),
    "ViT-gap": (timm_vision("vit_medium_patch16_gap_256", "", "linear", 256), {}, {}),
}
LARGE = {"MobileCLIP2-S3", "ViT-gap"}  # families like MobileCLIP and ViTamin, which are not trained here
TRAINED = [name for name in FAMILIES if name not in LARGE]


_FOLDER = TemporaryDirectory()
for _name, (_vision, _text, _more) in FAMILIES.items():
    _config = {"embed_dim": 64, "vision_cfg": _vision, "text_cfg": {**SMALL_TEXT, **_text}, **_more}
    Path(_FOLDER.name, f"tiny-{_name}.json").write_text(json.dumps(_config))
open_clip.add_model_config(_FOLDER.name)


def clip_of(family: str) -> open_clip.CLIP:
    return open_clip.create_model(f"tiny-{family}", force_image_size=None).eval()


def visual_of(model: open_clip.CLIP, family: str, **kwargs):
    architecture = get_clip_architecture(f"tiny-{family}")
    kind = encoder_class(architecture)
    visual = kind(**kind.arguments_of(architecture), norm="BN", **kwargs).eval()
    missing, unexpected = visual.load_state_dict(model.visual.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("fpn") for name in missing)
    return visual


def options(family: str, weights: str, output, **more) -> list[str]:
    opts = {
        "MODEL.DENSECLIP.CLIP_MODEL": f"tiny-{family}", "MODEL.WEIGHTS": weights,
        "MODEL.DENSECLIP.VISUAL.DENSE_FEATURES": "attention", "MODEL.DENSECLIP.VISUAL.RES5_DILATION": 1,
        "MODEL.CHANNELS_LAST": False, "INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": 64,
        "DATASETS.TRAIN": "('train',)", "DATASETS.TEST": "('val',)", "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2, "OUTPUT_DIR": output, **more,
    }  # fmt: skip
    return [str(x) for pair in opts.items() for x in pair]
