import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from PIL import Image
from torch import Tensor

from .. import model_zoo
from ..builder import build_model_with_weights, class_names_of, make_fast
from ..config import prepare_run
from ..data.mapper import ResizeShortestEdge
from ..data.pictures import as_bgr, ordered, read_picture
from ..guidance import LanguageGuidedFeatures, guidance_of, pixel_text_scores
from ..meta_arch import CLIPSemanticFPN
from ..meta_arch.pixel_text import captured_features

logger = logging.getLogger(__name__)

Picture = str | Path | Image.Image | np.ndarray
"""A file, a PIL image, or an array (H, W, 3) uint8, BGR as Detectron2's predictor has it."""


class Predictor(DefaultPredictor):
    """Detectron2's ``DefaultPredictor`` with strict loading, for many images, and with score maps.

    Attributes:
        at_once: how many images, if they are resized to the same size, go through the model at once. Where
            memory is too short for them it is halved.
    """

    at_once: int

    @classmethod
    def from_zoo(cls, name: str) -> "Predictor":
        """A trained model of the zoo, by its config's name, such as "Shapes/denseclip_retinanet_tiny.yaml".

        Raises:
            ValueError, FileNotFoundError: see :func:`denseclip_d2.model_zoo.get_config`.
        """
        return cls(model_zoo.get_config(name, trained=True))

    @classmethod
    def from_files(cls, config_file: str, weights: str = "") -> "Predictor":
        """A model of a config file and weights; or of exported weights alone, whose header is the config."""
        opts = ["MODEL.WEIGHTS", str(weights)] if weights else []
        return cls(prepare_run(str(config_file), opts).cfg)

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ValueError, FileNotFoundError: see :class:`DenseCLIPCheckpointer`.
        """
        # DefaultPredictor's own would build a model without its norms, layout and strict loading.
        self.cfg = cfg.clone()
        self.model = make_fast(cfg, build_model_with_weights(cfg))
        self.aug = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        self.at_once = 1 if cfg.MODEL.DEVICE == "cpu" else 8  # a processor is busy with one
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])

    @overload
    def __call__(self, image: Picture, score_maps_of: Sequence[str] = ...) -> dict: ...
    @overload
    def __call__(self, image: list | tuple, score_maps_of: Sequence[str] = ...) -> list[dict]: ...
    @overload
    def __call__(self, image: Iterator, score_maps_of: Sequence[str] = ...) -> Iterator[dict]: ...

    def __call__(self, image, score_maps_of=()):
        """
        Args:
            image: a :data:`Picture`; a list of them; a generator of them, which need not end.
            score_maps_of: names: of classes, or any words. The text encoder reads other words with the
                learned contexts, and the image refines them beside the model's classes, whose score maps they
                do not change.
        Returns: the model's output for the image and, if asked for, ``score_maps``: (names, H, W), cosines.
            Of a list, a list; of a generator, a generator.
        Raises:
            FileNotFoundError, ValueError: a file that is not there, or cannot be read; a name that cannot be
                read, or is no class where text is folded; an array of another kind.
        """
        if isinstance(image, Iterator):
            return self.stream(image, score_maps_of)
        if isinstance(image, list | tuple):
            return list(self.stream(image, score_maps_of))
        return next(self.stream([image], score_maps_of))

    def stream(
        self,
        images: Iterable[Picture | tuple[Picture, Sequence[str]]],
        score_maps_of: Sequence[str] = (),
        *,
        skip_broken: bool = False,
    ) -> Iterator[dict]:
        """Outputs for any number of images, in their order, as :meth:`__call__` has them for one.

        Args:
            images: read as they are needed, :attr:`at_once` ahead at most; an image in a pair with names has
                score maps of these.
            score_maps_of: names, for images without their own.
            skip_broken: of an image that is not there or cannot be read, give an empty output, and a warning
                that names it, instead of raising.
        """
        if isinstance(score_maps_of, str):
            raise ValueError(f"score_maps_of takes a list of names, such as [{score_maps_of!r}].")
        waiting = iter(images)
        while chunk := list(islice(waiting, self.at_once)):
            pairs = [x if isinstance(x, tuple) else (x, score_maps_of) for x in chunk]
            inputs = {}
            for i, (image, names) in enumerate(pairs):
                try:
                    inputs[i] = self._input(image), names
                except (ValueError, OSError) as error:
                    if not skip_broken:
                        raise
                    logger.warning("Skipped: %s", error)
            alike = defaultdict(list)  # padding one to the size of another would change what CLIP sees
            for i, (x, _) in inputs.items():
                alike[x["image"].shape].append(i)
            found: dict[int, dict] = {}
            for numbers in alike.values():
                outputs = self._within_memory([inputs[i] for i in numbers])
                found.update(zip(numbers, outputs, strict=True))
            yield from (found.get(i, {}) for i in range(len(chunk)))

    def _input(self, image: Picture) -> dict:
        """A picture as Detectron2's models take it."""
        image = _as_bgr(image)
        resize = self.aug.get_transform(image).apply_image
        if self.input_format in ("RGB", "BGR"):
            resized = ordered(resize(image), self.input_format)
        else:  # as in training; of other values than bytes another resizing is made
            resized = resize(ordered(image, self.input_format))
        pixels = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}

    def _within_memory(self, inputs: Sequence[tuple[dict, Sequence[str]]]) -> list[dict]:
        """Outputs for inputs with their names, by halves where memory is too short for all at once."""
        try:
            return self._predict(inputs)
        except (torch.OutOfMemoryError, MemoryError):
            if len(inputs) == 1:
                raise
        # Here, for the error holds on to what is in memory.
        torch.cuda.empty_cache()
        half = len(inputs) // 2
        self.at_once = min(self.at_once, max(half, 1))
        logger.warning("Memory is too short for %d images at once: %d from here on.", len(inputs), half)
        return self._within_memory(inputs[:half]) + self._within_memory(inputs[half:])

    @torch.no_grad()
    def _predict(self, inputs: Sequence[tuple[dict, Sequence[str]]]) -> list[dict]:
        images, names = zip(*inputs, strict=True)
        asked = list(dict.fromkeys(chain.from_iterable(names)))
        if not asked:
            return self.model(list(images))
        guided = self._guided_by(asked)
        with captured_features(guided) as features, captured_features(guided.visual) as seen:
            predictions = self.model(list(images))
            if isinstance(self.model, CLIPSemanticFPN) and self.model.sliding_window:
                with self.model.backbone_alone():  # so far, features are those of the last windows
                    self.model(list(images))
        scores = _score_maps_of(asked, guided, features["score_map"], seen)
        for own, image, prediction, maps in zip(names, images, predictions, scores, strict=True):
            if own:
                maps = maps[[asked.index(name) for name in own]]
                prediction["score_maps"] = _enlarged(maps, guided.score_map_stride, image)
        return predictions

    @property
    def guidance(self) -> LanguageGuidedFeatures | None:
        """The model's language-guided backbone; None where it has no score map."""
        return guidance_of(self.model)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the model's classes, in the order of the class ids: :func:`class_names_of`."""
        return class_names_of(self.model, self.cfg)

    @property
    def tau(self) -> float:
        """The temperature of its score maps; 1 where it has none."""
        return self.guidance.tau if self.guidance else 1.0

    def _guided_by(self, names: Sequence[str]) -> LanguageGuidedFeatures:
        if self.guidance is None:
            raise ValueError("This model has no score map: its backbone is not language-guided.")
        language = self.guidance.language
        unknown = [name for name in names if name not in language.class_names]
        if unknown and language.folded:
            raise ValueError(
                f"No class {unknown[0]!r}; the classes are: {', '.join(language.class_names)}. "
                "Other words need weights with a text encoder, and the text of these is folded."
            )
        return self.guidance


def _score_maps_of(
    names: Sequence[str], guided: LanguageGuidedFeatures, score_map: Tensor, seen: dict[str, Tensor]
) -> Tensor:
    """(B, n, h, w) score maps of n names; those of classes are the model's own."""
    class_names = guided.language.class_names
    others = list(dict.fromkeys(name for name in names if name not in class_names))
    if others:
        dense = seen["dense_embedding"]
        text = guided.language.embed(others, seen["global_embedding"], dense)
        scores, _ = pixel_text_scores(dense, text, guided.tau, guided.kernels)
        score_map = torch.cat([score_map, scores], dim=1)
    known = [*class_names, *others]
    return score_map[:, [known.index(name) for name in names]]


def _enlarged(scores: Tensor, stride: int, image: dict) -> Tensor:
    """(n, h, w) score maps of an input, which cover the padded image, as (n, H, W), without the padding."""
    height, width = image["image"].shape[1:]
    scores = F.interpolate(scores[None], scale_factor=stride, mode="bilinear")[..., :height, :width]
    return F.interpolate(scores, (image["height"], image["width"]), mode="bilinear")[0]


def _as_bgr(image: Picture) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_picture(image)
    if isinstance(image, Image.Image):
        return as_bgr(image)
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"An image array is (H, W, 3) uint8, BGR; this is {image.shape} {image.dtype}.")
    return image
