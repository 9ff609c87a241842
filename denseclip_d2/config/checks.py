"""Clear errors for invalid config values, before a model is built."""

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
from ..data.tasks import (
    has_sem_seg_head,
    labels_by_score_map,
    num_classes_section,
    predicts_masks,
    reads_stuff_names,
    takes_any_names,
)
from ..meta_arch.text_heads import ROI_HEADS
from ..visual.timm_backbone import TIMM, check_timm_model
from .projects import default_config
from .rules import rule_of

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
"""The keys that hold names of a registry of Detectron2."""

NOTHING = {"MODEL.ROI_BOX_HEAD.NAME": "", "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"}
"""The values of these keys for which Detectron2 builds nothing."""


def check_config(cfg: CfgNode) -> None:
    """Refuse a config with an invalid value.

    Raises:
        ValueError: a key has no value, or one that its rule refuses, a name that is not registered, or a
            value that does not fit the value of another key.
    """
    values = dict(leaves(cfg))
    for key, default in leaves(default_config(cfg.MODEL.DENSECLIP.PROJECTS or ())):
        value = values.get(key, default)
        if default is not None and value is None:
            raise ValueError(f"{key} is None; it needs a value, such as its default, {default!r}.")
        rule = rule_of(key, default)
        if rule and not rule.accepts(value):
            raise ValueError(f"{key} is {value!r}; it has to be {rule.words}.")
    for key, registry in REGISTRIES.items():
        _check_registered(key, values[key], [name for name, _ in registry])
    get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL)
    _check_backbone(cfg)
    _check_pixels(cfg)
    _check_crop(cfg)
    _check_schedule(cfg)
    _check_classifier(cfg)
    prompt, decoder = cfg.MODEL.DENSECLIP.PROMPT, cfg.MODEL.DENSECLIP.CONTEXT_DECODER
    if prompt.CONTEXT_INIT and prompt.MODE not in ("post", "context"):
        raise ValueError(
            f"MODEL.DENSECLIP.PROMPT.CONTEXT_INIT is {prompt.CONTEXT_INIT!r}, but PROMPT.MODE "
            f"{prompt.MODE!r} learns no contexts. Set CONTEXT_INIT to '', or MODE to 'post' or 'context'."
        )
    _check_names_per_step(cfg)
    _check_names_per_image(cfg)
    _check_runtime(cfg)
    if prompt.VOCABULARY and prompt.MODE not in ("template", "random"):
        raise ValueError(
            "MODEL.DENSECLIP.PROMPT.VOCABULARY needs PROMPT.MODE 'template' or 'random', not "
            f"{prompt.MODE!r}: the text embeddings of other modes depend on contexts."
        )
    if decoder.WIDTH % decoder.HEADS:
        raise ValueError(
            f"MODEL.DENSECLIP.CONTEXT_DECODER.WIDTH is {decoder.WIDTH}, which its {decoder.HEADS} HEADS "
            "cannot share equally: make WIDTH a multiple of HEADS."
        )


def _check_names_per_step(cfg: CfgNode) -> None:
    number, labels = cfg.MODEL.DENSECLIP.PROMPT.NAMES_PER_STEP, cfg.MODEL.SEM_SEG_HEAD
    if number and not takes_any_names(cfg):
        raise ValueError(
            f"MODEL.DENSECLIP.PROMPT.NAMES_PER_STEP is {number}, but layers learn weights of each class. Set "
            "it to 0, or MODEL.DENSECLIP.CLASSIFIER and SCORE_MAP.CONCAT to 'text'."
        )
    if number and 0 <= labels.IGNORE_VALUE < labels.NUM_CLASSES:
        raise ValueError(
            f"MODEL.DENSECLIP.PROMPT.NAMES_PER_STEP is {number}, which numbers each step's classes anew, "
            f"and MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {labels.IGNORE_VALUE}, the number of a class. Set it to "
            f"0, or IGNORE_VALUE to one from {labels.NUM_CLASSES} on."
        )


def _check_names_per_image(cfg: CfgNode) -> None:
    denseclip = cfg.MODEL.DENSECLIP
    number, ensemble = denseclip.PROMPT.NAMES_PER_IMAGE, denseclip.GEOMETRIC_ENSEMBLE
    others = {
        "a CLASSIFIER or SCORE_MAP.CONCAT with weights of each class": not takes_any_names(cfg),
        "MODEL.DENSECLIP.NAME_BIAS": denseclip.NAME_BIAS,
        "MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE": ensemble.ALPHA or ensemble.BETA,
        "TEST.SLIDING_WINDOW, whose windows show different names": cfg.TEST.SLIDING_WINDOW.ENABLED,
        "a panoptic model": reads_stuff_names(cfg),
        "a SEM_SEG_HEAD.NAME that labels by the score map": labels_by_score_map(cfg),
    }
    if number and (other := next((what for what, has in others.items() if has), "")):
        raise ValueError(f"MODEL.DENSECLIP.PROMPT.NAMES_PER_IMAGE is {number}, not for {other}. Set it to 0.")


def _check_runtime(cfg: CfgNode) -> None:
    precisions = {
        "": ("float32", "bfloat16", "float16"),
        "onnxruntime": ("float32", "int8"),
        "openvino": ("float32", "bfloat16", "int8"),
    }[cfg.TEST.RUNTIME]
    if cfg.TEST.PRECISION not in precisions:
        raise ValueError(
            f"TEST.PRECISION is {cfg.TEST.PRECISION!r}; with TEST.RUNTIME {cfg.TEST.RUNTIME!r} it has to be "
            f"one of {', '.join(map(repr, precisions))}."
        )
    if cfg.TEST.RUNTIME and cfg.TEST.AUG.ENABLED:
        raise ValueError("TEST.AUG.ENABLED needs PyTorch. Set it to False, or TEST.RUNTIME to ''.")


def check_device(device: str) -> None:
    """Refuse a device on which torch cannot make tensors; "meta" is allowed.

    Raises:
        ValueError: torch cannot use the device.
    """
    kind, index = torch.device(device).type, torch.device(device).index or 0
    if kind == "cuda" and index < torch.cuda.device_count():
        return  # CUDA is not initialized here, because processes may be started later
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise ValueError(
            f"MODEL.DEVICE is {device!r}, where torch cannot compute. This machine has {gpus} GPUs for CUDA: "
            "set MODEL.DEVICE to " + ("cuda, or to cpu." if gpus else "cpu.")
        ) from error


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield every key of a config, dotted, with its value."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_backbone(cfg: CfgNode) -> None:
    backbone, weights = cfg.MODEL.DENSECLIP.VISUAL.BACKBONE, cfg.MODEL.DENSECLIP.VISUAL.WEIGHTS
    if backbone.startswith(TIMM):
        check_timm_model(backbone.removeprefix(TIMM))
    elif backbone:
        registered = [name for name, _ in BACKBONE_REGISTRY]
        _check_registered("MODEL.DENSECLIP.VISUAL.BACKBONE", backbone, registered)
    elif weights:
        raise ValueError(
            f"MODEL.DENSECLIP.VISUAL.WEIGHTS is {weights!r}, but VISUAL.BACKBONE, whose weights they are, is "
            "empty. Set BACKBONE. For the weights of a CLIP, set MODEL.WEIGHTS, and VISUAL.WEIGHTS to ''."
        )


def _check_pixels(cfg: CfgNode) -> None:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if not (mean and std):
        raise ValueError(
            "MODEL.PIXEL_MEAN or PIXEL_STD is empty. `denseclip_d2.config.set_pixels(cfg)` sets the "
            "values of CLIPs and timm models. For another backbone, set the values that its weights need."
        )
    if (len(mean), len(std)) != (3, 3):
        raise ValueError(
            f"MODEL.PIXEL_MEAN and PIXEL_STD have {len(mean)} and {len(std)} values; INPUT.FORMAT "
            f"{cfg.INPUT.FORMAT!r} has 3 channels: give each 3, or [] for the architecture's."
        )


def _check_crop(cfg: CfgNode) -> None:
    crop, absolute = cfg.INPUT.CROP, cfg.INPUT.CROP.TYPE.startswith("absolute")
    fits = all(isinstance(side, int) if absolute else side <= 1 for side in crop.SIZE)
    if crop.ENABLED and not fits:
        needed = "two whole numbers of pixels" if absolute else "two parts of the image's sides, up to 1"
        raise ValueError(
            f"INPUT.CROP.SIZE is {crop.SIZE!r}; with INPUT.CROP.TYPE {crop.TYPE!r} it has to be {needed}."
        )


def _check_classifier(cfg: CfgNode) -> None:
    """Refuse a text classifier where the model has none, or has weights of its own for each class."""
    if cfg.MODEL.DENSECLIP.CLASSIFIER == "kway":
        if any(cfg.MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE.values()):
            raise ValueError(
                "MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE mixes scores of heads that classify by text, and "
                "MODEL.DENSECLIP.CLASSIFIER is 'kway'. Set its ALPHA and BETA to 0. Or train with CLASSIFIER "
                "'text'."
            )
        return
    wrong = ""
    section, heads = num_classes_section(cfg), cfg.MODEL.ROI_HEADS.NAME
    if not cfg.MODEL.BACKBONE.NAME.startswith("build_denseclip"):
        wrong = f"a language-guided backbone, and MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME!r}"
    elif has_sem_seg_head(cfg) and not (
        cfg.MODEL.SEM_SEG_HEAD.NAME == "SemSegFPNHeadWithDropout" or labels_by_score_map(cfg)
    ):
        wrong = f"SemSegFPNHeadWithDropout, and MODEL.SEM_SEG_HEAD.NAME is {cfg.MODEL.SEM_SEG_HEAD.NAME!r}"
    elif section == "ROI_HEADS" and heads not in {*ROI_HEADS, *ROI_HEADS.values()}:
        wrong = f"one of {', '.join(ROI_HEADS)}, and MODEL.ROI_HEADS.NAME is {heads!r}"
    elif section == "ROI_HEADS" and not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        wrong = "boxes that are no class's: set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True"
    elif predicts_masks(cfg) and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        wrong = "masks that are no class's: set MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK True"
    if wrong:
        raise ValueError(f"MODEL.DENSECLIP.CLASSIFIER 'text' needs {wrong}.")


def _check_schedule(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and [*solver.STEPS] != sorted({*solver.STEPS}):
        raise ValueError(f"SOLVER.STEPS is {solver.STEPS!r}; it has to be in increasing order.")
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and not 0 <= solver.BASE_LR_END <= solver.BASE_LR > 0:
        raise ValueError(
            f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}; WarmupCosineLR needs a value from 0 to "
            f"SOLVER.BASE_LR, {solver.BASE_LR}, which has to be above 0."
        )


def _check_registered(key: str, name: object, registered: list[str]) -> None:
    if name in registered or name == NOTHING.get(key):
        return
    near = difflib.get_close_matches(str(name), registered, n=3, cutoff=0.4)
    raise ValueError(
        f"{key} is {name!r}, which is not registered. Near it: {', '.join(near) or 'none'}. "
        f"There are: {', '.join(sorted(registered))}."
    )
