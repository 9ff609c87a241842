"""Which architectures a config can be built with."""

import torch
from detectron2.config import CfgNode
from open_clip.model import _build_vision_tower
from torch import nn

from ..builder import build_model
from ..clip_models import CLIPArchitecture, get_clip_architecture
from ..config import set_pixels
from ..guidance import guidance_of
from ..language import build_text_encoder
from ..visual.vit_pyramid import LEVELS

SIDE = 64
"""Side of the image to try: two cells of stride 32."""


def check_architectures(cfg: CfgNode, name: str) -> str:
    """Build a config's model with one of open_clip's architectures, and run its visual encoder.

    The model is on the meta device, which needs no memory.

    Returns: the visual encoder's class and model.
    Raises:
        ValueError: the model cannot be built.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DENSECLIP.CLIP_MODEL, cfg.MODEL.DEVICE = name, "meta"
    # These keys belong to the config's own architecture.
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = []
    cfg.MODEL.DENSECLIP.VISUAL.DENSE_FEATURES = "attention"
    cfg.MODEL.DENSECLIP.VISUAL.RESOLUTION = cfg.MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS = 0
    set_pixels(cfg)
    architecture, note = get_clip_architecture(name), ""
    with torch.device("meta"):
        try:
            model = build_model(cfg)
        except (ImportError, FileNotFoundError):  # there is no tokenizer
            cfg.MODEL.DENSECLIP.PROMPT.PRECOMPUTED = True
            model = build_model(cfg)
            build_text_encoder(architecture)
            note = f", tokenizer {architecture.text.hf_tokenizer_name} not here"
        return _try_visual_encoder(model, architecture) + note


def _try_visual_encoder(model: nn.Module, architecture: CLIPArchitecture) -> str:
    guided = guidance_of(model)
    if guided is None:
        raise ValueError("the config's backbone has no language guidance")
    visual = guided.visual.eval()
    cells = SIDE // visual.embedding_stride
    dense = visual(torch.zeros(1, 3, SIDE, SIDE))["dense_embedding"]
    if dense.shape != (expected := (1, architecture.embed_dim, cells, cells)):
        raise ValueError(f"the dense embedding is {tuple(dense.shape)}, not {expected}")
    ours = {k: v.shape for k, v in visual.state_dict().items() if not k.startswith(tuple(LEVELS.values()))}
    own = _build_vision_tower(architecture.embed_dim, architecture.vision, architecture.quick_gelu)
    if ours != {k: v.shape for k, v in own.state_dict().items()}:
        raise ValueError(f"the tensors of {type(visual).__name__} are not open_clip's")
    model_of_timm = architecture.vision.timm_model_name
    return type(visual).__name__ + (f", {model_of_timm}" if model_of_timm else "")
