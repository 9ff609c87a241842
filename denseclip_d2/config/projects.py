"""Projects of Detectron2, whose heads and config keys ``MODEL.DENSECLIP.PROJECTS`` asks for."""

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

from detectron2.config import get_cfg

from ..meta_arch.systems import register_panoptic_deeplab
from .defaults import add_denseclip_config
from .node import CfgNode

PROJECTS = {
    "point_rend": "add_pointrend_config",
    "deeplab": "add_deeplab_config",
    "panoptic_deeplab": "add_panoptic_deeplab_config",
}
"""The packages in ``detectron2.projects``, with the functions that add their keys."""

GET_PANOPTICAPI = "pip install git+https://github.com/cocodataset/panopticapi.git"


def default_config(projects: Iterable[str] = ()) -> CfgNode:
    """Return the default config of Detectron2, of some of its projects, and of this project.

    The heads of the projects are registered.

    Raises:
        ValueError: a project does not exist, or needs a package that is not installed.
    """
    cfg = get_cfg()
    for project in projects:
        if project not in PROJECTS:
            raise ValueError(
                f"MODEL.DENSECLIP.PROJECTS has {project!r}; Detectron2's are {', '.join(PROJECTS)}."
            )
        getattr(_package_of(project), PROJECTS[project])(cfg)
    add_denseclip_config(cfg)  # last, because it changes some defaults
    return CfgNode(cfg)


def _package_of(project: str) -> ModuleType:
    try:
        package = import_module(f"detectron2.projects.{project}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("panopticapi"):
            raise
        raise ValueError(
            f"MODEL.DENSECLIP.PROJECTS has {project!r}, which needs panopticapi. "
            f"Install it: {GET_PANOPTICAPI}"
        ) from error
    if project == "panoptic_deeplab":
        register_panoptic_deeplab()
    return package


def projects_of(content: object) -> tuple[str, ...]:
    """Return ``MODEL.DENSECLIP.PROJECTS`` in the content of a config file.

    Raises:
        ValueError: the value is not a list of names.
    """
    for key in ("MODEL", "DENSECLIP", "PROJECTS"):
        content = content.get(key) if isinstance(content, dict) else None
    projects = CfgNode._decode_cfg_value(content) or ()  # a tuple is a string in YAML
    if not isinstance(projects, list | tuple) or not all(isinstance(project, str) for project in projects):
        raise ValueError(f"MODEL.DENSECLIP.PROJECTS is {content!r}; it has to be a list, each a string.")
    return tuple(projects)
