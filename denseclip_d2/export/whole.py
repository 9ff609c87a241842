"""A system as one function of tensors: pictures in, what it found in them out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.layers import shapes_to_tensor
from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN, RetinaNet, SemanticSegmentor
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..meta_arch.pixel_text import captured_features
from ..meta_arch.retinanet import CLIPRetinaNet
from .resizing import Side, fitted_size, resize

AXES: dict[str, dict[int, str]] = {
    "boxes": {0: "detections"},
    "classes": {0: "detections"},
    "labels": {0: "pictures", 1: "height", 2: "width"},
    "masks": {0: "detections", 1: "mask_height", 2: "mask_width"},
    "score_map": {0: "pictures", 2: "rows", 3: "columns"},
    "scores": {0: "detections"},
}
"""The outputs there are, each with those of its axes whose length is not fixed."""
PAGE = "decode.py"
"""The name of :attr:`WholeModel.page` beside a file, and in its metadata."""


class WholeModel(nn.Module):
    """A Detectron2 model with its resizing before it and its decoding after it, to be traced.

    Subclasses say in :meth:`found` what a system gives.
    """

    model: Any
    any_batch = False
    """Whether any number of pictures may go in at once; else it is one."""
    page: Path | None = None
    """Plain torch that makes detections of the outputs; None where they need no decoding."""

    def __init__(
        self,
        model: nn.Module,
        *,
        shortest: int,
        longest: int,
        prepared: bool = False,
        score_map: bool = False,
        pasted: bool = True,
    ):
        """
        Args:
            model: in evaluation mode.
            shortest, longest: see :func:`fitted_size`.
            prepared: pictures come resized and normalized, and what is found is in that size; ``shortest`` 0.
            score_map: give the score map too, as the backbone makes it.
            pasted: give masks of the picture's size; False: as they are predicted, squares that fill the
                boxes.
        """
        super().__init__()
        self.model = model
        self.shortest, self.longest = shortest, longest
        self.prepared, self.score_map, self.pasted = prepared, score_map, pasted
        self.eval()

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """
        Args:
            pictures: (N, H, W, 3) uint8, channels in the order of ``INPUT.FORMAT``; or, prepared,
                (N, 3, H, W) float32.
        Returns: of detectors ``boxes`` (n, 4) x1, y1, x2, y2 in pixels, ``scores`` (n,), ``classes`` (n,)
            int64 and, if there are masks, ``masks`` (n, H, W) bool, or (n, M, M) float32 probabilities; of
            segmentors ``labels`` (N, H, W) int64; ``score_map`` (N, K, h, w) cosines. Of heads, what
            :attr:`page` takes.
        """
        with captured_features(self.model.backbone) as features:
            if self.prepared:  # Detectron2's models normalize by themselves
                pixels = pictures * self.model.pixel_std + self.model.pixel_mean
                found = self.found(pixels, *pixels.shape[2:])
            else:
                found = self.found(self.resized(pictures), *pictures.shape[1:3])
        return {**found, "score_map": features["score_map"]} if self.score_map else found

    def found(self, pixels: Tensor, height: Side, width: Side) -> dict[str, Tensor]:
        """
        Args:
            pixels: (N, 3, h, w), resized.
            height, width: of the pictures.
        """
        raise NotImplementedError

    def about(self) -> dict[str, str]:
        """What a file says of its outputs, beside their names."""
        return {}

    def resized(self, pictures: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 pictures, (N, 3, h, w) as the model takes them, not normalized."""
        height, width = pictures.shape[1:3]
        size = fitted_size(shapes_to_tensor([height, width]), self.shortest, self.longest)
        return resize(pictures.movedim(3, 1).float(), size)

    def prepare(self, picture: np.ndarray) -> Tensor:
        """A picture, (H, W, 3) uint8, as :meth:`forward` takes it."""
        pictures = torch.from_numpy(picture)[None]
        return self._normalized(self.resized(pictures)) if self.prepared else pictures

    def _normalized(self, pixels: Tensor) -> Tensor:
        return (pixels - self.model.pixel_mean) / self.model.pixel_std

    def _detections(self, instances: Instances, height: Side, width: Side) -> dict[str, Tensor]:
        """Instances in the resized picture as outputs in the picture."""
        if masks := instances.has("pred_masks"):
            # Under a name that Detectron2's does not know: it pastes in a loop that ONNX has no types for.
            instances.squares = instances.pred_masks[:, 0]
            instances.remove("pred_masks")
        instances = detector_postprocess(instances, height, width)
        boxes = instances.pred_boxes.tensor
        found = {"boxes": boxes, "scores": instances.scores, "classes": instances.pred_classes}
        if masks:
            squares = instances.squares
            found["masks"] = paste(squares, boxes, height, width) >= 0.5 if self.pasted else squares
        return found


class WholeDenseDetector(WholeModel):
    """RetinaNet, FCOS."""

    def found(self, pixels: Tensor, height: Side, width: Side) -> dict[str, Tensor]:
        (image,) = pixels.unbind()
        (output,) = self.model([{"image": image, "height": height, "width": width}])
        return self._detections(output["instances"], height, width)


class WholeRCNN(WholeModel):
    """Faster, Mask and Cascade R-CNN, with any mask head."""

    def found(self, pixels: Tensor, height: Side, width: Side) -> dict[str, Tensor]:
        (image,) = pixels.unbind()
        (instances,) = self.model.inference([{"image": image}], do_postprocess=False)
        return self._detections(instances, height, width)


class WholePanopticFPN(WholeModel):
    """Panoptic FPN: what its two heads find. Detectron2 merges them by a loop over the values found."""

    def found(self, pixels: Tensor, height: Side, width: Side) -> dict[str, Tensor]:
        (image,) = pixels.unbind()
        (instances,), logits = self.model.inference([{"image": image}], do_postprocess=False)
        labels = _labels(logits, pixels.shape[2:], height, width)
        return {**self._detections(instances, height, width), "labels": labels}


class WholeSegmentor(WholeModel):
    """Semantic FPN, and any other head of a ``SemanticSegmentor``."""

    any_batch = True

    def found(self, pixels: Tensor, height: Side, width: Side) -> dict[str, Tensor]:
        rows, columns = pixels.shape[2:]
        stride = max(self.model.backbone.size_divisibility, 1)
        padded = F.pad(self._normalized(pixels), (0, -columns % stride, 0, -rows % stride))
        logits, _ = self.model.sem_seg_head(self.model.backbone(padded))
        return {"labels": _labels(logits, (rows, columns), height, width)}


class RetinaNetHeads(WholeModel):
    """RetinaNet up to what its heads give, whose sizes depend on the picture's alone."""

    any_batch = True
    page = Path(__file__).with_name("decode_retinanet.py")

    def found(self, pixels: Tensor, height: Side, width: Side) -> dict[str, Tensor]:
        pyramid = self.model.backbone(self._normalized(pixels))
        features = [pyramid[name] for name in self.model.head_in_features]
        logits, deltas = self.model._transpose_dense_predictions(
            self.model.head(features), [self.model.num_classes, 4]
        )
        anchors = [boxes.tensor for boxes in self.model.anchor_generator(features)]
        levels = [torch.full(x.shape[:1], i) for i, x in enumerate(anchors)]
        return {
            "logits": torch.cat(logits, dim=1),
            "deltas": torch.cat(deltas, dim=1),
            "anchors": torch.cat(anchors),
            "levels": torch.cat(levels),
        }

    def about(self) -> dict[str, str]:
        """``decode.py``, the page, and ``decoding`` (JSON), its numbers."""
        decoding = {
            "lowest_score": self.model.test_score_thresh,
            "candidates": self.model.test_topk_candidates,
            "box_weights": self.model.box2box_transform.weights,
            "largest_scaling": self.model.box2box_transform.scale_clamp,
            "clipped_first": isinstance(self.model, CLIPRetinaNet),
            "overlap": self.model.test_nms_thresh,
            "detections": self.model.max_detections_per_image,
        }
        return {PAGE: self.page.read_text(encoding="utf-8"), "decoding": json.dumps(decoding)}


WHOLE: dict[type[nn.Module], type[WholeModel]] = {
    DenseDetector: WholeDenseDetector,
    PanopticFPN: WholePanopticFPN,  # a GeneralizedRCNN too
    GeneralizedRCNN: WholeRCNN,
    SemanticSegmentor: WholeSegmentor,
}
"""What is exported of which of Detectron2's systems; the first that fits."""

ASKING_NOTHING: dict[type[nn.Module], type[WholeModel]] = {
    RetinaNet: RetinaNetHeads,
    SemanticSegmentor: WholeSegmentor,
}
"""The same where values are not followed: what can be said of prepared pictures without them."""


def paste(squares: Tensor, boxes: Tensor, height: Side, width: Side) -> Tensor:
    """Squares that fill boxes, interpolated bilinearly, as Detectron2's ``paste_masks_in_image`` has them.

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
    """(n, length, cells): how much each cell between ``low`` and ``high`` has of each pixel of a side."""
    positions = (torch.arange(length) + 0.5 - low[:, None]) / (high - low)[:, None] * cells - 0.5
    return (1 - (positions[:, :, None] - torch.arange(cells)).abs()).clamp(min=0)


def _labels(logits: Tensor, resized: Sequence[Side], height: Side, width: Side) -> Tensor:
    """(N, K, h, w) logits of padded pictures as (N, height, width) labels."""
    logits = logits[:, :, : resized[0], : resized[1]]
    return F.interpolate(logits, (height, width), mode="bilinear", align_corners=False).argmax(dim=1)
