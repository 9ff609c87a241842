"""CLIPs whose visual encoder comes from one file and whose text encoder from another."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import open_clip
import pytest
import torch
from architectures import CONFIG, SMALL_TEXT, options
from safetensors.torch import load_file, save_file
from timm.layers import LayerNorm
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from denseclip_d2 import Predictor
from denseclip_d2.builder import build_model_with_weights
from denseclip_d2.clip_models import pixels_of
from denseclip_d2.config import load_config


def of_timm(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    """Return the arguments of a model, of those that timm calls its builder with."""
    return kwargs


@register_model
def eva02_nano_clip(**kwargs) -> Eva:
    """Build EVA02's encoder for CLIP (eva02_base_patch16_clip_224 of timm) in small."""
    return Eva(
        img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2, qkv_fused=False, mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4),
        norm_layer=LayerNorm, **of_timm(**kwargs),
    )  # fmt: skip


@register_model
def vit_nano_tipsv2(**kwargs) -> VisionTransformer:
    """Build TIPSv2's visual encoder (vit_base_patch14_reg1_tipsv2 of timm) in small."""
    return VisionTransformer(
        img_size=56, patch_size=14, embed_dim=64, depth=4, num_heads=2, init_values=1.0, reg_tokens=1,
        no_embed_class=True, **of_timm(**kwargs),
    )  # fmt: skip


_FOLDER = TemporaryDirectory()
_EVA = {"timm_model_name": "eva02_nano_clip", "timm_pool": "token", "timm_proj": None, "image_size": 64}
_CONFIG = {"embed_dim": 64, "vision_cfg": _EVA, "text_cfg": SMALL_TEXT, "custom_text": True}
Path(_FOLDER.name, "tiny-EVA02-nano.json").write_text(json.dumps(_CONFIG))
open_clip.add_model_config(_FOLDER.name)

# EVA-CLIP's names of layers that timm names otherwise.
_OF_EVA_CLIP = {
    "mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3", "mlp.norm": "mlp.ffn_ln",
    "attn.norm": "attn.inner_attn_ln", "q_proj.bias": "q_bias", "v_proj.bias": "v_bias",
}  # fmt: skip


def as_eva_clip(visual: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return an encoder's weights under the names of EVA-CLIP, which CLIPSelf and DeCLIP use as well."""
    renamed = {"visual.rope.freqs_cos": torch.ones(16, 16), "visual.rope.freqs_sin": torch.ones(16, 16)}
    for name, tensor in visual.items():
        for ours, theirs in _OF_EVA_CLIP.items():
            name = name.replace(ours, theirs)
        renamed[name.replace("trunk.", "visual.")] = tensor
    return renamed


def load(model: str, path, text="", **more):
    opts = {
        "MODEL.DENSECLIP.TEXT_WEIGHTS": text, "MODEL.DENSECLIP.CLASS_NAMES": "('red square', 'dog')",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2, **more,
    }  # fmt: skip
    cfg = load_config(CONFIG, options(model.removeprefix("tiny-"), str(path), "output", **opts))
    return build_model_with_weights(cfg, for_training=True).backbone


def test_a_visual_encoder_trained_from_eva_clip_gets_the_text_encoder_of_a_clip(tmp_path):
    clip, other = (open_clip.create_model("tiny-EVA02-nano") for _ in range(2))
    alone, whole, text = (tmp_path / name for name in ("clipself.pt", "eva.pt", "clip.pt"))
    visual = as_eva_clip(clip.visual.state_dict())
    torch.save({"epoch": 6, "name": "clipself", "state_dict": visual}, alone)
    torch.save({**visual, **{f"text.{n}": t for n, t in clip.text.state_dict().items()}}, whole)
    torch.save(other.state_dict(), text)
    for path, towers in ((alone, other), (whole, clip)):
        backbone = load("tiny-EVA02-nano", path, text)
        for name, tensor in clip.visual.state_dict().items():
            assert torch.equal(backbone.visual.state_dict()[name], tensor), name
        for name, tensor in towers.text.state_dict().items():
            assert torch.equal(backbone.language.text_encoder.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match=r"visual encoder of a CLIP alone. Set MODEL.DENSECLIP.TEXT_WEIGHTS"):
        load("tiny-EVA02-nano", alone)
    torch.save({n: t for n, t in visual.items() if "blocks.2" not in n}, alone)
    with pytest.raises(ValueError, match=r"does not hold this model. Missing .*visual.trunk.blocks.2"):
        load("tiny-EVA02-nano", alone, text)


def test_two_files_label_pixels_without_training(tmp_path):
    clip = open_clip.create_model("tiny-EVA02-nano").eval()
    alone, whole = tmp_path / "clipself.pt", tmp_path / "clip.pt"
    torch.save(as_eva_clip(clip.visual.state_dict()), alone)
    torch.save(clip.state_dict(), whole)
    image, model = np.zeros((80, 100, 3), np.uint8), ["MODEL.DENSECLIP.CLIP_MODEL", "tiny-EVA02-nano"]
    with pytest.raises(ValueError, match=r"hold both encoders of a CLIP.* by MODEL.DENSECLIP.CLIP_MODEL"):
        Predictor.from_clip(alone, ["dog"])
    with pytest.raises(ValueError, match=r"visual encoder of a CLIP alone\. Set .*TEXT_WEIGHTS"):
        Predictor.from_clip(alone, ["dog"], opts=model)
    two = Predictor.from_clip(alone, ["dog"], opts=[*model, "MODEL.DENSECLIP.TEXT_WEIGHTS", str(whole)])
    one = Predictor.from_clip(whole, ["dog"], opts=model)
    torch.testing.assert_close(two.tau * two(image)["sem_seg"], one.tau * one(image)["sem_seg"])


@pytest.fixture(scope="module")
def tips(tmp_path_factory):
    """Return a small TIPSv2 of transformers, and the file that is released of it; add its architecture."""
    hub = pytest.importorskip("hub_towers")
    shape = {"hidden_size": 64, "num_attention_heads": 2}
    text = {"intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 20, **shape}
    config = hub.transformers.Tipsv2Config(
        text_config=text, vision_config={"num_hidden_layers": 4, "image_size": 56, **shape}
    )
    model, folder = hub.transformers.Tipsv2Model(config).eval(), tmp_path_factory.mktemp("tips")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)  # in the release's own format, but for names of the visual encoder's MLPs
    weights, names = load_file(folder / "model.safetensors"), {"c_fc": "fc1", "c_proj": "fc2"}
    for name in [n for n in weights if n.startswith("vision_encoder.") and ".mlp." in n]:
        layer = name.split(".")[-2]
        weights[name.replace(layer, names[layer])] = weights.pop(name)
    save_file(weights, folder / "model.safetensors")
    config.text_config.save_pretrained(folder / "text")
    hub.write_tokenizer(folder / "text", "", 0)
    vision = {
        "timm_model_name": "vit_nano_tipsv2",
        "timm_pool": "token",
        "timm_proj": "none",
        "image_size": 56,
    }
    towers = {"hf_pooler_type": "mean_pooler", "hf_proj_type": None, "context_length": 64}
    names = {key: str(folder / "text") for key in ("hf_model_name", "hf_tokenizer_name")}
    hub.add_architecture("tiny-TIPSv2", vision, {**towers, **names})
    open_clip.add_model_config(hub.ROOT / "architectures")
    return model, folder / "model.safetensors"


def test_tipsv2_embeds_as_transformers_does(tips):
    model, path = tips
    mode = {"MODEL.DENSECLIP.PROMPT.MODE": "template", "MODEL.DENSECLIP.PROMPT.CONTEXT_INIT": "''"}
    backbone = load("tiny-TIPSv2", path, path, **mode).eval()
    ids = torch.tensor([[13, 14, 15, 13, 6, 7, 16], [13, 14, 15, 13, 8, 16, 0]])
    image = torch.rand(1, 3, 64, 64)  # shrunk by 14/16 in the encoder
    shrunk = torch.nn.functional.interpolate(image, (56, 56), mode="bilinear", align_corners=False)
    with torch.no_grad():
        found = backbone.visual(image)["global_embedding"]
        seen = model.get_image_features(shrunk).pooler_output
        read = model.get_text_features(ids, attention_mask=(ids != 0).long()).pooler_output
        text = backbone.language(found, found[..., None, None])[0]
    torch.testing.assert_close(found, seen, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text, read, rtol=1e-5, atol=1e-5)


def test_timms_file_has_the_visual_encoder_of_tipsv2(tips, tmp_path):
    model, path = tips
    whole = load("tiny-TIPSv2", path, path)
    trunk = {
        n.removeprefix("trunk."): t for n, t in whole.visual.state_dict().items() if n.startswith("trunk.")
    }
    torch.save(trunk, tmp_path / "timm.pt")
    two = load("tiny-TIPSv2", tmp_path / "timm.pt", path)
    for name, tensor in whole.visual.state_dict().items():
        assert name.startswith("fpn") or torch.equal(two.visual.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="visual encoder of a CLIP alone"):
        load("tiny-TIPSv2", path)


@pytest.mark.parametrize("layer, words", [(2, "another text encoder .*: 16 tensors"), (1, "lacks the text")])
def test_the_text_encoder_of_another_size_is_refused(tips, layer, words, tmp_path):
    _, path = tips
    weights = load_file(path)
    place = "text_encoder.transformer.resblocks"
    last = {name: weights.pop(name) for name in list(weights) if name.startswith(f"{place}.1")}
    if layer == 2:
        weights.update(last, **{name.replace(f"{place}.1", f"{place}.2"): t for name, t in last.items()})
    torch.save(weights, tmp_path / "text.pt")
    with pytest.raises(ValueError, match=f"TEXT_WEIGHTS = .* {words}"):
        load("tiny-TIPSv2", path, tmp_path / "text.pt")


def test_tipsv2_takes_pixels_from_0_to_1():
    assert pixels_of("TIPSv2-B-14") == ([0.0] * 3, [255.0] * 3)
