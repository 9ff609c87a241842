from functools import partial

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch import FCOS
from detectron2.modeling.meta_arch.fcos import FCOSHead
from torch import Tensor

from .text_heads import TextFCOSHead, biased_names_of, embed_dim_of


class _Float32Transform(Box2BoxTransformLinear):
    """Detectron2's transform in float32. Its own computes boxes in the precision of autocast."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        return super().apply_deltas(deltas.float(), boxes)


@META_ARCH_REGISTRY.register()
class ConfigurableFCOS(FCOS):
    """Detectron2's FCOS, built from ``MODEL.FCOS``. Detectron2 builds FCOS from a LazyConfig alone."""

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: as for ``FCOS``.
        """
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg) -> dict:
        fcos, backbone = cfg.MODEL.FCOS, build_backbone(cfg)
        shapes = [backbone.output_shape()[name] for name in fcos.IN_FEATURES]
        embed_dim = embed_dim_of(cfg)
        kind = (
            partial(TextFCOSHead, embed_dim=embed_dim, biased_names=biased_names_of(cfg))
            if embed_dim
            else partial(FCOSHead, num_classes=fcos.NUM_CLASSES)
        )
        head = kind(
            input_shape=shapes,
            conv_dims=[shapes[0].channels] * fcos.NUM_CONVS,
            prior_prob=fcos.PRIOR_PROB,
            norm=fcos.NORM,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": fcos.IN_FEATURES,
            "box2box_transform": _Float32Transform(normalize_by_size=True),
            "num_classes": fcos.NUM_CLASSES,
            "center_sampling_radius": fcos.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": fcos.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": fcos.FOCAL_LOSS_GAMMA,
            "test_score_thresh": fcos.SCORE_THRESH_TEST,
            "test_topk_candidates": fcos.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": fcos.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
