"""The agreement of a file of reduced precision with its model."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from .names import ReadNames
from .runtimes import Run
from .traceable import TraceableModel
from .verification import both

OVERLAP = 0.5
"""The least intersection over union of matching boxes of one class, and of their masks."""
LEAST = {"float16": 0.99, "int8": 0.9}
"""The least agreement of each precision."""


@dataclass(frozen=True)
class Agreement:
    """The result of a comparison.

    Attributes:
        images, detections: number of images, and of the model's detections in them.
        parts: agreement from 0 to 1, by output. ``boxes``: the share with a match; ``masks``: the share of
            matching boxes; both weighted by scores. ``labels``: the share of pixels. ``score_map``: 1 less
            the mean difference of cosines.
    """

    images: int
    detections: int
    parts: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {part:.2%}" for name, part in self.parts.items())
        return f"with {self.images} images, {self.detections} detections; agreement: {parts}"


def agreement(
    run: Run,
    whole: TraceableModel,
    images: Sequence[np.ndarray],
    precision: str,
    names: ReadNames | None = None,
) -> Agreement:
    """Compare the outputs of a file with those of the model; arguments as for ``verify``.

    Raises:
        ValueError: the agreement is below ``LEAST``, or nothing is detected.
    """
    agreeing: defaultdict[str, float] = defaultdict(float)
    counted: defaultdict[str, float] = defaultdict(float)
    number = detections = 0
    for _, expected, given in both(run, whole, images, names):
        number += 1
        detections += len(expected.get("boxes", ()))
        for name, (part, all_of_it) in _agreeing(expected, given).items():
            agreeing[name] += part
            counted[name] += all_of_it
    parts = {name: agreeing[name] / counted[name] if counted[name] else 1.0 for name in counted}
    for name, part in parts.items():
        if not part >= LEAST[precision]:
            raise ValueError(
                f"The file differs from the model: {part:.1%} of the {name} agree; --precision {precision} "
                f"needs {LEAST[precision]:.0%}. Choose another --precision."
            )
    return Agreement(number, detections, parts)


def _agreeing(expected: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Return the agreeing and the whole weight, by output."""
    found = {}
    if "boxes" in expected:
        overlaps = pairwise_iou(Boxes(expected["boxes"]), Boxes(given["boxes"]))
        overlaps *= expected["classes"][:, None] == given["classes"]
        alike = overlaps >= OVERLAP
        scores = torch.cat([expected["scores"], given["scores"]])
        found["boxes"] = _part(torch.cat([alike.any(dim=1), alike.any(dim=0)]), scores)
        if "masks" in expected and alike.any():
            mine = alike.any(dim=1)
            a, b = expected["masks"][mine], given["masks"][overlaps[mine].argmax(dim=1)]
            shared, covered = (x.flatten(1).sum(dim=1) for x in (a & b, a | b))
            found["masks"] = _part(shared >= OVERLAP * covered, expected["scores"][mine])
    if "labels" in expected:
        found["labels"] = _part(expected["labels"] == given["labels"], torch.ones(expected["labels"].shape))
    if "score_map" in expected:
        off = (expected["score_map"] - given["score_map"]).abs()
        found["score_map"] = (1 - off).sum().item(), off.numel()
    return found


def _part(holds: Tensor, weights: Tensor) -> tuple[float, float]:
    return weights[holds].sum().item(), weights.sum().item()
