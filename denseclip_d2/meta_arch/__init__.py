from .mask_rcnn import DenseCLIPMaskRCNN
from .panoptic_fpn import DenseCLIPPanopticFPN
from .retinanet import CLIPRetinaNet, DenseCLIPRetinaNet
from .sem_seg_head import CLIPSemSegFPNHead
from .semantic_fpn import CLIPSemanticFPN, DenseCLIPSemanticFPN

__all__ = [
    "CLIPRetinaNet",
    "CLIPSemSegFPNHead",
    "CLIPSemanticFPN",
    "DenseCLIPMaskRCNN",
    "DenseCLIPPanopticFPN",
    "DenseCLIPRetinaNet",
    "DenseCLIPSemanticFPN",
]
