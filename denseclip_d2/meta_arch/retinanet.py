from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Instances

from .pixel_text import PixelTextSupervision, check_number_of_classes


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

    @configurable
    def __init__(self, *, pixel_text_weight: float = 1.0, **kwargs):
        """
        Args:
            pixel_text_weight: factor of ``loss_pixel_text``.
            kwargs: as for Detectron2's RetinaNet.

        Raises:
            ValueError: the backbone has other than ``num_classes`` class names.
        """
        super().__init__(**kwargs)
        check_number_of_classes(self.backbone, self.num_classes, "MODEL.RETINANET.NUM_CLASSES")
        self.pixel_text_weight = pixel_text_weight

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "pixel_text_weight": cfg.MODEL.DENSECLIP.LOSS_WEIGHT}
