"""What cannot be exported, said before any work."""

from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from .formats import FORMATS
from .whole import WHOLE, WholeModel


def exportable(cfg: CfgNode, format: str) -> type[WholeModel]:
    """What a config's model is exported as, in one of ``FORMATS``.

    Raises:
        ValueError: it cannot be exported; why, in one line.
    """
    if reasons := _reasons(cfg):
        raise ValueError(f"This model cannot be exported: {reasons[0]}.")
    system = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if not issubclass(system, tuple(WHOLE)):
        raise ValueError(
            f"This model cannot be exported: a {system.__name__} is none of {_names(WHOLE)}, whose outputs "
            "are known."
        )
    systems = FORMATS[format].systems
    for base, whole in systems.items():
        if issubclass(system, base):
            return whole
    raise ValueError(
        f"This model cannot be exported by --format {format}: a {system.__name__} is none of "
        f"{_names(systems)}, and what others do depends on values, which it does not follow. Take "
        f"--format {' or '.join(name for name, x in FORMATS.items() if not x.asks_nothing)}."
    )


def is_guided(cfg: CfgNode) -> bool:
    """Whether the model is guided by language, as its backbone's name tells."""
    return cfg.MODEL.BACKBONE.NAME.startswith("build_denseclip")


def _names(systems: Iterable[type]) -> str:
    return ", ".join(base.__name__ for base in systems)


def _reasons(cfg: CfgNode) -> list[str]:
    reasons = {
        "MODEL.DENSECLIP.PROMPT.MODE is 'pre', which reads every picture's contexts by the text encoder, so "
        "that text cannot be folded": is_guided(cfg) and cfg.MODEL.DENSECLIP.PROMPT.MODE == "pre",
        "TEST.SLIDING_WINDOW.ENABLED is True, and how many windows there are depends on the picture; with "
        "False, the model that sees it whole can be": cfg.TEST.SLIDING_WINDOW.ENABLED,
        "MODEL.WEIGHTS is empty; set it to those of the trained model": not cfg.MODEL.WEIGHTS,
        "MODEL.KEYPOINT_ON is True, and no output holds keypoints": cfg.MODEL.KEYPOINT_ON,
        "MODEL.LOAD_PROPOSALS is True, and pictures come without": cfg.MODEL.LOAD_PROPOSALS,
    }
    return [reason for reason, holds in reasons.items() if holds]
