from collections.abc import Sequence
from typing import Any

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor, nn

from ..data.tasks import reads_stuff_names
from ..guidance import TextClassifier, label_map_loss
from .text_heads import CLIP, STUFF, TEXT, biased_names_of, embed_dim_of


@SEM_SEG_HEADS_REGISTRY.register()
class SemSegFPNHeadWithDropout(SemSegFPNHead):
    """Detectron2's Semantic FPN head, with three differences, as released.

    Channels are dropped before the predictor, the predictor's initial weights have a standard deviation of
    0.01, and the loss is :func:`label_map_loss`.
    """

    predictor: nn.Conv2d

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        dropout: float = 0.1,
        kernels: bool = True,
        embed_dim: int = 0,
        stuff: bool = False,
        biased_names: Sequence[str] = (),
        **kwargs,
    ):
        """
        Args:
            dropout: probability of dropping a channel in training.
            kernels: compute the loss in less memory; False: by its plain definition.
            embed_dim: width of the text embeddings to classify by; 0: a learned vector for each class.
            stuff: with text embeddings, classify the stuff of a panoptic model. Detectron2's label 0, all
                things, is no word, and has a learned embedding.
            biased_names: see :class:`TextClassifier`.
            input_shape, kwargs: as for ``SemSegFPNHead``.
        """
        super().__init__(input_shape, **kwargs)
        self.dropout = nn.Dropout2d(dropout)
        self.kernels = kernels
        self.classifier = None
        if embed_dim:
            self.predictor = nn.Conv2d(self.predictor.in_channels, embed_dim, kernel_size=1)
            self.classifier = TextClassifier(embed_dim, background=stuff, biased_names=biased_names)
        else:
            nn.init.normal_(self.predictor.weight, std=0.01)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        stuff = reads_stuff_names(cfg)
        return {
            **super().from_config(cfg, input_shape),
            "dropout": cfg.MODEL.SEM_SEG_HEAD.DROPOUT,
            "kernels": cfg.MODEL.DENSECLIP.FUSED_OPS,
            "embed_dim": embed_dim_of(cfg),
            "stuff": stuff,
            "biased_names": biased_names_of(cfg, stuff=stuff),
        }

    def layers(self, features: dict[str, Any]) -> Tensor:
        towers = zip(self.scale_heads, self.in_features, strict=True)
        x = self.predictor(self.dropout(sum(tower(features[name]) for tower, name in towers)))
        if self.classifier is None:
            return x
        if self.classifier.background is not None:  # things, which are last, become label 0
            return self.classifier(x, features[STUFF]).roll(1, dims=1)
        logits, clip = self.classifier(x, features[TEXT]), features.get(CLIP)
        return clip.mix_softmax(logits, clip.resized(logits.shape[2:])) if clip else logits

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        loss = label_map_loss(predictions, targets, self.ignore_value, self.kernels)
        return {"loss_sem_seg": self.loss_weight * loss}
