"""Early rejection of names at test time: heads read the names that an image seems to show."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from ..guidance import LanguageGuidedFeatures
from .text_heads import TEXT

ABSENT = -1e4
"""The logit of a name that no head has read."""


class EarlyRejection(nn.Module):
    """Mixin for meta-architectures, whose heads may read some of the names at test time."""

    backbone: LanguageGuidedFeatures

    def __init__(self, *, names_per_image: int = 0, **kwargs):
        """
        Args:
            names_per_image: number of names that heads read at test time, by :func:`best_names`; 0: all.
            kwargs: as for the meta-architecture.
        """
        super().__init__(**kwargs)
        self.names_per_image = names_per_image

    def __call__(self, batched_inputs: list[dict]):
        language, number = self.backbone.language, self.names_per_image
        names = language.class_names
        if self.training or not 0 < number < len(names):
            return super().__call__(batched_inputs)
        learned = language.learned.number_in(names) if language.learned else None
        kept = () if learned is None else (learned,)
        self._set_num_classes(number)
        try:
            with best_names(self.backbone, number, kept) as chosen:
                outputs = super().__call__(batched_inputs)
        finally:
            self._set_num_classes(len(names))
        index = torch.cat(chosen)
        return [among_all_names(x, own, len(names)) for x, own in zip(outputs, index, strict=True)]

    def _set_num_classes(self, number: int) -> None:
        for module in self._with_num_classes:
            setattr(module, "num_classes", number)  # noqa: B010 - mypy: a tensor

    @cached_property
    def _with_num_classes(self) -> list[nn.Module]:
        return [module for module in self.modules() if hasattr(module, "num_classes")]


@contextmanager
def best_names(backbone: nn.Module, number: int, kept: Sequence[int] = ()) -> Iterator[list[Tensor]]:
    """Have heads read the names with the greatest scores in an image's score map, for a while.

    A name's score is its greatest in any location (the category early rejection of SED, Xie et al., CVPR
    2024, takes the names that are among the best somewhere).

    Args:
        backbone: a language-guided one.
        number: m, how many names heads read of an image.
        kept: numbers of names that are always among them.
    Yields: for each run of the backbone, the numbers (B, m) of the names that heads read, ascending.
    """
    chosen: list[Tensor] = []

    def choose(module: nn.Module, args: tuple, features: dict) -> dict:
        scores = features["score_map"].float().amax(dim=(2, 3))
        scores[:, kept] = torch.inf
        index = scores.topk(number).indices.sort(dim=1).values
        chosen.append(index)
        text = features[TEXT].expand(len(index), -1, -1)
        return {**features, TEXT: text.gather(1, index[..., None].expand(-1, -1, text.shape[2]))}

    handle = backbone.register_forward_hook(choose)
    try:
        yield chosen
    finally:
        handle.remove()


def among_all_names(output: dict, index: Tensor, number: int) -> dict:
    """Return a detector's or a segmentor's output for one image, in classes of all names.

    Args:
        output: in classes of the names of :func:`best_names`.
        index: (m,) their numbers.
        number: K, how many names there are.
    """
    output = dict(output)
    if "instances" in output:
        found = output["instances"]
        output["instances"] = Instances(found.image_size, **found.get_fields())
        output["instances"].pred_classes = index[found.pred_classes]
    if "sem_seg" in output:
        logits = output["sem_seg"]
        everything = logits.new_full((number, *logits.shape[1:]), ABSENT)
        output["sem_seg"] = everything.index_copy_(0, index, logits)
    return output
