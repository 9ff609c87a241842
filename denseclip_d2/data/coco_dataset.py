"""Hold a normalized dataset in COCO's format, and return it in Detectron2's."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count
from pathlib import Path

from detectron2.structures import BoxMode

from .coco_annotation import Changes
from .coco_json import without_garbage_collection
from .coco_masks import encode
from .coco_source import CocoSource, listed

logger = logging.getLogger(__name__)

Id = int | str


@dataclass(frozen=True)
class CocoDataset:
    """A dataset in COCO's format, normalized.

    The ids of images and categories are those of the file, all of one type.

    Attributes:
        source: where the data come from.
        images, annotations, categories: COCO's lists. Images and categories are in the order of their ids if
            these are numbers, else in the file's. ``bbox``, ``area``, ``iscrowd`` and the ids are always
            there; ``segmentation`` is there if the mask is valid.
        paths: the file of each image, by image id.
        changes: the differences from the file.
        is_part: whether images of the file are left out.
    """

    source: CocoSource
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]
    paths: dict[Id, Path]
    changes: Changes = field(default_factory=Changes)
    is_part: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(category["name"] for category in self.categories)

    @property
    def class_of(self) -> dict[Id, int]:
        """Return the index of each class, by category id."""
        return {category["id"]: i for i, category in enumerate(self.categories)}

    def content(self) -> dict:
        """Return the content of a COCO file of this dataset."""
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}

    def key_of(self, image: dict) -> str:
        """Return the path of an image, relative to the folder of images if the image is in it."""
        path = self.paths[image["id"]]
        root = self.source.image_root
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    def part(self, holds: Callable[[str], bool]) -> "CocoDataset":
        """Return the images whose :meth:`key_of` the part holds."""
        images = [image for image in self.images if holds(self.key_of(image))]
        ids = {image["id"] for image in images}
        annotations = [a for a in self.annotations if a["image_id"] in ids]
        return replace(self, images=images, annotations=annotations, is_part=True)

    def with_classes(self, class_names: Sequence[str], description: str) -> "CocoDataset":
        """Return the dataset with the classes of the training data, matched by name.

        A category keeps its id. A class without a category gets one with a free id.

        Args:
            class_names, description: of the training data.

        Raises:
            ValueError: there are objects of a category that the training data do not have; two categories
                have the same name.
        """
        if self.class_names == tuple(class_names):
            return self
        by_name = {category["name"]: category for category in self.categories}
        for names, whose in ((self.class_names, self.source.description), (class_names, description)):
            if twice := [name for name, times in Counter(names).items() if times > 1]:
                raise ValueError(
                    f"{whose} has several categories with the name {twice[0]!r}, and the classes of both "
                    "files are matched by name. Make them one category."
                )
        used = {annotation["category_id"] for annotation in self.annotations}
        if unknown := [name for name, c in by_name.items() if name not in class_names and c["id"] in used]:
            raise ValueError(
                f"{self.source.description} has objects of {listed([*map(repr, unknown)], 3)}, which are not "
                f"among the categories of {description}: {listed([*map(repr, class_names)])}. Give the "
                "categories the same names in both, or remove these objects."
            )
        type_ = type(self.categories[0]["id"])
        free = (id_ for id_ in map(type_, count(1)) if id_ not in self.class_of)
        categories = [by_name.get(name) or {"id": next(free), "name": name} for name in class_names]
        changes = replace(self.changes, first={**self.changes.first})
        changes.add(f"categories differ from those of {description}: matched by name", listed([*by_name], 3))
        return replace(self, categories=categories, changes=changes)

    def records(self) -> list[dict]:
        """Return the images in Detectron2's format, as its ``load_coco_json`` does, and log the changes."""
        if self.changes:
            _log_once(f"{self.source.description} is read with these changes:\n{self.changes}")
        with without_garbage_collection():
            class_of = self.class_of
            by_image: dict[Id, list[dict]] = {image["id"]: [] for image in self.images}
            for annotation in self.annotations:
                instance = {
                    "iscrowd": annotation["iscrowd"],
                    "bbox": annotation["bbox"],
                    "category_id": class_of[annotation["category_id"]],
                    "bbox_mode": BoxMode.XYWH_ABS,
                }
                if mask := annotation.get("segmentation"):
                    # Detectron2 reads polygons and compressed RLEs.
                    instance["segmentation"] = encode(mask, *mask["size"]) if isinstance(mask, dict) else mask
                by_image[annotation["image_id"]].append(instance)
            return [
                {
                    "file_name": str(self.paths[image["id"]]),
                    "height": image["height"],
                    "width": image["width"],
                    "image_id": image["id"],
                    "annotations": by_image[image["id"]],
                }
                for image in self.images
            ]


@lru_cache(maxsize=64)
def _log_once(message: str) -> None:
    """Log a message once in a process, because datasets are loaded several times."""
    logger.info(message)
