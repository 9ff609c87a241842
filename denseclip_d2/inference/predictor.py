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
from ..builder import build_model_with_weights, class_names_of, inference_precision, optimize_for_inference
from ..config import prepare_run
from ..data.image_io import convert_bgr, read_image, to_bgr
from ..data.mapper import ResizeShortestEdge
from ..data.tasks import takes_any_names
from ..guidance import LanguageGuidedFeatures, guidance_of
from ..language.prompts import check_class_names
from ..meta_arch import SlidingWindowSegmentor
from ..meta_arch.pixel_text import PixelTextSupervision, captured_features
from ..meta_arch.preprocess import seen_by_backbone

logger = logging.getLogger(__name__)

ImageInput = str | Path | Image.Image | np.ndarray
"""A file, a PIL image, or an array (H, W, 3) uint8, BGR as for Detectron2's predictor."""


class Predictor(DefaultPredictor):
    """Detectron2's ``DefaultPredictor`` with strict loading, batches, score maps and names at test time.

    Attributes:
        batch_size: the batch size for images of the same size after resizing. It is halved if memory is too
            small.
    """

    batch_size: int

    @classmethod
    def from_zoo(cls, name: str) -> "Predictor":
        """Load a model of the zoo by its config's name, such as "Shapes/denseclip_retinanet_tiny.yaml".

        Raises:
            ValueError, FileNotFoundError: see :func:`denseclip_d2.model_zoo.get_config`.
        """
        return cls(model_zoo.get_config(name, trained=True))

    @classmethod
    def from_files(cls, config_file: str, weights: str = "") -> "Predictor":
        """Load from a config file and weights, or from exported weights, whose header has a config."""
        opts = ["MODEL.WEIGHTS", str(weights)] if weights else []
        return cls(prepare_run(str(config_file), opts).cfg)

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ValueError, FileNotFoundError: see :class:`DenseCLIPCheckpointer`.
        """
        # DefaultPredictor.__init__ would build a model with other norms and without strict loading.
        self.cfg = cfg.clone()
        self.model = optimize_for_inference(cfg, build_model_with_weights(cfg))
        self.aug = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        self.batch_size = 1 if cfg.MODEL.DEVICE == "cpu" else 8  # one image occupies a CPU
        self._text: dict[str, Tensor] = {}  # embeddings of names that were read
        # Names of things and of stuff that the model was trained on, while others are set.
        self._trained_names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])

    @property
    def takes_names(self) -> bool:
        """Whether :meth:`set_names` can set other names than the model was trained on."""
        guided = self.guidance
        return takes_any_names(self.cfg) and guided is not None and not guided.language.precomputed

    def set_names(self, names: Sequence[str], *, background: bool = False, stuff: Sequence[str] = ()) -> None:
        """Find these classes from the next call on, of any number. Each name is encoded once and kept.

        Args:
            names: such as "garden gnome"; synonyms, such as "sofa|couch", share a class. Empty: the names
                that the model was trained on.
            background: append the learned name that the model was trained on, such as "background", if any:
                a segmentor gives every pixel one of the names.
            stuff: names of the stuff that a panoptic model labels, such as "sky". Empty: those that the model
                was trained on.

        Raises:
            ValueError: the model finds the classes it was trained on alone, or a name cannot be read.
        """
        if isinstance(names, str):
            raise ValueError(f"names takes a list of names, such as [{names!r}].")
        language = self.guidance.language if self.guidance else None
        own = self.class_names, language.stuff_names if language else ()
        self._trained_names = self._trained_names or own
        trained, trained_stuff = self._trained_names
        names, stuff = tuple(names) or trained, tuple(stuff) or trained_stuff
        learned = language.learned if language else None
        if background and learned and learned.name in trained and learned.name not in names:
            names = (*names, learned.name)
        if (names, stuff) == own:
            return
        if not isinstance(self.model, PixelTextSupervision):
            raise ValueError("This model has no language, and finds the classes it was trained on alone.")
        self.model.check_takes_names()
        language, read = self.model.backbone.language, (*names, *stuff)
        check_class_names(read)
        if language.mode == "pre":  # the text depends on the image
            self.model.set_class_names(names, stuff_names=stuff)
            return
        if unread := [name for name in read if name not in self._text]:
            self._text.update(zip(unread, language.encode_names(unread, language.contexts)[0], strict=True))
        self.model.set_class_names(names, torch.stack([self._text[name] for name in read]), stuff_names=stuff)

    @overload
    def __call__(
        self, image: ImageInput, score_map_names: Sequence[str] = ..., *, names: Sequence[str] | None = ...
    ) -> dict: ...
    @overload
    def __call__(
        self, image: list | tuple, score_map_names: Sequence[str] = ..., *, names: Sequence[str] | None = ...
    ) -> list[dict]: ...
    @overload
    def __call__(
        self, image: Iterator, score_map_names: Sequence[str] = ..., *, names: Sequence[str] | None = ...
    ) -> Iterator[dict]: ...

    def __call__(self, image, score_map_names=(), *, names=None):
        """
        Args:
            image: a :data:`ImageInput`, a list of them, or a generator of them, which may be infinite.
            names: classes to find, as of :meth:`set_names`, from this call on; None: those of the model.
            score_map_names: names of classes, or any words (:meth:`LanguageGuidedFeatures.score_maps`).
        Returns: the model's output for the image and, for names, ``score_maps``: (names, H, W), cosines. A
            list of outputs for a list, a generator for a generator.
        Raises:
            FileNotFoundError, ValueError: a file that does not exist or cannot be read; an array of another
                kind; a name that cannot be read, or that is no class of a model without a text encoder.
        """
        if names is not None:
            self.set_names(names)
        if isinstance(image, Iterator):
            return self.stream(image, score_map_names)
        if isinstance(image, list | tuple):
            return list(self.stream(image, score_map_names))
        return next(self.stream([image], score_map_names))

    def stream(
        self,
        images: Iterable[ImageInput | tuple[ImageInput, Sequence[str]]],
        score_map_names: Sequence[str] = (),
        *,
        skip_broken: bool = False,
    ) -> Iterator[dict]:
        """Yield outputs as of :meth:`__call__` for any number of images, in order.

        Args:
            images: read at most :attr:`batch_size` ahead. A pair of an image and names has score maps
                of these names.
            score_map_names: names for images without their own.
            skip_broken: for an unreadable image, log a warning and yield an empty output instead of raising.
        """
        if isinstance(score_map_names, str):
            raise ValueError(f"score_map_names takes a list of names, such as [{score_map_names!r}].")
        waiting = iter(images)
        while chunk := list(islice(waiting, self.batch_size)):
            pairs = [x if isinstance(x, tuple) else (x, score_map_names) for x in chunk]
            inputs = {}
            for i, (image, names) in enumerate(pairs):
                try:
                    inputs[i] = self._input(image), names
                except (ValueError, OSError) as error:
                    if not skip_broken:
                        raise
                    logger.warning("Skipped: %s", error)
            alike = defaultdict(list)  # by size, for padding changes score maps
            for i, (x, _) in inputs.items():
                alike[x["image"].shape].append(i)
            found: dict[int, dict] = {}
            for numbers in alike.values():
                outputs = self._within_memory([inputs[i] for i in numbers])
                found.update(zip(numbers, outputs, strict=True))
            yield from (found.get(i, {}) for i in range(len(chunk)))

    def _input(self, image: ImageInput) -> dict:
        """Return an image as Detectron2's models take it."""
        image = _as_bgr(image)
        resize = self.aug.get_transform(image).apply_image
        if self.input_format in ("RGB", "BGR"):
            resized = convert_bgr(resize(image), self.input_format)
        else:  # as in evaluation: other formats are not bytes of three channels, which are resized otherwise
            resized = resize(convert_bgr(image, self.input_format))
        pixels = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}

    def _within_memory(self, inputs: Sequence[tuple[dict, Sequence[str]]]) -> list[dict]:
        """Predict inputs with their names, in halves if memory is too small."""
        try:
            return self._predict(inputs)
        except (torch.OutOfMemoryError, MemoryError):
            if len(inputs) == 1:
                raise
        # After the except block, for the error keeps the memory.
        torch.cuda.empty_cache()
        half = len(inputs) // 2
        self.batch_size = min(self.batch_size, max(half, 1))
        logger.warning("Memory is too small for batches of %d images; now %d.", len(inputs), half)
        return self._within_memory(inputs[:half]) + self._within_memory(inputs[half:])

    @torch.no_grad()
    def _predict(self, inputs: Sequence[tuple[dict, Sequence[str]]]) -> list[dict]:
        images, names = map(list, zip(*inputs, strict=True))
        asked = list(dict.fromkeys(chain.from_iterable(names)))
        if not asked:
            return self._outputs(images)
        guided = self._guided_by(asked)
        if isinstance(self.model, SlidingWindowSegmentor) and self.model.sliding_window:
            predictions = self._outputs(images)
            features = guided(seen_by_backbone(self.model, images))  # of whole images, not of windows
        else:  # one forward pass for both
            with captured_features(guided) as features:
                predictions = self._outputs(images)
        scores = guided.score_maps(features, asked)
        for own, image, prediction, maps in zip(names, images, predictions, scores, strict=True):
            if own:
                maps = maps[[asked.index(name) for name in own]]
                prediction["score_maps"] = _enlarged(maps, guided.score_map_stride, image)
        return predictions

    def _outputs(self, images: list[dict]) -> list[dict]:
        with inference_precision(self.cfg):
            return self.model(images)

    @property
    def guidance(self) -> LanguageGuidedFeatures | None:
        """The language-guided backbone; None if the model has no score map."""
        return guidance_of(self.model)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the model's classes, in the order of the class ids: :func:`class_names_of`."""
        return class_names_of(self.model, self.cfg)

    @property
    def tau(self) -> float:
        """The temperature of the score maps; 1 if the model has none."""
        return self.guidance.tau if self.guidance else 1.0

    def _guided_by(self, names: Sequence[str]) -> LanguageGuidedFeatures:
        if self.guidance is None:
            raise ValueError("This model has no score map, for its backbone is not language-guided.")
        language = self.guidance.language
        unknown = [name for name in names if name not in language.class_names]
        if unknown and language.precomputed:
            raise ValueError(
                f"{unknown[0]!r} is not a class. The classes are: {', '.join(language.class_names)}. "
                "Other words need weights with a text encoder; these have precomputed text embeddings."
            )
        return self.guidance


def _enlarged(scores: Tensor, stride: int, image: dict) -> Tensor:
    """Return (n, h, w) score maps of the padded image as (n, H, W) of the original image."""
    height, width = image["image"].shape[1:]
    scores = F.interpolate(scores[None], scale_factor=stride, mode="bilinear")[..., :height, :width]
    return F.interpolate(scores, (image["height"], image["width"]), mode="bilinear")[0]


def _as_bgr(image: ImageInput) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_bgr(image)
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"An image array is (H, W, 3) uint8, BGR, not {image.shape} {image.dtype}.")
    return image
