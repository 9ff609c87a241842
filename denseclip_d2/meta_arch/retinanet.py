from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Instances

from .pixel_text import PixelTextSupervision


@META_ARCH_REGISTRY.register()
class CLIPRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, but for the boxes that NMS compares: clipped to the image, as released."""

    def _decode_multi_level_predictions(self, *args) -> Instances:
        predictions = super()._decode_multi_level_predictions(*args)
        predictions.pred_boxes.clip(predictions.image_size)
        return predictions


@META_ARCH_REGISTRY.register()
class DenseCLIPRetinaNet(PixelTextSupervision, CLIPRetinaNet):
    """RetinaNet on a ``LanguageGuidedFPN``, with the pixel-text loss."""

    section = "RETINANET"
