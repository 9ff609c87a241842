"""Read COCO files of labeling tools, and normalize what would be read wrongly later."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .coco_annotation import Changes, normalize_annotation
from .coco_dataset import CocoDataset, Id
from .coco_json import CONVERT, nameless_category
from .coco_source import CocoSource
from .image_finder import ImageFinder


def normalize(source: CocoSource, size_of: Callable[[Path], tuple[int, int]]) -> CocoDataset:
    """Normalize a dataset in COCO's format.

    Args:
        size_of: returns the width and height of an image file, for images without them.

    Raises:
        ValueError: the content is not in COCO's format, or is ambiguous, or empty. The message names the
            file, the item and the remedy.
    """
    try:
        return _Normalizer(source, size_of).run()
    except ValueError as error:
        raise ValueError(f"{source.description}: {error}") from error


class _Normalizer:
    def __init__(self, source: CocoSource, size_of: Callable[[Path], tuple[int, int]]):
        self.source, self.size_of = source, size_of
        self.changes = Changes()
        self.paths: dict[Id, Path] = {}

    def run(self) -> CocoDataset:
        given = self._lists()
        categories = self._with_ids(given["categories"], "category")
        if fault := nameless_category(categories):
            raise ValueError(fault)
        categories = self._without_groups(categories, given["annotations"])
        images = self._with_ids(given["images"], "image")
        self._find_images(images)
        for image in images:
            self._set_size(image)
        self._image_of = {image["id"]: image for image in images}
        self._category_of = {category["id"]: category for category in categories}
        lists = {"image_id": self._image_of, "category_id": self._category_of}
        self._keys = {key: {*map(_key, items)} for key, items in lists.items()}
        annotations = [a for a in self._once(given["annotations"]) if self._normalize(a)]
        self._check_fractions(annotations, images)
        self._renumber(annotations)
        return CocoDataset(self.source, images, annotations, categories, self.paths, self.changes)

    def _lists(self) -> dict[str, list[dict]]:
        content, lists = self.source.content, {}
        needed = "this is not in COCO's format, an object with the lists images, annotations and categories"
        if not isinstance(content, dict):
            raise ValueError(f"{needed}: the file holds a {type(content).__name__}. {CONVERT}")
        for key in ("images", "annotations", "categories"):
            items = content.get(key)
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                fault = f"{key!r} is not a list of objects" if items else f"there is no {key!r}"
                raise ValueError(f"{needed}: {fault}. {CONVERT}")
            if not items:
                raise ValueError(f"there are no {key}, and so nothing to learn. {CONVERT}")
            lists[key] = [dict(item) for item in items]
        return lists

    def _with_ids(self, items: list[dict], kind: str) -> list[dict]:
        """Check the ids of images or categories, and return these in the order of their ids."""
        seen: dict[str, dict] = {}
        for item in items:
            key = _key(item.get("id"))
            if not key:
                raise ValueError(
                    f"{kind} {_label(item)} has the id {item.get('id')!r}. Give it a number or a word."
                )
            if key in seen:
                raise ValueError(
                    f"{kind} id {item['id']} is there twice, for {_label(seen[key])} and {_label(item)}: "
                    f"their annotations cannot be told apart. Give each {kind} an id of its own. To join two "
                    "exports, use a tool that renumbers."
                )
            seen[key] = item
            if isinstance(item["id"], float):
                self.changes.add(f"{kind} id was a fraction", _label(item))
                item["id"] = int(item["id"])
        types = {type(item["id"]) for item in items}
        if len(types) > 1:
            raise ValueError(f"some {kind} ids are numbers and some are words. Write all in one way.")
        if types == {int} or all(item["id"].strip().isdecimal() for item in items):
            return sorted(items, key=lambda item: int(item["id"]))
        return items

    def _without_groups(self, categories: list[dict], annotations: list[dict]) -> list[dict]:
        """Leave out categories without objects that only group others, such as the first of Roboflow's."""
        groups = {c.get("supercategory") for c in categories if c.get("supercategory") != c["name"]}
        if not groups & {c["name"] for c in categories}:
            return categories
        used = {_key(annotation.get("category_id")) for annotation in annotations}
        empty = [c for c in categories if c["name"] in groups and _key(c["id"]) not in used]
        for category in empty:
            self.changes.add("category only groups others and has no objects: left out", category["name"])
        return [c for c in categories if c not in empty]

    def _once(self, annotations: list[dict]) -> list[dict]:
        """Leave out exact duplicates of annotations, with the same id."""
        if len({_key(annotation.get("id")) for annotation in annotations}) == len(annotations):
            return annotations
        kept, seen = [], set()
        for annotation in annotations:
            content = json.dumps(annotation, sort_keys=True)
            if "id" in annotation and content in seen:
                self.changes.add("annotation is there twice: left out once", _label(annotation))
            else:
                kept.append(annotation)
            seen.add(content)
        return kept

    def _find_images(self, images: list[dict]) -> None:
        finder = ImageFinder(self.source.image_root)
        owner: dict[Path, Id] = {}
        for image in images:
            name = image.get("file_name")
            if not (isinstance(name, str) and name):
                raise ValueError(f"image {image['id']} has the file_name {name!r}. Write a path.")
            path = finder.find(name)
            if path in owner:
                raise ValueError(
                    f"images {owner[path]} and {image['id']} are both the file {path}. Make them one image "
                    "with one id and the annotations of both."
                )
            owner[path] = image["id"]
            self.paths[image["id"]] = path
            if path != self.source.image_root / name:
                self.changes.add("file_name was another path: found by its end", f"{name} is {path}")

    def _set_size(self, image: dict) -> None:
        try:
            sides = [int(float(image[side])) for side in ("width", "height")]
        except (KeyError, OverflowError, TypeError, ValueError):
            sides = [0, 0]
        if min(sides) <= 0:
            sides = [*self.size_of(self.paths[image["id"]])]
            self.changes.add("width or height was missing: read from the image", _label(image))
        elif any(type(image[side]) is not int for side in ("width", "height")):
            self.changes.add("width or height was no whole number", _label(image))
        image["width"], image["height"] = sides

    def _normalize(self, annotation: dict) -> bool:
        """Normalize an annotation in place. Return False if it has to be left out."""
        image = self._matched(annotation, "image_id", self._image_of)
        if image is None:
            self.changes.add("image_id is of no image: annotation left out", _label(annotation))
            return False
        where = f"annotation {annotation.get('id')} (image {image['file_name']})"
        category = self._matched(annotation, "category_id", self._category_of)
        if category is None:
            raise ValueError(
                f"{where} has the category_id {annotation.get('category_id')!r}, which no category has. "
                "Add the category, or remove the annotation."
            )
        annotation["image_id"], annotation["category_id"] = image["id"], category["id"]
        return normalize_annotation(annotation, image, where, self.changes)

    def _matched(self, annotation: dict, key: str, items: dict[Id, dict]) -> dict | None:
        """Return the image or category that an annotation refers to; None if there is none."""
        try:
            return items[annotation[key]]
        except (KeyError, TypeError):  # it is missing, of no image, or not an id
            id_ = annotation.get(key)
        if _key(id_) in self._keys[key]:
            raise ValueError(
                f"annotation {annotation.get('id')} has the {key} {id_!r}, and the list has this id as "
                f"{'a number' if isinstance(id_, str) else 'a string'}. Write both in one way."
            )
        return None

    def _check_fractions(self, annotations: list[dict], images: list[dict]) -> None:
        """Refuse boxes in fractions of the image, because x and y may be of the corner or the center."""
        boxes = [a["bbox"] for a in annotations]
        if boxes and all(max(box) <= 1 for box in boxes) and any(max(box[2:]) > 0 for box in boxes):
            if max(min(image["width"], image["height"]) for image in images) <= 1:
                return
            raise ValueError(
                f"all {len(boxes)} boxes are between 0 and 1, such as {boxes[0]}: COCO's are in pixels. "
                "Multiply x and width by the image's width, y and height by its height."
            )

    def _renumber(self, annotations: list[dict]) -> None:
        """Give annotations ids that evaluators take: pycocotools ignores an object with the id 0."""
        ids = [annotation.get("id") for annotation in annotations]
        if all(type(id_) is int and 0 < id_ < 2**53 for id_ in ids) and len({*ids}) == len(ids):
            return
        for i, annotation in enumerate(annotations, 1):
            annotation["id"] = i
        self.changes.add("annotation ids were no distinct numbers: renumbered", f"id {ids[0]!r}", len(ids))


def _key(id_: Any) -> str:
    """Return an id as a string, the same for 3, "3" and 3.0; "" if it cannot be an id."""
    if isinstance(id_, float) and id_.is_integer():
        id_ = int(id_)
    if isinstance(id_, bool) or not isinstance(id_, int | str):
        return ""
    return str(id_).strip()


def _label(item: dict) -> str:
    return str(item.get("file_name") or item.get("name") or f"annotation {item.get('id')}")
