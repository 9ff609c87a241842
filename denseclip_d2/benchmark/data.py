"""Training images before they reach a model: how fast they are read, and how long the first is waited for."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.env import seed_all_rng
from PIL import Image

from ..engine import Trainer
from .detectors import OBJECTS, class_names
from .measure import Row, compare
from .settings import Settings, with_value

SIZE = (640, 480)
"""Width and height of simulated images."""


def loader(settings: Settings) -> Iterator[list[Row]]:
    """Reading and augmenting a batch of ``DATASETS.TRAIN`` in one process, against Detectron2's own."""
    cfg, steps = with_value(settings.cfg, "DATALOADER.NUM_WORKERS", 0), {}
    loaders = {"Detectron2": build_detection_train_loader, "this project": Trainer.build_train_loader}
    for name, build in loaders.items():
        seed_all_rng(0)  # the same images, in the same order
        steps[name] = partial(next, iter(build(cfg)))
    case = ", ".join(cfg.DATASETS.TRAIN)
    batch = cfg.SOLVER.IMS_PER_BATCH
    yield compare("loader, one worker", case, steps, settings.repeats, torch.device("cpu"), images=batch)


def start(settings: Settings) -> Iterator[list[Row]]:
    """From the command to the first batch, of a simulated dataset of COCO's kind, without reading images."""
    with TemporaryDirectory() as folder:
        name = f"simulated_{settings.images}_{Path(folder).name}"
        file = simulate(Path(folder), settings.images, settings.classes[0])
        register_coco_instances(name, {}, str(file), folder)
        try:
            cfg = with_value(settings.cfg, "DATASETS.TRAIN", (name,))
            unchecked = with_value(cfg, "DATASETS.CHECK_IMAGES", False)
            steps: dict[str, Callable] = {
                "Detectron2": partial(build_detection_train_loader, cfg),
                "this project": partial(Trainer.build_train_loader, cfg),
                "DATASETS.CHECK_IMAGES False": partial(Trainer.build_train_loader, unchecked),
            }
            case = f"{settings.images} images"
            yield compare("start", case, steps, settings.repeats, torch.device("cpu"))
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def simulate(folder: Path, num_images: int, num_classes: int) -> Path:
    """Write a COCO-format file of so many images, which are all the same one.

    Returns: the file's path.
    """
    image = folder / "image.jpg"
    Image.new("RGB", SIZE).save(image)
    rng, numbers = np.random.default_rng(0), count(1)
    images, annotations = [], []
    for i in range(1, num_images + 1):
        (folder / f"{i:012}.jpg").hardlink_to(image)
        images.append({"id": i, "file_name": f"{i:012}.jpg", "width": SIZE[0], "height": SIZE[1]})
        boxes = rng.integers(10, 200, size=(OBJECTS, 4))
        annotations += [
            {"id": next(numbers), "image_id": i, "category_id": 1 + k % num_classes, "iscrowd": 0,
             "bbox": box, "area": box[2] * box[3], "segmentation": [outline]}
            for k, (box, outline) in enumerate(zip(boxes.tolist(), outlines(boxes), strict=True))
        ]  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names(num_classes), start=1)]
    file = folder / "simulated.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8"
    )
    return file


def outlines(boxes: np.ndarray) -> list[list[float]]:
    """Polygons of 20 corners, x and y in turn, on the ellipses in boxes (N, 4): left, top, width, height."""
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    corners = boxes[:, None, :2] + boxes[:, None, 2:] * (1 + circle) / 2  # (N, 20, 2)
    return corners.reshape(len(boxes), -1).round(1).tolist()
