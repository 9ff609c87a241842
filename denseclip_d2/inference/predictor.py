import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, overload

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from torch import Tensor

from .. import model_zoo
from ..builder import build_model_with_weights, class_names_of, inference_precision, optimize_for_inference
from ..config import prepare_run
from ..data.mapper import ResizeShortestEdge
from ..data.tasks import labels_by_score_map, takes_any_names
from ..guidance import LanguageGuidedFeatures, guidance_of
from ..language.prompts import plain_name
from ..meta_arch.pixel_text import PixelTextSupervision
from .images import ImageInput, model_input
from .names import Names, NamesReader, as_list
from .runtime import run_in_runtime
from .score_maps import with_score_maps

logger = logging.getLogger(__name__)

NamesInput = Sequence[str] | Iterable[Sequence[str] | None] | None
"""Names for all images, or names or None for each image; None: those of the model."""


class _Input(NamedTuple):
    """An image as Detectron2's models take it, the names of its score maps, and the names to find."""

    image: dict
    score_map_names: Sequence[str]
    names: Names | None


class Predictor(DefaultPredictor):
    """Detectron2's ``DefaultPredictor`` with strict loading, batches, score maps and names at test time.

    Threads may share a predictor: the model works for one of them at a time.

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

    @classmethod
    def from_clip(
        cls,
        weights: str | Path | Mapping[str, Tensor],
        names: Sequence[str],
        *,
        background: Sequence[str] | float | None = None,
        opts: Sequence = (),
    ) -> "Predictor":
        """Load a CLIP alone, which labels pixels by names without training (MaskCLIP, ECCV 2022).

        Args:
            weights: "openclip://ViT-B-16-quickgelu/openai", a file, "local-dir:" and a folder of open_clip,
                "denseclip://Shapes/clip_tiny", or a state dict.
            names: classes, in any words.
            background: add the class "background": a list of names whose pixels it has, such as ["sky"], or
                the cosine that the classes of other pixels reach, such as 0.2. None: no such class.
            opts: ``KEY VALUE`` pairs over ``configs/WithoutTraining/clip.yaml``.

        Raises:
            ValueError, FileNotFoundError: see :func:`get_clip_config` and :class:`DenseCLIPCheckpointer`.
        """
        names = as_list(names)
        if not isinstance(weights, Mapping):
            return cls(model_zoo.get_clip_config(str(weights), names, background=background, opts=opts))
        with TemporaryDirectory() as folder:
            file = Path(folder, "clip.pth")
            torch.save(dict(weights), file)
            predictor = cls.from_clip(file, names, background=background, opts=opts)
        predictor.cfg.MODEL.WEIGHTS = ""
        return predictor

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ValueError, FileNotFoundError: see :class:`DenseCLIPCheckpointer`.
        """
        # DefaultPredictor.__init__ would build a model with other norms and without strict loading.
        self.cfg = cfg.clone()
        self.model = run_in_runtime(cfg, optimize_for_inference(cfg, build_model_with_weights(cfg)))
        self.aug = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        self.batch_size = 1 if cfg.MODEL.DEVICE == "cpu" else 8  # one image occupies a CPU
        self._names = NamesReader(self.cfg)
        # Names of things and of stuff that the model was trained on, and their text embeddings.
        self._trained = (*self._own_names, self.guidance.language.text_embeddings if self.guidance else None)
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])

    @property
    def takes_names(self) -> bool:
        """Whether :meth:`set_names` can set other names than the model was trained on."""
        guided = self.guidance
        return takes_any_names(self.cfg) and guided is not None and not guided.language.precomputed

    def set_names(self, names: Sequence[str] | None, *, stuff: Sequence[str] | None = None) -> None:
        """Find these classes from now on, of any number. Each name is encoded once and kept.

        Args:
            names: such as "garden gnome"; synonyms, such as "sofa|couch", share a class. None: the names that
                the model was trained on.
            stuff: names of the stuff that a panoptic model labels, such as "sky". None: those that the model
                was trained on.

        Raises:
            ValueError: the model finds the classes it was trained on alone, or a name cannot be read. The
                names are then those of before.
        """
        with self._names.lock:
            trained, trained_stuff, text = self._trained
            own = trained if names is None else as_list(names)
            own_stuff = trained_stuff if stuff is None else as_list(stuff)
            if (own, own_stuff) == self._own_names:
                return
            if (own, own_stuff) != (trained, trained_stuff):
                text = self._names.read(self.model, own, own_stuff)
            assert isinstance(self.model, PixelTextSupervision)
            self.model.set_class_names(own, text, stuff_names=own_stuff)

    @property
    def _own_names(self) -> tuple[Names, Names]:
        """The names that the model has, of things and of stuff; none without language."""
        language = self.guidance.language if self.guidance else None
        return (language.class_names, language.stuff_names) if language else ((), ())

    def with_background(self, names: Sequence[str]) -> list[str]:
        """Return names and the class whose word says nothing, "background", if the model has it.

        A segmentor gives every pixel one of its names.
        """
        found, background = [*as_list(names)], self.cfg.MODEL.DENSECLIP.PROMPT.LEARNED_NAME
        has = plain_name(background) in map(plain_name, found)
        if self.takes_names and background in self._trained[0] and not has:
            found.append(background)
        return found

    @overload
    def __call__(
        self, image: ImageInput, score_map_names: Sequence[str] = ..., *, names: NamesInput = ...
    ) -> dict: ...
    @overload
    def __call__(
        self, image: list | tuple, score_map_names: Sequence[str] = ..., *, names: NamesInput = ...
    ) -> list[dict]: ...
    @overload
    def __call__(
        self, image: Iterator, score_map_names: Sequence[str] = ..., *, names: NamesInput = ...
    ) -> Iterator[dict]: ...

    def __call__(self, image, score_map_names=(), *, names=None):
        """
        Args:
            image: a :data:`ImageInput`, a list of them, or a generator of them, which may be infinite.
            score_map_names: names of classes, or any words (:meth:`LanguageGuidedFeatures.score_maps`).
            names: classes to find in this call, of any number, as of :meth:`set_names`: ["dog", "tree"] in
                all images, or [["dog"], ["cat", "tree"]] in the first and in the second of two images. For a
                generator of images, a generator of such lists. None: the classes of the model.
        Returns: the model's output for the image and, for score_map_names, ``score_maps``: (names, H, W),
            cosines, and ``heat_maps``, probabilities: sigmoid(cosine / tau), or for the classes of a CLIP
            alone the softmax of its labels. A list of outputs for a list, a generator for a generator.
            ``pred_classes`` and the channels of ``sem_seg`` are in the order of ``names``.
        Raises:
            FileNotFoundError, ValueError: a file that does not exist or cannot be read; an array of another
                kind; a name that cannot be read, or that is no class of a model without a text encoder.
        """
        if isinstance(image, Iterator):
            return self.stream(image, score_map_names, names=names)
        if isinstance(image, list | tuple):
            return list(self.stream(image, score_map_names, names=names))
        return next(self.stream([image], score_map_names, names=names))

    def stream(
        self,
        images: Iterable[ImageInput | tuple[ImageInput, Sequence[str]]],
        score_map_names: Sequence[str] = (),
        *,
        names: NamesInput = None,
        skip_broken: bool = False,
    ) -> Iterator[dict]:
        """Return outputs as of :meth:`__call__` for any number of images, in order.

        Args:
            images: read at most :attr:`batch_size` ahead. A pair of an image and names has score maps
                of these names.
            score_map_names: names for images without their own.
            names: as for :meth:`__call__`. Images with other names are not in the same batch.
            skip_broken: for an unreadable image, log a warning and yield an empty output instead of raising.
        """
        if isinstance(score_map_names, str):
            raise ValueError(f"score_map_names takes a list of names, such as [{score_map_names!r}].")
        number = len(images) if isinstance(images, Sized) else None
        own_names = self._names.of_images(self.model, names, number)
        pairs = (x if isinstance(x, tuple) else (x, score_map_names) for x in images)
        return self._stream(pairs, own_names, skip_broken)

    def _stream(self, pairs: Iterator, names: Iterator[Names | None], skip_broken: bool) -> Iterator[dict]:
        while chunk := list(islice(pairs, self.batch_size)):
            chunk_names = list(islice(names, len(chunk)))
            if len(chunk_names) < len(chunk):
                raise ValueError("names ended before the images. Give a list of names for each image.")
            inputs = {}
            for i, ((image, of_maps), own) in enumerate(zip(chunk, chunk_names, strict=True)):
                try:
                    inputs[i] = _Input(model_input(image, self.aug, self.input_format), of_maps, own)
                except (ValueError, OSError) as error:
                    if not skip_broken:
                        raise
                    logger.warning("Skipped: %s", error)
            alike = defaultdict(list)  # by names, and by size, for padding changes score maps
            for i, x in inputs.items():
                alike[x.names, x.image["image"].shape].append(i)
            found: dict[int, dict] = {}
            for numbers in alike.values():
                outputs = self._within_memory([inputs[i] for i in numbers])
                found.update(zip(numbers, outputs, strict=True))
            yield from (found.get(i, {}) for i in range(len(chunk)))

    def _within_memory(self, inputs: Sequence[_Input]) -> list[dict]:
        """Predict inputs of the same names, in halves if memory is too small."""
        try:
            with self._names.given(self.model, inputs[0].names):
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
    def _predict(self, inputs: Sequence[_Input]) -> list[dict]:
        images, names = [x.image for x in inputs], [x.score_map_names for x in inputs]
        predictions = with_score_maps(self.model, self._outputs, images, names)
        for own, prediction in zip(names, predictions, strict=True):
            if own:
                prediction["heat_maps"] = self._heat_maps(prediction, own)
        return predictions

    def _heat_maps(self, prediction: dict, names: Sequence[str]) -> Tensor:
        heat_maps = (prediction["score_maps"] / self.tau).sigmoid()
        if labels_by_score_map(self.cfg) and self.guidance:
            classes = self.guidance.language.class_names
            known = [i for i, name in enumerate(names) if name in classes]
            probabilities = prediction["sem_seg"].softmax(dim=0)
            heat_maps[known] = probabilities[[classes.index(names[i]) for i in known]]
        return heat_maps

    def _outputs(self, images: list[dict]) -> list[dict]:
        with inference_precision(self.cfg):
            return self.model(images)

    @property
    def guidance(self) -> LanguageGuidedFeatures | None:
        """The language-guided backbone; None if the model has no score map."""
        return guidance_of(self.model)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the model's classes, in the order of the class ids: :func:`class_names_of`.

        The names that another thread gives for a call do not show: this property waits for that call.
        """
        with self._names.lock:
            return class_names_of(self.model, self.cfg)

    @property
    def tau(self) -> float:
        """The temperature of the score maps; 1 if the model has none."""
        return self.guidance.tau if self.guidance else 1.0
