from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import PanopticFPN

from .pixel_text import PixelTextSupervision


@META_ARCH_REGISTRY.register()
class DenseCLIPPanopticFPN(PixelTextSupervision, PanopticFPN):
    """Detectron2's Panoptic FPN on a ``LanguageGuidedFeatures``, with the pixel-text loss of the detectors.

    The score map speaks of the things; both heads read the pyramid that it guides.
    """

    section = "ROI_HEADS"
