from collections.abc import Callable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import HFlipTransform, TransformList
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.meta_arch import PanopticFPN, RetinaNet, SemanticSegmentor
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class _WithTTA(nn.Module):
    def __init__(self, model: nn.Module, tta_mapper: Callable[[dict], list[dict]], batch_size: int = 1):
        """
        Args:
            model: see the class.
            tta_mapper: returns augmented copies of an input with their ``transforms``, as Detectron2's
                ``DatasetMapperTTA`` does.
            batch_size: number of copies in a batch, which pads them to a common size.
        """
        super().__init__()
        self.model = model
        self.tta_mapper = tta_mapper
        self.batch_size = batch_size

    def _outputs(self, image: dict, *keys: str) -> Iterator[tuple[TransformList, dict]]:
        """Yield the transforms of each copy, and the model's output for these keys of the copy."""
        height, width = image["image"].shape[-2:]
        copies = self.tta_mapper({"height": height, "width": width, **image})
        for i in range(0, len(copies), self.batch_size):
            batch = copies[i : i + self.batch_size]
            outputs = self.model([{key: copy[key] for key in keys} for copy in batch])
            yield from zip((copy["transforms"] for copy in batch), outputs, strict=True)


class RetinaNetWithTTA(_WithTTA):
    """A RetinaNet that detects on resized and mirrored copies of each image and merges the detections.

    As in Detectron2's ``GeneralizedRCNNWithTTA``, non-maximum suppression by class keeps the best detections
    of all copies, with the RetinaNet's ``test_nms_thresh`` and ``max_detections_per_image``. Inputs and
    outputs are those of the RetinaNet in evaluation.
    """

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, image: dict) -> Instances:
        height, width = image["image"].shape[-2:]
        size = image.get("height", height), image.get("width", width)
        # Without height and width, boxes are in the coordinates of the copy.
        outputs = self._outputs(image, "image")
        return self._merge(Instances.cat([_undo(t, output["instances"], size) for t, output in outputs]))

    def _merge(self, pooled: Instances) -> Instances:
        pooled.pred_boxes.clip(pooled.image_size)
        keep = batched_nms(
            pooled.pred_boxes.tensor, pooled.scores, pooled.pred_classes, self.model.test_nms_thresh
        )
        return pooled[keep[: self.model.max_detections_per_image]]


class RCNNWithTTA(GeneralizedRCNNWithTTA):
    """Detectron2's ``GeneralizedRCNNWithTTA`` for a model whose classes may change at test time."""

    def _merge_detections(self, *args) -> Instances:
        self.cfg.defrost()
        self.cfg.MODEL.ROI_HEADS.NUM_CLASSES = self.model.roi_heads.num_classes
        return super()._merge_detections(*args)


class SemanticSegmentorWithTTA(_WithTTA):
    """A semantic segmentor that averages class probabilities over resized and mirrored copies of each image.

    The paper's multi-scale results use this. Inputs are those of the segmentor in evaluation. ``sem_seg`` of
    the output has probabilities (K, H, W) instead of logits.
    """

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return [{"sem_seg": self._segment(x)} for x in batched_inputs]

    def _segment(self, image: dict) -> Tensor:
        copies = self._probabilities(image)
        total, count = next(copies), 1
        for probabilities in copies:
            total, count = total + probabilities, count + 1
        return total / count

    def _probabilities(self, image: dict) -> Iterator[Tensor]:
        """Yield the probabilities (K, H, W) of each copy in the original image."""
        for transforms, output in self._outputs(image, "image", "height", "width"):
            probabilities = output["sem_seg"].softmax(dim=0)  # of the original's size
            mirrored = any(isinstance(t, HFlipTransform) for t in transforms.transforms)
            yield probabilities.flip(2) if mirrored else probabilities


def _undo(transforms: TransformList, instances: Instances, size: tuple[int, int]) -> Instances:
    """Return detections on a copy in the coordinates of the original image of ``size`` (H, W)."""
    boxes = instances.pred_boxes.tensor
    original = torch.from_numpy(transforms.inverse().apply_box(boxes.cpu().numpy()))
    return Instances(size, **{**instances.get_fields(), "pred_boxes": Boxes(original.to(boxes.device))})


def with_tta(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return a model with the test-time augmentation of ``TEST.AUG``. It shares the weights of ``model``.

    This is :class:`RetinaNetWithTTA`, :class:`SemanticSegmentorWithTTA` or, for a Faster or Mask R-CNN,
    :class:`RCNNWithTTA`.

    Raises:
        ValueError: another kind of model, or ``TEST.AUG.MIN_SIZES`` is empty.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if not cfg.TEST.AUG.MIN_SIZES:
        raise ValueError("TEST.AUG.MIN_SIZES is empty. Set it to one or more shorter sides, in pixels.")
    # Padding changes the score map. Copies of one size follow each other: a resized image and its mirror.
    batch_size = 2 if cfg.TEST.AUG.FLIP else 1
    augmented: nn.Module
    if isinstance(model, RetinaNet):
        augmented = RetinaNetWithTTA(model, DatasetMapperTTA(cfg), batch_size)
    elif isinstance(model, SemanticSegmentor):
        augmented = SemanticSegmentorWithTTA(model, DatasetMapperTTA(cfg), batch_size)
    elif isinstance(model, GeneralizedRCNN) and not isinstance(model, PanopticFPN):
        augmented = RCNNWithTTA(cfg, model, batch_size=batch_size)
    else:
        raise ValueError(
            f"TEST.AUG.ENABLED is True, and there is no test-time augmentation of {type(model).__name__}, "
            "which is no RetinaNet, GeneralizedRCNN or SemanticSegmentor. Set TEST.AUG.ENABLED to False."
        )
    # Evaluation restores the mode that it finds.
    augmented.training = model.training
    return augmented
