from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from ..kernels import pixel_text_scores
from ..language import PromptedTextEncoder
from .geometric_ensemble import GeometricEnsemble

SCORE_MAP = "score_map"
"""The feature that is the score map."""

LARGEST_STRIDE = 32
"""The encoders pad images to multiples of this number of pixels."""


class LanguageGuidedFeatures(Backbone):
    """A visual encoder's features, of which one has a pixel-text score map concatenated (paper, sec. 3.2).

    The output also has the score map itself, ``score_map``: (B, K, h, w), in [-1, 1]. :meth:`output_shape`
    leaves ``score_map`` out, since heads and necks pick features by name. Heads that read the features of a
    backbone without a pyramid, such as DeepLab's, take this class.
    """

    def __init__(
        self,
        *,
        visual: Backbone,
        language: PromptedTextEncoder,
        level: str = "",
        tau: float = 0.07,
        concat: str = "scores",
        concat_logits: bool = True,
        denoise: float = 0.0,
        kernels: bool = True,
        ensemble: GeometricEnsemble | None = None,
    ):
        """
        Args:
            visual: returns features by name, ``global_embedding`` and ``dense_embedding``; its
                ``embedding_stride`` is the stride of the dense embedding.
            level: the feature that has the score map concatenated; empty: the one of the same stride.
            tau: temperature.
            concat: "scores" concatenates the K score channels, as released. "text" concatenates the text
                that each location sees, C channels whatever the number of names (:func:`seen_text`). "none"
                leaves the features as they are; the loss alone reads the score map.
            concat_logits: with "scores", concatenate score map / tau, as released for detection, or the score
                map, as released for segmentation.
            denoise: threshold of :func:`denoised_scores` for the score map that evaluation returns; 0 keeps
                all classes. The features keep the whole score map.
            kernels: compute the score map by a kernel if there is one; False: by its definition.
            ensemble: mixes the score map with what heads predict, at test time; None: nothing is mixed.

        Raises:
            ValueError: ``level`` is not a feature of the score map's stride, and ``concat`` is not "none".
        """
        super().__init__()
        self.visual = visual
        self.language = language
        self.level = level
        self.tau = tau
        self.concat = concat
        self.concat_logits = concat_logits
        self.denoise = denoise
        self.kernels = kernels
        self.ensemble = ensemble
        self.score_map_stride = visual.embedding_stride
        self.guided_shapes = visual.output_shape()
        if concat != "none":
            self.level = _level_of_stride(visual, level)
            shape = self.guided_shapes[self.level]
            guide = {"scores": len(language.names), "text": language.embed_dim}[concat]
            self.guided_shapes[self.level] = ShapeSpec(channels=shape.channels + guide, stride=shape.stride)

    @property
    def size_divisibility(self) -> int:
        return max(shape.stride for shape in self.guided_shapes.values())

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self.guided_shapes)

    def forward(self, x: Tensor) -> dict[str, Any]:
        """
        Args:
            x: (B, 3, H, W), normalized; H and W multiples of ``size_divisibility``.
        Returns: the output of ``visual``, with the score map or the text seen in one of its features,
            ``score_map`` and ``text_embeddings`` (B or 1, K, C). A panoptic model also has
            ``stuff_embeddings``, those of the names of stuff, which the others are without. At test time,
            an ensemble adds ``clip_scores`` for heads to mix with their own (:class:`CLIPScores`).
        """
        features = self.visual(x)
        dense = features["dense_embedding"]
        text = self.language(features["global_embedding"], dense)
        scores, logits = pixel_text_scores(dense, text, self.tau, self.kernels)
        if self.concat != "none":
            if self.concat == "text":
                unread = self.language.unread_text
                if unread is None:
                    guide = seen_text(logits, text)
                else:
                    guide = seen_text_of_step(dense, self.tau, text, unread)
            else:
                guide = logits if self.concat_logits else scores
            features = {**features, self.level: torch.cat([features[self.level], guide], dim=1)}
        if self.language.stuff_names:
            things = len(self.language.class_names)
            features, scores = {**features, "stuff_embeddings": text[:, things:]}, scores[:, :things]
            text = text[:, :things]
        if self.ensemble and not self.training:
            clip = self.ensemble(scores, self.language.class_names, self.tau, self.score_map_stride)
            features = {**features, "clip_scores": clip} if clip else features
        if self.denoise and not self.training:
            scores = denoised_scores(scores, self.tau, self.denoise)
        return {**features, "score_map": scores, "text_embeddings": text}

    def score_maps(self, features: dict[str, Tensor], names: Sequence[str]) -> Tensor:
        """Return the score maps of names, which do not have to be classes.

        The text encoder reads other words with the learned contexts, and the image refines their embeddings
        beside those of the classes. The score maps of the classes stay as they are.

        Args:
            features: what :meth:`forward` returned.
            names: n names.
        Returns: (B, n, h, w) float32, in [-1, 1].
        Raises:
            ValueError: see :meth:`PromptedTextEncoder.embed`.
        """
        # float32, for :meth:`forward` may have run under autocast.
        class_names, score_map = self.language.class_names, features["score_map"].float()
        others = [name for name in dict.fromkeys(names) if name not in class_names]
        if others:
            dense = features["dense_embedding"].float()
            text = self.language.embed(others, features["global_embedding"].float(), dense)
            scores, _ = pixel_text_scores(dense, text, self.tau, self.kernels)
            score_map = torch.cat([score_map, scores], dim=1)
        known = [*class_names, *others]
        return score_map[:, [known.index(name) for name in names]]


def _level_of_stride(visual: Backbone, level: str) -> str:
    """Return the feature of the score map's stride that a score map is concatenated to.

    Raises:
        ValueError: ``level`` is not such a feature.
    """
    shapes = visual.output_shape()
    fitting = [name for name, shape in shapes.items() if shape.stride == visual.embedding_stride]
    level = level or next(iter(fitting), "")
    if level not in fitting:
        raise ValueError(
            f"level is {level!r}; the score map has stride {visual.embedding_stride}, as "
            f"{', '.join(fitting) or f'none of the features {list(shapes)}'} has."
        )
    return level


def denoised_scores(scores: Tensor, tau: float, threshold: float) -> Tensor:
    """Return score maps without the classes that an image does not seem to have (MaskCLIP, sec. 3.3).

    These are the classes whose probability reaches the threshold nowhere. If none reaches it, all stay.

    Args:
        scores: (B, K, h, w), in [-1, 1].
        tau: temperature of the softmax over classes.
    Returns: the shape of ``scores``, -1 for the classes left out.
    """
    absent = (scores.float() / tau).softmax(dim=1).amax(dim=(2, 3), keepdim=True) < threshold
    return scores.masked_fill(absent & ~absent.all(dim=1, keepdim=True), -1)


class ScoreMapBackbone(LanguageGuidedFeatures):
    """A CLIP's score map alone, for a head that needs no other feature."""

    @property
    def size_divisibility(self) -> int:
        return max(LARGEST_STRIDE, self.score_map_stride)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {SCORE_MAP: ShapeSpec(channels=len(self.language.class_names), stride=self.score_map_stride)}


def seen_text(logits: Tensor, text: Tensor) -> Tensor:
    """Return the text that each location sees: the mean of the embeddings by the softmax of its scores.

    Args:
        logits: (B, K, h, w) score map over the temperature.
        text: (B or 1, K, C) text embeddings, which are normalized here.
    Returns: (B, C, h, w), times sqrt(C), so that a channel has unit size.
    """
    weights = logits.float().softmax(dim=1).to(text.dtype)
    words = F.normalize(text, dim=-1).expand(logits.shape[0], -1, -1)
    return torch.einsum("bkc,bkhw->bchw", words, weights) * text.shape[2] ** 0.5


def seen_text_of_step(dense: Tensor, tau: float, text: Tensor, unread: Tensor) -> Tensor:
    """Return what :func:`seen_text` does for all names, where a training step reads some of them.

    Args:
        dense: (B, C, h, w) dense embedding.
        tau: temperature.
        text: (B or 1, m, C) text embeddings of the names of the step.
        unread: (K - m, C) text embeddings of the other names, without gradient.
    """
    own, rest = (F.normalize(x, dim=-1).expand(len(dense), -1, -1) for x in (text, unread[None]))
    pixels = F.normalize(dense, dim=1).flatten(2) / tau
    # Not one product of all names: its backward pass would compute the gradient of those that have none.
    weights = torch.cat([own @ pixels, rest @ pixels], dim=1).float().softmax(dim=1).to(dense.dtype)
    of_own, of_rest = weights.split([own.shape[1], rest.shape[1]], dim=1)
    seen = own.mT @ of_own + rest.mT @ of_rest
    return seen.unflatten(2, dense.shape[2:]) * text.shape[2] ** 0.5


def guidance_of(model: nn.Module) -> LanguageGuidedFeatures | None:
    """Return the language-guided backbone of a Detectron2 model; None if it has another or none."""
    backbone = getattr(model, "backbone", None)
    return backbone if isinstance(backbone, LanguageGuidedFeatures) else None
