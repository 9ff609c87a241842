"""The pointing game: how well score maps point at objects of seen and unseen names."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import mean

import torch
from torch import Tensor

from ..inference.predictor import Predictor
from .regions import object_mask


def evaluate_pointing(
    predictor: Predictor, records: Iterable[dict], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Compare the score map of each object's name with the object's pixels.

    Args:
        records: Detectron2's dicts with annotations. The box stands for a missing segmentation.
        names: the names of the records' categories.

    Returns: metrics for ``labeled`` names, which are classes of the model, and for ``unlabeled`` names.
        ``pairs`` counts pairs of an image and a name in it. ``pointing`` is the part of the pairs in which
        the maximum of the map is on an object of that name, and ``pointing_chance`` the same for a random
        pixel. ``auc`` is the probability that a pixel of the objects has a higher score than another
        pixel, 0.5 by chance. A kind without pairs is left out.
    Raises:
        ValueError: the model has no score map, or has precomputed text embeddings and no class of a name.
    """
    if predictor.guidance is None:
        raise ValueError("This model has no score map: its backbone is not language-guided.")
    classes, found = predictor.guidance.language.class_names, defaultdict(list)
    for record in records:
        masks = _masks_by_category(record)
        if not masks:
            continue
        asked = [names[category] for category in masks]
        score_maps = predictor(record["file_name"], score_map_names=asked)["score_maps"].cpu()
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
        scores, mask: (H, W). The mask has some pixels, but not all.
    """
    inside, outside = scores[mask], scores[~mask].sort().values
    below = torch.searchsorted(outside, inside) + torch.searchsorted(outside, inside, right=True)
    return {
        "pointing": float(mask.flatten()[scores.argmax()]),
        "pointing_chance": mask.float().mean().item(),
        "auc": below.double().mean().item() / (2 * len(outside)),
    }


def _masks_by_category(record: dict) -> dict[int, Tensor]:
    """Return the pixels, (H, W), of all objects of each category."""
    height, width = record["height"], record["width"]
    masks: dict[int, Tensor] = {}
    for annotation in record["annotations"]:
        mask = object_mask(annotation, height, width)
        category = annotation["category_id"]
        masks[category] = masks[category] | mask if category in masks else mask
    return masks
