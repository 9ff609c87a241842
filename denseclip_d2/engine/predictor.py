from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_PIL_to_numpy, read_image
from detectron2.engine import DefaultPredictor
from PIL import Image, ImageOps
from torch import Tensor

from .. import model_zoo
from ..builder import build_model_with_weights
from ..config import load_config
from ..data.mapper import ResizeShortestEdge
from ..guidance import LanguageGuidedFeatures, guidance_of, pixel_text_scores
from ..meta_arch import CLIPSemanticFPN
from ..meta_arch.pixel_text import captured_features


class Predictor(DefaultPredictor):
    """Detectron2's ``DefaultPredictor`` with strict loading, and score maps beside the instances."""

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
        return cls(load_config(str(config_file), opts))

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ValueError, FileNotFoundError: see :class:`DenseCLIPCheckpointer`.
        """
        # DefaultPredictor's own would build a model without its norms, layout and strict loading.
        self.cfg = cfg.clone()
        self.model = build_model_with_weights(cfg).eval()
        self.aug = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])

    def __call__(
        self, image: str | Path | Image.Image | np.ndarray, score_maps_of: Sequence[str] = ()
    ) -> dict:
        """
        Args:
            image: a file, a PIL image, or an array (H, W, 3) uint8, BGR as Detectron2's predictor has it.
            score_maps_of: names: of classes, or any words. The text encoder reads other words with the learnt
                contexts, and the image refines them beside the model's classes, whose score maps they do not
                change.
        Returns: the model's output for the image and, if asked for, ``score_maps``: (names, H, W), cosines.
        Raises:
            ValueError: a name that cannot be read, or is no class where text is folded; an array of another
                kind.
        """
        image = _as_bgr(image)
        if isinstance(score_maps_of, str):
            raise ValueError(f"score_maps_of takes a list of names, such as [{score_maps_of!r}].")
        if not score_maps_of:
            return super().__call__(image)
        guided = self._guided_by(score_maps_of)
        with captured_features(guided) as features, captured_features(guided.visual) as seen:
            predictions = super().__call__(image)
            if isinstance(self.model, CLIPSemanticFPN) and self.model.sliding_window:
                with self.model.backbone_alone():  # so far, features are those of the last windows
                    super().__call__(image)
        scores = _score_maps_of(score_maps_of, guided, features["score_map"], seen)
        # The score map covers the padded image: enlarge it to that, cut the padding off, go back to (H, W).
        scores = F.interpolate(scores, scale_factor=guided.score_map_stride, mode="bilinear")
        resized = self.aug.get_transform(image).apply_image(image).shape[:2]
        scores = F.interpolate(scores[..., : resized[0], : resized[1]], image.shape[:2], mode="bilinear")
        return {**predictions, "score_maps": scores[0]}

    @property
    def guidance(self) -> LanguageGuidedFeatures | None:
        """The model's language-guided backbone; None where it has no score map."""
        return guidance_of(self.model)

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


@torch.no_grad()
def _score_maps_of(
    names: Sequence[str], guided: LanguageGuidedFeatures, score_map: Tensor, seen: dict[str, Tensor]
) -> Tensor:
    """(1, n, h, w) score maps of n names; those of classes are the model's own."""
    class_names = guided.language.class_names
    others = list(dict.fromkeys(name for name in names if name not in class_names))
    if others:
        dense = seen["dense_embedding"]
        text = guided.language.embed(others, seen["global_embedding"], dense)
        scores, _ = pixel_text_scores(dense, text, guided.tau, guided.kernels)
        score_map = torch.cat([score_map, scores], dim=1)
    known = [*class_names, *others]
    return score_map[:, [known.index(name) for name in names]]


def _as_bgr(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(str(image), "BGR")
    if isinstance(image, Image.Image):
        return convert_PIL_to_numpy(ImageOps.exif_transpose(image), "BGR")
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"An image array is (H, W, 3) uint8, BGR; this is {image.shape} {image.dtype}.")
    return image
