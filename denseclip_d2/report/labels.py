"""The quality of label maps on a test set, from the files of its evaluation."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_util

from ..data.semantic import read_labels

RESULTS = "sem_seg_predictions.json"


@dataclass(frozen=True)
class Labels:
    """
    Attributes:
        class_names: the K names of the dataset.
        confusions: (K, K) numbers of pixels by true class and predicted class, without ignored pixels.
        quality: by image file, the mean IoU over the classes in the image, and their number. Images of a
            single class are left out, unless there are no others.
    """

    class_names: Sequence[str]
    confusions: np.ndarray
    quality: Mapping[str, tuple[float, int]]

    @property
    def iou(self) -> np.ndarray:
        """(K,) IoU of each class, 0 to 100; NaN for classes without pixels."""
        return 100 * _iou(self.confusions)

    @property
    def accuracy(self) -> np.ndarray:
        """(K,) share of each class's pixels with the right label, 0 to 100."""
        with np.errstate(invalid="ignore"):
            return 100 * self.confusions.diagonal() / self.confusions.sum(1)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of Detectron2's ``SemSegEvaluator``."""
        right, pixels = self.confusions.trace(), max(self.confusions.sum(), 1)
        return {
            "sem_seg/mIoU": float(np.nanmean(self.iou)),
            "sem_seg/mACC": float(np.nanmean(self.accuracy)),
            "sem_seg/pACC": float(100 * right / pixels),
        }


def read_labeled(name: str, folder: Path) -> Labels:
    """Compare the evaluator's file with the ground truth.

    Args:
        name: of a registered test set.
        folder: of the evaluator's file.

    Raises:
        FileNotFoundError: the results or the ground truth do not exist.
        ValueError: a file cannot be read, for example while it is written.
    """
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("stuff_dataset_id_to_contiguous_id", {})
    count = len(metadata.stuff_classes)
    segments = defaultdict(list)
    for segment in json.loads((folder / RESULTS).read_bytes()):
        segments[segment["file_name"]].append(segment)
    records = {record["file_name"]: record for record in DatasetCatalog.get(name)}
    of_records, of_segments = _below_their_folder(records), _below_their_folder(segments)
    confusions, quality = np.zeros((count, count), dtype=int), {}
    for place in of_records.keys() & of_segments.keys():
        record = records[of_records[place]]
        truth = read_labels(record["sem_seg_file_name"]).astype(int)
        found = np.full_like(truth, count)
        for segment in segments[of_segments[place]]:
            category = segment["category_id"]
            found[mask_util.decode(segment["segmentation"]) > 0] = classes.get(category, category)
        known = (truth != metadata.ignore_label) & (found < count)
        pairs = np.bincount(count * truth[known] + found[known], minlength=count**2)
        of_image = pairs.reshape(count, count)
        confusions += of_image
        if of_image.any():
            present = int(of_image.any(1).sum())
            quality[record["file_name"]] = float(np.nanmean(_iou(of_image))), present
    several = {image: value for image, value in quality.items() if value[1] > 1}
    return Labels(metadata.stuff_classes, confusions, several or quality)


def _below_their_folder(files: Iterable[str]) -> dict[str, str]:
    """Return the files by their paths in their common folder, which may have been renamed."""
    root = commonpath([Path(file).parent for file in files])
    return {str(Path(file).relative_to(root)): file for file in files}


def _iou(confusions: np.ndarray) -> np.ndarray:
    """Return (K,) IoU from 0 to 1; NaN for classes without pixels."""
    right, true, found = confusions.diagonal(), confusions.sum(1), confusions.sum(0)
    with np.errstate(invalid="ignore"):
        return np.where(true > 0, right / (true + found - right), np.nan)
