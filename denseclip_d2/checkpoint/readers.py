"""Files of weights, told apart by what is in them, and read without running code that may be in them."""

import codecs
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ..utils.safetensors_file import is_safetensors
from .arrays import NUMPY, PickledArray
from .metadata import METADATA
from .report import first
from .wrappers import SAVE, Fits, NotWeightsError, unwrap

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote archives
_NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` where it came from",
    b"<": "a web page: the download asked for a log-in, or the link is not the file's",
    b"{": "JSON text: give the file of weights beside it",
}
# What a TorchScript archive's code runs when it is loaded; weights need neither.
_RUN_ON_LOAD = (b"__setstate__", b"__torch__.torch.classes")
_STAND_INS: dict[str, Callable] = {**NUMPY, **METADATA}
_DAMAGED = "If the file was copied or downloaded, do so again: {:,} bytes may not be all of it."


# How lines begin by which torch.load advises.
_ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation", "In PyTorch 2.6")


class _RefusedError(Exception):
    """The file needs code to be read; the words say which."""


def read_weights(path: str, fits: Fits | None = None) -> dict:
    """Read a file of weights, whatever its extension.

    Takes torch's archives and its older format, TorchScript (as OpenAI gives CLIP out), safetensors, and
    Detectron2's and Detectron1's pickles of arrays, each with what trainers put around weights.

    Args:
        fits: tells how many of the tensors a model would take by their names; decides between several
            dictionaries of weights and on a prefix to remove, as :func:`unwrap` says.

    Returns: what Detectron2's checkpointers pass on: weights by name under ``model``, floating-point ones in
        float32, and whatever else was in the file; under ``unwrapped``, in words, what was around them.
    Raises:
        ValueError: no file of weights, a damaged one, or one that holds more than tensors and plain values.
    """
    try:
        content, extra = _reader(path)(path)
        found = unwrap(content, _tensor, fits)
    except _RefusedError as error:
        raise ValueError(f"{path!r} is not opened: {error}") from error
    except NotWeightsError as error:
        raise ValueError(f"{path!r} cannot be read as weights: {error}.") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path!r} is not opened: it is damaged, or holds more than tensors and plain values "
            f"({_reason(error)}). {_damaged(path)} Or save the weights alone: {SAVE}."
        ) from error
    except Exception as error:  # of a damaged file, readers raise anything
        raise ValueError(f"{path!r} cannot be read as weights: {_reason(error)}. {_damaged(path)}") from error
    if found.where == "model_state":
        extra = {"__author__": "pycls", "matching_heuristics": True}
    elif found.where.partition(".")[0] == "model":
        extra = {**content, **extra}
    return {**extra, "model": found.weights, "unwrapped": str(found)}


def is_torchscript(path: str) -> bool:
    """Whether a file is a TorchScript archive: of those who give CLIP out, OpenAI alone does it this way."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _reader(path: str) -> Callable[[str], tuple]:
    """Return the reader of a file's format, which returns what is in the file, and what it says of it."""
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
        raise ValueError("it begins as an archive and has no end")
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
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, {}  # noqa: SIM118  (no dict)


def _read_torch(path: str) -> tuple[object, dict]:
    # Of a path, torch.load heeds the extension; of an open file, the content alone.
    with safe_globals([(c, name) for name, c in _STAND_INS.items()]), Path(path).open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True), {}
        except pickle.UnpicklingError as error:
            if named := re.search(r"GLOBAL (\S+)", str(error)):
                names = _unknown_globals(path) or [named[1]]
                raise _refused(names, "torch.load(FILE, weights_only=False)") from error
            raise


def _unknown_globals(path: str) -> list[str]:
    """Return the classes and functions that a file needs and that are not allowed; none are looked up."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except (ValueError, pickle.UnpicklingError):  # of the older format, or no pickle of torch's
        return []


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and plain values, and refuses everything else before it is looked up."""

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
    weights = data["blobs"] if isinstance(data.get("blobs"), dict) else data  # detectors' of Detectron1
    if not any(isinstance(value, PickledArray) for value in weights.values()):
        return data, {}  # of Detectron2's model zoo, or another trainer's
    weights = {k: v for k, v in weights.items() if not str(k).endswith("_momentum")}
    return weights, {"__author__": "Caffe2", "matching_heuristics": True}


def _tensor(value: Tensor | PickledArray) -> Tensor:
    tensor = torch.from_numpy(value.value) if isinstance(value, PickledArray) else value
    return tensor.float() if tensor.is_floating_point() else tensor


def _refused(names: list[str], loader: str) -> _RefusedError:
    return _RefusedError(
        f"beside tensors and plain values it holds {first(names)}, and to build objects of that can run any "
        f"code. Where you trust the file, load it by {loader} where the library that wrote it is installed, "
        f"and save the weights alone: {SAVE}. Or ask for .safetensors."
    )


def _damaged(path: str) -> str:
    return _DAMAGED.format(Path(path).stat().st_size)


def _reason(error: Exception) -> str:
    """Return what a reader says, without torch's advice, which is to run what is in the file."""
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()
    lines = [line for line in map(str.strip, lines) if line and not line.startswith(_ADVICE)]
    return lines[0].removesuffix(".") if lines else type(error).__name__
