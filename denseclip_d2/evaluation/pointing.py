"""How well score maps point at what is named, and at what no label had a name for."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import mean

import numpy as np
import torch
from detectron2.structures import BoxMode
from pycocotools import mask as run_lengths
from torch import Tensor

from ..inference.predictor import Predictor


def evaluate_words(
    predictor: Predictor, records: Iterable[dict], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Asks for the score map of each object's name, whether or not the model has a class of it.

    Args:
        records: of Detectron2's dicts, with annotations; objects without segmentations are their boxes.
        names: of the records' categories.

    Returns: for ``labeled`` names, which are classes of the model, and ``unlabeled`` ones:
        ``pairs``, how many times an image has a name; ``pointing``, the part of these in which the maximum of
        the map is on an object of that name; ``pointing_chance``, that of a random pixel; ``auc``, the
        probability that a pixel of the objects has a higher score than another, 0.5 by chance. A kind
        without pairs is left out.
    Raises:
        ValueError: the model has no score map, or its text is folded and a name is none of its classes.
    """
    if predictor.guidance is None:
        raise ValueError("This model has no score map: its backbone is not language-guided.")
    classes, found = predictor.guidance.language.class_names, defaultdict(list)
    for record in records:
        masks = dict(_masks_by_category(record))
        if not masks:
            continue
        asked = [names[category] for category in masks]
        score_maps = predictor(record["file_name"], score_maps_of=asked)["score_maps"].cpu()
        for name, mask, scores in zip(asked, masks.values(), score_maps, strict=True):
            if not mask.all() and mask.any():
                found["labeled" if name in classes else "unlabeled"].append(_measure(scores, mask))
    return {
        kind: {"pairs": len(rows), **{key: mean(row[key] for row in rows) for key in rows[0]}}
        for kind, rows in found.items()
    }


def _measure(scores: Tensor, mask: Tensor) -> dict[str, float]:
    """
    Args:
        scores, mask: (H, W); the mask has some pixels, but not all.
    """
    inside, outside = scores[mask], scores[~mask].sort().values
    below = torch.searchsorted(outside, inside) + torch.searchsorted(outside, inside, right=True)
    return {
        "pointing": float(mask.flatten()[scores.argmax()]),
        "pointing_chance": mask.float().mean().item(),
        "auc": below.double().mean().item() / (2 * len(outside)),
    }


def _masks_by_category(record: dict) -> Iterator[tuple[int, Tensor]]:
    """The pixels, (H, W), of all objects of a category."""
    height, width = record["height"], record["width"]
    by_category = defaultdict(list)
    for annotation in record["annotations"]:
        by_category[annotation["category_id"]].append(annotation)
    for category, annotations in by_category.items():
        mask = np.zeros((height, width), dtype=bool)
        for annotation in annotations:
            mask |= run_lengths.decode(_run_lengths(annotation, height, width)).astype(bool)
        yield category, torch.from_numpy(mask)


def _run_lengths(annotation: dict, height: int, width: int) -> dict:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes | str):
        return segmentation
    encoded = run_lengths.frPyObjects(segmentation, height, width)
    return run_lengths.merge(encoded) if isinstance(encoded, list) else encoded
