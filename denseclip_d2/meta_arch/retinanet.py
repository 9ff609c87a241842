import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Instances
from detectron2.utils import comm

from ..utils.distributed import sum_over_processes
from .text_heads import TextRetinaNetHead, biased_names_of, embed_dim_of


@META_ARCH_REGISTRY.register()
class RetinaNetGlobalNorm(RetinaNet):
    """Detectron2's RetinaNet, with two differences.

    Boxes are clipped to the image before NMS, as released. Losses are divided by the number of positive
    anchors of all processes, so that their mean over processes is the loss of the global batch. On one
    process, the losses are Detectron2's.
    """

    @classmethod
    def from_config(cls, cfg) -> dict:
        arguments = super().from_config(cfg)
        if embed_dim := embed_dim_of(cfg):
            shapes = arguments["backbone"].output_shape()
            levels = [shapes[name] for name in arguments["head_in_features"]]
            head = {**RetinaNetHead.from_config(cfg, levels), "embed_dim": embed_dim}
            head["biased_names"] = biased_names_of(cfg)
            del head["num_classes"]
            arguments["head"] = TextRetinaNetHead(**head)
        return arguments

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        labels = torch.stack(gt_labels)
        positive = sum_over_processes(((labels >= 0) & (labels != self.num_classes)).sum()).item()
        super()._ema_update("loss_normalizer", max(positive, 1), initial_value=100)  # Detectron2's value
        return super().losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        # Detectron2's `value` counts the anchors of this process; `losses` has updated the average.
        return getattr(self, name) / comm.get_world_size()

    def _decode_multi_level_predictions(self, *args) -> Instances:
        predictions = super()._decode_multi_level_predictions(*args)
        predictions.pred_boxes.clip(predictions.image_size)
        return predictions
