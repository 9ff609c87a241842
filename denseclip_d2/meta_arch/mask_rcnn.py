from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN

from .pixel_text import PixelTextSupervision


@META_ARCH_REGISTRY.register()
class DenseCLIPMaskRCNN(PixelTextSupervision, GeneralizedRCNN):
    """Detectron2's Mask R-CNN on a ``LanguageGuidedFeatures``, with the pixel-text loss.

    RPN, ROI heads and mask head are Detectron2's, by its own config keys; with ``MODEL.MASK_ON False`` it is
    a Faster R-CNN.
    """

    section = "ROI_HEADS"
