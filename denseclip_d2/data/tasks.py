"""The kind of annotations that the meta-architecture of a config needs."""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import FCOS, PanopticFPN, RetinaNet, SemanticSegmentor

SECTIONS = {RetinaNet: "RETINANET", FCOS: "FCOS", SemanticSegmentor: "SEM_SEG_HEAD"}


def num_classes_section(cfg: CfgNode) -> str:
    """Return the section of ``cfg.MODEL`` with the NUM_CLASSES of the system.

    The section is the system's ``num_classes_key``, if it has one, or that of its Detectron2 class.
    """
    system = _system(cfg)
    kinds = [section for kind, section in SECTIONS.items() if _is_a(system, kind)]
    kinds += ["SEM_SEG_HEAD"] if is_panoptic_deeplab(cfg) else []
    return getattr(system, "num_classes_key", [*kinds, "ROI_HEADS"][0])


def is_semantic(cfg: CfgNode) -> bool:
    """Return whether the model's classes are those of label maps, a dataset's ``stuff_classes``.

    The classes of systems that find boxes, such as Panoptic FPN, are the ``thing_classes``.
    """
    return num_classes_section(cfg) == "SEM_SEG_HEAD"


def has_sem_seg_head(cfg: CfgNode) -> bool:
    """Return whether the model labels pixels, with or without instances."""
    return is_semantic(cfg) or is_panoptic(cfg)


def predicts_masks(cfg: CfgNode) -> bool:
    """Return whether the model finds masks; RetinaNet and FCOS find none even with ``MASK_ON``."""
    return cfg.MODEL.MASK_ON and num_classes_section(cfg) == "ROI_HEADS"


def takes_any_names(cfg: CfgNode) -> bool:
    """Return whether the model finds classes of any name, and not those it was trained on alone."""
    denseclip = cfg.MODEL.DENSECLIP
    return denseclip.CLASSIFIER == "text" and denseclip.SCORE_MAP.CONCAT != "scores"


def reads_stuff_names(cfg: CfgNode) -> bool:
    """Return whether the model classifies things and stuff, each by the text of their names."""
    return cfg.MODEL.DENSECLIP.CLASSIFIER == "text" and _is_a(_system(cfg), PanopticFPN)


def labels_by_score_map(cfg: CfgNode) -> bool:
    """Return whether a segmentor has no layer to learn, and labels pixels by a CLIP's score map alone."""
    return is_semantic(cfg) and cfg.MODEL.SEM_SEG_HEAD.NAME == "ScoreMapHead"


def learns_a_name(cfg: CfgNode) -> bool:
    """Return whether the embedding of ``PROMPT.LEARNED_NAME`` is learned. A detector has no such class."""
    learns = cfg.MODEL.DENSECLIP.CLASSIFIER == "text" and not labels_by_score_map(cfg)
    return learns and has_sem_seg_head(cfg)


def is_panoptic(cfg: CfgNode) -> bool:
    """Return whether the model joins instances and labels in ``panoptic_seg``."""
    return _is_a(_system(cfg), PanopticFPN) or is_panoptic_deeplab(cfg)


def is_panoptic_deeplab(cfg: CfgNode) -> bool:
    """Return whether the model is Detectron2's Panoptic-DeepLab, which not every process registers."""
    return "PANOPTIC_DEEPLAB" in cfg.MODEL and _is_a(_system(cfg), META_ARCH_REGISTRY.get("PanopticDeepLab"))


def _system(cfg: CfgNode) -> object:
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)


def _is_a(system: object, kind: type) -> bool:
    return isinstance(system, type) and issubclass(system, kind)
