from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import configurable
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor, nn

from ..guidance import LanguageGuidedFeatures, pixel_text_loss


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
    """Mixin: ``loss_pixel_text`` for a Detectron2 detector on a ``LanguageGuidedFeatures`` (paper, sec. 3.4)."""

    section: str
    """Where in ``cfg.MODEL`` the detector's NUM_CLASSES is."""
    backbone: LanguageGuidedFeatures
    device: torch.device

    @configurable
    def __init__(
        self,
        *,
        pixel_text_weight: float = 1.0,
        pixel_text_target: str = "box",
        kernels: bool = True,
        **kwargs,
    ):
        """
        Args:
            pixel_text_weight: factor of ``loss_pixel_text``.
            pixel_text_target: "box", as released, or "mask": what the classes' pixels are taken from.
            kernels: compute the loss where objects are, in little memory; False: by its plain definition.
            kwargs: as for the detector.

        Raises:
            ValueError: an unknown target; from a config, other than NUM_CLASSES class names.
        """
        super().__init__(**kwargs)
        if pixel_text_target not in ("box", "mask"):
            raise ValueError(
                f"MODEL.DENSECLIP.LOSS_TARGET is {pixel_text_target!r}; it can be 'box' or 'mask'."
            )
        self.pixel_text_weight = pixel_text_weight
        self.pixel_text_target = pixel_text_target
        self.kernels = kernels

    @classmethod
    def from_config(cls, cfg) -> dict:
        arguments = super().from_config(cfg)  # type: ignore[misc]  # the detector's, next in line
        count, num_classes = (
            len(arguments["backbone"].language.class_names),
            cfg.MODEL[cls.section].NUM_CLASSES,
        )
        if count != num_classes:
            raise ValueError(
                f"{count} class names for MODEL.{cls.section}.NUM_CLASSES = {num_classes}. Set "
                f"MODEL.DENSECLIP.CLASS_NAMES to the {num_classes} names, or NUM_CLASSES to {count}."
            )
        if cfg.MODEL.DENSECLIP.LOSS_TARGET == "mask" and not cfg.MODEL.MASK_ON:
            raise ValueError("MODEL.DENSECLIP.LOSS_TARGET = 'mask' needs masks: set MODEL.MASK_ON True.")
        arguments["pixel_text_weight"] = cfg.MODEL.DENSECLIP.LOSS_WEIGHT
        arguments["pixel_text_target"] = cfg.MODEL.DENSECLIP.LOSS_TARGET
        arguments["kernels"] = cfg.MODEL.DENSECLIP.KERNELS
        return arguments

    def forward(self, batched_inputs: list[dict]):
        if not self.training:
            return super().forward(batched_inputs)
        # Detectron2 moves the ground truth too, which costs nothing once it is on the device.
        batched_inputs = [_ground_truth_on(self.device, x) for x in batched_inputs]
        with captured_features(self.backbone) as features:
            losses = super().forward(batched_inputs)
        loss = self._pixel_text_loss(features["score_map"], batched_inputs)
        return {**losses, "loss_pixel_text": self.pixel_text_weight * loss}

    def _pixel_text_loss(self, scores: Tensor, batched_inputs: list[dict]) -> Tensor:
        instances = [x["instances"] for x in batched_inputs]
        return pixel_text_loss(
            scores,
            [self._shapes(x) for x in instances],
            [x.gt_classes for x in instances],
            self.backbone.score_map_stride,
            self.backbone.tau,
            self.kernels,
        )

    def _shapes(self, instances: Instances) -> Boxes | PolygonMasks | BitMasks:
        return _masks(instances) if self.pixel_text_target == "mask" else instances.gt_boxes


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
