"""The valid values of config keys: each key of this project, and often used keys of Detectron2."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..language.sentences import TEMPLATE_SETS
from ..visual.dense_features import DENSE_FEATURES


class Rule(NamedTuple):
    """What a value has to be.

    Attributes:
        words: the words after "it has to be".
        accepts: whether a value is valid.
    """

    words: str
    accepts: Callable[[object], bool]


def whole(low: int, high: float = math.inf) -> Rule:
    """Accept whole numbers from ``low`` to ``high``."""
    words = f"a whole number of at least {low}" + (f" and at most {high}" if high < math.inf else "")
    return Rule(words, lambda value: type(value) is int and low <= value <= high)


def number(
    low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Rule:
    """Accept finite numbers from ``low`` to ``high``; ``above`` and ``below`` exclude the bounds."""
    bounds = [f"{'above' if above else 'of at least'} {low}"] if low > -math.inf else []
    bounds += [f"{'below' if below else 'at most'} {high}"] if high < math.inf else []

    def accepts(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return (value > low if above else value >= low) and (value < high if below else value <= high)

    return Rule(" ".join(["a number", " and ".join(bounds)]).strip(), accepts)


def one_of(*choices: str) -> Rule:
    """Accept some strings."""
    return Rule("one of " + ", ".join(map(repr, choices)), lambda value: value in choices)


def each(rule: Rule, length: int | None = None) -> Rule:
    """Accept lists and tuples, of a given length if there is one, whose elements follow a rule."""

    def accepts(value: object) -> bool:
        if not isinstance(value, list | tuple) or len(value) != (length or len(value)):
            return False
        return all(map(rule.accepts, value))

    return Rule(f"{f'{length} values' if length else 'a list'}, each {rule.words}", accepts)


def either(*rules: Rule) -> Rule:
    """Accept what one of the rules accepts."""
    return Rule(" or ".join(r.words for r in rules), lambda value: any(r.accepts(value) for r in rules))


def _is_device(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(torch.device(value))
    except RuntimeError:  # torch raises it for an unknown name
        return False


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("a string", lambda value: isinstance(value, str))
TEMPLATE = Rule(
    "a sentence with {} in place of the name",
    lambda value: isinstance(value, str) and value.count("{}") == 1 and value.count("{") == 1,
)
DEVICE = Rule("a device of torch, such as 'cuda' or 'cpu'", _is_device)
POSITIVE = number(0, above=True)
PROBABILITY = number(0, 1)
RATE = number(0, 1, below=True)
NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
NORM_OR_NONE = one_of("", *NORMS)

_DENSECLIP = {
    "CLASS_NAMES": each(TEXT),
    "STUFF_NAMES": each(TEXT),
    "GEOMETRIC_ENSEMBLE.ALPHA": PROBABILITY,
    "GEOMETRIC_ENSEMBLE.BETA": PROBABILITY,
    "LOSS_WEIGHT": number(0),
    "LOSS_TARGET": one_of("box", "mask"),
    "LOSS_TYPE": one_of("binary", "softmax"),
    "PROJECTS": each(TEXT),
    "VISUAL.NORM": one_of(*NORMS),
    "VISUAL.FREEZE_AT": whole(0, 5),
    "VISUAL.POS_EMBED": one_of("interpolate", "crop"),
    "VISUAL.RESOLUTION": whole(0),
    "VISUAL.DENSE_FEATURES": one_of(*DENSE_FEATURES),
    "VISUAL.RES5_DILATION": whole(1, 2),
    "VISUAL.DROP_PATH_RATE": RATE,
    "VISUAL.WINDOW_SIZE": whole(0),
    "VISUAL.GLOBAL_ATTN_INDEXES": each(whole(0)),
    "VISUAL.PROJECTION": one_of("attention_pool", "linear"),
    "PROMPT.MODE": one_of("post", "pre", "context", "template", "random"),
    "PROMPT.N_CTX": whole(0),
    "PROMPT.CONTEXT_STD": POSITIVE,
    "PROMPT.NAMES_PER_STEP": whole(0),
    "PROMPT.HEAD_NAMES_PER_STEP": whole(0),
    "PROMPT.NAMES_PER_IMAGE": whole(0),
    "PROMPT.MAX_NAME_TOKENS": either(whole(0, 0), whole(3)),
    "PROMPT.TEMPLATE": TEMPLATE,
    "PROMPT.TEMPLATES": each(either(TEMPLATE, one_of(*TEMPLATE_SETS))),
    "PROMPT.VOCABULARY": each(TEXT),
    "CONTEXT_DECODER.WIDTH": whole(1),
    "CONTEXT_DECODER.HEADS": whole(1),
    "CONTEXT_DECODER.LAYERS": whole(1),
    "CONTEXT_DECODER.DROPOUT": RATE,
    "SCORE_MAP.TAU": POSITIVE,
    "SCORE_MAP.DENOISE": RATE,
    "SCORE_MAP.BACKGROUND_THRESHOLD": number(-1, 1),
    "SCORE_MAP.CONCAT": one_of("scores", "text", "none"),
    "CLASSIFIER": one_of("kway", "text"),
}

_FCOS = {
    "NUM_CLASSES": whole(1),
    "IN_FEATURES": each(TEXT),
    "NUM_CONVS": whole(1),
    "NORM": NORM_OR_NONE,
    "PRIOR_PROB": number(0, 1, above=True, below=True),
    "CENTER_SAMPLING_RADIUS": number(0),
    "FOCAL_LOSS_ALPHA": PROBABILITY,
    "FOCAL_LOSS_GAMMA": number(0),
    "SCORE_THRESH_TEST": PROBABILITY,
    "TOPK_CANDIDATES_TEST": whole(1),
    "NMS_THRESH_TEST": PROBABILITY,
}

RULES = {
    **{f"MODEL.DENSECLIP.{key}": rule for key, rule in _DENSECLIP.items()},
    **{f"MODEL.FCOS.{key}": rule for key, rule in _FCOS.items()},
    "MODEL.SEM_SEG_HEAD.DROPOUT": RATE,
    "INPUT.SCALE_RANGE_TRAIN": each(POSITIVE, length=2),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": number(0, 1, above=True),
    "SOLVER.AMP.PRECISION": one_of("float16", "bfloat16"),
    "SOLVER.OPTIMIZER": one_of("ADAMW", "ADAMW8BIT", "SGD"),
    "SOLVER.VISUAL_MULTIPLIER": number(0),
    "SOLVER.CONTEXT_MULTIPLIER": number(0),
    "SOLVER.POLY_LR_POWER": number(0),
    "SOLVER.NO_WEIGHT_DECAY": each(TEXT),
    "SOLVER.MAX_TO_KEEP": whole(0),
    "DATASETS.SEMANTIC_FOLDERS": each(TEXT),
    "DATASETS.NOVEL_CLASSES": each(TEXT),
    "DATASETS.CUSTOM.TRAIN": each(TEXT),
    "DATASETS.CUSTOM.VAL": each(TEXT),
    "DATASETS.CUSTOM.CLASS_NAMES": each(TEXT),
    "DATASETS.CUSTOM.VAL_FRACTION": number(0, 1, below=True),
    "DATASETS.CUSTOM.MIN_ITER": whole(1),
    "SOLVER.REFERENCE_IMAGES": whole(0),
    "DATALOADER.RANDOM_SUBSET_RATIO": number(0, 1, above=True),
    "TEST.MIN_BOX_SIZE": whole(0),
    "TEST.PRECISION": one_of("float32", "bfloat16", "float16", "int8"),
    "TEST.RUNTIME": one_of("", "onnxruntime", "openvino"),
    "TEST.SLIDING_WINDOW.SIZE": each(whole(1)),
    "TEST.SLIDING_WINDOW.STRIDE": each(whole(1)),
    "TEST.SLIDING_WINDOW.MAX_PIXELS": whole(1),
    # Of Detectron2, which does not check them.
    "DATALOADER.NUM_WORKERS": whole(0),
    "DATASETS.TEST": each(TEXT),
    "DATASETS.TRAIN": each(TEXT),
    "INPUT.CROP.SIZE": each(POSITIVE, length=2),
    "INPUT.CROP.TYPE": one_of("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.FORMAT": one_of("RGB", "BGR"),  # of Detectron2's, those that have a visual encoder
    "INPUT.MAX_SIZE_TEST": whole(1),
    "INPUT.MAX_SIZE_TRAIN": whole(1),
    "INPUT.MIN_SIZE_TEST": whole(0),
    "INPUT.MIN_SIZE_TRAIN": either(whole(1), each(whole(1))),
    "MODEL.DEVICE": DEVICE,
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.FPN.IN_FEATURES": each(TEXT),
    "MODEL.FPN.NORM": NORM_OR_NONE,
    "MODEL.FPN.OUT_CHANNELS": whole(1),
    "MODEL.PIXEL_MEAN": each(number()),
    "MODEL.PIXEL_STD": each(POSITIVE),
    "MODEL.RETINANET.NMS_THRESH_TEST": PROBABILITY,
    "MODEL.RETINANET.NORM": NORM_OR_NONE,
    "MODEL.RETINANET.NUM_CLASSES": whole(1),
    "MODEL.RETINANET.SCORE_THRESH_TEST": PROBABILITY,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": PROBABILITY,
    "MODEL.ROI_HEADS.NUM_CLASSES": whole(1),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": PROBABILITY,
    "MODEL.SEM_SEG_HEAD.NORM": NORM_OR_NONE,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": whole(1),
    "SEED": whole(-1),
    "SOLVER.BASE_LR": number(0),
    "SOLVER.CHECKPOINT_PERIOD": whole(1),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "SOLVER.GAMMA": POSITIVE,
    "SOLVER.IMS_PER_BATCH": whole(1),
    "SOLVER.LR_SCHEDULER_NAME": one_of(
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupPolyLR"
    ),
    "SOLVER.MAX_ITER": whole(1),
    "SOLVER.REFERENCE_WORLD_SIZE": whole(0),
    "SOLVER.STEPS": each(whole(1)),
    "SOLVER.WARMUP_ITERS": whole(0),
    "SOLVER.WEIGHT_DECAY": number(0),
    "TEST.DETECTIONS_PER_IMAGE": whole(1),
    "TEST.EVAL_PERIOD": whole(0),
}
"""Rules of keys. A key with a default of True, False or a string needs none: :func:`rule_of`."""


def rule_of(key: str, default: object) -> Rule | None:
    """Return the rule of a key, if any; a key without an entry in ``RULES`` has one by its default's type."""
    return RULES.get(key) or {bool: FLAG, str: TEXT}.get(type(default))
