from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from ..kernels import pixel_text_scores
from ..language import PromptedTextEncoder


class LanguageGuidedFeatures(Backbone):
    """A visual encoder's features, one of them beside a pixel-text score map (paper, sec. 3.2).

    The score map s is concatenated to one feature. The output holds the features and, under ``score_map``, s
    itself: (B, K, h, w), in [-1, 1]. Since heads and necks pick their features by name, ``score_map`` is not
    part of :meth:`output_shape`. Heads that read a backbone's own features, as DeepLab's do, take this one.
    """

    def __init__(
        self,
        *,
        visual: Backbone,
        language: PromptedTextEncoder,
        level: str = "",
        tau: float = 0.07,
        concat: bool = True,
        concat_logits: bool = True,
        kernels: bool = True,
    ):
        """
        Args:
            visual: gives features by name, ``global_embedding`` and ``dense_embedding``; its
                ``embedding_stride`` tells the dense embedding's.
            level: the feature that the score map joins; empty: the one of the dense embedding's stride.
            tau: temperature.
            concat: False leaves the features as they are, and the score map to the loss alone.
            concat_logits: concatenate s / tau (detection, as released) or s (segmentation, as released).
            kernels: compute the score map by a kernel where there is one; False: by its definition.

        Raises:
            ValueError: ``level`` is not a feature of the dense embedding's stride.
        """
        super().__init__()
        shapes = visual.output_shape()
        fitting = [name for name, shape in shapes.items() if shape.stride == visual.embedding_stride]
        level = level or next(iter(fitting), "")
        if level not in fitting:
            raise ValueError(
                f"MODEL.DENSECLIP.SCORE_MAP.LEVEL = {level!r}; the score map has stride "
                f"{visual.embedding_stride}, as {', '.join(fitting) or 'none of MODEL.FPN.IN_FEATURES'} has."
            )
        self.visual = visual
        self.language = language
        self.level = level
        self.tau = tau
        self.concat = concat
        self.concat_logits = concat_logits
        self.kernels = kernels
        self.score_map_stride = visual.embedding_stride
        channels = shapes[level].channels + concat * len(language.class_names)
        shapes[level] = ShapeSpec(channels=channels, stride=shapes[level].stride)
        self.guided_shapes = shapes

    @property
    def size_divisibility(self) -> int:
        return max(shape.stride for shape in self.guided_shapes.values())

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self.guided_shapes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, 3, H, W), normalized; H and W multiples of ``size_divisibility``.
        Returns: what ``visual`` gives, the score map in one of its features, and ``score_map``.
        """
        features = self.visual(x)
        dense = features["dense_embedding"]
        text = self.language(features["global_embedding"], dense)
        scores, logits = pixel_text_scores(dense, text, self.tau, self.kernels)
        if self.concat:
            guide = logits if self.concat_logits else scores
            features = {**features, self.level: torch.cat([features[self.level], guide], dim=1)}
        return {**features, "score_map": scores}

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


def guidance_of(model: nn.Module) -> LanguageGuidedFeatures | None:
    """The language-guided backbone of a Detectron2 model; None where it has another, or none."""
    backbone = getattr(model, "backbone", None)
    return backbone if isinstance(backbone, LanguageGuidedFeatures) else None
