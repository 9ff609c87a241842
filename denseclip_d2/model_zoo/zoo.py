import json
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from ..builder import build_model_with_weights
from ..checkpoint.path_handler import ResolvedPaths
from ..config import load_config
from .download import cache_dir, download, verify

PREFIX = "denseclip://"
_ROOT = Path(__file__).parent


@dataclass(frozen=True)
class ZooEntry:
    """Trained weights of a config, or of a CLIP to begin from.

    Attributes:
        file: name of the file, in this package's ``weights/`` or in the cache.
        sha256: of the file.
        url: where it is fetched from; empty for a file of this package.
        folded: whether text embeddings stand in for the text encoder.
    """

    file: str
    sha256: str
    url: str = ""
    folded: bool = False


def zoo_index() -> dict[str, ZooEntry]:
    """Trained weights by the name of their config; those of a CLIP, by a name that is no config's."""
    entries = json.loads((_ROOT / "index.json").read_bytes())
    return {name: ZooEntry(**entry) for name, entry in entries.items()}


def trained_configs() -> list[str]:
    """The names of the configs that there are trained weights of."""
    return [name for name in zoo_index() if name.endswith(".yaml")]


def get_config_file(name: str) -> str:
    """Path of a config of this project, by its path under ``configs/``.

    Raises:
        ValueError: there is none.
    """
    known = sorted(
        str(path.relative_to(_ROOT / "configs")) for path in (_ROOT / "configs").glob("[A-Z]*/**/[!B]*.yaml")
    )
    if name not in known:
        raise ValueError(f"No config {name!r}. There are: {', '.join(known)}.")
    return str(_ROOT / "configs" / name)


def get_config(name: str, trained: bool = False) -> CfgNode:
    """The config of a model, by its path under ``configs/``.

    Args:
        trained: set ``MODEL.WEIGHTS`` to the zoo's trained weights; False leaves what training begins from.

    Raises:
        ValueError: no such config, or no trained weights for it.
    """
    cfg = load_config(get_config_file(name), [])
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
        cfg.MODEL.DENSECLIP.PROMPT.FOLDED = zoo_index()[name].folded
    return cfg


def get_checkpoint_url(name: str) -> str:
    """What to set ``MODEL.WEIGHTS`` to for trained weights of the zoo: ``denseclip://<name>``.

    Raises:
        ValueError: there are none of that name.
    """
    if name not in zoo_index():
        get_config_file(name)
        raise ValueError(
            f"No trained weights for {name!r} yet. There are for: {', '.join(zoo_index())}. Weights of your "
            "own, or the authors', go into MODEL.WEIGHTS; see MODEL_ZOO.md."
        )
    return f"{PREFIX}{name}"


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model of the zoo, in training mode, as Detectron2's ``model_zoo.get``.

    Args:
        trained: load the zoo's trained weights, every tensor; False loads what training begins from.
        device: in place of the config's.

    Raises:
        ValueError, FileNotFoundError: see :func:`get_config` and :class:`DenseCLIPCheckpointer`.
    """
    cfg = get_config(name, trained)
    if device is not None:
        cfg.MODEL.DEVICE = device
    return build_model_with_weights(cfg, fresh_start=not trained)


def local_file(name: str) -> Path:
    """Trained weights as a file: of this package, of the cache or downloaded; sha256 checked.

    Raises:
        ValueError: no trained weights of that name; the file is not the one that was published.
        FileNotFoundError: the file is not here and cannot be downloaded.
    """
    get_checkpoint_url(name)
    entry = zoo_index()[name]
    packaged = _ROOT / "weights" / entry.file
    path = packaged if packaged.is_file() or not entry.url else cache_dir() / entry.file
    if not path.is_file() and entry.url:
        download(entry.url, path, entry.sha256)
    verify(path, entry.sha256, entry.url)
    return path


def packaged_files() -> list[tuple[Path, str]]:
    """The files of weights that come with the package, each with its sha256."""
    return [(_ROOT / "weights" / entry.file, entry.sha256) for entry in zoo_index().values() if not entry.url]


PathManager.register_handler(ResolvedPaths(PREFIX, lambda path: str(local_file(path.removeprefix(PREFIX)))))
