"""What the web page takes, its models, and what it shows of a picture; it knows nothing of the page."""

import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor

from ..data.pictures import ImageError, as_bgr
from ..data.tasks import finds_masks, is_semantic
from ..inference import Predictor
from ..shapes.scene import draw_scene
from ..shapes.vocabulary import SHAPES
from ..visualization.coco_file import coco_file, ids_of_dataset
from ..visualization.drawing import draw_detections, draw_label_map, draw_legend, draw_score_map
from ..visualization.panels import LEGEND, Panel, strip

# Pillow has others, some of which it gives to other programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

MODELS_KEPT = 2
"""Models in memory."""


@dataclass(frozen=True)
class Limits:
    """What the page takes of anybody.

    Attributes:
        megabytes: of a file.
        megapixels: of a picture, as its header says, before it is decoded.
        side: pixels of the longer side, to which a larger picture is made smaller.
        names: looked for at once.
        name_length: letters of a name.
        queue: requests that wait.
    """

    megabytes: int = 20
    megapixels: int = 50
    side: int = 1280
    names: int = 8
    name_length: int = 60
    queue: int = 50

    def __post_init__(self):
        """
        Raises:
            ValueError: one is below 1.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"The page's limit of {name} is {value}; at least 1 is needed.")


def read_upload(path: str, limits: Limits) -> np.ndarray:
    """A picture that anybody has sent, turned as its camera says, no larger than ``limits.side``.

    Returns: (H, W, 3) uint8, BGR.
    Raises:
        ValueError: it is too large, no picture, or a broken one; in words for who has sent it.
    """
    name, megabytes = Path(path).name, Path(path).stat().st_size / 1e6
    if megabytes > limits.megabytes:
        raise ValueError(f"{name} has {megabytes:.0f} MB; up to {limits.megabytes} are taken.")
    Image.init()
    try:
        with Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as image:
            width, height = image.size
            if width * height <= limits.megapixels * 1e6:
                image.draft(image.mode, (limits.side, limits.side))
                upright = Image.fromarray(as_bgr(image))
                upright.thumbnail((limits.side, limits.side))
                return np.asarray(upright)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has more pixels than are taken: make it smaller.") from error
    except ImageError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # Pillow has many words for a broken file, SyntaxError among them
        taken = f"Taken are {', '.join(FORMATS)}."
        raise ValueError(f"{name} is no picture that can be read, or a broken one. {taken}") from error
    raise ValueError(
        f"{name} has {width} x {height} pixels; up to {limits.megapixels} million are taken: make it smaller."
    )


def names_typed(text: str, class_names: Sequence[str], limits: Limits) -> list[str]:
    """The names between commas, each once; those of classes as the model writes them.

    Raises:
        ValueError: too many, or one that is too long.
    """
    written = {name.lower(): name for name in class_names}
    words = (" ".join(part.split()) for part in text.split(","))
    names = list({word.lower(): written.get(word.lower(), word) for word in words if word}.values())
    if len(names) > limits.names:
        raise ValueError(f"{len(names)} names; up to {limits.names} are looked for at once.")
    for name in names:
        if len(name) > limits.name_length:
            start = f"{name[: limits.name_length]}..."
            raise ValueError(f"The name {start!r} is longer than {limits.name_length} letters.")
    return names


def reads_any_words(predictor: Predictor) -> bool:
    """Whether the model has score maps of other words than its classes'."""
    return predictor.guidance is not None and not predictor.guidance.language.folded


def write_examples(folder: Path, count: int) -> list[tuple[str, list[str]]]:
    """PNGs of the world of "shapes", of no dataset's seed, each with the names of what is in it."""
    found: list[tuple[str, list[str]]] = []
    side, seed = 160, 0
    while len(found) < count:
        rng = np.random.default_rng([len(SHAPES.classes), side, seed])
        instances, image = draw_scene(rng, side, side)
        names = list(dict.fromkeys(SHAPES.class_names[instance.category] for instance in instances))
        if len(names) > 2:
            path = str(folder / f"example_{len(found) + 1}.png")
            image.save(path)
            found.append((path, names))
        seed += 1
    return found


class Models:
    """Models by name, loaded when they are asked for; the last :data:`MODELS_KEPT` stay."""

    def __init__(self, configs: Mapping[str, CfgNode]):
        """
        Args:
            configs: with their weights, by the names to choose them by; the page starts on the first.
        """
        self.configs = configs
        self._kept: OrderedDict[str, Predictor] = OrderedDict()

    def choices(self) -> list[tuple[str, str]]:
        """What to call each, and its name."""
        return [(f"{_kind(cfg)}: {name.removesuffix('.yaml')}", name) for name, cfg in self.configs.items()]

    def get(self, name: str) -> Predictor:
        """
        Raises:
            ValueError, FileNotFoundError: see :class:`DenseCLIPCheckpointer`.
        """
        if name not in self._kept:
            while len(self._kept) >= MODELS_KEPT:
                self._kept.popitem(last=False)
            self._kept[name] = Predictor(self.configs[name])
        self._kept.move_to_end(name)
        return self._kept[name]


class Detections:
    """Boxes, and masks where there are any, to be drawn above one score or another."""

    def __init__(self, instances: Instances):
        self.instances = instances.to("cpu")
        if self.instances.has("pred_masks"):  # packed, eight pixels a byte: they are kept for a while
            packed = np.packbits(self.instances.pred_masks.numpy(), axis=2)
            self.instances.pred_masks = torch.from_numpy(packed)

    def draw(self, image: np.ndarray, class_names: Sequence[str], threshold: float) -> np.ndarray:
        """Over an image (H, W, 3), RGB."""
        shown = self.instances[self.instances.scores >= threshold]
        if shown.has("pred_masks"):
            pixels = np.unpackbits(shown.pred_masks.numpy(), axis=2, count=image.shape[1])
            shown.pred_masks = torch.from_numpy(pixels)
        return draw_detections(image, shown, class_names, threshold)

    def amounts(self, threshold: float) -> dict[int, str]:
        """How many there are of each class, the commonest first."""
        shown = self.instances.pred_classes[self.instances.scores >= threshold]
        classes, counts = (x.tolist() for x in shown.unique(return_counts=True))
        return {c: str(n) for n, c in sorted(zip(counts, classes, strict=True), reverse=True)}


class LabelMap:
    """A class of every pixel, to be drawn where it is surer than one probability or another."""

    def __init__(self, logits: Tensor):
        """
        Args:
            logits: (K, H, W).
        """
        self.num_classes = len(logits)
        self.labels = logits.argmax(0).cpu().numpy().astype(np.int16)
        # By rows: the logits of many classes are large, and need not be there twice.
        sure = [rows.softmax(0).amax(0) for rows in logits.split(64, dim=1)]
        self.probabilities = torch.cat(sure).cpu().numpy()

    def draw(self, image: np.ndarray, class_names: Sequence[str], threshold: float) -> np.ndarray:
        """Over an image (H, W, 3), RGB."""
        return draw_label_map(image, self._shown(threshold), self.num_classes)

    def amounts(self, threshold: float) -> dict[int, str]:
        """What part of the picture each class has, the largest first."""
        shown = self._shown(threshold)
        areas = np.bincount(shown.ravel(), minlength=self.num_classes)[: self.num_classes] / shown.size
        largest = areas.argsort()[::-1].tolist()
        return {c: f"{areas[c]:.0%}" if areas[c] >= 0.01 else "under 1%" for c in largest if areas[c]}

    def _shown(self, threshold: float) -> np.ndarray:
        return np.where(self.probabilities >= threshold, self.labels, self.num_classes)


@dataclass(frozen=True, eq=False)
class Look:
    """What a model has seen in a picture: enough to draw it again without the model.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        file_name: of the picture.
        class_names: of the model.
        seen: what it has found.
        heat_maps: pictures, RGB, by name: where it sees each.
        unread: names that it cannot read.
    """

    image: np.ndarray
    file_name: str
    class_names: Sequence[str]
    seen: Detections | LabelMap
    heat_maps: dict[str, np.ndarray]
    unread: Sequence[str]

    @cached_property
    def folder(self) -> Path:
        """Where its files are, while it is there itself."""
        folder = tempfile.mkdtemp(prefix="denseclip_d2_")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    @property
    def detections(self) -> Path:
        """All that the model gives, in COCO's format."""
        return self.folder / "detections.json"

    def draw(self, threshold: float) -> np.ndarray:
        """What scores ``threshold`` or more, over the picture, RGB."""
        return self.seen.draw(_rgb(self.image), self.class_names, threshold)

    def write_picture(self, drawn: np.ndarray, threshold: float) -> Path:
        """A PNG of what :meth:`draw` gives, with the classes of pixels and the heat maps beside it."""
        row = {"found": Panel(drawn)}
        if isinstance(self.seen, LabelMap):
            row[LEGEND] = Panel(draw_legend([*self.seen.amounts(threshold)], self.class_names))
        row |= {name: Panel(heat) for name, heat in self.heat_maps.items()}
        path = self.folder / "picture.png"
        Image.fromarray(strip(row)).save(path)
        return path


def look_at(predictor: Predictor, image: np.ndarray, names: Sequence[str], file_name: str) -> Look:
    """Run a model once over a picture.

    Args:
        image: (H, W, 3) uint8, BGR.
        names: whose score maps to draw; those that the model cannot read are left out, and said.
        file_name: of the picture, for the file of detections.

    Raises:
        ValueError: names that cannot be told apart, or are too long for the text encoder.
    """
    cfg, guidance = predictor.cfg, predictor.guidance
    class_names = predictor.class_names
    known = class_names if guidance else []
    readable = [name for name in names if name in known or reads_any_words(predictor)]
    outputs = predictor(image, score_maps_of=readable)
    heat_maps = {
        name: draw_score_map(_rgb(image), scores.cpu().numpy(), predictor.tau)
        for name, scores in zip(readable, outputs.pop("score_maps", []), strict=True)
    }
    unread = [name for name in names if name not in readable]
    ids = ids_of_dataset(next(iter(cfg.DATASETS.TEST), ""), len(class_names))
    seen = Detections(outputs["instances"]) if "instances" in outputs else LabelMap(outputs["sem_seg"])
    look = Look(image, file_name, class_names, seen, heat_maps, unread)
    with coco_file(look.detections, class_names, ids) as coco:
        coco.add({"file_name": file_name, "height": len(image), "width": image.shape[1]}, outputs)
    return look


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, :, ::-1])


def _kind(cfg: CfgNode) -> str:
    return "Pixels" if is_semantic(cfg) else "Masks" if finds_masks(cfg) else "Boxes"
