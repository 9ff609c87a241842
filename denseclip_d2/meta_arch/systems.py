"""The language-guided systems, by the names that a config gives them in ``MODEL.META_ARCHITECTURE``."""

from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN

from .fcos import CLIPFCOS
from .pixel_text import language_guided
from .retinanet import CLIPRetinaNet
from .semantic_fpn import CLIPSemanticFPN

DenseCLIPRetinaNet = language_guided(CLIPRetinaNet, "RETINANET", "DenseCLIPRetinaNet")
DenseCLIPFCOS = language_guided(CLIPFCOS, "FCOS", "DenseCLIPFCOS")
# Faster R-CNN where MODEL.MASK_ON is False, Cascade R-CNN with MODEL.ROI_HEADS.NAME "CascadeROIHeads".
DenseCLIPMaskRCNN = language_guided(GeneralizedRCNN, "ROI_HEADS", "DenseCLIPMaskRCNN")
# The score map speaks of the things; both heads read the pyramid that it guides.
DenseCLIPPanopticFPN = language_guided(PanopticFPN, "ROI_HEADS")
# Any head that segments: Semantic FPN's, PointRend's, DeepLabV3+'s.
DenseCLIPSemanticFPN = language_guided(CLIPSemanticFPN, "SEM_SEG_HEAD", "DenseCLIPSemanticFPN")

for _system in (
    DenseCLIPRetinaNet,
    DenseCLIPFCOS,
    DenseCLIPMaskRCNN,
    DenseCLIPPanopticFPN,
    DenseCLIPSemanticFPN,
):
    META_ARCH_REGISTRY.register(_system)


def register_panoptic_deeplab() -> None:
    """Register DenseCLIPPanopticDeepLab; Detectron2's project "panoptic_deeplab" must be imported.

    The project is not always there: it needs panopticapi.
    """
    if "DenseCLIPPanopticDeepLab" not in META_ARCH_REGISTRY:
        panoptic_deeplab = META_ARCH_REGISTRY.get("PanopticDeepLab")
        META_ARCH_REGISTRY.register(language_guided(panoptic_deeplab, "SEM_SEG_HEAD"))
