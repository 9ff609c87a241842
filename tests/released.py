"""The original modules, built from this project's parts with the recorded weights."""

from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from configs import prepared_cfg
from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.language import PromptedTextEncoder
from denseclip_d2.language.sentences import SentenceReader
from denseclip_d2.language.text_encoder import CLIPTextEncoder

CLASS_NAMES = ("person", "hot dog", "traffic light", "tv", "teddy bear")
LANGUAGE = ("contexts", "gamma", "text_encoder.", "context_decoder.")


def released_text_encoder(context_length: int = 13) -> CLIPTextEncoder:
    return CLIPTextEncoder(
        width=32, heads=4, layers=2, output_dim=32, context_length=context_length, quick_gelu=True
    )


def released_language(record) -> PromptedTextEncoder:
    """Return contexts, text encoder and decoder of a ``*_head_path`` recording, with its token ids."""
    encoder = released_text_encoder()
    language = PromptedTextEncoder(
        class_names=CLASS_NAMES, text_encoder=encoder, sentences=SentenceReader(n_ctx=8, length=5),
        decoder_width=32, decoder_heads=4, decoder_layers=2, decoder_dropout=0.0,
    )  # fmt: skip
    weights = {k: v for k, v in record.weights.items() if k.startswith(LANGUAGE)}
    _load_with_short_text(language, weights, "text_encoder.")
    read_prompts(language, record.inputs["texts"])
    return language.eval()


def read_prompts(language: PromptedTextEncoder, ids: Tensor) -> None:
    """Have a model read recorded token ids as its names."""
    language.prompts = ids
    language.packs = language.text_encoder.pack(ids, language.sentences.n_ctx)
    if language.text_embeddings is not None:
        language.precompute_(keep_encoder=True)


def register_reference_architecture(folder: Path) -> None:
    """Register the CLIP of the recorded detectors with open_clip as "reference-tiny"."""
    (folder / "reference-tiny.json").write_text(
        '{"embed_dim": 32, "quick_gelu": true,'
        ' "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "image_size": 192},'
        ' "text_cfg": {"width": 32, "heads": 4, "layers": 2, "context_length": 13}}'
    )
    open_clip.add_model_config(folder)


def released_config(*opts) -> CfgNode:
    """Return the config of ``det_full_tiny``."""
    cfg = _tiny_config("configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml")
    cfg.MODEL.RETINANET.NUM_CLASSES = 5
    cfg.MODEL.RETINANET.NUM_CONVS = 2
    # MMDetection counts anchors. Detectron2 counts pairs of anchor and class.
    cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST = 10**6
    cfg.merge_from_list(opts)
    return cfg


def released_checkpoint(record, folder: Path) -> str:
    """Save a recording's weights like MMDetection's runner. Return the path."""
    weights = dict(record.weights)
    # The recording has 600 token ids. CLIP has 49408.
    key = "text_encoder.token_embedding.weight"
    weights[key] = F.pad(weights[key], (0, 0, 0, 49408 - len(weights[key])))
    path = folder / "released.pth"
    meta = {"epoch": 12, "CLASSES": CLASS_NAMES, "mAP": np.float64(0.378)}
    torch.save({"meta": meta, "state_dict": weights, "optimizer": {"state": {}}}, path)
    return str(path)


def released_retinanet(record, folder: Path, *opts) -> nn.Module:
    """Return the detector of ``det_full_tiny``, loaded as a released checkpoint."""
    register_reference_architecture(folder)
    return _released_model(released_config(*opts), record, folder)


def released_semantic_fpn(record, folder: Path) -> nn.Module:
    """Return the segmentor of ``seg_full_tiny`` from a released checkpoint. It predicts whole images."""
    register_reference_architecture(folder)
    cfg = _tiny_config("configs/ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN50_80k.yaml")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.0
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    return _released_model(cfg, record, folder)


def _released_model(cfg: CfgNode, record, folder: Path) -> nn.Module:
    model = build_model(cfg)
    DenseCLIPCheckpointer(model, for_training=False).load(released_checkpoint(record, folder))
    read_prompts(model.backbone.language, record.inputs["texts"])
    return model.eval()


def _tiny_config(config_file: str) -> CfgNode:
    """Return a released config at the size of the ``*_full_tiny`` recordings."""
    cfg = prepared_cfg(config_file, [])
    cfg.MODEL.DENSECLIP.CLIP_MODEL = "reference-tiny"
    cfg.MODEL.DENSECLIP.CLASS_NAMES = CLASS_NAMES
    cfg.MODEL.DENSECLIP.VISUAL.RESOLUTION = 192
    cfg.MODEL.DENSECLIP.VISUAL.NORM = "BN"
    cfg.MODEL.DENSECLIP.CONTEXT_DECODER.WIDTH = 32
    cfg.MODEL.DENSECLIP.CONTEXT_DECODER.LAYERS = 2
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


def _load_with_short_text(model: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    """Load all weights strictly. The recorded text encoders have 600 token ids and 13 positions."""
    current = model.state_dict()
    for name in (f"{prefix}token_embedding.weight", f"{prefix}positional_embedding"):
        padding = current[name].shape[0] - len(weights[name])
        weights[name] = torch.cat([weights[name], weights[name].new_zeros(padding, weights[name].shape[1])])
    model.load_state_dict(weights, strict=True)
