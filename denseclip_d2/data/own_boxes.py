"""Own data with boxes or masks: COCO files, and the folders that are read as such."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from .coco_part import CocoPart, Summary, read_folder, read_normalized, stamp_of, summarize
from .coco_source import listed
from .own import OwnData, held_out_images, register
from .unused import nothing_to_learn


def own_boxes(
    train: Sequence[str],
    val: Sequence[str] = (),
    *,
    masks: bool,
    filter_empty: bool,
    held_out: float,
    seed: int,
) -> OwnData:
    """Register data with boxes, or boxes and masks.

    Args:
        train, val: a COCO file and the folder that its file names begin from, or one path that
            :func:`read_source` reads. Without ``val``, it is the validation part of ``train``, where there is
            one, or else a part of the training images that is held out.
        masks: whether the model learns masks.
        filter_empty: whether images without boxes are left out of training.
        held_out: that part, below 1; 0 holds nothing out.
        seed: decides which images are held out.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file is not in COCO's format, has nothing to learn from, or lacks masks; ``val`` has a
            class that ``train`` has not; images cannot be shared; a dataset's name is taken.
    """
    whole = CocoPart(tuple(train), "train", stamp_of(train))
    data = summarize(whole)
    _check_learnable(data)
    if masks:
        _check_masks(data)
    name = _register(whole)
    parts = [(name, whole)]
    if not val and "val" in (read_folder(whole.values, whole.stamp) or {}):
        val = train
    if val:
        part = CocoPart(tuple(val), "val", stamp_of(val), whole)
        if masks:
            _check_masks(summarize(part))
        parts.append((_register(part), part))
    elif held_out:
        out = frozenset(held_out_images(data.images, held_out, seed))
        label = f"{100 * held_out:g}_seed{seed}"
        kept = replace(whole, images=frozenset(data.images) - out)
        parts = [(f"{name}_without_{label}", kept), (f"{name}_held_out_{label}", replace(whole, images=out))]
        for part_name, part in parts:
            _register_as(part_name, part)
    used = summarize(parts[0][1]).images
    num_images = sum(learnable or not filter_empty for learnable in used.values())
    read_normalized.cache_clear()  # large files take gigabytes
    return OwnData(parts[0][0], tuple(name for name, _ in parts[1:]), data.class_names, num_images)


def _check_learnable(data: Summary) -> None:
    if data.annotations > data.unused.total():
        return
    changes = f" These were changed on reading:\n{data.changes}" if data.changes else ""
    raise ValueError(nothing_to_learn(data.description, data.annotations, data.unused) + changes)


def _check_masks(data: Summary) -> None:
    if not data.mask_faults:
        return
    raise ValueError(
        f"MODEL.MASK_ON needs masks, and {len(data.mask_faults)} of the {data.annotations} annotations in "
        f"{data.description} have no valid mask: {listed(data.mask_faults, 3)}. Set MODEL.MASK_ON False, "
        "to find boxes alone, or take a RetinaNet."
    )


def _register(part: CocoPart) -> str:
    """Register a part under the end of its path, which is as long as tells it from other data.

    Returns: the name.
    """
    path = Path(part.values[0]).expanduser().resolve()
    if len(part.values) == 2:
        parts = path.with_suffix("").parts
    else:
        parts = (*(path if path.is_dir() else path.parent).parts, part.split)
    for length in range(2, len(parts)):
        name = "_".join(parts[-length:])
        if name not in DatasetCatalog or MetadataCatalog.get(name).get("source") == _source(part):
            break
    _register_as(name, part)
    return name


def _source(part: CocoPart) -> str:
    return " ".join([*part.values, *([part.split] if len(part.values) == 1 else [])])


def _register_as(name: str, part: CocoPart) -> None:
    data, whole = summarize(part), summarize(replace(part, images=None))
    as_it_is = len(part.values) == 2 and not data.changes and part.images is None
    # Detectron2's evaluator reads "json_file"; without one, it writes what it needs into OUTPUT_DIR.
    truth = {"json_file": data.description} if as_it_is else {"coco_content": part.content}
    register(
        name,
        part.records,
        _source(part),
        **truth,
        image_root=str(data.image_root),
        evaluator_type="coco",
        thing_classes=list(data.class_names),
        thing_dataset_id_to_contiguous_id={id_: i for i, id_ in enumerate(data.class_ids)},
        # As Detectron2 has LVIS's, for its federated loss.
        class_image_count=[{"id": i, "image_count": n} for i, n in enumerate(whole.images_of)],
    )
