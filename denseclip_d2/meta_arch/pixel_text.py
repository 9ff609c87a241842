import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor, nn

from ..guidance import LanguageGuidedFeatures, label_map_loss, pixel_text_loss, pixel_text_softmax_loss


@contextmanager
def captured_features(backbone: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect what a backbone returns while a detector around it runs.

    Detectron2's detectors keep the backbone's output to themselves; a hook reads it without their code being
    written again.
    """
    features: dict[str, Tensor] = {}
    handle = backbone.register_forward_hook(lambda module, args, output: features.update(output))
    try:
        yield features
    finally:
        handle.remove()


class PixelTextSupervision(nn.Module):
    """Mixin: ``loss_pixel_text`` for a Detectron2 system on language-guided features (paper, sec. 3.4).

    What is labeled where comes from the same ground truth as the system's own losses: from ``instances``
    by :func:`pixel_text_loss`, or from a label map ``sem_seg`` by :func:`label_map_loss`.
    """

    section: str
    """Where in ``cfg.MODEL`` the score map's NUM_CLASSES is; of "SEM_SEG_HEAD", pixels have labels."""
    backbone: LanguageGuidedFeatures
    device: torch.device

    def __init__(
        self,
        *args,
        pixel_text_weight: float = 1.0,
        pixel_text_target: str = "box",
        pixel_text_kind: str = "binary",
        kernels: bool = True,
        **kwargs,
    ):
        """
        Args:
            args, kwargs: as for the system. Of a config, MODEL.DENSECLIP has all that follows, and the
                arguments do not count.
            pixel_text_weight: factor of ``loss_pixel_text``.
            pixel_text_target: "box", as released, or "mask": what the pixels of ``instances`` are taken from.
            pixel_text_kind: of ``instances``: "binary", as released, or "softmax", between the classes.
            kernels: compute the loss where objects are, in little memory; False: by its plain definition.

        Raises:
            ValueError: an unknown target or kind; a backbone without a score map; from a config, other than
                NUM_CLASSES class names.
        """
        super().__init__(*args, **kwargs)
        if not isinstance(self.backbone, LanguageGuidedFeatures):
            raise ValueError(
                f"A {type(self.backbone).__name__} has no score map, which {type(self).__name__} needs. "
                "Take a MODEL.BACKBONE.NAME that begins with 'build_denseclip'."
            )
        cfg = args[0] if args else kwargs.get("cfg")
        if isinstance(cfg, CfgNode):
            denseclip = cfg.MODEL.DENSECLIP
            pixel_text_weight, pixel_text_target = denseclip.LOSS_WEIGHT, denseclip.LOSS_TARGET
            pixel_text_kind, kernels = denseclip.LOSS_KIND, denseclip.KERNELS
            self._check(cfg)
        if pixel_text_target not in ("box", "mask"):
            raise ValueError(
                f"MODEL.DENSECLIP.LOSS_TARGET is {pixel_text_target!r}; it can be 'box' or 'mask'."
            )
        if pixel_text_kind not in ("binary", "softmax"):
            raise ValueError(
                f"MODEL.DENSECLIP.LOSS_KIND is {pixel_text_kind!r}; it can be 'binary' or 'softmax'."
            )
        self.pixel_text_weight = pixel_text_weight
        self.pixel_text_target = pixel_text_target
        self.pixel_text_kind = pixel_text_kind
        self.kernels = kernels

    def _check(self, cfg: CfgNode) -> None:
        count, num_classes = len(self.backbone.language.class_names), cfg.MODEL[self.section].NUM_CLASSES
        if count != num_classes:
            raise ValueError(
                f"{count} class names for MODEL.{self.section}.NUM_CLASSES = {num_classes}. Set NUM_CLASSES "
                "to what the data have, or the weights, and MODEL.DENSECLIP.CLASS_NAMES to a name for each, "
                "or to (), which takes those of the data."
            )
        if cfg.MODEL.DENSECLIP.LOSS_TARGET == "mask" and not cfg.MODEL.MASK_ON:
            raise ValueError(
                "MODEL.DENSECLIP.LOSS_TARGET = 'mask' needs masks: set MODEL.MASK_ON True, or LOSS_TARGET to "
                "'box' where there are none."
            )

    def forward(self, batched_inputs: list[dict]):
        if not self.training:
            return super().forward(batched_inputs)
        # Detectron2 moves the ground truth too, which costs nothing once it is on the device.
        batched_inputs = [_ground_truth_on(self.device, x) for x in batched_inputs]
        with captured_features(self.backbone) as features:
            losses = super().forward(batched_inputs)
        by_label = self.section == "SEM_SEG_HEAD"
        pixel_text = self._label_map_loss if by_label else self._instances_loss
        loss = pixel_text(features["score_map"], batched_inputs)
        return {**losses, "loss_pixel_text": self.pixel_text_weight * loss}

    def _instances_loss(self, scores: Tensor, batched_inputs: list[dict]) -> Tensor:
        instances = [x["instances"] for x in batched_inputs]
        loss = pixel_text_softmax_loss if self.pixel_text_kind == "softmax" else pixel_text_loss
        return loss(
            scores,
            [self._shapes(x) for x in instances],
            [x.gt_classes for x in instances],
            self.backbone.score_map_stride,
            self.backbone.tau,
            self.kernels,
        )

    def _shapes(self, instances: Instances) -> Boxes | PolygonMasks | BitMasks:
        return _masks(instances) if self.pixel_text_target == "mask" else instances.gt_boxes

    def _label_map_loss(self, scores: Tensor, batched_inputs: list[dict]) -> Tensor:
        ignore_value: int = self.get_submodule("sem_seg_head").ignore_value  # type: ignore[assignment]
        # Padded to what the score map covers: systems have rules of their own for padding images.
        height, width = (side * self.backbone.score_map_stride for side in scores.shape[2:])
        labels = [x["sem_seg"] for x in batched_inputs]
        beyond = [(0, width - y.shape[1], 0, height - y.shape[0]) for y in labels]
        padded = [F.pad(y, sides, value=ignore_value) for y, sides in zip(labels, beyond, strict=True)]
        logits = scores.float() / self.backbone.tau
        return label_map_loss(logits, torch.stack(padded), ignore_value, self.kernels)


def language_guided(meta_arch: type[nn.Module], section: str, name: str = "") -> type[PixelTextSupervision]:
    """The language-guided twin of a meta-architecture: the same system, with the pixel-text loss.

    Nothing else of the system changes, since language guidance is a backbone.
    ``META_ARCH_REGISTRY.register(language_guided(MySystem, "MY_SYSTEM"))`` lets a config name it.

    Args:
        meta_arch: built from a config, with a ``backbone``; in training it takes Detectron2's list of dicts
            and returns losses by name.
        section: see :attr:`PixelTextSupervision.section`.
        name: of the twin; empty: "DenseCLIP" and the system's.
    """
    name = name or f"DenseCLIP{meta_arch.__name__}"
    about = f"{meta_arch.__name__} on language-guided features, with the pixel-text loss."
    module = sys._getframe(1).f_globals["__name__"]  # as of a class that stands where this is called
    body = {"section": section, "__doc__": about, "__module__": module}
    return type(name, (PixelTextSupervision, meta_arch), body)


def _ground_truth_on(device: torch.device, x: dict) -> dict:
    return {key: value.to(device) if key in ("instances", "sem_seg") else value for key, value in x.items()}


def _masks(instances: Instances) -> PolygonMasks | BitMasks:
    if instances.has("gt_masks"):
        return instances.gt_masks
    if len(instances):
        raise ValueError(
            "MODEL.DENSECLIP.LOSS_TARGET = 'mask', but annotations have no segmentation. Set it to 'box'."
        )
    return PolygonMasks([])  # Detectron2's mapper gives an image without objects no masks
