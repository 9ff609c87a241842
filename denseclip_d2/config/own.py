"""What a config takes from data of one's own: ``DATASETS.OWN``."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..data.own import OwnData, own_boxes, own_labels
from ..data.semantic import register_semantic_folders
from ..data.tasks import is_panoptic, is_semantic, section_of
from ..utils.text import read_text

SCHEDULE = ("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS", "TEST.EVAL_PERIOD")
"""What follows the number of images."""


def use_own_data(cfg: CfgNode, recipe: CfgNode, explicit: Collection[str]) -> None:
    """Register the data that ``DATASETS.OWN`` names, if any, and set what follows from them in ``cfg``.

    That is the datasets, NUM_CLASSES, room for names of any length, and the schedule. A config that speaks of
    these data already, such as ``OUTPUT_DIR/config.yaml``, stays as it is.

    Args:
        recipe: the config without the command line's pairs, for whose images the schedule is.
        explicit: keys that a person has set, which stay.

    Raises:
        ValueError, FileNotFoundError: the data cannot be used, or not by this system.
    """
    own = cfg.DATASETS.OWN
    if not (own.TRAIN or own.SEMANTIC):
        if own.VAL:
            raise ValueError("DATASETS.OWN.VAL (--val) goes with DATASETS.OWN.TRAIN (--train).")
        return
    data = _registered(cfg)
    if tuple(cfg.DATASETS.TRAIN) == (data.train,):
        check_same_classes(own.CLASS_NAMES, data.class_names, "this config")
        return
    values = {
        "DATASETS.OWN.CLASS_NAMES": data.class_names,
        "DATASETS.TRAIN": (data.train,),
        "DATASETS.TEST": data.test,
        f"MODEL.{section_of(cfg)}.NUM_CLASSES": len(data.class_names),
        "MODEL.DENSECLIP.CLASS_NAMES": (),
        "MODEL.DENSECLIP.PROMPT.NAME_LENGTH": 0,
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": _asks_about_some(cfg, data),
        **_schedule(cfg, recipe, data.num_images, "SOLVER.MAX_ITER" in explicit),
    }
    cfg.merge_from_list([x for pair in values.items() if pair[0] not in explicit for x in pair])


def keep_schedule(cfg: CfgNode, explicit: Iterable[str]) -> None:
    """Give a run of own data that goes on the schedule it began with: ``OUTPUT_DIR/config.yaml`` has it.

    Images may have come since, and the options of the first command need not be repeated.

    Args:
        explicit: keys that a person has set, which stay; with MAX_ITER among them, so does all of it.

    Raises:
        ValueError: the classes of the data have changed since.
    """
    output = Path(cfg.OUTPUT_DIR)
    own = cfg.DATASETS.OWN.TRAIN or cfg.DATASETS.OWN.SEMANTIC
    if not own or not (output / "last_checkpoint").is_file():
        return
    began = yaml.safe_load(read_text(output / "config.yaml"))
    names = began["DATASETS"].get("OWN", {}).get("CLASS_NAMES", ())
    check_same_classes(names, cfg.DATASETS.OWN.CLASS_NAMES, f"the run in {output}")
    if "SOLVER.MAX_ITER" in explicit:
        return
    for key in {*SCHEDULE, "SOLVER.REFERENCE_IMAGES"} - {*explicit}:
        section, name = key.split(".")
        cfg.merge_from_list([key, began[section][name]])


def check_same_classes(before: Sequence[str], now: Sequence[str], whose: str) -> None:
    """Refuse data whose classes are others, or in another order, than a model learned.

    Args:
        before: the classes that it learned; empty where they are not known.
        now: those of the data.
        whose: what learned them, for the message.

    Raises:
        ValueError: they differ.
    """
    if before and tuple(before) != tuple(now):
        raise ValueError(
            f"The classes of the data are now {', '.join(now)}. Those of {whose} are {', '.join(before)}, in "
            "this order. Restore the categories of the file, or train anew in another OUTPUT_DIR."
        )


def _registered(cfg: CfgNode) -> OwnData:
    own = cfg.DATASETS.OWN
    split = {"held_out": own.HELD_OUT, "seed": max(cfg.SEED, 0)}
    if is_panoptic(cfg):
        raise ValueError(
            f"{cfg.MODEL.META_ARCHITECTURE} needs objects and labels of pixels, which DATASETS.OWN does not "
            "have. Take a config of RetinaNet, Mask R-CNN or Semantic FPN."
        )
    if bool(own.SEMANTIC) != is_semantic(cfg) or (own.SEMANTIC and own.TRAIN):
        needed = "SEMANTIC (--train-semantic)" if is_semantic(cfg) else "TRAIN (--train)"
        raise ValueError(f"{cfg.MODEL.META_ARCHITECTURE} takes DATASETS.OWN.{needed}, and that alone.")
    if own.SEMANTIC:
        if own.SEMANTIC not in cfg.DATASETS.SEMANTIC_FOLDERS:
            cfg.DATASETS.SEMANTIC_FOLDERS = (*cfg.DATASETS.SEMANTIC_FOLDERS, own.SEMANTIC)
        register_semantic_folders(cfg)
        return own_labels(own.SEMANTIC, **split)
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    return own_boxes(own.TRAIN, own.VAL, masks=cfg.MODEL.MASK_ON, filter_empty=filter_empty, **split)


def _asks_about_some(cfg: CfgNode, data: OwnData) -> bool:
    """Whether the federated loss, if it is chosen, has more classes to draw from than it asks about."""
    counts = MetadataCatalog.get(data.train).get("class_image_count", ())
    seen = sum(count["image_count"] > 0 for count in counts)
    return cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS and seen > cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES


def _schedule(cfg: CfgNode, recipe: CfgNode, num_images: int, chosen: bool) -> dict:
    """The recipe's schedule, as long for these images as for its own, or as long as was chosen."""
    reference, longest = recipe.SOLVER.REFERENCE_IMAGES, recipe.SOLVER.MAX_ITER
    if not (reference and longest):
        return {}
    length = cfg.SOLVER.MAX_ITER
    if not chosen:
        # A dozen epochs of few images teach new layers nothing.
        length = max(round(longest * num_images / reference), min(cfg.DATASETS.OWN.MIN_ITER, longest))
    period = recipe.TEST.EVAL_PERIOD
    return {
        "SOLVER.MAX_ITER": length,
        "SOLVER.STEPS": tuple(sorted({step * length // longest for step in recipe.SOLVER.STEPS} - {0})),
        # It is for the optimizer's sake, so that more images need no more of it.
        "SOLVER.WARMUP_ITERS": min(recipe.SOLVER.WARMUP_ITERS, length // 10),
        "TEST.EVAL_PERIOD": max(period * length // longest, 1) if period else 0,
        "SOLVER.REFERENCE_IMAGES": num_images,
    }
