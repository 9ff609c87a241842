"""Objects that training leaves out: Detectron2 drops them image by image, without a message."""

from collections import Counter
from collections.abc import Mapping, Sequence

from detectron2.structures import BoxMode


def count_unused(records: Sequence[dict]) -> Counter[str]:
    """Count the objects that a detector does not learn from, by reason.

    Args:
        records: in Detectron2's format.
    """
    reasons = (unused_reason(a, record) for record in records for a in record.get("annotations", ()))
    return Counter(reason for reason in reasons if reason)


def unused_reason(annotation: dict, record: dict) -> str:
    """Return why Detectron2's mapper drops an annotation; an empty string where it is learned from.

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
    """Refuse data sets without an object to learn from.

    Args:
        names: of the data sets, for the message.
        records: the images, in Detectron2's format; where these have label maps alone, nothing is refused.

    Returns: how many objects are left out, by reason.
    Raises:
        ValueError: all objects are left out, or there is none.
    """
    unused = count_unused(records)
    objects = sum(len(record.get("annotations", ())) for record in records)
    if objects == unused.total() and any("annotations" in record for record in records):
        raise ValueError(nothing_to_learn(", ".join(names), objects, unused))
    return unused


def nothing_to_learn(source: str, objects: int, unused: Counter[str]) -> str:
    """Return the message for data without an object to learn from."""
    return (
        f"{source}: there is no object to learn from. Of {objects} annotations, training leaves out "
        f"{in_words(unused)}. Export each object with a box inside its image and iscrowd 0."
    )


def in_words(unused: Mapping[str, int]) -> str:
    """Return the counts as text: "3 crowds (iscrowd 1), 1 boxes without area"."""
    return ", ".join(f"{count} {reason}" for reason, count in unused.items()) or "none"
