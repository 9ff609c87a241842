"""Config keys and values that earlier versions wrote, and what they are called now."""

from collections.abc import MutableMapping, Sequence

KEYS = {
    "DATASETS.OWN": "DATASETS.CUSTOM",
    "DATASETS.OWN.HELD_OUT": "DATASETS.CUSTOM.VAL_FRACTION",
    "MODEL.DENSECLIP.KERNELS": "MODEL.DENSECLIP.FUSED_OPS",
    "MODEL.DENSECLIP.LOSS_KIND": "MODEL.DENSECLIP.LOSS_TYPE",
    "MODEL.DENSECLIP.PROMPT.FOLDED": "MODEL.DENSECLIP.PROMPT.PRECOMPUTED",
    "MODEL.DENSECLIP.PROMPT.NAME_LENGTH": "MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS",
    "MODEL.DENSECLIP.PROMPT.NUM_CONTEXTS": "MODEL.DENSECLIP.PROMPT.N_CTX",
    "MODEL.DENSECLIP.VISUAL.DENSE": "MODEL.DENSECLIP.VISUAL.DENSE_FEATURES",
    "MODEL.DENSECLIP.VISUAL.EMBEDDING": "MODEL.DENSECLIP.VISUAL.PROJECTION",
    "MODEL.DENSECLIP.VISUAL.GLOBAL_BLOCKS": "MODEL.DENSECLIP.VISUAL.GLOBAL_ATTN_INDEXES",
    "MODEL.DENSECLIP.VISUAL.POSITION": "MODEL.DENSECLIP.VISUAL.POS_EMBED",
    "MODEL.KEEP_MEMORY": "",
    "SOLVER.KEEP_BEST": "SOLVER.BEST_METRIC",
    "SOLVER.KEEP_CHECKPOINTS": "SOLVER.MAX_TO_KEEP",
    "TEST.FAST": "TEST.OPTIMIZE_FOR_INFERENCE",
}
"""Old keys and sections, with the key that each one became; empty: it has no effect anymore."""

VALUES: dict[str, dict[object, str]] = {
    "MODEL.DENSECLIP.SCORE_MAP.CONCAT": {True: "scores", False: "none", "True": "scores", "False": "none"},
    "MODEL.META_ARCHITECTURE": {
        "CLIPFCOS": "ConfigurableFCOS",
        "CLIPRetinaNet": "RetinaNetGlobalNorm",
        "CLIPSemanticFPN": "SlidingWindowSegmentor",
    },
    "MODEL.SEM_SEG_HEAD.NAME": {"CLIPSemSegFPNHead": "SemSegFPNHeadWithDropout"},
}
"""Values of earlier versions, by the key that holds them."""


def update_key(key: str) -> str:
    """Return what a dotted key, or the section above it, is called now; "" if it has no effect anymore."""
    if key in KEYS:
        return KEYS[key]
    section, _, name = key.rpartition(".")
    return f"{update_key(section)}.{name}" if section else key


def update_value(key: str, value: object) -> object:
    """Return what the value of a dotted key is called now."""
    return VALUES.get(key, {}).get(value, value) if isinstance(value, str | bool) else value


def update_content(content: dict) -> dict:
    """Return a config file's content with today's keys and values. Others stay as they are."""
    updated: dict = {}
    _update(content, "", updated)
    return updated


def update_pairs(pairs: Sequence) -> list:
    """Return ``KEY VALUE`` pairs, as ``merge_from_list`` takes them, with today's keys and values."""
    updated = [(update_key(key), value) for key, value in zip(pairs[::2], pairs[1::2], strict=True)]
    return [x for key, value in updated if key for x in (key, update_value(key, value))]


def _update(content: MutableMapping, above: str, updated: dict) -> None:
    for name, value in content.items():
        key = update_key(f"{above}{name}")
        if isinstance(value, dict) and value:
            _update(value, f"{above}{name}.", updated)
        elif key:
            *sections, last = key.split(".")
            place = updated
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = update_value(key, value)
