import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..data.checks import load_datasets
from .check_result import CheckResult, judge

DATASETS = tuple(
    f"{name}_{split}"
    for name in (
        "shapes", "shapes_sem_seg", "shapes192", "shapes192_sem_seg", "coco_2017", "lvis_v1",
        "ade20k_sem_seg", "cityscapes_fine_sem_seg", "coco_stuff_sem_seg", "pascal_context_59_sem_seg",
    )
    for split in ("train", "val")
)  # fmt: skip


def check_datasets(names: Sequence[str] | None) -> Iterator[CheckResult]:
    """Check annotations and all images of datasets, as training does.

    Args:
        names: registered datasets that must be present. None checks those of :data:`DATASETS` that are.
    """
    key = "DETECTRON2_DATASETS"
    root, is_set = Path(os.environ.get(key, "datasets")).expanduser(), key in os.environ
    yield judge(
        key, root.is_dir(), f"{root.absolute()}" + ("" if is_set else ", the default")
        + ("" if root.is_dir() else ", does not exist"),
        "wrong" if is_set else "note", "Set it to the folder of your datasets, such as coco/.",
    )  # fmt: skip
    absent = [] if names else [name for name in DATASETS if not _is_here(name)]
    for name in names or [name for name in DATASETS if name not in absent]:
        yield _check_one(name)
    if absent:
        yield CheckResult(
            "datasets", "note", f"not here: {', '.join(absent)}",
            "datasets/README.md says where to put them. `python datasets/prepare_shapes.py` makes shapes.",
        )  # fmt: skip


def _is_here(name: str) -> bool:
    """Return whether there are labels. Images may be another dataset's as well."""
    metadata = MetadataCatalog.get(name)
    labels = (metadata.get(key) for key in ("json_file", "sem_seg_root", "gt_dir"))
    return Path(next(filter(None, labels))).exists()


def _check_one(name: str) -> CheckResult:
    try:
        records = load_datasets([name], filter_empty=False, check_images=True)
    except (ValueError, OSError, ImportError) as error:
        return CheckResult(name, "wrong", str(error))
    return CheckResult(name, "ok", f"{len(records)} images, all whole")
