from .mask_rcnn import DenseCLIPMaskRCNN
from .retinanet import CLIPRetinaNet, DenseCLIPRetinaNet

__all__ = ["CLIPRetinaNet", "DenseCLIPMaskRCNN", "DenseCLIPRetinaNet"]
