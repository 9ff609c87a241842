import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from detectron2.utils.file_io import PathManager

from ..data.class_names import class_names_of_datasets, get_stuff_names
from ..data.semantic import register_semantic_folders
from ..data.tasks import labels_by_score_map
from ..utils.old_keys import update_key
from .checks import check_config, check_device
from .custom_dataset import keep_schedule, use_custom_dataset
from .header import header_config, merge_header_config
from .node import CfgNode
from .pixel_stats import set_pixels
from .projects import default_config, projects_of

logger = logging.getLogger(__name__)


class PreparedRun(NamedTuple):
    """
    Attributes:
        cfg: the config of the run.
        reference: the config without the command line's ``KEY VALUE`` pairs, to compare ``cfg`` with.
    """

    cfg: CfgNode
    reference: CfgNode


def load_config(config_file: str, opts: Sequence) -> CfgNode:
    """Return the defaults of Detectron2 and this project, a config file, and ``KEY VALUE`` pairs over them.

    A file of exported weights can replace the config file: the config is its header, and ``MODEL.WEIGHTS``
    the file. Detectron2's ``PathManager`` reads the file, so ``hf://owner/repo/file`` works too.

    Without a GPU, ``MODEL.DEVICE`` becomes "cpu". Empty pixel means and deviations become those of the
    architecture. No dataset is registered or read: :func:`prepare_run` does that.

    Raises:
        ValueError: an invalid key or value (:func:`check_config`); weights without a config.
        FileNotFoundError: the file does not exist.
    """
    return _load(config_file, opts)[0]


def prepare_run(config_file: str, opts: Sequence, *, resume: bool = False) -> PreparedRun:
    """Load a config (:func:`load_config`) and complete it by what its datasets tell.

    The datasets of ``DATASETS.SEMANTIC_FOLDERS`` and ``DATASETS.CUSTOM`` are registered. A custom dataset
    sets the number of classes and the schedule (:func:`use_custom_dataset`). An empty
    ``MODEL.DENSECLIP.CLASS_NAMES`` becomes the class names of the datasets, and ``STUFF_NAMES`` those of the
    stuff. It stays empty if they have none: the builder raises an error if the model needs names.

    Args:
        resume: continue the run in ``OUTPUT_DIR`` with its schedule (:func:`keep_schedule`).

    Raises:
        ValueError, FileNotFoundError: as :func:`load_config`; data that cannot be used.
    """
    cfg, reference = _load(config_file, opts)
    overrides = frozenset(map(update_key, opts[::2]))
    set_pixels(reference)
    register_semantic_folders(cfg)
    use_custom_dataset(cfg, reference, overrides)
    if resume:
        keep_schedule(cfg, overrides)
    _set_class_names(cfg, overrides)
    if labels_by_score_map(cfg) and cfg.MODEL.DENSECLIP.CLASS_NAMES:  # no weight depends on their number
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(cfg.MODEL.DENSECLIP.CLASS_NAMES)
    for key in {"CLASS_NAMES", "STUFF_NAMES"} - {key.rpartition(".")[2] for key in overrides}:
        # The names follow from DATASETS, which the comparison shows.
        reference.MODEL.DENSECLIP[key] = cfg.MODEL.DENSECLIP[key]
    return PreparedRun(cfg, reference)


def _set_class_names(cfg: CfgNode, overrides: Collection[str]) -> None:
    """Fill in empty names, and warn if class names of a config file meet another dataset."""
    with suppress(ValueError, OSError):
        cfg.MODEL.DENSECLIP.STUFF_NAMES = get_stuff_names(cfg)
    names, datasets = cfg.MODEL.DENSECLIP.CLASS_NAMES, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    chosen = "DATASETS.TRAIN" in overrides and "MODEL.DENSECLIP.CLASS_NAMES" not in overrides
    if names and not chosen:
        return
    try:
        found = class_names_of_datasets(cfg, datasets)
    except (ValueError, OSError):
        return
    cfg.MODEL.DENSECLIP.CLASS_NAMES = names or found
    if names and {*names} != {*found}:
        logger.warning(
            "The model reads the class names of the config file (%s, ...), not those of %s (%s, ...). For "
            "those, set MODEL.DENSECLIP.CLASS_NAMES to ().",
            names[0], datasets[0], found[0],
        )  # fmt: skip


def _load(config_file: str, opts: Sequence) -> tuple[CfgNode, CfgNode]:
    """Return the config with the pairs, checked, and the config without them."""
    try:
        local = PathManager.get_local_path(config_file) if "://" in config_file else config_file
        if local.endswith(".safetensors"):
            content = header_config(local)
            projects = projects_of(content)
            cfg = default_config(projects)
            merge_header_config(cfg, local, content)
            cfg.MODEL.WEIGHTS = config_file
        else:
            assert PathManager.isfile(local), f"Config file {config_file!r} does not exist!"
            projects = projects_of(CfgNode.load_yaml_with_base(local, allow_unsafe=True))
            cfg = default_config(projects)
            cfg.merge_from_file(local)
        reference = cfg.clone()
        cfg.merge_from_list(opts)
    except (AssertionError, KeyError) as error:  # yacs raises them for a wrong key or file
        raise ValueError(error.args[0] if error.args else str(error)) from error
    if tuple(cfg.MODEL.DENSECLIP.PROJECTS or ()) != projects:
        raise ValueError("MODEL.DENSECLIP.PROJECTS decides which keys exist: set it in the config file.")
    if str(cfg.MODEL.DEVICE).partition(":")[0] == "cuda" and not torch.cuda.is_available():
        logger.warning("No GPU: MODEL.DEVICE is set to 'cpu'.")
        cfg.MODEL.DEVICE = "cpu"
    set_pixels(cfg)
    check_config(cfg)
    check_device(cfg.MODEL.DEVICE)
    return cfg, reference
