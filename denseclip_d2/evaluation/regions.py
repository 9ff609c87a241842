"""The accuracy of names on given objects: by score maps in boxes and masks, and by crops."""

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeTransform
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling.meta_arch import SemanticSegmentor
from detectron2.structures import BoxMode
from detectron2.utils import comm
from PIL import Image
from pycocotools import mask as mask_util
from tabulate import tabulate
from torch import Tensor

from ..data.coco_masks import encode
from ..data.image_io import read_image
from ..meta_arch.preprocess import seen_by_backbone
from ..visual.clip_resnet import undilated

logger = logging.getLogger(__name__)

KINDS = ("box", "mask", "crop")
BATCH = 16
"""Number of crops that are embedded together."""


class RegionEvaluator(DatasetEvaluator):
    """The accuracy of a segmentor of any names on objects whose boxes or masks are given.

    ``box`` and ``mask`` give an object the class of the highest mean of ``sem_seg`` over these pixels, as
    CLIPSelf averages dense embeddings (Wu et al., ICLR 2024). ``crop`` gives an object the class that
    :class:`CropClassifier` finds.
    """

    def __init__(self, dataset_name: str, crops: "CropClassifier | None" = None, min_size: int = 0):
        """
        Args:
            dataset_name: has objects. Crowds are left out.
            crops: classifies crops; None: no metrics of crops.
            min_size: width and height of a box need to be greater, in pixels.
        """
        self._name, self._crops, self._min_size = dataset_name, crops, min_size
        self._classes = MetadataCatalog.get(dataset_name).thing_classes
        self._records = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}
        self.reset()

    def reset(self) -> None:
        # By kind and class: the numbers of right objects and of all.
        self._counts = torch.zeros(len(KINDS), len(self._classes), 2, dtype=torch.long)

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            scores = output["sem_seg"]
            annotations = self._records[given["file_name"]].get("annotations", ())
            kept = [x for x in annotations if not x.get("iscrowd") and min(_sides(x)) > self._min_size]
            objects = [(x, box) for x in kept if (box := _pixels_of(x, *scores.shape[1:]))]
            for annotation, (left, top, right, bottom) in objects:
                self._count("box", annotation, scores[:, top:bottom, left:right].flatten(1))
                if annotation.get("segmentation"):
                    mask = object_mask(annotation, *scores.shape[1:]).to(scores.device)
                    self._count("mask", annotation, scores[:, mask])
            if self._crops and objects:
                cosines = self._crops(given["file_name"], [_corners(annotation) for annotation, _ in objects])
                for (annotation, _), of_crop in zip(objects, cosines, strict=True):
                    self._count("crop", annotation, of_crop[:, None])

    def _count(self, kind: str, annotation: dict, scores: Tensor) -> None:
        """Count an object by its scores (K, pixels)."""
        if scores.shape[1]:
            category = annotation["category_id"]
            right = int(scores.float().mean(dim=1).argmax()) == category
            self._counts[KINDS.index(kind), category] += torch.tensor([right, 1])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return metrics by kind, in percent; a kind without objects is left out.

        "ACC-NAME" is the accuracy of a class, "mACC" its mean over the classes with objects, "top1" the
        accuracy of all objects, and "objects" their number. Only the main process returns them.
        """
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        counts = torch.stack(gathered).sum(dim=0)
        results = {kind: dict(self._metrics(of)) for kind, of in zip(KINDS, counts, strict=True) if of.any()}
        if not results:
            logger.warning("No object of %s has a box above %d pixels.", self._name, self._min_size)
        rows = [
            [name, int(counts[0, i, 1]), *(metrics.get(f"ACC-{name}") for metrics in results.values())]
            for i, name in enumerate(self._classes)
            if counts[0, i, 1]
        ]
        table = tabulate(rows, ["class", "objects", *results], tablefmt="pipe", floatfmt=".1f")
        logger.info("Accuracy of the objects of %s:\n%s", self._name, table)
        return results

    def _metrics(self, counts: Tensor) -> Iterator[tuple[str, float]]:
        right, number = counts.T
        accuracy = 100 * right / number
        yield "mACC", accuracy[number > 0].mean().item()
        yield "top1", 100 * (right.sum() / number.sum()).item()
        yield "objects", int(number.sum())
        yield from ((f"ACC-{self._classes[i]}", accuracy[i].item()) for i in number.nonzero().flatten())


class CropClassifier:
    """Compares the classes of a model with CLIP's global embedding of the square around a box.

    The square has the center and the longer side of the box, and ends at the image's border.
    """

    def __init__(self, model: SemanticSegmentor, size: tuple[int, int], image_format: str):
        """
        Args:
            model: with a language-guided backbone.
            size: height and width of the images that the CLIP was trained on.
            image_format: of the model's images, such as "RGB".
        """
        self._model, self._size, self._format = model, size, image_format

    @torch.no_grad()
    def __call__(self, file_name: str, boxes: Sequence[Sequence[float]]) -> Tensor:
        """Return the cosines (n, K) of n boxes, by their corners XYXY, and the K classes."""
        image = read_image(file_name, self._format)
        crops = [{"image": self._resized(_square_around(image, box))} for box in boxes]
        return torch.cat([self._cosines(crops[i : i + BATCH]) for i in range(0, len(crops), BATCH)])

    def _cosines(self, crops: list[dict]) -> Tensor:
        with undilated(self._model.backbone.visual):
            features = self._model.backbone(seen_by_backbone(self._model, crops))
        image, text = features["global_embedding"].float(), features["text_embeddings"].float()
        return (F.normalize(text, dim=2) @ F.normalize(image, dim=1)[:, :, None]).squeeze(2)

    def _resized(self, crop: np.ndarray) -> Tensor:
        resize = ResizeTransform(*crop.shape[:2], *self._size, Image.Resampling.BICUBIC)
        return torch.as_tensor(np.ascontiguousarray(resize.apply_image(crop).transpose(2, 0, 1)))


def object_mask(annotation: dict, height: int, width: int) -> Tensor:
    """Return the pixels, (height, width), of an object. The box stands for a missing segmentation."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        x0, y0, x1, y1 = _corners(annotation)
        segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    return torch.from_numpy(mask_util.decode(encode(segmentation, height, width))).bool()


def _corners(annotation: dict) -> list[float]:
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _sides(annotation: dict) -> tuple[float, float]:
    x0, y0, x1, y1 = _corners(annotation)
    return x1 - x0, y1 - y0


def _pixels_of(annotation: dict, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Return the corners XYXY of the pixels that a box touches; None if it is outside of the image."""
    x0, y0, x1, y1 = _corners(annotation)
    left, top = max(math.floor(x0), 0), max(math.floor(y0), 0)
    right, bottom = min(math.ceil(x1), width), min(math.ceil(y1), height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _square_around(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0, 1) / 2
    rows, columns = (
        slice(max(min(round(center - half), side - 1), 0), max(round(center + half), 1))
        for center, side in zip(((y0 + y1) / 2, (x0 + x1) / 2), image.shape[:2], strict=True)
    )
    return image[rows, columns]
