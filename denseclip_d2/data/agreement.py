"""What the datasets of a config have to have in common, and how they are called in errors."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog


def describe_dataset(name: str) -> str:
    """Return what a person knows a dataset by: own data's source, the annotation file, or else the name."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("source") or metadata.get("json_file") or name


def way_to_as_many_classes(cfg: CfgNode, section: str, kind: str, count: int) -> str:
    """Say what to set where a dataset has ``count`` classes and the model another number.

    Args:
        section: where in ``cfg.MODEL`` the number is.
        kind: of the datasets' metadata, "thing_classes" or "stuff_classes".
    """
    known = {name: MetadataCatalog.get(name).get(kind) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    counts = {name: len(classes) for name, classes in known.items() if classes}
    if {*counts.values()} - {count}:
        listed = ", ".join(f"{describe_dataset(name)} has {number}" for name, number in counts.items())
        return f"Give DATASETS.TRAIN and DATASETS.TEST datasets of the same classes: {listed}."
    names = len(cfg.MODEL.DENSECLIP.CLASS_NAMES)
    also = "" if names in (0, count) else " and MODEL.DENSECLIP.CLASS_NAMES to ()"
    return f"Set MODEL.{section}.NUM_CLASSES to {count}{also}, or give DATASETS other datasets."


def check_ignored(names: Sequence[str], ignore_value: int) -> None:
    """Refuse datasets that do not all ignore the model's label.

    Raises:
        ValueError: they ignore another, or several.
    """
    ignored = {name: MetadataCatalog.get(name).get("ignore_label", ignore_value) for name in names}
    listed = ", ".join(f"{describe_dataset(name)!r} ignores label {label}" for name, label in ignored.items())
    if len({*ignored.values()}) > 1:
        raise ValueError(f"{listed}. Register all with the same ignore_label.")
    if {*ignored.values()} - {ignore_value}:
        label = ignored[names[0]]
        raise ValueError(f"{listed}, MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignore_value}. Set it to {label}.")
