"""Checks of whether a model can be exported."""

from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from ..clip_models import get_clip_architecture
from ..data.tasks import labels_by_score_map, reads_stuff_names
from .formats import FORMATS
from .names import takes_text
from .traceable import TRACEABLE, TraceableModel

FIXED_NAMES = "convert the weights with --precompute-text, which fixes their names"


def check_exportable(cfg: CfgNode, format: str, *, heads: bool = False) -> type[TraceableModel]:
    """Return the wrapper of a config's model in one of ``FORMATS``, up to its heads if asked for.

    Raises:
        ValueError: the model cannot be exported.
    """
    if reasons := _reasons(cfg):
        raise ValueError(f"This model cannot be exported: {reasons[0]}.")
    system = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if not issubclass(system, tuple(TRACEABLE)):
        raise ValueError(
            f"This model cannot be exported: a {system.__name__} is none of {_names(TRACEABLE)}."
        )
    systems = FORMATS[format].systems(heads)
    for base, whole in systems.items():
        if issubclass(system, base):
            return whole
    if heads:
        raise ValueError(f"--heads is for {_names(systems)}, and this model is a {system.__name__}.")
    raise ValueError(
        f"This model cannot be exported by --format {format}: a {system.__name__} is none of "
        f"{_names(systems)}; others have data-dependent control flow. Choose --format "
        f"{' or '.join(name for name, x in FORMATS.items() if not x.static_graph)}."
    )


def is_guided(cfg: CfgNode) -> bool:
    """Return whether the model is guided by language, by its backbone's name."""
    return cfg.MODEL.BACKBONE.NAME.startswith("build_denseclip")


def _names(systems: Iterable[type]) -> str:
    return ", ".join(base.__name__ for base in systems)


def _reasons(cfg: CfgNode) -> list[str]:
    reasons = {
        "MODEL.DENSECLIP.PROMPT.MODE is 'pre', whose text embeddings depend on the image": (
            is_guided(cfg) and cfg.MODEL.DENSECLIP.PROMPT.MODE == "pre"
        ),
        "MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE mixes by names, which a file does not have; set ALPHA and BETA "
        "to 0": any(cfg.MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE.values()),
        "TEST.SLIDING_WINDOW.ENABLED is True, and the number of windows depends on the image; set it to "
        "False": cfg.TEST.SLIDING_WINDOW.ENABLED,
        "MODEL.WEIGHTS is empty; set it to the weights of the trained model": not cfg.MODEL.WEIGHTS,
        "MODEL.KEYPOINT_ON is True, and no output has keypoints": cfg.MODEL.KEYPOINT_ON,
        "MODEL.LOAD_PROPOSALS is True, and exported files have no proposals": cfg.MODEL.LOAD_PROPOSALS,
    }
    if takes_text(cfg):
        reasons |= _reasons_of_names(cfg)
    return [reason for reason, holds in reasons.items() if holds]


def _reasons_of_names(cfg: CfgNode) -> dict[str, bool]:
    """Return what can prevent an export with names as an input, and whether it does."""
    denseclip = cfg.MODEL.DENSECLIP
    mode = denseclip.PROMPT.MODE
    tokenizer = get_clip_architecture(denseclip.CLIP_MODEL).text.hf_tokenizer_name
    reasons = {
        "MODEL.DENSECLIP.PROMPT.MODE is 'random', whose text no encoder makes": mode == "random",
        "MODEL.DENSECLIP.NAME_BIAS is True, and an exported file sees no names": denseclip.NAME_BIAS,
        "MODEL.DENSECLIP.CLIP_MODEL has a tokenizer that is not CLIP's": bool(tokenizer),
        "MODEL.DENSECLIP.PROMPT.TEMPLATES has several sentences for a name": bool(denseclip.PROMPT.TEMPLATES),
        "its background is one of STUFF_NAMES or of BACKGROUND_THRESHOLD": labels_by_score_map(cfg)
        and bool(denseclip.STUFF_NAMES or denseclip.SCORE_MAP.BACKGROUND_THRESHOLD > -1),
        "it reads names of stuff beside those of things": reads_stuff_names(cfg),
    }
    return {f"{reason}; {FIXED_NAMES}": holds for reason, holds in reasons.items()}
