from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..guidance import pixel_text_loss


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


class PixelTextSupervision:
    """Mixin: ``loss_pixel_text``, from boxes, for a Detectron2 detector on a ``LanguageGuidedFPN``."""

    pixel_text_weight: float

    def forward(self, batched_inputs: list[dict]):
        if not self.training:
            return super().forward(batched_inputs)
        with captured_features(self.backbone) as features:
            losses = super().forward(batched_inputs)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        loss = pixel_text_loss(
            features["score_map"] / self.backbone.tau,
            [x.gt_boxes.tensor for x in instances],
            [x.gt_classes for x in instances],
            self.backbone.score_map_stride,
        )
        return {**losses, "loss_pixel_text": self.pixel_text_weight * loss}


def check_number_of_classes(backbone: nn.Module, num_classes: int, key: str) -> None:
    """Refuse a detector whose head and score map would speak of different classes.

    Raises:
        ValueError: as many names as ``num_classes`` are needed.
    """
    count = len(backbone.language.class_names)
    if count != num_classes:
        raise ValueError(
            f"{count} class names for {key} = {num_classes}. "
            f"Set MODEL.DENSECLIP.CLASS_NAMES to the {num_classes} names, or {key} to {count}."
        )
