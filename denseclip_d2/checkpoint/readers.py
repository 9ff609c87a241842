"""Reading files of weights: their content tells the format, and no code in them is run."""

import codecs
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ..utils.safetensors_file import is_safetensors
from .load_report import first
from .metadata import METADATA
from .numpy_pickle import NUMPY, PickledArray
from .wrappers import SAVE, Fits, NotWeightsError, unwrap

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save began before archives
_NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` where it came from",
    b"<": "a web page: the download asked for a log-in, or the link is not the file's",
    b"{": "JSON text: give the file of weights beside it",
}
# Code in a TorchScript archive that runs on loading; weights need none of it.
_RUN_ON_LOAD = (b"__setstate__", b"__torch__.torch.classes")
_STAND_INS: dict[str, Callable] = {**NUMPY, **METADATA}

# Beginnings of lines in which torch.load gives advice.
_ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation", "In PyTorch 2.6")


class _RefusedError(Exception):
    """Reading the file needs code; the message names it."""


def read_weights(path: str, fits: Fits | None = None) -> dict:
    """Read a file of weights, whatever its extension.

    Formats: torch's archives and older format, TorchScript (OpenAI's CLIP), safetensors, and the pickles of
    arrays of Detectron2 and Detectron1. Dictionaries and prefixes that trainers add are removed.

    Args:
        fits: see :func:`unwrap`.

    Returns: as for Detectron2's checkpointers: the weights by name under ``model``, floating-point ones in
        float32, and what else is in the file. ``unwrapped`` says where in the file the weights are.
    Raises:
        ValueError: no weights, a damaged file, or a file with more than tensors and plain values.
    """
    try:
        content, extra = _reader(path)(path)
        found = unwrap(content, fits)
    except _RefusedError as error:
        raise ValueError(f"{path!r} is not opened: {error}") from error
    except NotWeightsError as error:
        raise ValueError(f"{path!r} cannot be read as weights: {error}.") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path!r} is not opened: it is damaged, or contains more than tensors and plain values "
            f"({_reason(error)}). {_damaged(path)} Or save the weights alone: {SAVE}."
        ) from error
    except Exception as error:  # readers of a damaged file raise anything
        raise ValueError(f"{path!r} cannot be read as weights: {_reason(error)}. {_damaged(path)}") from error
    if found.where == "model_state":
        extra = {"__author__": "pycls", "matching_heuristics": True}
    elif found.where.partition(".")[0] == "model":
        extra = {**content, **extra}
    return {**extra, "model": found.weights, "unwrapped": str(found)}


def is_torchscript(path: str) -> bool:
    """Return whether a file is a TorchScript archive; only OpenAI distributes CLIPs in this format."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _reader(path: str) -> Callable[[str], tuple]:
    """Return the reader of a file's format. It returns the content, and entries for the checkpointer."""
    if is_torchscript(path):
        return _read_torchscript
    if is_safetensors(path):
        return _read_safetensors
    with Path(path).open("rb") as file:
        start = file.read(64)
    if zipfile.is_zipfile(path) or start.startswith(_LEGACY_TORCH):
        return _read_torch
    if not start:
        raise ValueError("it is empty")
    if start.startswith(b"PK"):
        raise ValueError("it is an archive without its end")
    if start.startswith(b"\x80"):
        return _read_pickle
    hints = [hint for beginning, hint in _NOT_WEIGHTS.items() if start.lstrip().startswith(beginning)]
    raise NotWeightsError(f"it is {hints[0]}" if hints else f"no format begins with {start[:8]!r}")


def _read_torchscript(path: str) -> tuple[dict, dict]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith(".debug_pkl") and any(x in archive.read(name) for x in _RUN_ON_LOAD):
                raise _RefusedError(
                    f"{name} in it has code that runs on loading. Save the weights alone: {SAVE}."
                )
    return torch.jit.load(path, map_location="cpu").state_dict(), {}


def _read_safetensors(path: str) -> tuple[dict, dict]:
    return load_file(path), {}


def _read_torch(path: str) -> tuple[object, dict]:
    # Given a path, torch.load looks at the extension; given an open file, only at the content.
    with safe_globals([(c, name) for name, c in _STAND_INS.items()]), Path(path).open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True), {}
        except pickle.UnpicklingError as error:
            if named := re.search(r"GLOBAL (\S+)", str(error)):
                names = _unknown_globals(path) or [named[1]]
                raise _refused(names, "torch.load(FILE, weights_only=False)") from error
            raise


def _unknown_globals(path: str) -> list[str]:
    """Return the classes and functions that a file needs and that are not allowed, without importing them."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except (ValueError, pickle.UnpicklingError):  # the older format, or another pickle
        return []


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle arrays and plain values; everything else is an error before it is imported."""

    allowed = {**_STAND_INS, "_codecs.encode": codecs.encode, "collections.OrderedDict": OrderedDict}

    def find_class(self, module: str, name: str):
        if f"{module}.{name}" not in self.allowed:
            raise _refused([f"{module}.{name}"], "pickle.load")
        return self.allowed[f"{module}.{name}"]


def _read_pickle(path: str) -> tuple[object, dict]:
    with Path(path).open("rb") as file:
        data = _ArrayUnpickler(file, encoding="latin1").load()
    if not isinstance(data, dict):
        return data, {}
    weights = data["blobs"] if isinstance(data.get("blobs"), dict) else data  # detectors of Detectron1
    if not any(isinstance(value, PickledArray) for value in weights.values()):
        return data, {}  # of Detectron2's model zoo, or of another trainer
    weights = {k: v for k, v in weights.items() if not str(k).endswith("_momentum")}
    return weights, {"__author__": "Caffe2", "matching_heuristics": True}


def _refused(names: list[str], loader: str) -> _RefusedError:
    return _RefusedError(
        f"beside tensors and plain values it contains {first(names)}. Building such objects can run any "
        f"code. If you trust the file, load it by {loader} where the library that wrote it is installed, "
        f"and save the weights alone: {SAVE}. Or ask for .safetensors."
    )


def _damaged(path: str) -> str:
    size = Path(path).stat().st_size
    return f"If the file was copied or downloaded, do so again: {size:,} bytes may not be all of it."


def _reason(error: Exception) -> str:
    """Return a reader's message without torch's advice to run the code in the file."""
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()
    lines = [line for line in map(str.strip, lines) if line and not line.startswith(_ADVICE)]
    return lines[0].removesuffix(".") if lines else type(error).__name__
