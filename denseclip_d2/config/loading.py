import logging

import torch
from detectron2.utils.file_io import PathManager

from ..data.semantic import register_semantic_folders
from .checks import check_config, check_device
from .header import header_config, merge_header_config
from .node import CfgNode
from .own import use_own_data
from .pixels import set_pixels
from .projects import default_config, projects_of


def load_config(config_file: str, opts: list[str]) -> CfgNode:
    """Detectron2's and this project's defaults, a config file, and ``KEY VALUE`` pairs over it.

    For exported weights in place of a config file, their header is the config, and they are its weights.
    Either may be on a hub, ``hf://owner/repo/file``, or wherever else Detectron2's ``PathManager`` reads.
    Where there is no GPU, ``MODEL.DEVICE`` becomes "cpu". Pixel means and deviations that are empty become
    the architecture's. The datasets in ``DATASETS.SEMANTIC_FOLDERS`` are registered. Data of one's own in
    ``DATASETS.OWN`` set what follows from them (:func:`use_own_data`).

    Raises:
        ValueError: a key or a value that cannot be (:func:`check_config`); a file of weights without config;
            data that cannot be used.
        FileNotFoundError: there is no such file.
    """
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
        recipe = cfg.clone()
        cfg.merge_from_list(opts)
    except (AssertionError, KeyError) as error:  # how yacs refuses a key, or a file
        raise ValueError(error.args[0] if error.args else str(error)) from error
    if tuple(cfg.MODEL.DENSECLIP.PROJECTS or ()) != projects:
        raise ValueError("MODEL.DENSECLIP.PROJECTS decides which keys there are: set it in the config file.")
    if str(cfg.MODEL.DEVICE).partition(":")[0] == "cuda" and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("No GPU: MODEL.DEVICE is set to 'cpu'.")
        cfg.MODEL.DEVICE = "cpu"
    set_pixels(cfg)
    check_config(cfg)
    check_device(cfg.MODEL.DEVICE)
    register_semantic_folders(cfg)
    use_own_data(cfg, recipe, opts[::2])
    return cfg
