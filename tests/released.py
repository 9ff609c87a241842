"""The reference's modules, made of this project's parts and loaded under this project's names."""

import re
from pathlib import Path

import open_clip
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from denseclip_d2.engine import load_config
from denseclip_d2.language import PromptedTextEncoder
from denseclip_d2.language.text_encoder import CLIPTextEncoder

CLASS_NAMES = ("person", "hot dog", "traffic light", "tv", "teddy bear")
LANGUAGE = ("contexts", "gamma", "text_encoder.", "context_decoder.")
NAMES = {
    r"(contexts|gamma|text_encoder|context_decoder)": r"backbone.language.\1",
    r"backbone": "{visual}",
    r"neck\.lateral_convs\.(\d)\.conv": lambda m: f"{{fpn}}.fpn_lateral{{{m[1]}}}",
    r"neck\.fpn_convs\.([0-3])\.conv": lambda m: f"{{fpn}}.fpn_output{{{m[1]}}}",
    r"bbox_head\.cls_convs\.(\d+)\.conv": lambda m: f"head.cls_subnet.{2 * int(m[1])}",
    r"bbox_head\.reg_convs\.(\d+)\.conv": lambda m: f"head.bbox_subnet.{2 * int(m[1])}",
    r"bbox_head\.retina_cls": "head.cls_score",
    r"bbox_head\.retina_reg": "head.bbox_pred",
    r"rpn_head\.rpn_conv": "proposal_generator.rpn_head.conv",
    r"rpn_head\.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
    r"rpn_head\.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
    r"roi_head\.bbox_head\.shared_fcs\.(\d)": lambda m: f"roi_heads.box_head.fc{int(m[1]) + 1}",
    r"roi_head\.bbox_head\.fc_cls": "roi_heads.box_predictor.cls_score",
    r"roi_head\.bbox_head\.fc_reg": "roi_heads.box_predictor.bbox_pred",
    r"roi_head\.mask_head\.convs\.(\d)\.conv": lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}",
    r"roi_head\.mask_head\.upsample": "roi_heads.mask_head.deconv",
    r"roi_head\.mask_head\.conv_logits": "roi_heads.mask_head.predictor",
    r"decode_head\.scale_heads\.(\d)\.(\d)\.conv": lambda m: f"sem_seg_head.p{int(m[1]) + 2}.{m[2]}",
    r"decode_head\.scale_heads\.(\d)\.(\d)\.bn": lambda m: f"sem_seg_head.p{int(m[1]) + 2}.{m[2]}.norm",
    r"decode_head\.conv_seg": "sem_seg_head.predictor",
}


def our_name(name: str, *, retinanet: bool = True, plain: bool = False) -> str:
    """This project's name of a released detector's or segmentor's parameter."""
    fpn, visual = ("backbone", "backbone.bottom_up") if plain else ("backbone.fpn", "backbone.visual")
    if retinanet and (match := re.match(r"neck\.fpn_convs\.([34])\.conv", name)):
        return name.replace(match[0], f"{fpn}.top_block.p{int(match[1]) + 3}")
    pattern = next(p for p in NAMES if re.match(p, name))
    stages = range(3, 6) if retinanet else range(2, 6)  # of the pyramid's levels, finest first
    return re.sub(f"^{pattern}", NAMES[pattern], name).format(*stages, fpn=fpn, visual=visual)


def released_text_encoder(context_length: int = 13) -> CLIPTextEncoder:
    return CLIPTextEncoder(
        width=32, heads=4, layers=2, output_dim=32, context_length=context_length, quick_gelu=True
    )


def released_language(record) -> PromptedTextEncoder:
    """Contexts, text encoder and decoder of a ``*_head_path`` record, with its token ids."""
    language = PromptedTextEncoder(
        class_names=CLASS_NAMES, text_encoder=released_text_encoder(), name_length=5,
        decoder_width=32, decoder_heads=4, decoder_layers=2, decoder_dropout=0.0,
    )  # fmt: skip
    weights = {k: v for k, v in record.weights.items() if k.startswith(LANGUAGE)}
    _load_with_short_text(language, weights, "text_encoder.")
    language.prompts = record.inputs["texts"]
    return language.eval()


def released_retinanet(record) -> nn.Module:
    """The whole detector of ``det_full_tiny``, every tensor loaded."""
    cfg = _tiny_config("configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml")
    cfg.MODEL.RETINANET.NUM_CLASSES = 5
    cfg.MODEL.RETINANET.NUM_CONVS = 2
    cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST = (
        10**6
    )  # MMDetection counts anchors, Detectron2 anchor-class pairs
    model = build_model(cfg)
    weights = {}
    for key, tensor in record.weights.items():
        name = our_name(key)
        if "head.cls_score" in name or "head.bbox_pred" in name:
            # Anchors: ratio-major in MMDetection, scale-major in Detectron2.
            tensor = tensor.unflatten(0, (3, 3, -1)).transpose(0, 1).flatten(0, 2)
        weights[name] = tensor
    _load_with_short_text(model, weights, "backbone.language.text_encoder.")
    model.backbone.language.prompts = record.inputs["texts"]
    return model.eval()


def add_tiny_architecture(folder: Path) -> None:
    """Tell open_clip of "reference-tiny", the CLIP model of the ``*_full_tiny`` records."""
    (folder / "reference-tiny.json").write_text(
        '{"embed_dim": 32, "quick_gelu": true,'
        ' "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "image_size": 192},'
        ' "text_cfg": {"width": 32, "heads": 4, "layers": 2, "context_length": 13}}'
    )
    open_clip.add_model_config(folder)


def released_semantic_fpn(record) -> nn.Module:
    """The whole segmentor of ``seg_full_tiny``, every tensor loaded; it sees the whole image at once."""
    cfg = _tiny_config("configs/ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN50_80k.yaml")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.0
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    model = build_model(cfg)
    weights = {our_name(key, retinanet=False): tensor for key, tensor in record.weights.items()}
    _load_with_short_text(model, weights, "backbone.language.text_encoder.")
    model.backbone.language.prompts = record.inputs["texts"]
    return model.eval()


def _tiny_config(config_file: str) -> CfgNode:
    """A released config at the size of the ``*_full_tiny`` records."""
    cfg = load_config(config_file, [])
    cfg.MODEL.DENSECLIP.CLIP_MODEL = "reference-tiny"
    cfg.MODEL.DENSECLIP.CLASS_NAMES = CLASS_NAMES
    cfg.MODEL.DENSECLIP.VISUAL.RESOLUTION = 192
    cfg.MODEL.DENSECLIP.VISUAL.NORM = "BN"
    cfg.MODEL.DENSECLIP.CONTEXT_DECODER.WIDTH = 32
    cfg.MODEL.DENSECLIP.CONTEXT_DECODER.LAYERS = 2
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


def _load_with_short_text(model: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    """Load with none missing or left over; the recorded text encoders have 600 token ids and 13 positions."""
    current = model.state_dict()
    for name in (f"{prefix}token_embedding.weight", f"{prefix}positional_embedding"):
        padding = current[name].shape[0] - len(weights[name])
        weights[name] = torch.cat([weights[name], weights[name].new_zeros(padding, weights[name].shape[1])])
    model.load_state_dict(weights, strict=True)
