from dataclasses import dataclass, field
from pathlib import Path

from detectron2.structures import BoxMode

from .changes import Changes
from .coco_masks import encode
from .coco_source import CocoSource

Id = int | str


@dataclass(frozen=True)
class CocoDataset:
    """A data set in COCO's format, normalized.

    The ids of images and categories are the file's own, and of one type: what is written out has them.

    Attributes:
        source: where the data are from.
        images, annotations, categories: as COCO has them. Images and categories are in the order of their
            ids where these are numbers, else in the file's. ``bbox``, ``area``, ``iscrowd`` and the ids are
            always there, and ``segmentation`` where there is a valid mask.
        paths: of each image's file, by image id.
        changes: what is not as in the file.
        mask_faults: the objects without a valid mask, crowds apart, and why.
    """

    source: CocoSource
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]
    paths: dict[Id, Path]
    changes: Changes = field(default_factory=Changes)
    mask_faults: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(category["name"] for category in self.categories)

    @property
    def class_of(self) -> dict[Id, int]:
        """The index of each class, by category id."""
        return {category["id"]: i for i, category in enumerate(self.categories)}

    def content(self) -> dict:
        """Return the data set as a COCO file has it."""
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}

    def key_of(self, image: dict) -> str:
        """Return the path of an image, from the folder of images where the image is below it."""
        path = self.paths[image["id"]]
        root = self.source.image_root
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    def records(self) -> list[dict]:
        """Return the images in Detectron2's format, as its ``load_coco_json`` does."""
        class_of = self.class_of
        by_image: dict[Id, list[dict]] = {image["id"]: [] for image in self.images}
        for annotation in self.annotations:
            instance = {
                "iscrowd": annotation["iscrowd"],
                "bbox": annotation["bbox"],
                "category_id": class_of[annotation["category_id"]],
                "bbox_mode": BoxMode.XYWH_ABS,
            }
            mask = annotation.get("segmentation")
            image = annotation["image_id"]
            if mask:
                is_runs = isinstance(mask, dict) and isinstance(mask["counts"], list)
                instance["segmentation"] = encode(mask, *mask["size"]) if is_runs else mask
            by_image[image].append(instance)
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
