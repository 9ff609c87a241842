"""Clear errors for config values that cannot be, before a model is built."""

import difflib
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_MASK_HEAD_REGISTRY

from ..clip_models import get_clip_architecture
from ..language.prompts import check_context_init
from ..visual.timm_backbone import TIMM, check_timm_model
from .projects import default_config
from .rules import DETECTRON2, OWN

REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
"""Where Detectron2 looks the names up that these keys hold."""

NOTHING = {"MODEL.ROI_BOX_HEAD.NAME": "", "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"}
"""What Detectron2 takes for "nothing to build" at these keys."""


def check_config(cfg: CfgNode) -> None:
    """See that a config can be built from and trained with, as far as its values tell.

    Raises:
        ValueError: a key has no value, one that its rule refuses, a name that is not registered, or a value
            that does not go with another's.
    """
    values = dict(leaves(cfg))
    for key, default in leaves(default_config(cfg.MODEL.DENSECLIP.PROJECTS or ())):
        if default is not None and values.get(key, default) is None:
            raise ValueError(f"{key} is None; it needs a value, such as its default, {default!r}.")
    for key, rule in {**OWN, **DETECTRON2}.items():
        if not rule.accepts(values[key]):
            raise ValueError(f"{key} is {values[key]!r}; it has to be {rule.words}.")
    for key, registry in REGISTRIES.items():
        _check_registered(key, values[key], [name for name, _ in registry])
    backbone = cfg.MODEL.DENSECLIP.VISUAL.BACKBONE
    if backbone.startswith(TIMM):
        check_timm_model(backbone.removeprefix(TIMM))
    elif backbone:
        registered = [name for name, _ in BACKBONE_REGISTRY]
        _check_registered("MODEL.DENSECLIP.VISUAL.BACKBONE", backbone, registered)
    elif cfg.MODEL.DENSECLIP.VISUAL.WEIGHTS:
        raise ValueError(
            f"MODEL.DENSECLIP.VISUAL.WEIGHTS is {cfg.MODEL.DENSECLIP.VISUAL.WEIGHTS!r}, and VISUAL.BACKBONE, "
            "whose weights these are, is empty. Set BACKBONE, or, for a CLIP's weights, set MODEL.WEIGHTS "
            "and VISUAL.WEIGHTS to ''."
        )
    get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL)
    _check_pixels(cfg)
    _check_crop(cfg)
    _check_schedule(cfg)
    check_context_init(cfg.MODEL.DENSECLIP.PROMPT.MODE, cfg.MODEL.DENSECLIP.PROMPT.CONTEXT_INIT)
    decoder = cfg.MODEL.DENSECLIP.CONTEXT_DECODER
    if decoder.WIDTH % decoder.HEADS:
        raise ValueError(
            f"MODEL.DENSECLIP.CONTEXT_DECODER.WIDTH is {decoder.WIDTH}, which its {decoder.HEADS} HEADS "
            "cannot share equally: make WIDTH a multiple of HEADS."
        )


def check_device(device: str) -> None:
    """See that torch can make tensors on a device, which may be "meta".

    Raises:
        ValueError: it cannot.
    """
    kind, index = torch.device(device).type, torch.device(device).index or 0
    if kind == "cuda" and index < torch.cuda.device_count():
        return  # without a use of it, for processes may be started still
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise ValueError(
            f"MODEL.DEVICE is {device!r}, where torch cannot compute. This machine has {gpus} GPUs for CUDA: "
            "set MODEL.DEVICE to " + ("cuda, or to cpu." if gpus else "cpu.")
        ) from error


def _check_pixels(cfg: CfgNode) -> None:
    if not (cfg.MODEL.PIXEL_MEAN and cfg.MODEL.PIXEL_STD):
        raise ValueError(
            "MODEL.PIXEL_MEAN or PIXEL_STD is empty: `denseclip_d2.config.set_pixels(cfg)` fills in what "
            "CLIPs and timm's models take, as `load_config` does. For another backbone, set what its weights "
            "take."
        )
    channels = len(cfg.MODEL.PIXEL_MEAN), len(cfg.MODEL.PIXEL_STD)
    if channels != (3, 3):
        raise ValueError(
            f"MODEL.PIXEL_MEAN and PIXEL_STD have {channels[0]} and {channels[1]} values; INPUT.FORMAT "
            f"{cfg.INPUT.FORMAT!r} has 3 channels: give each 3, or [] for those of the architecture."
        )


def _check_crop(cfg: CfgNode) -> None:
    crop, absolute = cfg.INPUT.CROP, cfg.INPUT.CROP.TYPE.startswith("absolute")
    fits = all(isinstance(side, int) if absolute else side <= 1 for side in crop.SIZE)
    if crop.ENABLED and not fits:
        needed = "two whole numbers, of pixels" if absolute else "two parts of the image's sides, up to 1"
        raise ValueError(
            f"INPUT.CROP.SIZE is {crop.SIZE!r}; with INPUT.CROP.TYPE {crop.TYPE!r} it has to be {needed}."
        )


def _check_schedule(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and [*solver.STEPS] != sorted({*solver.STEPS}):
        raise ValueError(f"SOLVER.STEPS is {solver.STEPS!r}; it has to be in increasing order.")
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and not 0 <= solver.BASE_LR_END <= solver.BASE_LR > 0:
        raise ValueError(
            f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}; WarmupCosineLR needs it from 0 to SOLVER.BASE_LR, "
            f"{solver.BASE_LR}, and that above 0."
        )


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a config, dotted, with its value."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_registered(key: str, name: object, registered: list[str]) -> None:
    if name in registered or name == NOTHING.get(key):
        return
    near = difflib.get_close_matches(str(name), registered, n=3, cutoff=0.4)
    raise ValueError(
        f"{key} is {name!r}, which is not registered. Near it: {', '.join(near) or 'none'}. "
        f"There are: {', '.join(sorted(registered))}."
    )
