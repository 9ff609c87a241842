"""Count the objects that training leaves out, because Detectron2 drops them without a message."""

from collections import Counter
from collections.abc import Mapping, Sequence

from detectron2.structures import BoxMode


def unused_reason(annotation: dict, record: dict) -> str:
    """Return why Detectron2's mapper drops an annotation; an empty string if it is learned from.

    Args:
        annotation, record: an object and its image, in Detectron2's format or COCO's.
    """
    if annotation.get("iscrowd"):
        return "crowds (iscrowd 1)"
    box, mode = annotation["bbox"], annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    if mode != BoxMode.XYWH_ABS:
        box = BoxMode.convert(box, mode, BoxMode.XYWH_ABS)
    x, y, w, h = box[:4]
    if w <= 0 or h <= 0:
        return "boxes without area"
    if x >= record.get("width", x + 1) or y >= record.get("height", y + 1) or x + w <= 0 or y + h <= 0:
        return "boxes outside their image"
    return ""


def check_learnable(names: Sequence[str], records: Sequence[dict]) -> Counter[str]:
    """Check that datasets have an object to learn from. Return the number of unused objects, by reason.

    Args:
        names: of the datasets, for the message.
        records: the images, in Detectron2's format. Images with only label maps pass.

    Raises:
        ValueError: training leaves out all objects, or there is none.
    """
    annotations = [(a, record) for record in records for a in record.get("annotations", ())]
    unused = Counter(filter(None, (unused_reason(*pair) for pair in annotations)))
    if len(annotations) == unused.total() and any("annotations" in record for record in records):
        raise ValueError(no_training_annotations(", ".join(names), len(annotations), unused))
    return unused


def no_training_annotations(source: str, objects: int, unused: Counter[str]) -> str:
    """Return the message for data without an object to learn from."""
    return (
        f"{source}: there is no object to learn from. Of {objects} annotations, training leaves out "
        f"{in_words(unused)}. Export each object with a box inside its image and iscrowd 0."
    )


def in_words(unused: Mapping[str, int]) -> str:
    """Return the counts as text: "3 crowds (iscrowd 1), 1 boxes without area"."""
    return ", ".join(f"{count} {reason}" for reason, count in unused.items()) or "none"
