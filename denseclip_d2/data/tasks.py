"""What kind of labels a config's system needs, told by the system itself."""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import FCOS, PanopticFPN, RetinaNet, SemanticSegmentor

SECTIONS = {RetinaNet: "RETINANET", FCOS: "FCOS", SemanticSegmentor: "SEM_SEG_HEAD"}


def section_of(cfg: CfgNode) -> str:
    """Where in ``cfg.MODEL`` the NUM_CLASSES of the system's classes is.

    A system's own ``num_classes_key``, if it has one; else that of the kind of Detectron2's that it is.
    """
    system = _system(cfg)
    kinds = [section for kind, section in SECTIONS.items() if _is_a(system, kind)]
    kinds += ["SEM_SEG_HEAD"] if is_panoptic_deeplab(cfg) else []
    return getattr(system, "num_classes_key", [*kinds, "ROI_HEADS"][0])


def is_semantic(cfg: CfgNode) -> bool:
    """Whether the model's classes are those of label maps, a dataset's ``stuff_classes``.

    Those of systems that find boxes, Panoptic FPN among them, are its ``thing_classes``.
    """
    return section_of(cfg) == "SEM_SEG_HEAD"


def labels_pixels(cfg: CfgNode) -> bool:
    """Whether the model labels pixels, beside instances or alone."""
    return is_semantic(cfg) or is_panoptic(cfg)


def finds_masks(cfg: CfgNode) -> bool:
    """Whether the model finds a mask for each object; RetinaNet and FCOS do not, with ``MASK_ON`` either."""
    return cfg.MODEL.MASK_ON and section_of(cfg) == "ROI_HEADS"


def is_panoptic(cfg: CfgNode) -> bool:
    """Whether the model makes one picture of instances and labels, ``panoptic_seg``."""
    return _is_a(_system(cfg), PanopticFPN) or is_panoptic_deeplab(cfg)


def is_panoptic_deeplab(cfg: CfgNode) -> bool:
    """Whether the model is Detectron2's Panoptic-DeepLab, which is there only where a config asks for it."""
    return "PANOPTIC_DEEPLAB" in cfg.MODEL and _is_a(_system(cfg), META_ARCH_REGISTRY.get("PanopticDeepLab"))


def _system(cfg: CfgNode) -> object:
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)


def _is_a(system: object, kind: type) -> bool:
    return isinstance(system, type) and issubclass(system, kind)
