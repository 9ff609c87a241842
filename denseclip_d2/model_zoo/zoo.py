import json
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from ..builder import build_model_with_weights
from ..checkpoint.path_handler import ResolvedPathHandler
from ..config import load_config
from ..utils.safetensors_file import sha256

ZOO_PREFIX = "denseclip://"
_ROOT = Path(__file__).parent


@dataclass(frozen=True)
class ZooEntry:
    """Trained weights of a config, or pretrained weights of a CLIP.

    Attributes:
        file: name of the file in this package's ``weights/``.
        sha256: the file's checksum.
        precomputed: whether the file has precomputed text embeddings in place of the text encoder.
    """

    file: str
    sha256: str
    precomputed: bool = False

    @property
    def path(self) -> Path:
        return _ROOT / "weights" / self.file

    def is_intact(self) -> bool:
        """Return whether the file is there, with its checksum."""
        return self.path.is_file() and sha256(str(self.path)) == self.sha256


def zoo_index() -> dict[str, ZooEntry]:
    """Return the entries by name: the name of their config, or of a CLIP."""
    entries = json.loads((_ROOT / "index.json").read_bytes())
    return {name: ZooEntry(**entry) for name, entry in entries.items()}


def trained_configs() -> list[str]:
    """Return the names of the configs with trained weights."""
    return [name for name in zoo_index() if name.endswith(".yaml")]


def get_config_file(name: str) -> str:
    """Return the file of a config, by its path under ``configs/``.

    Raises:
        ValueError: there is no such config.
    """
    known = sorted(
        str(path.relative_to(_ROOT / "configs")) for path in (_ROOT / "configs").glob("[A-Z]*/**/[!B]*.yaml")
    )
    if name not in known:
        raise ValueError(f"There is no config {name!r}. Choose one of {', '.join(known)}.")
    return str(_ROOT / "configs" / name)


def get_config(name: str, trained: bool = False) -> CfgNode:
    """Return a config, by its path under ``configs/``.

    Args:
        trained: set ``MODEL.WEIGHTS`` to the zoo's trained weights. False keeps the pretrained weights that
            training starts from.

    Raises:
        ValueError: there is no such config, or no trained weights for it.
    """
    cfg = load_config(get_config_file(name), [])
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
        cfg.MODEL.DENSECLIP.PROMPT.PRECOMPUTED |= zoo_index()[name].precomputed
    return cfg


def get_checkpoint_url(name: str) -> str:
    """Return the value of ``MODEL.WEIGHTS`` for trained weights of the zoo: ``denseclip://<name>``.

    Raises:
        ValueError: there are no weights of that name.
    """
    if name not in zoo_index():
        get_config_file(name)
        raise ValueError(
            f"The zoo has no trained weights for {name!r}. It has: {', '.join(zoo_index())}. Set "
            "MODEL.WEIGHTS to your own file or to the authors'; see MODEL_ZOO.md."
        )
    return f"{ZOO_PREFIX}{name}"


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Return a model of the zoo in training mode, as Detectron2's ``model_zoo.get`` does.

    Args:
        trained: load the zoo's trained weights. False loads the pretrained weights that training starts from.
        device: replaces the config's.

    Raises:
        ValueError, FileNotFoundError: see :func:`get_config` and :class:`DenseCLIPCheckpointer`.
    """
    cfg = get_config(name, trained)
    if device is not None:
        cfg.MODEL.DEVICE = device
    return build_model_with_weights(cfg, for_training=not trained)


def local_file(name: str) -> Path:
    """Return the file of trained weights, after a check of its sha256.

    Raises:
        ValueError: there are no trained weights of that name, or the file is missing or changed.
    """
    get_checkpoint_url(name)
    entry = zoo_index()[name]
    if not entry.is_intact():
        state = "does not have the published sha256" if entry.path.is_file() else "is missing"
        raise ValueError(
            f"{entry.path} {state}. Install this package again, or check the file out again in a clone."
        )
    return entry.path


PathManager.register_handler(
    ResolvedPathHandler(ZOO_PREFIX, lambda path: str(local_file(path.removeprefix(ZOO_PREFIX))))
)
