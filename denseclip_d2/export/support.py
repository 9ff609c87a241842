"""Checks of whether a model can be exported."""

from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from .formats import FORMATS
from .traceable import TRACEABLE, TraceableModel


def check_exportable(cfg: CfgNode, format: str) -> type[TraceableModel]:
    """Return the wrapper of a config's model in one of ``FORMATS``.

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
    systems = FORMATS[format].systems
    for base, whole in systems.items():
        if issubclass(system, base):
            return whole
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
        "MODEL.DENSECLIP.CLASSIFIER is 'text', or SCORE_MAP.CONCAT is, which exports do not support yet": (
            "text" in (cfg.MODEL.DENSECLIP.CLASSIFIER, cfg.MODEL.DENSECLIP.SCORE_MAP.CONCAT)
        ),
        "TEST.SLIDING_WINDOW.ENABLED is True, and the number of windows depends on the image; set it to "
        "False": cfg.TEST.SLIDING_WINDOW.ENABLED,
        "MODEL.WEIGHTS is empty; set it to the weights of the trained model": not cfg.MODEL.WEIGHTS,
        "MODEL.KEYPOINT_ON is True, and no output has keypoints": cfg.MODEL.KEYPOINT_ON,
        "MODEL.LOAD_PROPOSALS is True, and exported files have no proposals": cfg.MODEL.LOAD_PROPOSALS,
    }
    return [reason for reason, holds in reasons.items() if holds]
