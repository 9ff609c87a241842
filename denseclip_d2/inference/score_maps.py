"""Score maps of any names, beside what a model predicts."""

from collections.abc import Callable, Sequence
from itertools import chain

import torch.nn.functional as F
from torch import Tensor, nn

from ..guidance import LanguageGuidedFeatures, guidance_of
from ..meta_arch import SlidingWindowSegmentor
from ..meta_arch.pixel_text import captured_features
from ..meta_arch.preprocess import seen_by_backbone


def with_score_maps(
    model: nn.Module,
    predict: Callable[[list[dict]], list[dict]],
    images: list[dict],
    names: Sequence[Sequence[str]],
) -> list[dict]:
    """Return predictions and, for the images that have names, their ``score_maps``: (names, H, W).

    Args:
        predict: runs the model.
        images: as the model takes them.
        names: names for each image, classes or other words; often none.

    Raises:
        ValueError: names for a model without score map, or other words for one without a text encoder.
    """
    asked = list(dict.fromkeys(chain.from_iterable(names)))
    if not asked:
        return predict(images)
    guided = _guided_by(model, asked)
    with captured_features(guided) as features:  # one forward pass for both
        predictions = predict(images)
    windows = isinstance(model, SlidingWindowSegmentor) and model.sliding_window
    if windows or not features:  # a runtime returns none
        features = guided(seen_by_backbone(model, images))  # of whole images, not of windows
    scores = guided.score_maps(features, asked)
    for own, image, prediction, maps in zip(names, images, predictions, scores, strict=True):
        if own:
            maps = maps[[asked.index(name) for name in own]]
            prediction["score_maps"] = _enlarged(maps, guided.score_map_stride, image)
    return predictions


def _guided_by(model: nn.Module, names: Sequence[str]) -> LanguageGuidedFeatures:
    guided = guidance_of(model)
    if guided is None:
        raise ValueError("This model has no score map, for its backbone is not language-guided.")
    language = guided.language
    unknown = [name for name in names if name not in language.class_names]
    if unknown and language.precomputed:
        raise ValueError(
            f"{unknown[0]!r} is not a class. The classes are: {', '.join(language.class_names)}. "
            "Other words need weights with a text encoder; these have precomputed text embeddings."
        )
    return guided


def _enlarged(scores: Tensor, stride: int, image: dict) -> Tensor:
    """Return (n, h, w) score maps of the padded image as (n, H, W) of the original image."""
    height, width = image["image"].shape[1:]
    scores = F.interpolate(scores[None], scale_factor=stride, mode="bilinear")[..., :height, :width]
    return F.interpolate(scores, (image["height"], image["width"]), mode="bilinear")[0]
