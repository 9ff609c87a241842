"""The trained probabilities of classes mixed with those of the score map, at test time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor

from ..language.prompts import plain_name, seen_names


@dataclass(frozen=True)
class GeometricEnsemble:
    """Weights of the geometric mean p^(1 - b) q^b of a trained probability p and CLIP's probability q.

    The definition is that of F-VLM (ICLR 2023) and FC-CLIP (NeurIPS 2023). CLIP's probability is the softmax
    of the score map over its temperature, between the names.
    """

    trained_names: tuple[str, ...]
    alpha: float
    """b of the names that the model was trained on."""
    beta: float
    """b of other names."""
    learned_name: str = ""
    """A name whose embedding is learned, such as "background". CLIP does not know it: its p stays."""

    def __call__(
        self, scores: Tensor, names: tuple[str, ...], tau: float, stride: int
    ) -> "CLIPScores | None":
        """
        Args:
            scores: (B, K, h, w) score map.
            names: K names.
            tau: temperature.
            stride: the score map's.
        Returns: None if CLIP knows none of the names.
        """
        words, weights = (x.to(scores.device, non_blocking=True) for x in _weights(self, names))
        return None if not len(words) else CLIPScores(scores[:, words].float() / tau, words, weights, stride)


@lru_cache(maxsize=8)
def _weights(ensemble: GeometricEnsemble, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return the numbers of the names that CLIP knows, and b of each."""
    learned = plain_name(ensemble.learned_name)
    words = [i for i, name in enumerate(names) if plain_name(name) != learned]
    seen = seen_names([names[i] for i in words], ensemble.trained_names)
    return torch.tensor(words), torch.tensor([ensemble.alpha if x else ensemble.beta for x in seen])


@dataclass(frozen=True)
class CLIPScores:
    """CLIP's part of a :class:`GeometricEnsemble`, for a batch of images."""

    logits: Tensor
    """(B, W, h, w) score map over its temperature, of W of the K names."""
    words: Tensor
    """(W,) the numbers of these names."""
    weights: Tensor
    """(W,) b of each."""
    stride: int

    def resized(self, size: Sequence[int]) -> Tensor:
        """Return (B, W, *size) log-probabilities of locations."""
        return F.interpolate(self.logits, size, mode="bilinear", align_corners=False).log_softmax(dim=1)

    def in_boxes(self, boxes: Sequence[Boxes]) -> Tensor:
        """Return (N, W) log-probabilities of the boxes of all images, whose score map is averaged."""
        align = ROIAlign(1, 1 / self.stride, sampling_ratio=0, aligned=True)
        pooled = align(self.logits, convert_boxes_to_pooler_format([*boxes]))
        return pooled.flatten(1).log_softmax(dim=1)

    def mix_sigmoid(self, logits: Tensor, clip: Tensor) -> Tensor:
        """Return logits of the means of the sigmoids of ``logits`` and CLIP's probabilities.

        Their greatest is that of the sigmoids, so that CLIP tells the classes apart, and not objects from
        what is around them.

        Args:
            logits: (N, K, ...), each class for itself.
            clip: (N, W, ...) CLIP's log-probabilities.
        """
        mean = self._mean(F.logsigmoid(logits.float()), clip, torch.amax)
        return self._replaced(logits, mean - torch.log(-torch.expm1(mean)))

    def mix_softmax(self, logits: Tensor, clip: Tensor) -> Tensor:
        """Return logarithms of the means of the softmax of ``logits`` and CLIP's probabilities.

        Their sum is that of the softmax: as in FC-CLIP, the background keeps its probability.

        Args:
            logits: (N, K, ...), or (N, K + 1, ...) with the background.
            clip: (N, W, ...) CLIP's log-probabilities.
        """
        trained = logits.float().log_softmax(dim=1)
        return self._replaced(trained, self._mean(trained, clip, torch.logsumexp))

    def _mean(self, trained: Tensor, clip: Tensor, total: Callable[..., Tensor]) -> Tensor:
        """Return the logarithms of the means, scaled to the total of the trained probabilities."""
        trained = trained[:, self.words]
        weights = self.weights.view(-1, *[1] * (trained.dim() - 2))
        mean = torch.lerp(trained, clip.expand_as(trained), weights)
        return mean + total(trained, dim=1, keepdim=True) - total(mean, dim=1, keepdim=True)

    def _replaced(self, logits: Tensor, of_words: Tensor) -> Tensor:
        return logits.index_copy(1, self.words, of_words.to(logits.dtype))
