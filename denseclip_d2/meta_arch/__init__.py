from .retinanet import CLIPRetinaNet, DenseCLIPRetinaNet

__all__ = ["CLIPRetinaNet", "DenseCLIPRetinaNet"]
