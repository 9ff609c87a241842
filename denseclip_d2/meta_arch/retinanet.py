import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Instances
from detectron2.utils import comm

from ..utils.distributed import sum_over_processes


@META_ARCH_REGISTRY.register()
class CLIPRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, with two differences.

    The boxes that NMS compares are clipped to the image, as released. The positive anchors that losses are
    divided by are counted over all processes, so that losses, averaged over processes, are those of the
    global batch; on one process they are Detectron2's.
    """

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        labels = torch.stack(gt_labels)
        self._num_positive = sum_over_processes(((labels >= 0) & (labels != self.num_classes)).sum()).item()
        return super().losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        # `value` is of this process alone, and at least 1, so that a sum of it over processes would be off.
        average = super()._ema_update(name, max(self._num_positive, 1), initial_value, momentum)
        return average / comm.get_world_size()

    def _decode_multi_level_predictions(self, *args) -> Instances:
        predictions = super()._decode_multi_level_predictions(*args)
        predictions.pred_boxes.clip(predictions.image_size)
        return predictions
