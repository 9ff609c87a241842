import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..data.checks import load_datasets
from .finding import Finding

DATASETS = tuple(
    f"{name}_{split}"
    for name in (
        "shapes", "shapes_sem_seg", "shapes192", "shapes192_sem_seg", "coco_2017", "lvis_v1",
        "ade20k_sem_seg", "cityscapes_fine_sem_seg",
    )
    for split in ("train", "val")
)  # fmt: skip


def look_at_datasets(names: Sequence[str] | None) -> Iterator[Finding]:
    """Where datasets are, and whether each is whole, as training sees to it: annotations and all images.

    Args:
        names: of registered datasets, which have to be there; None: :data:`DATASETS`, of which some may be.
    """
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    text = f"{root.absolute()}" + ("" if "DETECTRON2_DATASETS" in os.environ else ", as it is not set")
    if root.is_dir():
        yield Finding("DETECTRON2_DATASETS", "ok", text)
    else:
        yield Finding(
            "DETECTRON2_DATASETS", "wrong" if "DETECTRON2_DATASETS" in os.environ else "note",
            f"{text}: there is no such folder", "Set it to the folder that has coco/, or whatever there is.",
        )  # fmt: skip
    absent = [] if names else [name for name in DATASETS if not _is_here(name)]
    for name in names or [name for name in DATASETS if name not in absent]:
        yield _look_at(name)
    if absent:
        yield Finding(
            "datasets", "note", f"not here: {', '.join(absent)}",
            "To train on one, see datasets/README.md for what to put where; shapes are made by "
            "`python datasets/prepare_shapes.py`.",
        )  # fmt: skip


def _is_here(name: str) -> bool:
    """Whether there are labels: the images may be another dataset's as well."""
    metadata = MetadataCatalog.get(name)
    labels = (metadata.get(key) for key in ("json_file", "sem_seg_root", "gt_dir"))
    return Path(next(filter(None, labels))).exists()


def _look_at(name: str) -> Finding:
    try:
        records = load_datasets([name], filter_empty=False, check_images=True)
    except (ValueError, OSError, ImportError) as error:
        return Finding(name, "wrong", str(error))
    return Finding(name, "ok", f"{len(records)} images, all whole")
