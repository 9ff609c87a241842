from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor, nn

from ..guidance import (
    LanguageGuidedFeatures,
    TextClassifier,
    label_map_loss,
    pixel_text_loss,
    pixel_text_softmax_loss,
    sampled_softmax_logits,
)
from .early_rejection import EarlyRejection
from .score_map_head import ScoreMapHead
from .text_heads import with_text_roi_heads


@contextmanager
def captured_features(backbone: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the backbone's output while a detector runs, for Detectron2's detectors do not return it."""
    features: dict[str, Tensor] = {}
    handle = backbone.register_forward_hook(lambda module, args, output: features.update(output))
    try:
        yield features
    finally:
        handle.remove()


class PixelTextSupervision(EarlyRejection):
    """Mixin that adds ``loss_pixel_text`` to a Detectron2 meta-architecture (paper, sec. 3.4).

    The loss reads the ground truth that the meta-architecture trains on: ``instances``
    (:func:`pixel_text_loss`) or a label map ``sem_seg`` (:func:`label_map_loss`).
    """

    num_classes_key: str
    """The section of ``cfg.MODEL`` with the NUM_CLASSES. "SEM_SEG_HEAD": the loss of label maps."""
    backbone: LanguageGuidedFeatures
    device: torch.device

    @configurable
    def __init__(
        self,
        *,
        pixel_text_weight: float = 1.0,
        pixel_text_target: str = "box",
        pixel_text_kind: str = "binary",
        kernels: bool = True,
        **kwargs,
    ):
        """
        Args:
            pixel_text_weight: factor of ``loss_pixel_text``.
            pixel_text_target: the pixels that an object of ``instances`` labels: of its "box", as
                released, or of its "mask".
            pixel_text_kind: loss of ``instances``: "binary", as released, or "softmax" over the classes.
            kernels: compute the loss in tiles, in less memory; False: by its plain definition.
            kwargs: as for :class:`EarlyRejection` and for the meta-architecture.

        Raises:
            ValueError: the backbone has no score map.
        """
        super().__init__(**kwargs)
        if not isinstance(self.backbone, LanguageGuidedFeatures):
            raise ValueError(
                f"{type(self).__name__} needs a backbone with a score map; "
                f"{type(self.backbone).__name__} has none. In a config, choose a MODEL.BACKBONE.NAME that "
                "begins with 'build_denseclip'."
            )
        self.pixel_text_weight = pixel_text_weight
        self.pixel_text_target = pixel_text_target
        self.pixel_text_kind = pixel_text_kind
        self.kernels = kernels

    @classmethod
    def from_config(cls, cfg) -> dict:
        """
        Raises:
            ValueError: NUM_CLASSES differs from the number of class names; a mask target without masks.
        """
        system, denseclip, cfg = super(), cfg.MODEL.DENSECLIP, with_text_roi_heads(cfg)
        # A meta-architecture without from_config, as PanopticDeepLab is, reads the config itself.
        arguments = system.from_config(cfg) if hasattr(system, "from_config") else {"cfg": cfg}
        _check_classes(cfg, cls.num_classes_key, arguments.get("backbone"))
        return {
            **arguments,
            "pixel_text_weight": denseclip.LOSS_WEIGHT,
            "pixel_text_target": denseclip.LOSS_TARGET,
            "pixel_text_kind": denseclip.LOSS_TYPE,
            "kernels": denseclip.FUSED_OPS,
            "names_per_image": denseclip.PROMPT.NAMES_PER_IMAGE,
        }

    def forward(self, batched_inputs: list[dict]):
        if not self.training:
            return super().forward(batched_inputs)
        # Detectron2 moves the ground truth again, which costs nothing.
        with self._step(batched_inputs) as batched_inputs, captured_features(self.backbone) as features:
            losses = super().forward(batched_inputs)
            return {**losses, **self._pixel_text_loss(features["score_map"], batched_inputs)}

    def set_class_names(
        self,
        names: Sequence[str],
        text_embeddings: Tensor | None = None,
        *,
        stuff_names: Sequence[str] | None = None,
    ) -> None:
        """Find these classes from now on, in place of the ones before. Their number may differ.

        Args:
            names, text_embeddings, stuff_names: see :meth:`PromptedTextEncoder.set_class_names`.

        Raises:
            ValueError: see :meth:`check_takes_names`; names that cannot be read. The classes are then those
                of before.
        """
        self.check_takes_names()
        self.backbone.language.set_class_names(names, text_embeddings, stuff_names=stuff_names)
        self._tell_heads()

    def _tell_heads(self, weights: Tensor | None = None) -> None:
        """Give the heads the names that the text encoder reads, and how many names each class stands for."""
        language = self.backbone.language
        for name, classifier in self._text_classifiers:
            if language.stuff_names and name.startswith("sem_seg_head."):
                classifier.set_names(language.stuff_names)
            else:
                classifier.set_names(language.class_names, weights)
        self._set_num_classes(len(language.class_names))

    @cached_property
    def _text_classifiers(self) -> list[tuple[str, TextClassifier | ScoreMapHead]]:
        kinds = TextClassifier | ScoreMapHead
        return [(name, x) for name, x in self.named_modules() if isinstance(x, kinds)]

    def check_takes_names(self) -> None:
        """
        Raises:
            ValueError: the model has weights of its own for each class, or no text encoder.
        """
        if self.backbone.concat == "scores" or not self._text_classifiers:
            raise ValueError(
                "This model has learned weights for each of its classes, and finds no others. Other names "
                "need a model trained with MODEL.DENSECLIP.CLASSIFIER 'text' and SCORE_MAP.CONCAT 'text'."
            )
        if self.backbone.language.precomputed:
            raise ValueError(
                "The weights hold precomputed text embeddings, and no text encoder that reads other names. "
                "Convert the weights without --precompute-text."
            )

    @contextmanager
    def given_names(
        self,
        names: Sequence[str],
        text_embeddings: Tensor | None = None,
        *,
        stuff_names: Sequence[str] | None = None,
    ) -> Iterator[None]:
        """Find other classes for a while, as of :meth:`set_class_names`. Every model finds its own."""
        language = self.backbone.language
        stuff = language.stuff_names if stuff_names is None else tuple(stuff_names)
        if (tuple(names), stuff) == (language.class_names, language.stuff_names):
            yield
            return
        before = language.class_names, language.stuff_names, language.text_embeddings
        self.set_class_names(names, text_embeddings, stuff_names=stuff_names)
        try:
            yield
        finally:
            language.restore(*before)
            self._tell_heads()

    @contextmanager
    def _step(self, batched_inputs: list[dict]) -> Iterator[list[dict]]:
        """Yield a training step's inputs with ground truth on the device, in classes of the step's names."""
        if not self.training:
            yield batched_inputs
            return
        language, inputs = self.backbone.language, [_ground_truth_on(self.device, x) for x in batched_inputs]
        if not language.reads_some_names:
            yield inputs
            return
        self.check_takes_names()
        targets = [self._classes_of(x).flatten() for x in batched_inputs]  # as loaded: not on a GPU
        classes = torch.cat(targets).cpu()
        try:
            with language.names_of_step(classes[classes != self._ignore_value]) as step:
                self._tell_heads(step.weights)
                yield [self._remapped(x, step.column) for x in inputs]
        finally:
            self._tell_heads()

    @property
    def _by_label(self) -> bool:
        return self.num_classes_key == "SEM_SEG_HEAD"

    @property
    def _ignore_value(self) -> int:
        """The label of pixels that do not count; objects have no such class."""
        return self.get_submodule("sem_seg_head").ignore_value if self._by_label else -1  # type: ignore

    def _classes_of(self, x: dict) -> Tensor:
        return x["sem_seg"] if self._by_label else x["instances"].gt_classes

    def _remapped(self, x: dict, column: Tensor) -> dict:
        """Return an input whose class ids are the numbers of other names."""
        classes = self._classes_of(x)
        known = column[classes.clamp(0, len(column) - 1)]
        if self._by_label:
            return {**x, "sem_seg": known.where(classes != self._ignore_value, classes)}
        instances = Instances(x["instances"].image_size, **x["instances"].get_fields())
        instances.gt_classes = known
        return {**x, "instances": instances}

    def _pixel_text_loss(self, scores: Tensor, batched_inputs: list[dict]) -> dict[str, Tensor]:
        step = self.backbone.language.step_names
        if step and (self._by_label or self.pixel_text_kind == "softmax"):
            scores = sampled_softmax_logits(scores, step.weights, self.backbone.tau)
        loss = (self._label_map_loss if self._by_label else self._instances_loss)(scores, batched_inputs)
        return {"loss_pixel_text": self.pixel_text_weight * loss}

    def _instances_loss(self, scores: Tensor, batched_inputs: list[dict]) -> Tensor:
        instances = [x["instances"] for x in batched_inputs]
        loss = pixel_text_softmax_loss if self.pixel_text_kind == "softmax" else pixel_text_loss
        shapes, classes = [self._shapes(x) for x in instances], [x.gt_classes for x in instances]
        return loss(scores, shapes, classes, self.backbone.score_map_stride, self.backbone.tau, self.kernels)

    def _shapes(self, instances: Instances) -> Boxes | PolygonMasks | BitMasks:
        if self.pixel_text_target == "box":
            return instances.gt_boxes
        if instances.has("gt_masks"):
            return instances.gt_masks
        if len(instances):
            raise ValueError(
                "The pixel-text loss has the target 'mask', and annotations have no segmentation. Set "
                "MODEL.DENSECLIP.LOSS_TARGET to 'box'."
            )
        return PolygonMasks([])  # images without objects have no gt_masks

    def _label_map_loss(self, scores: Tensor, batched_inputs: list[dict]) -> Tensor:
        # Meta-architectures pad images in different ways; the score map has the padded size.
        height, width = (side * self.backbone.score_map_stride for side in scores.shape[2:])
        labels = [x["sem_seg"] for x in batched_inputs]
        beyond = [(0, width - y.shape[1], 0, height - y.shape[0]) for y in labels]
        padded = [F.pad(y, sides, value=self._ignore_value) for y, sides in zip(labels, beyond, strict=True)]
        logits = scores.float() / self.backbone.tau
        return label_map_loss(logits, torch.stack(padded), self._ignore_value, self.kernels)


def language_guided(meta_arch: type[nn.Module], section: str) -> type[PixelTextSupervision]:
    """Return a meta-architecture with the pixel-text loss, as a class named "DenseCLIP" and its name.

    ``META_ARCH_REGISTRY.register(language_guided(MySystem, "MY_SYSTEM"))`` lets a config name it.

    Args:
        meta_arch: built from a config by ``from_config`` or by ``__init__(cfg)``, with a ``backbone``. In
            training it takes Detectron2's list of dicts and returns losses by name.
        section: see :attr:`PixelTextSupervision.num_classes_key`.
    """
    bases = (PixelTextSupervision, meta_arch)
    return type(f"DenseCLIP{meta_arch.__name__}", bases, {"num_classes_key": section})


def _check_classes(cfg: CfgNode, section: str, backbone: object) -> None:
    names, num_classes = cfg.MODEL.DENSECLIP.CLASS_NAMES, cfg.MODEL[section].NUM_CLASSES
    if isinstance(backbone, LanguageGuidedFeatures):
        names = backbone.language.class_names  # of the dataset, if the config has none
        stuff, labels = backbone.language.stuff_names, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if stuff and section != "SEM_SEG_HEAD" and len(stuff) != labels - 1:
            raise ValueError(
                f"{len(stuff)} names of stuff for MODEL.SEM_SEG_HEAD.NUM_CLASSES = {labels}. Set NUM_CLASSES "
                f"to {len(stuff) + 1}, with the label of all things, or change MODEL.DENSECLIP.STUFF_NAMES."
            )
    if names and len(names) != num_classes:
        raise ValueError(
            f"{len(names)} class names for MODEL.{section}.NUM_CLASSES = {num_classes}. Set NUM_CLASSES to "
            "the number of classes of the dataset or the weights. Give MODEL.DENSECLIP.CLASS_NAMES one name "
            "per class, or leave it empty to take the names of the dataset."
        )
    if cfg.MODEL.DENSECLIP.LOSS_TARGET == "mask" and not cfg.MODEL.MASK_ON:
        raise ValueError(
            "MODEL.DENSECLIP.LOSS_TARGET is 'mask', which needs MODEL.MASK_ON True. For a dataset without "
            "masks, set LOSS_TARGET to 'box'."
        )


def _ground_truth_on(device: torch.device, x: dict) -> dict:
    return {key: value.to(device) if key in ("instances", "sem_seg") else value for key, value in x.items()}
