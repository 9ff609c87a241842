"""Heads of Detectron2's detectors for ``MODEL.DENSECLIP.CLASSIFIER`` "text": text embeddings classify."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..clip_models import get_clip_architecture
from ..guidance import CLIPScores, TextClassifier

TEXT = "text_embeddings"
"""The feature that heads read the text embeddings from, after the levels of their pyramid."""

STUFF = "stuff_embeddings"
"""The feature that the semantic head of a panoptic model reads the text embeddings of stuff from."""

CLIP = "clip_scores"
"""The feature that heads mix with their own scores at test time, if there is one."""

SCALE = 50.0
"""Initial scale of the cosine similarities of R-CNN heads (Detic, Zhou et al., ECCV 2022)."""

SIGMOID_PRIOR = 0.01
"""Initial probability of each class under a sigmoid loss of R-CNN heads (Focal Loss, Lin et al., 2017)."""


def embed_dim_of(cfg: CfgNode) -> int:
    """Return the width of the text embeddings that heads of a config classify by; 0 for "kway"."""
    if cfg.MODEL.DENSECLIP.CLASSIFIER == "kway":
        return 0
    return get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL).embed_dim


def biased_names_of(cfg: CfgNode, *, stuff: bool = False) -> tuple[str, ...]:
    """Return the names of the training, of classes or stuff, if ``NAME_BIAS`` gives them a learned bias."""
    denseclip = cfg.MODEL.DENSECLIP
    return tuple(denseclip.STUFF_NAMES if stuff else denseclip.CLASS_NAMES) if denseclip.NAME_BIAS else ()


ROI_HEADS = {"StandardROIHeads": "TextROIHeads", "CascadeROIHeads": "TextCascadeROIHeads"}
"""The ROI heads that classify by text, in place of Detectron2's."""


def with_text_roi_heads(cfg: CfgNode) -> CfgNode:
    """Return the config with the ROI heads that its ``CLASSIFIER`` needs."""
    if cfg.MODEL.DENSECLIP.CLASSIFIER == "text" and cfg.MODEL.ROI_HEADS.NAME in ROI_HEADS:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.NAME = ROI_HEADS[cfg.MODEL.ROI_HEADS.NAME]
    return cfg


class _TextDenseHead(nn.Module):
    """Mixin for heads of dense detectors: the last layer returns an embedding per anchor, not K logits."""

    cls_score: nn.Conv2d

    def __init__(
        self, *, embed_dim: int, biased_names: Sequence[str] = (), prior_prob: float = 0.01, **kwargs
    ):
        """
        Args:
            embed_dim: width of the text embeddings.
            biased_names: see :class:`TextClassifier`.
            prior_prob: initial probability of each class.
            kwargs: as for the head, without ``num_classes``.
        """
        super().__init__(num_classes=embed_dim, prior_prob=prior_prob, **kwargs)
        assert self.cls_score.bias is not None
        nn.init.zeros_(self.cls_score.bias)
        self.classifier = TextClassifier(embed_dim, prior=prior_prob, biased_names=biased_names)
        self.embed_dim = embed_dim

    def forward(
        self, features: list[Tensor], text: Tensor, clip: CLIPScores | None = None
    ) -> list[list[Tensor]]:
        """
        Args:
            features: levels of the pyramid.
            text: (B or 1, K, C) text embeddings.
            clip: to be mixed with the class scores.
        Returns: for each output of the head, its levels. The first is logits (B, A * K, h, w).
        """
        embeddings, *others = super().forward(features)
        logits = []
        for x in embeddings:
            # Four dimensions, for LiteRT has no powers of five.
            anchors = x.unflatten(1, (-1, self.embed_dim)).transpose(1, 2).flatten(3)  # (B, C, A, h * w)
            scores = self.classifier(anchors, text)
            if clip:
                scores = clip.mix_sigmoid(scores, clip.resized(x.shape[2:]).flatten(2)[:, :, None])
            # By view(): ONNX files have constants in place of the sizes of unflatten().
            logits.append(scores.transpose(1, 2).flatten(1, 2).view(x.shape[0], -1, *x.shape[2:]))
        return [logits, *others]


class TextRetinaNetHead(_TextDenseHead, RetinaNetHead):
    """Detectron2's RetinaNet head with a :class:`TextClassifier`."""


class TextFCOSHead(_TextDenseHead, FCOSHead):
    """Detectron2's FCOS head with a :class:`TextClassifier`."""


def dense_predictions(detector: Any, features: dict[str, Any]) -> list[list[Tensor]]:
    """Return the outputs of a dense detector's head, which may read text embeddings.

    Args:
        features: what the detector's backbone returned.
    """
    levels = [features[name] for name in detector.head_in_features]
    if isinstance(detector.head, _TextDenseHead):
        return detector.head(levels, features[TEXT], features.get(CLIP))
    return detector.head(levels)


def box_predictions(heads: Any, features: dict[str, Any], boxes: Sequence[Boxes]) -> tuple[Tensor, Tensor]:
    """Return logits and box deltas of the box head of R-CNN heads, which may read text embeddings.

    Args:
        features: what the backbone returned.
        boxes: the regions of each image.
    """
    levels = [features[name] for name in heads.box_in_features]
    words: tuple = ()
    if isinstance(heads.box_predictor, TextFastRCNNOutputLayers):
        words = (features[TEXT], boxes, features.get(CLIP))
    return heads.box_predictor(heads.box_head(heads.box_pooler(levels, boxes)), *words)


class TextFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Detectron2's Fast R-CNN predictor with a :class:`TextClassifier` and a learned background."""

    cls_score: nn.Linear

    @configurable
    def __init__(self, input_shape, *, embed_dim: int, biased_names: Sequence[str] = (), **kwargs):
        """
        Args:
            embed_dim: width of the text embeddings.
            biased_names: see :class:`TextClassifier`.
            input_shape, kwargs: as for ``FastRCNNOutputLayers``.
        """
        super().__init__(input_shape, **kwargs)
        self.cls_score = nn.Linear(self.cls_score.in_features, embed_dim)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.zeros_(self.cls_score.bias)
        prior = SIGMOID_PRIOR if self.use_sigmoid_ce else 0.0
        self.classifier = TextClassifier(
            embed_dim, background=True, scale=SCALE, prior=prior, biased_names=biased_names
        )

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        own = {"embed_dim": embed_dim_of(cfg), "biased_names": biased_names_of(cfg)}
        return {**super().from_config(cfg, input_shape), **own}

    def get_fed_loss_classes(self, gt_classes, num_fed_loss_classes, num_classes, weight):
        if num_classes < len(weight):  # a training step's names are already a sample
            return torch.arange(num_classes, device=gt_classes.device)
        return super().get_fed_loss_classes(gt_classes, num_fed_loss_classes, num_classes, weight)

    def forward(
        self, x: Tensor, text: Tensor, boxes: Sequence[Boxes], clip: CLIPScores | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: (N, ...) features of the regions of all images.
            text: (B or 1, K, C) text embeddings.
            boxes: the regions of each image.
            clip: to be mixed with the class scores.
        Returns: logits (N, K + 1) and box deltas (N, 4).
        """
        x = x.flatten(1)
        embeddings = self.cls_score(x)
        regions = [embeddings] if len(text) == 1 else embeddings.split([len(own) for own in boxes])
        pairs = zip(regions, text, strict=True)
        logits = torch.cat([self.classifier(own.t()[None], words[None])[0].t() for own, words in pairs])
        if clip:
            mix = clip.mix_sigmoid if self.use_sigmoid_ce else clip.mix_softmax
            logits = mix(logits, clip.in_boxes(boxes))
        return logits, self.bbox_pred(x)


@ROI_HEADS_REGISTRY.register()
class TextROIHeads(StandardROIHeads):
    """Detectron2's standard ROI heads, which classify boxes by text embeddings."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> dict:
        found = super()._init_box_head(cfg, input_shape)
        predictor = TextFastRCNNOutputLayers(cfg, found["box_head"].output_shape)
        return {**found, "box_predictor": predictor}

    def _forward_box(self, features: dict[str, Any], proposals: list[Instances]):
        predictions = box_predictions(self, features, [x.proposal_boxes for x in proposals])
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                refined = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
                for own, own_boxes in zip(proposals, refined, strict=True):
                    own.proposal_boxes = Boxes(own_boxes)
        return losses


@ROI_HEADS_REGISTRY.register()
class TextCascadeROIHeads(CascadeROIHeads):
    """Detectron2's Cascade R-CNN heads, whose stages classify boxes by text embeddings."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> dict:
        found = super()._init_box_head(cfg, input_shape)
        predictors = [
            TextFastRCNNOutputLayers(cfg, head.output_shape, box2box_transform=predictor.box2box_transform)
            for head, predictor in zip(found["box_heads"], found["box_predictors"], strict=True)
        ]
        return {
            **found,
            "box_in_features": [*found["box_in_features"], TEXT, CLIP],
            "box_predictors": predictors,
        }

    def _forward_box(self, features: dict[str, Any], proposals: list[Instances], targets=None):
        return super()._forward_box({CLIP: None, **features}, proposals, targets)

    def _run_stage(self, features: list, proposals: list[Instances], stage: int):
        *levels, text, clip = features
        boxes = [x.proposal_boxes for x in proposals]
        x = self.box_pooler(levels, boxes)
        if self.training:
            x = _ScaleGradient.apply(x, 1.0 / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](x), text, boxes, clip)
