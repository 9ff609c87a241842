"""What a config takes from own data, ``DATASETS.CUSTOM``."""

from collections.abc import Collection, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..data.custom_dataset import CustomDataset, custom_boxes, custom_label_maps, custom_test_boxes
from ..data.semantic import register_semantic_folders
from ..data.tasks import is_panoptic, is_semantic, num_classes_section, takes_any_names
from ..utils.old_keys import update_content
from ..utils.text import read_text

SCHEDULE = ("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS", "TEST.EVAL_PERIOD")
"""The keys that scale with the number of images."""


def use_custom_dataset(cfg: CfgNode, reference: CfgNode, overrides: Collection[str]) -> None:
    """Register the data of ``DATASETS.CUSTOM``, if any, and set the keys in ``cfg`` that follow from them.

    The keys are the datasets, NUM_CLASSES, the length of names, and the schedule. A config that has the
    datasets already, such as ``OUTPUT_DIR/config.yaml``, does not change.

    Args:
        reference: the config without the command line's pairs. Its schedule is scaled.
        overrides: keys that a person has set. Their values stay.

    Raises:
        ValueError, FileNotFoundError: the data cannot be used, or not by this system.
    """
    own = cfg.DATASETS.CUSTOM
    if not (own.TRAIN or own.SEMANTIC):
        if own.VAL:
            _use_test_boxes(cfg)
        return
    same = own == reference.DATASETS.CUSTOM
    data = _register(cfg)
    if tuple(cfg.DATASETS.TRAIN) == (data.train,):
        check_same_classes(own.CLASS_NAMES, data.class_names, "this config")
        if own.VAL != reference.DATASETS.CUSTOM.VAL and "DATASETS.TEST" not in overrides:
            cfg.DATASETS.TEST = data.test
        return
    _set_from(data, cfg, reference, overrides)
    if same:  # the config file names the data: then the datasets are no departure from the file
        _set_from(data, reference, reference, ())


def _use_test_boxes(cfg: CfgNode) -> None:
    """Evaluate a model that takes any names on ``DATASETS.CUSTOM.VAL``."""
    if not takes_any_names(cfg):
        raise ValueError(
            "DATASETS.CUSTOM.VAL (--val) needs DATASETS.CUSTOM.TRAIN (--train), except for models with "
            "MODEL.DENSECLIP.CLASSIFIER 'text' and SCORE_MAP.CONCAT 'text', which take any names."
        )
    cfg.DATASETS.TEST = (custom_test_boxes(cfg.DATASETS.CUSTOM.VAL, masks=cfg.MODEL.MASK_ON),)


def keep_schedule(cfg: CfgNode, overrides: Collection[str]) -> None:
    """Give a resumed run on own data the schedule in ``OUTPUT_DIR/config.yaml``.

    The number of images may have changed since the start, and the options need not be repeated.

    Args:
        overrides: keys that a person has set. Their values stay; with MAX_ITER among them, all keys stay.

    Raises:
        ValueError: the classes of the data have changed since.
    """
    output, own = Path(cfg.OUTPUT_DIR), cfg.DATASETS.CUSTOM
    if not (own.TRAIN or own.SEMANTIC) or not (output / "last_checkpoint").is_file():
        return
    began = update_content(yaml.safe_load(read_text(output / "config.yaml")))
    names = began["DATASETS"].get("CUSTOM", {}).get("CLASS_NAMES", ())
    check_same_classes(names, own.CLASS_NAMES, f"the run in {output}")
    if "SOLVER.MAX_ITER" in overrides:
        return
    for key in {*SCHEDULE, "SOLVER.REFERENCE_IMAGES"} - {*overrides}:
        section, name = key.split(".")
        cfg.merge_from_list([key, began[section][name]])


def check_same_classes(before: Sequence[str], now: Sequence[str], owner: str) -> None:
    """Refuse data with other classes, or another order of classes, than a model was trained on.

    Args:
        before: the classes of the model; empty: unknown.
        now: the classes of the data.
        owner: what has the classes ``before``, for the message.

    Raises:
        ValueError: they differ.
    """
    if before and tuple(before) != tuple(now):
        raise ValueError(
            f"The classes of the data are now {', '.join(now)}. Those of {owner} are {', '.join(before)}, in "
            "this order. Restore the categories of the file, or train anew in another OUTPUT_DIR."
        )


def _register(cfg: CfgNode) -> CustomDataset:
    own = cfg.DATASETS.CUSTOM
    split = {"held_out": own.VAL_FRACTION, "seed": max(cfg.SEED, 0)}
    if is_panoptic(cfg):
        raise ValueError(
            f"{cfg.MODEL.META_ARCHITECTURE} needs objects and label maps. DATASETS.CUSTOM has only one of "
            "them. Use a config of RetinaNet, Mask R-CNN or Semantic FPN."
        )
    if bool(own.SEMANTIC) != is_semantic(cfg) or (own.SEMANTIC and own.TRAIN):
        needed = "SEMANTIC (--train-semantic)" if is_semantic(cfg) else "TRAIN (--train)"
        raise ValueError(f"{cfg.MODEL.META_ARCHITECTURE} takes DATASETS.CUSTOM.{needed} and no other.")
    if own.SEMANTIC:
        if own.SEMANTIC not in cfg.DATASETS.SEMANTIC_FOLDERS:
            cfg.DATASETS.SEMANTIC_FOLDERS = (*cfg.DATASETS.SEMANTIC_FOLDERS, own.SEMANTIC)
        register_semantic_folders(cfg)
        return custom_label_maps(own.SEMANTIC, **split)
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    return custom_boxes(
        own.TRAIN, own.VAL, masks=cfg.MODEL.MASK_ON, filter_empty=filter_empty,
        any_names=takes_any_names(cfg), **split,
    )  # fmt: skip


def _set_from(data: CustomDataset, cfg: CfgNode, reference: CfgNode, overrides: Collection[str]) -> None:
    values = {
        "DATASETS.CUSTOM.CLASS_NAMES": data.class_names,
        "DATASETS.TRAIN": (data.train,),
        "DATASETS.TEST": data.test,
        f"MODEL.{num_classes_section(cfg)}.NUM_CLASSES": len(data.class_names),
        "MODEL.DENSECLIP.CLASS_NAMES": (),
        "MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS": 0,
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": _samples_classes(cfg, data),
        **_schedule(cfg, reference, data.num_images, scale="SOLVER.MAX_ITER" not in overrides),
    }
    cfg.merge_from_list([x for pair in values.items() if pair[0] not in overrides for x in pair])


def _samples_classes(cfg: CfgNode, data: CustomDataset) -> bool:
    """Return whether the federated loss is chosen, and has more classes than it samples."""
    counts = MetadataCatalog.get(data.train).get("class_image_count", ())
    seen = sum(count["image_count"] > 0 for count in counts)
    return cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS and seen > cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES


def _schedule(cfg: CfgNode, reference: CfgNode, num_images: int, *, scale: bool) -> dict:
    """Return the keys of the reference's schedule, scaled to the images, or to MAX_ITER of ``cfg``."""
    solver, period = reference.SOLVER, reference.TEST.EVAL_PERIOD
    longest, length = solver.MAX_ITER, cfg.SOLVER.MAX_ITER
    if not (solver.REFERENCE_IMAGES and longest):
        return {}
    if scale:
        # A dozen epochs of a few images are too short to train new layers.
        length = max(
            round(longest * num_images / solver.REFERENCE_IMAGES), min(cfg.DATASETS.CUSTOM.MIN_ITER, longest)
        )
    return {
        "SOLVER.MAX_ITER": length,
        "SOLVER.STEPS": tuple(sorted({step * length // longest for step in solver.STEPS} - {0})),
        # The optimizer needs a warm-up of the same length for more images.
        "SOLVER.WARMUP_ITERS": min(solver.WARMUP_ITERS, length // 10),
        "TEST.EVAL_PERIOD": max(period * length // longest, 1) if period else 0,
        "SOLVER.REFERENCE_IMAGES": num_images,
    }
