from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import TransformList
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class RetinaNetWithTTA(nn.Module):
    """A RetinaNet that detects on resized and mirrored copies of each image and merges what it finds.

    As Detectron2's ``GeneralizedRCNNWithTTA`` does for boxes: the detections of all copies go back to the
    original image, and non-maximum suppression by class keeps the best of them. Inputs and outputs are
    those of the RetinaNet in evaluation.
    """

    def __init__(self, model: RetinaNet, tta_mapper: Callable[[dict], list[dict]], batch_size: int = 1):
        """
        Args:
            model: its ``test_nms_thresh`` and ``max_detections_per_image`` hold for the merging as well.
            tta_mapper: makes the augmented copies of an input, each with its ``transforms``, as Detectron2's
                ``DatasetMapperTTA`` does.
            batch_size: the number of copies to run at once; they are padded to a common size.
        """
        super().__init__()
        self.model = model
        self.tta_mapper = tta_mapper
        self.batch_size = batch_size

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, image: dict) -> Instances:
        height, width = image["image"].shape[-2:]
        image = {"height": height, "width": width, **image}
        copies = self.tta_mapper(image)
        # Without height and width, a detector answers in the coordinates of the copy.
        inputs = [{"image": copy["image"]} for copy in copies]
        batches = [inputs[i : i + self.batch_size] for i in range(0, len(inputs), self.batch_size)]
        outputs = [output["instances"] for batch in batches for output in self.model(batch)]
        size = image["height"], image["width"]
        originals = [_undo(copy["transforms"], x, size) for copy, x in zip(copies, outputs, strict=True)]
        return self._merge(Instances.cat(originals))

    def _merge(self, pooled: Instances) -> Instances:
        pooled.pred_boxes.clip(pooled.image_size)
        keep = batched_nms(
            pooled.pred_boxes.tensor, pooled.scores, pooled.pred_classes, self.model.test_nms_thresh
        )
        return pooled[keep[: self.model.max_detections_per_image]]


def _undo(transforms: TransformList, instances: Instances, size: tuple[int, int]) -> Instances:
    """Detections on an augmented copy, in the coordinates of the original image of ``size`` (H, W)."""
    boxes = instances.pred_boxes.tensor
    original = torch.from_numpy(transforms.inverse().apply_box(boxes.cpu().numpy()))
    return Instances(size, **{**instances.get_fields(), "pred_boxes": Boxes(original.to(boxes.device))})


def with_tta(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """A detector with test-time augmentation as ``TEST.AUG`` says, around ``model``, whose weights it shares.

    A RetinaNet gets :class:`RetinaNetWithTTA`, a Faster or Mask R-CNN Detectron2's
    ``GeneralizedRCNNWithTTA``.

    Raises:
        ValueError: ``model`` is neither, or ``TEST.AUG.MIN_SIZES`` is empty.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if not cfg.TEST.AUG.MIN_SIZES:
        raise ValueError("TEST.AUG.MIN_SIZES is empty. Give it one shorter side, in pixels, or more.")
    # Copies that differ in size would be padded, and padding changes the score map. Those of one size come
    # one after the other: a resized image and its mirror.
    batch_size = 2 if cfg.TEST.AUG.FLIP else 1
    if isinstance(model, RetinaNet):
        augmented = RetinaNetWithTTA(model, DatasetMapperTTA(cfg), batch_size)
    elif isinstance(model, GeneralizedRCNN):
        augmented = GeneralizedRCNNWithTTA(cfg, model, batch_size=batch_size)
    else:
        raise ValueError(
            f"TEST.AUG.ENABLED is True, and a {type(model).__name__} has no test-time augmentation: "
            "RetinaNets and GeneralizedRCNNs have. Set TEST.AUG.ENABLED to False."
        )
    # Evaluation restores the mode it finds: let it find the model's.
    augmented.training = model.training
    return augmented
