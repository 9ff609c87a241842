from .fcos import CLIPFCOS
from .pixel_text import PixelTextSupervision, language_guided
from .retinanet import CLIPRetinaNet
from .sem_seg_head import CLIPSemSegFPNHead
from .semantic_fpn import CLIPSemanticFPN
from .systems import (
    DenseCLIPFCOS,
    DenseCLIPMaskRCNN,
    DenseCLIPPanopticFPN,
    DenseCLIPRetinaNet,
    DenseCLIPSemanticFPN,
)

__all__ = [
    "CLIPFCOS",
    "CLIPRetinaNet",
    "CLIPSemSegFPNHead",
    "CLIPSemanticFPN",
    "DenseCLIPFCOS",
    "DenseCLIPMaskRCNN",
    "DenseCLIPPanopticFPN",
    "DenseCLIPRetinaNet",
    "DenseCLIPSemanticFPN",
    "PixelTextSupervision",
    "language_guided",
]
