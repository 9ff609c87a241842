"""The language-guided meta-architectures, which a config names in ``MODEL.META_ARCHITECTURE``."""

from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN

from .dense_pixel_text import DensePixelTextSupervision
from .fcos import ConfigurableFCOS
from .pixel_text import PixelTextSupervision, language_guided
from .retinanet import RetinaNetGlobalNorm
from .semantic_fpn import SlidingWindowSegmentor


@META_ARCH_REGISTRY.register()
class DenseCLIPRetinaNet(DensePixelTextSupervision, RetinaNetGlobalNorm):
    num_classes_key = "RETINANET"


@META_ARCH_REGISTRY.register()
class DenseCLIPFCOS(DensePixelTextSupervision, ConfigurableFCOS):
    num_classes_key = "FCOS"


@META_ARCH_REGISTRY.register()
class DenseCLIPMaskRCNN(PixelTextSupervision, GeneralizedRCNN):
    """Mask R-CNN; Faster R-CNN if ``MODEL.MASK_ON`` is False; Cascade R-CNN with "CascadeROIHeads"."""

    num_classes_key = "ROI_HEADS"


@META_ARCH_REGISTRY.register()
class DenseCLIPPanopticFPN(PixelTextSupervision, PanopticFPN):
    """Panoptic FPN, whose score map has the thing classes."""

    num_classes_key = "ROI_HEADS"


@META_ARCH_REGISTRY.register()
class DenseCLIPSemanticFPN(PixelTextSupervision, SlidingWindowSegmentor):
    """A segmentor with any head, such as Semantic FPN's, PointRend's or DeepLabV3+'s."""

    num_classes_key = "SEM_SEG_HEAD"


def register_panoptic_deeplab() -> None:
    """Register DenseCLIPPanopticDeepLab. Detectron2's module has to be imported; it needs panopticapi."""
    if "DenseCLIPPanopticDeepLab" not in META_ARCH_REGISTRY:
        meta_arch = META_ARCH_REGISTRY.get("PanopticDeepLab")
        META_ARCH_REGISTRY.register(language_guided(meta_arch, "SEM_SEG_HEAD"))
