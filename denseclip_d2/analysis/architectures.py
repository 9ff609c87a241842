"""Which architectures a config can be built with."""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from open_clip.model import _build_vision_tower
from torch import nn

from ..builder import build_model
from ..clip_models import CLIPArchitecture, get_clip_architecture
from ..config import set_pixels
from ..guidance import guidance_of
from ..language import CLIPTextEncoder
from ..visual.vit_pyramid import LEVELS

SIDE = 64
"""Of the image that a model is tried on: two cells of stride 32."""


@dataclass(frozen=True)
class Finding:
    """Whether a config's model is built with an architecture.

    Attributes:
        note: the visual encoder's class and model, or why not.
    """

    name: str
    built: bool
    note: str


def survey(cfg: CfgNode, name: str) -> Finding:
    """Build a config's model with an architecture, on the meta device, and give its backbone an image.

    Args:
        name: open_clip's.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DENSECLIP.CLIP_MODEL, cfg.MODEL.DEVICE = name, "meta"
    # What a config has for its own architecture: pixels, cells, positions, the length of names.
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = []
    cfg.MODEL.DENSECLIP.VISUAL.DENSE = "attention"
    cfg.MODEL.DENSECLIP.VISUAL.RESOLUTION = cfg.MODEL.DENSECLIP.PROMPT.NAME_LENGTH = 0
    set_pixels(cfg)
    note = ""
    try:
        architecture = get_clip_architecture(name)
        with torch.device("meta"):
            try:
                model = build_model(cfg)
            except (ImportError, FileNotFoundError):  # no tokenizer: everything else, then
                cfg.MODEL.DENSECLIP.PROMPT.FOLDED = True
                model = build_model(cfg)
                CLIPTextEncoder.from_architecture(architecture)
                note = f", tokenizer {architecture.text.hf_tokenizer_name} not here"
            kind = _try_backbone(model, architecture)
    except ValueError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, kind + note)


def _try_backbone(model: nn.Module, architecture: CLIPArchitecture) -> str:
    guided = guidance_of(model)
    if guided is None:
        raise ValueError("the config's backbone is not guided by language")
    visual = guided.visual.eval()
    cells = SIDE // visual.embedding_stride
    expected = (1, architecture.embed_dim, cells, cells)
    dense = visual(torch.zeros(1, 3, SIDE, SIDE))["dense_embedding"]
    if dense.shape != expected:
        raise ValueError(f"the dense embedding is {tuple(dense.shape)}, not {expected}")
    ours = {k: v.shape for k, v in visual.state_dict().items() if not k.startswith(tuple(LEVELS.values()))}
    own = _build_vision_tower(architecture.embed_dim, architecture.vision, architecture.quick_gelu)
    if ours != {k: v.shape for k, v in own.state_dict().items()}:
        raise ValueError(f"the tensors of {type(visual).__name__} are not open_clip's")
    model_of_timm = architecture.vision.timm_model_name
    return type(visual).__name__ + (f", {model_of_timm}" if model_of_timm else "")
