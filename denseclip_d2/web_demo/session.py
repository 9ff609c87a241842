"""The web page's uploads, models and predictions, without the page itself."""

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor

from ..data.image_io import ImageError, to_bgr
from ..data.tasks import is_semantic, predicts_masks
from ..inference import Predictor
from ..shapes.scene import draw_scene
from ..shapes.vocabulary import SHAPES
from ..visualization.coco_file import coco_file, ids_of_dataset
from ..visualization.drawing import draw_annotations, draw_heat_map, draw_label_map, draw_legend
from ..visualization.panels import LEGEND, Panel, strip

# Pillow reads more formats. It passes some of them to other programs.
UPLOAD_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

PHOTOGRAPHS = {
    "astronaut.jpg": ["space shuttle", "helmet", "flag", "person"],
    "coffee.jpg": ["cup", "spoon", "table", "plate"],
    "cat.jpg": ["cat", "floor", "wall"],
}
"""Names for the photographs beside this module, whose README.md has the licenses."""

MODELS_KEPT = 2
"""Number of models in memory."""


@dataclass(frozen=True)
class Limits:
    """Limits for everybody who uses the page."""

    megabytes: int = 20  # of a file
    megapixels: int = 50  # of an image, from its header, before it is decoded
    side: int = 1280  # pixels of the longer side; larger images are made smaller
    names: int = 8  # in one request
    name_length: int = 60  # characters of a name
    queue: int = 50  # waiting requests

    def __post_init__(self):
        """
        Raises:
            ValueError: a limit is below 1.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"The page's limit of {name} is {value}; it must be at least 1.")


def read_upload(path: str, limits: Limits) -> np.ndarray:
    """Read an uploaded image upright, and shrink it to ``limits.side``.

    Returns: (H, W, 3) uint8, BGR.
    Raises:
        ValueError: the file is too large, no image, or broken. The message is for the person who sent it.
    """
    name, megabytes = Path(path).name, Path(path).stat().st_size / 1e6
    if megabytes > limits.megabytes:
        raise ValueError(f"{name} has {megabytes:.0f} MB. The limit is {limits.megabytes} MB.")
    Image.init()
    try:
        with Image.open(path, formats=[kind for kind in UPLOAD_FORMATS if kind in Image.OPEN]) as image:
            width, height = image.size
            if width * height > limits.megapixels * 1e6:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            image.draft(image.mode, (limits.side, limits.side))
            upright = Image.fromarray(to_bgr(image))
            upright.thumbnail((limits.side, limits.side))
            return np.asarray(upright)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} has too many pixels ({error}). The limit is {limits.megapixels} megapixels."
        ) from error
    except ImageError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # Pillow raises many types for a broken file, including SyntaxError
        formats = ", ".join(UPLOAD_FORMATS)
        raise ValueError(f"{name} is broken, or not an image of these formats: {formats}.") from error


def names_typed(text: str, class_names: Sequence[str], limits: Limits) -> list[str]:
    """Return the different names between commas. Class names get the model's spelling.

    Raises:
        ValueError: there are too many names, or a name is too long.
    """
    written = {name.lower(): name for name in class_names}
    words = (" ".join(part.split()) for part in text.split(","))
    names = list({word.lower(): written.get(word.lower(), word) for word in words if word}.values())
    if len(names) > limits.names:
        raise ValueError(f"{len(names)} names. The limit is {limits.names}.")
    for name in names:
        if len(name) > limits.name_length:
            start = f"{name[: limits.name_length]}..."
            raise ValueError(f"The name {start!r} is longer than {limits.name_length} characters.")
    return names


def reads_any_words(predictor: Predictor) -> bool:
    """Return whether the model has a text encoder, and so score maps of words that are no class."""
    return predictor.guidance is not None and not predictor.guidance.language.precomputed


def can_read(predictor: Predictor, names: Sequence[str]) -> bool:
    """Return whether the model has a score map of each name."""
    guided = predictor.guidance
    if guided is None or guided.language.precomputed:
        return {*names} <= {*predictor.class_names}
    try:
        guided.language.read(names)
    except ValueError:
        return False
    return True


def write_examples(folder: Path, count: int) -> list[tuple[str, list[str]]]:
    """Write images of "shapes" that are in no dataset. Return their paths and the names of their objects."""
    examples: list[tuple[str, list[str]]] = []
    side, seed = 160, 0
    while len(examples) < count:
        rng = np.random.default_rng([len(SHAPES.classes), side, seed])
        instances, image = draw_scene(rng, side, side)
        names = list(dict.fromkeys(SHAPES.class_names[instance.category] for instance in instances))
        if len(names) > 2:
            path = str(folder / f"example_{len(examples) + 1}.png")
            image.save(path)
            examples.append((path, names))
        seed += 1
    return examples


def photographs() -> list[tuple[str, list[str]]]:
    """Return the paths of the photographs in this package, and the names to look for."""
    folder = Path(__file__).with_name("photographs")
    return [(str(folder / file), names) for file, names in PHOTOGRAPHS.items()]


class Models:
    """Models by name, loaded on demand. The last :data:`MODELS_KEPT` used stay in memory."""

    def __init__(self, configs: Mapping[str, CfgNode]):
        """
        Args:
            configs: configs with weights by the models' names. The page starts with the first.
        """
        self.configs = configs
        self._kept: dict[str, Predictor] = {}  # the last used is last

    def choices(self) -> list[tuple[str, str]]:
        """Return the label and the name of each model."""
        return [(f"{_kind(cfg)}: {name.removesuffix('.yaml')}", name) for name, cfg in self.configs.items()]

    def get(self, name: str) -> Predictor:
        """
        Raises:
            ValueError, FileNotFoundError: see :class:`DenseCLIPCheckpointer`.
        """
        predictor = self._kept.pop(name, None)
        while predictor is None and len(self._kept) >= MODELS_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[name] = predictor or Predictor(self.configs[name])
        return self._kept[name]


class DetectionPrediction:
    """Boxes, and masks if the model has them, to draw above any score threshold."""

    def __init__(self, instances: Instances):
        # As COCO annotations, because run lengths of masks take little memory.
        self.annotations = instances_to_coco_json(instances.to("cpu"), 0)

    def draw(self, image: np.ndarray, class_names: Sequence[str], threshold: float) -> np.ndarray:
        """Draw over an image (H, W, 3), RGB."""
        return draw_annotations(image, self._shown(threshold), class_names)

    def amounts(self, threshold: float) -> dict[int, str]:
        """Return the number of detections of each class, the most frequent first."""
        counts = Counter(annotation["category_id"] for annotation in self._shown(threshold))
        return {c: str(count) for c, count in counts.most_common()}

    def _shown(self, threshold: float) -> list[dict]:
        return [annotation for annotation in self.annotations if annotation["score"] >= threshold]


class SegmentationPrediction:
    """The class of every pixel, to draw where its probability is above any threshold."""

    def __init__(self, logits: Tensor):
        """
        Args:
            logits: (K, H, W).
        """
        self.num_classes = len(logits)
        self.labels = logits.argmax(0).cpu().numpy().astype(np.int16)
        # In parts: a copy of the logits of many classes is large.
        probabilities = [rows.softmax(0).amax(0) for rows in logits.split(64, dim=1)]
        self.probabilities = torch.cat(probabilities).cpu().numpy()

    def draw(self, image: np.ndarray, class_names: Sequence[str], threshold: float) -> np.ndarray:
        """Draw over an image (H, W, 3), RGB."""
        return draw_label_map(image, self._shown(threshold), self.num_classes)

    def amounts(self, threshold: float) -> dict[int, str]:
        """Return each class's fraction of the image, the largest first."""
        shown = self._shown(threshold)
        areas = np.bincount(shown.ravel(), minlength=self.num_classes)[: self.num_classes] / shown.size
        largest = areas.argsort()[::-1].tolist()
        return {c: f"{areas[c]:.0%}" if areas[c] >= 0.01 else "under 1%" for c in largest if areas[c]}

    def _shown(self, threshold: float) -> np.ndarray:
        return np.where(self.probabilities >= threshold, self.labels, self.num_classes)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's predictions for an image. They can be drawn again without the model."""

    image: np.ndarray  # (H, W, 3) uint8, BGR
    file_name: str
    class_names: Sequence[str]  # of the model
    seen: DetectionPrediction | SegmentationPrediction
    heat_maps: dict[str, np.ndarray]  # RGB images by name
    unread: Sequence[str]  # names that the model does not know
    folder: Path  # removed with this object

    @property
    def detections(self) -> Path:
        """The COCO file of all predictions."""
        return self.folder / "detections.json"

    def draw(self, threshold: float) -> np.ndarray:
        """Draw the predictions from a threshold on over the image, RGB."""
        return self.seen.draw(_rgb(self.image), self.class_names, threshold)

    def write_image(self, drawn: np.ndarray, threshold: float) -> Path:
        """Write a PNG of :meth:`draw`'s image with the heat maps, and the legend of a label map."""
        row = {"predictions": Panel(drawn)}
        if isinstance(self.seen, SegmentationPrediction):
            row[LEGEND] = Panel(draw_legend([*self.seen.amounts(threshold)], self.class_names))
        row |= {name: Panel(heat) for name, heat in self.heat_maps.items()}
        path = self.folder / "image.png"
        Image.fromarray(strip(row)).save(path)
        return path


def predict(predictor: Predictor, image: np.ndarray, names: Sequence[str], file_name: str) -> Prediction:
    """Run a model once on an image.

    Args:
        image: (H, W, 3) uint8, BGR.
        names: names whose score maps are drawn, if the model knows them. A model that takes any names finds
            these alone.
        file_name: name of the image in the COCO file.

    Raises:
        ValueError: names have the same tokens, or are too long for the text encoder.
    """
    typed = predictor.with_background(names) if names and predictor.takes_names else None
    class_names = typed or predictor.class_names
    known = class_names if predictor.guidance else []
    readable = [name for name in names if name in known or reads_any_words(predictor)]
    outputs = predictor(image, score_map_names=readable, names=typed)
    heat_maps = {
        name: draw_heat_map(_rgb(image), heat.cpu().numpy())
        for name, heat in zip(readable, outputs.pop("heat_maps", []), strict=True)
    }
    unread = [name for name in names if name not in readable]
    seen = (
        DetectionPrediction(outputs["instances"])
        if "instances" in outputs
        else SegmentationPrediction(outputs["sem_seg"])
    )
    folder = Path(tempfile.mkdtemp(prefix="denseclip_d2_"))
    prediction = Prediction(image, file_name, class_names, seen, heat_maps, unread, folder)
    weakref.finalize(prediction, shutil.rmtree, folder, ignore_errors=True)
    ids = ids_of_dataset("" if typed else next(iter(predictor.cfg.DATASETS.TEST), ""), len(class_names))
    with coco_file(prediction.detections, class_names, ids) as add:
        add({"file_name": file_name, "height": len(image), "width": image.shape[1]}, outputs)
    return prediction


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, :, ::-1])


def _kind(cfg: CfgNode) -> str:
    return "Segmentation" if is_semantic(cfg) else "Masks" if predicts_masks(cfg) else "Boxes"
