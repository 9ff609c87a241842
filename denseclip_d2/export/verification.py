"""Comparison of an exported file's outputs with its model's."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from torch import Tensor

from ..meta_arch.preprocess import seen_by_backbone
from .names import ReadNames
from .runtimes import DETECTIONS, Outputs, Run
from .traceable import TraceableModel

PIXELS = 0.01
"""The greatest difference of box sides."""
SCORES = 1e-4
"""The greatest difference of scores, and of the cosines of score maps."""
MAX_PIXEL_MISMATCH = 1e-3
"""The greatest part of an image's pixels whose mask or label may differ."""
BATCHED = ("labels", "score_map")


@dataclass(frozen=True)
class VerificationResult:
    """The result of a comparison.

    Attributes:
        sizes: height and width of each image.
        detections: number of detections in all images.
        pixels, scores, cosines: greatest differences of boxes, scores and score maps.
        pixel_mismatch: greatest part of an image's pixels whose mask or label differs.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    detections: int = 0
    pixels: float = 0.0
    scores: float = 0.0
    cosines: float = 0.0
    pixel_mismatch: float = 0.0

    def __str__(self) -> str:
        sizes = ", ".join(f"{height} x {width}" for height, width in self.sizes)
        return (
            f"with images of {sizes}: {self.detections} detections, off by {self.pixels:.1g} pixels "
            f"and {self.scores:.1g} in the score at most, score maps by {self.cosines:.1g}; "
            f"{self.pixel_mismatch:.2%} of the pixels of masks and labels differ"
        )


def verify(
    run: Run, whole: TraceableModel, images: Sequence[np.ndarray], names: ReadNames | None = None
) -> VerificationResult:
    """Compare the outputs of a file with those of the model in Detectron2.

    If a file takes batches, each image is in a batch with its mirror image. If a file takes names, images
    take turns with the lists of :attr:`Names.verified`.

    Args:
        run: the file.
        whole: the model.
        images: (H, W, 3) uint8, channels in the order of ``INPUT.FORMAT``.
        names: of a file that takes text embeddings.

    Raises:
        ValueError: they differ, or nothing is detected.
    """
    verdict = VerificationResult()
    for size, expected, given in both(run, whole, images, names):
        try:
            verdict = _compared(verdict, expected, given)
        except ValueError as error:
            raise ValueError(
                f"The file differs from the model for an image of {size[0]} x {size[1]}: {error}"
            ) from error
        verdict = replace(verdict, sizes=tuple(dict.fromkeys([*verdict.sizes, size])))
    return verdict


def both(
    run: Run, whole: TraceableModel, images: Sequence[np.ndarray], names: ReadNames | None = None
) -> Iterator[tuple[tuple[int, int], dict[str, Tensor], dict[str, Tensor]]]:
    """Return, for each image, its size and the outputs of the model and of the file, with masks pasted.

    Args, Raises: see :func:`verify`; differences are not compared.
    """
    detections = []
    for image, (text, read) in zip(images, cycle(names or [([], nullcontext)])):
        batch = [image, image[:, ::-1].copy()] if whole.any_batch else [image]
        given = run(torch.cat([whole.preprocess(x) for x in batch]).numpy(), *text)
        for i, x in enumerate(batch):
            with read():
                expected = _eager(whole, x)
            if "boxes" in expected:
                detections.append(len(expected["boxes"]))
            yield image.shape[:2], expected, _pasted(_of_one(given, i), expected)
    if detections and not any(detections):
        raise ValueError(
            "Nothing is detected in the images that verify the file. Give --images with objects of the "
            "model's classes; for an untrained model, set the score threshold to 0."
        )


@torch.no_grad()
def _eager(whole: TraceableModel, image: np.ndarray) -> dict[str, Tensor]:
    """Return the outputs for one image with Detectron2's own pre- and postprocessing."""
    resized = whole.resized(torch.from_numpy(image)[None])[0]
    height, width = resized.shape[1:] if whole.preprocessed else image.shape[:2]
    inputs = [{"image": resized, "height": height, "width": width}]
    (output,) = whole.model(inputs)
    expected = {}
    if "instances" in output:
        found = output["instances"]
        expected = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "classes": found.pred_classes}
        if found.has("pred_masks"):
            expected["masks"] = found.pred_masks
    if "sem_seg" in output:
        expected["labels"] = output["sem_seg"].argmax(dim=0)
    if whole.score_map:
        expected["score_map"] = whole.model.backbone(seen_by_backbone(whole.model, inputs))["score_map"][0]
    return expected


def _of_one(given: Outputs, number: int) -> dict[str, Tensor]:
    """Return a file's outputs for one image of a batch."""
    found = {name: torch.from_numpy(x[number] if name in BATCHED else x) for name, x in given.items()}
    if "images" in found:
        own = found.pop("images") == number
        found |= {name: found[name][own] for name in DETECTIONS if name in found}
    return found


def _pasted(given: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return outputs with masks pasted to the size of the model's."""
    if "masks" in given and "masks" in expected and given["masks"].is_floating_point():
        size = tuple(expected["masks"].shape[1:])
        return {**given, "masks": paste_masks_in_image(given["masks"], given["boxes"], size)}
    return given


def _compared(
    verdict: VerificationResult, expected: dict[str, Tensor], given: dict[str, Tensor]
) -> VerificationResult:
    """Return the verdict with one more image.

    Raises:
        ValueError: they differ.
    """
    if sorted(expected) != sorted(given):
        raise ValueError(f"its outputs are {', '.join(sorted(given))}, not {', '.join(sorted(expected))}.")
    pixels = scores = cosines = 0.0
    pixel_mismatch = []
    if "boxes" in expected:
        pairs = _pairs(expected, given)
        expected, given = (
            {name: x[own] if name in DETECTIONS else x for name, x in found.items()}
            for found, own in zip((expected, given), pairs, strict=True)
        )
        pixels, scores = (_greatest_difference(expected[x], given[x]) for x in ("boxes", "scores"))
        if "masks" in expected:
            pixel_mismatch.append(
                _pixel_mismatch(expected["masks"], given["masks"], expected["masks"].sum().item())
            )
    if "labels" in expected:
        pixel_mismatch.append(
            _pixel_mismatch(expected["labels"], given["labels"], expected["labels"].numel())
        )
    if "score_map" in expected:
        cosines = _greatest_difference(expected["score_map"], given["score_map"])
        if not cosines <= SCORES:
            raise ValueError(f"its score map differs by {cosines:.2g}; {SCORES} is allowed.")
    return replace(
        verdict,
        detections=verdict.detections + len(expected.get("boxes", ())),
        pixels=max(verdict.pixels, pixels),
        scores=max(verdict.scores, scores),
        cosines=max(verdict.cosines, cosines),
        pixel_mismatch=max(verdict.pixel_mismatch, *pixel_mismatch, 0.0),
    )


def _pairs(expected: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the matching detections as two lists of indices.

    Raises:
        ValueError: a detection has no match, and its score is above the lowest, so that it was not cut off.
    """
    apart = (expected["boxes"][:, None] - given["boxes"]).abs().amax(dim=2)
    scores = (expected["scores"][:, None] - given["scores"]).abs()
    alike = expected["classes"][:, None] == given["classes"]
    alike &= (apart <= PIXELS) & (scores <= SCORES)
    lowest = torch.cat([expected["scores"], given["scores"]]).amin() if alike.numel() else 0.0
    for found, partners, whose in (
        (expected, alike.any(1), "the model's"),
        (given, alike.any(0), "the file's"),
    ):
        lonely = found["scores"][~partners]
        if (lonely > lowest + SCORES).any():
            raise ValueError(
                f"{len(lonely)} of {whose} {len(partners)} detections have no match of the same class, with "
                f"sides within {PIXELS} pixels and a score within {SCORES}. The first has the score "
                f"{lonely[0]:.4f}."
            )
    mine, theirs = alike.nonzero().unbind(1)
    return mine, theirs


def _greatest_difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item() if a.numel() else 0.0


def _pixel_mismatch(a: Tensor, b: Tensor, pixels: float) -> float:
    """
    Raises:
        ValueError: masks or labels differ in too large a part of ``pixels``.
    """
    if a.shape != b.shape:
        raise ValueError(f"masks or labels have the shape {tuple(b.shape)}, not {tuple(a.shape)}.")
    part = (a != b).sum().item() / max(pixels, 1)
    if part > MAX_PIXEL_MISMATCH:
        raise ValueError(
            f"{part:.2%} of the pixels of masks or labels differ; {MAX_PIXEL_MISMATCH:.1%} are allowed."
        )
    return part
