from functools import partial

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..kernels import anchor_focal_loss
from ..utils.distributed import sum_over_processes
from .text_heads import TextRetinaNetHead, biased_names_of, embed_dim_of


@META_ARCH_REGISTRY.register()
class RetinaNetGlobalNorm(RetinaNet):
    """Detectron2's RetinaNet, with two differences.

    Boxes are clipped to the image before NMS, as released. Losses are divided by the number of positive
    anchors of all processes, so that their mean over processes is the loss of the global batch. On one
    process, the losses are Detectron2's.
    """

    @configurable
    def __init__(self, *, focal_loss_kernels: bool = True, **kwargs):
        """
        Args:
            focal_loss_kernels: the ``kernels`` of :func:`anchor_focal_loss`.
            kwargs: as for ``RetinaNet``.
        """
        super().__init__(**kwargs)
        self.focal_loss_kernels = focal_loss_kernels

    @classmethod
    def from_config(cls, cfg) -> dict:
        arguments = {**super().from_config(cfg), "focal_loss_kernels": cfg.MODEL.DENSECLIP.FUSED_OPS}
        if embed_dim := embed_dim_of(cfg):
            shapes = arguments["backbone"].output_shape()
            levels = [shapes[name] for name in arguments["head_in_features"]]
            head = {**RetinaNetHead.from_config(cfg, levels), "embed_dim": embed_dim}
            head["biased_names"] = biased_names_of(cfg)
            del head["num_classes"]
            arguments["head"] = TextRetinaNetHead(**head)
        return arguments

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """Return Detectron2's losses. The focal loss keeps its gradient alone."""
        labels = torch.stack(gt_labels)
        positive = (labels >= 0) & (labels != self.num_classes)
        count = positive.sum()
        get_event_storage().put_scalar("num_pos_anchors", count.item() / len(labels))
        everywhere = max(sum_over_processes(count).item(), 1)
        normalizer = self._ema_update("loss_normalizer", everywhere, initial_value=100)  # Detectron2's value
        normalizer /= comm.get_world_size()
        levels = labels.split([x.shape[1] for x in pred_logits], dim=1)
        loss = partial(
            anchor_focal_loss,
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            kernels=self.focal_loss_kernels,
        )
        pairs = zip(pred_logits, levels, strict=True)
        return {
            "loss_cls": sum(loss(x, own)[0] for x, own in pairs) / normalizer,
            "loss_box_reg": _dense_box_regression_loss(
                anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, positive,
                box_reg_loss_type=self.box_reg_loss_type, smooth_l1_beta=self.smooth_l1_beta,
            ) / normalizer,
        }  # fmt: skip

    def _decode_multi_level_predictions(self, *args) -> Instances:
        predictions = super()._decode_multi_level_predictions(*args)
        predictions.pred_boxes.clip(predictions.image_size)
        return predictions
