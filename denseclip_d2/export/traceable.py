"""A Detectron2 model as one function of tensors, from images to detections or labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.layers import shapes_to_tensor
from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN, SemanticSegmentor
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..meta_arch.retinanet import RetinaNetGlobalNorm
from ..meta_arch.text_heads import dense_predictions
from .names import TEXT, GivenText, given_text
from .resize import Side, fitted_size, resize
from .runtimes import INPUT

Tensors = dict[str, Tensor]
"""Tensors by name."""

AXES: dict[str, dict[int, str]] = {
    "anchors": {0: "anchors"},
    "boxes": {0: "detections"},
    "centerness": {0: "images", 1: "anchors"},
    "classes": {0: "detections"},
    "deltas": {0: "images", 1: "anchors"},
    "labels": {0: "images", 1: "height", 2: "width"},
    "levels": {0: "anchors"},
    "logits": {0: "images", 1: "anchors"},
    "masks": {0: "detections", 1: "mask_height", 2: "mask_width"},
    "score_map": {0: "images", 2: "rows", 3: "columns"},
    "scores": {0: "detections"},
    "text_embeddings": {0: "words"},
}
"""The axes of variable length of each output."""
DECODER_SOURCE = "decode.py"
"""The name of :attr:`TraceableModel.page` beside a file, and in the metadata of the file."""


class TraceableModel(nn.Module):
    """A Detectron2 model with its preprocessing and its postprocessing, to be traced.

    Subclasses run the heads in :meth:`found`.
    """

    model: Any
    any_batch = False
    """Whether a batch may have any number of images; otherwise it has one."""
    page: Path | None = None
    """Plain numpy code that decodes the outputs to detections; None if the outputs need no decoding."""

    def __init__(
        self,
        model: nn.Module,
        *,
        shortest: int,
        longest: int,
        preprocessed: bool = False,
        score_map: bool = False,
        paste_masks: bool = True,
        size: tuple[int, int] | None = None,
    ):
        """
        Args:
            model: in evaluation mode.
            shortest, longest: see :func:`fitted_size`.
            preprocessed: images are resized and normalized already, and outputs have their size; ``shortest``
                is 0.
            score_map: return the score map too, as the backbone makes it.
            paste_masks: return masks of the image's size; False: masks of a fixed size that fill the boxes.
            size: height and width of the only images that are taken, one at a time; None: any.
        """
        super().__init__()
        self.model = model
        self.shortest, self.longest = shortest, longest
        self.preprocessed, self.score_map, self.paste_masks = preprocessed, score_map, paste_masks
        self.size, self.any_batch = size, self.any_batch and not size
        self.eval()

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """The axes of variable length of each input, by the input's name, in order."""
        row = 2 if self.preprocessed else 1
        axes = {INPUT: {row: "height", row + 1: "width"} if not self.size else {}}
        axes[INPUT] |= {0: "images"} if self.any_batch else {}
        language = getattr(self.model.backbone, "language", None)
        if isinstance(language, GivenText):
            axes[TEXT] = {} if language.fixed_number else {0: "names"}
        return axes

    def forward(self, images: Tensor, text_embeddings: Tensor | None = None) -> Tensors:
        """
        Args:
            images: (N, H, W, 3) uint8, channels in the order of ``INPUT.FORMAT``; if preprocessed,
                (N, 3, H, W) float32.
            text_embeddings: (K, C) of the names to find, for a model with :class:`GivenText`.
        Returns: for detectors ``boxes`` (n, 4) x1, y1, x2, y2 in pixels, ``scores`` (n,), ``classes`` (n,)
            int64 and, if there are masks, ``masks`` (n, H, W) bool, or (n, M, M) float32 probabilities; for
            segmentors ``labels`` (N, H, W) int64; ``score_map`` (N, K, h, w) cosines. For
            :class:`DenseHeads`, what :attr:`page` decodes.
        """
        if self.preprocessed:
            pixels, (height, width) = images, images.shape[2:]
        else:
            pixels, (height, width) = self._normalized(self.resized(images)), images.shape[1:3]
        padded = self._padded(pixels)
        with given_text(self.model, text_embeddings):
            features = self.model.backbone(padded.tensor)
            found = self.found(padded, features, height, width)
        return {**found, "score_map": features["score_map"]} if self.score_map else found

    def found(self, images: ImageList, features: Tensors, height: Side, width: Side) -> Tensors:
        """Return the outputs.

        Args:
            images: resized, normalized and padded.
            features: the backbone's.
            height, width: of the images.
        """
        raise NotImplementedError

    def about(self) -> dict[str, str]:
        """Return metadata of the outputs, beside their names."""
        return {}

    def resized(self, images: Tensor) -> Tensor:
        """Return (N, H, W, 3) uint8 images as (N, 3, h, w) of the model's input size, not normalized."""
        height, width = images.shape[1:3]
        size = fitted_size(shapes_to_tensor([height, width]), self.shortest, self.longest)
        return resize(images.movedim(3, 1).float(), size)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """Return an image, (H, W, 3) uint8, as :meth:`forward` takes it."""
        images = torch.from_numpy(image)[None]
        return self._normalized(self.resized(images)) if self.preprocessed else images

    def _normalized(self, pixels: Tensor) -> Tensor:
        return (pixels - self.model.pixel_mean) / self.model.pixel_std

    def _padded(self, pixels: Tensor) -> ImageList:
        backbone = self.model.backbone
        # ImageList.from_tensors fixes the number of images, and torch.export does not follow it.
        if type(self).any_batch:
            rows, columns = pixels.shape[2:]
            stride = max(backbone.size_divisibility, 1)
            return ImageList(F.pad(pixels, (0, -columns % stride, 0, -rows % stride)), [(rows, columns)])
        constraints = backbone.padding_constraints
        return ImageList.from_tensors(
            list(pixels.unbind()), backbone.size_divisibility, padding_constraints=constraints
        )

    def _detections(self, instances: Instances, height: Side, width: Side) -> Tensors:
        """Return instances of the resized image as outputs of the image."""
        if masks := instances.has("pred_masks"):
            # Detectron2 pastes "pred_masks" in a loop that ONNX has no types for; it ignores "squares".
            instances.squares = instances.pred_masks[:, 0]
            instances.remove("pred_masks")
        instances = detector_postprocess(instances, height, width)
        boxes = instances.pred_boxes.tensor
        found = {"boxes": boxes, "scores": instances.scores, "classes": instances.pred_classes}
        if masks:
            squares = instances.squares
            found["masks"] = paste(squares, boxes, height, width) >= 0.5 if self.paste_masks else squares
        return found


class TraceableDenseDetector(TraceableModel):
    """RetinaNet, FCOS."""

    def found(self, images: ImageList, features: Tensors, height: Side, width: Side) -> Tensors:
        levels = [features[name] for name in self.model.head_in_features]
        (instances,) = self.model.forward_inference(images, levels, dense_predictions(self.model, features))
        return self._detections(instances, height, width)


class TraceableRCNN(TraceableModel):
    """Faster, Mask and Cascade R-CNN, with any mask head."""

    def found(self, images: ImageList, features: Tensors, height: Side, width: Side) -> Tensors:
        proposals, _ = self.model.proposal_generator(images, features, None)
        (instances,), _ = self.model.roi_heads(images, features, proposals, None)
        return self._detections(instances, height, width)


class TraceablePanopticFPN(TraceableRCNN):
    """Panoptic FPN: the outputs of both heads. Detectron2 merges them in a loop that depends on values."""

    def found(self, images: ImageList, features: Tensors, height: Side, width: Side) -> Tensors:
        logits, _ = self.model.sem_seg_head(features, None)
        labels = _labels(logits, images.image_sizes[0], height, width)
        return {**super().found(images, features, height, width), "labels": labels}


class TraceableSegmentor(TraceableModel):
    """Semantic FPN, and any other head of a ``SemanticSegmentor``."""

    any_batch = True

    def found(self, images: ImageList, features: Tensors, height: Side, width: Side) -> Tensors:
        logits, _ = self.model.sem_seg_head(features)
        return {"labels": _labels(logits, images.image_sizes[0], height, width)}


class DenseHeads(TraceableModel):
    """RetinaNet or FCOS up to the outputs of its heads, whose sizes depend on the image's size alone."""

    any_batch = True
    page = Path(__file__).with_name("decode_dense.py")

    def found(self, images: ImageList, features: Tensors, height: Side, width: Side) -> Tensors:
        levels = [features[name] for name in self.model.head_in_features]
        predictions = dense_predictions(self.model, features)
        widths = [self.model.num_classes, 4, 1][: len(predictions)]
        logits, deltas, *centerness = self.model._transpose_dense_predictions(predictions, widths)
        anchors = [boxes.tensor for boxes in self.model.anchor_generator(levels)]
        return {
            **({"centerness": torch.cat(centerness[0], dim=1)} if centerness else {}),
            "logits": torch.cat(logits, dim=1),
            "deltas": torch.cat(deltas, dim=1),
            "anchors": torch.cat(anchors),
            "levels": torch.cat(
                [torch.full(x.shape[:1], i, dtype=torch.int64) for i, x in enumerate(anchors)]
            ),
        }

    def about(self) -> dict[str, str]:
        """Return ``decode.py``, the page, and ``decoding`` (JSON), its numbers."""
        transform = self.model.box2box_transform
        decoding = {
            "lowest_score": self.model.test_score_thresh,
            "candidates": self.model.test_topk_candidates,
            "box_weights": getattr(transform, "weights", None),
            "largest_scaling": getattr(transform, "scale_clamp", None),
            "clipped_first": isinstance(self.model, RetinaNetGlobalNorm),
            "overlap": self.model.test_nms_thresh,
            "detections": self.model.max_detections_per_image,
        }
        return {DECODER_SOURCE: self.page.read_text(encoding="utf-8"), "decoding": json.dumps(decoding)}


TRACEABLE: dict[type[nn.Module], type[TraceableModel]] = {
    DenseDetector: TraceableDenseDetector,
    PanopticFPN: TraceablePanopticFPN,  # before its base, GeneralizedRCNN
    GeneralizedRCNN: TraceableRCNN,
    SemanticSegmentor: TraceableSegmentor,
}
"""The wrapper of each of Detectron2's systems; the first that fits."""

STATIC_GRAPH: dict[type[nn.Module], type[TraceableModel]] = {
    DenseDetector: DenseHeads,
    SemanticSegmentor: TraceableSegmentor,
}
"""The wrappers without data-dependent control flow, which take preprocessed images."""


def paste(squares: Tensor, boxes: Tensor, height: Side, width: Side) -> Tensor:
    """Return squares resized bilinearly to boxes, as Detectron2's ``paste_masks_in_image`` does.

    Args:
        squares: (n, M, M).
        boxes: (n, 4), in pixels.
    Returns: (n, height, width), 0 outside the boxes.
    """
    x1, y1, x2, y2 = boxes.unbind(1)
    rows = _weights(height, y1, y2, squares.shape[1])
    columns = _weights(width, x1, x2, squares.shape[2])
    return rows @ squares @ columns.transpose(-1, -2)


def _weights(length: Side, low: Tensor, high: Tensor, cells: Side) -> Tensor:
    """Return the (n, length, cells) weights of cells between ``low`` and ``high`` in the pixels of a side."""
    positions = (torch.arange(length) + 0.5 - low[:, None]) / (high - low)[:, None] * cells - 0.5
    return (1 - (positions[:, :, None] - torch.arange(cells)).abs()).clamp(min=0)


def _labels(logits: Tensor, resized: Sequence[Side], height: Side, width: Side) -> Tensor:
    """Return (N, K, h, w) logits of padded images as (N, height, width) labels."""
    logits = logits[:, :, : resized[0], : resized[1]]
    return F.interpolate(logits, (height, width), mode="bilinear", align_corners=False).argmax(dim=1)
