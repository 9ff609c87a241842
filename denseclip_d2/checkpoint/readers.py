"""Files of weights, told apart by what is in them, and read without running code that may be in them."""

import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from fvcore.common.checkpoint import _strip_prefix_if_present
from numpy._core import multiarray
from safetensors import SafetensorError, safe_open

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote archives
# What reading a file cut short, or altered, ends in.
_DAMAGE = (RuntimeError, EOFError, LookupError, struct.error, SafetensorError, zipfile.BadZipFile)
_NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` where it came from",
    b"<": "a web page: the download asked for a log-in, or the link is not the file's",
}
# What arrays are made of; with tensors, all that a file of weights needs.
_ARRAYS = {
    "_codecs.encode": None,
    "collections.OrderedDict": None,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": multiarray._reconstruct,
    "numpy.core.multiarray.scalar": multiarray.scalar,
    "numpy._core.multiarray._reconstruct": multiarray._reconstruct,
    "numpy._core.multiarray.scalar": multiarray.scalar,
}


def read_weights(path: str) -> dict:
    """Read a file of weights, whatever its extension.

    Takes torch's archives and its older format, TorchScript (as OpenAI gives CLIP out), safetensors, and
    Detectron2's and Detectron1's pickles of arrays.

    Returns: what Detectron2's checkpointers pass on: weights by name under ``model``, floating-point ones in
        float32, and whatever else was in the file.
    Raises:
        ValueError: no file of weights, a damaged one, or one that holds more than tensors and plain values.
    """
    try:
        checkpoint = _reader(path)(path)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, error)) from error
    except (*_DAMAGE, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path!r} cannot be read as weights: {reason}. If it was copied or downloaded, do so again: "
            f"{Path(path).stat().st_size:,} bytes may not be all of it."
        ) from error
    weights = checkpoint["model"]
    strangers = [k for k, v in weights.items() if not isinstance(v, torch.Tensor | np.ndarray)]
    if strangers or not weights:
        found = (
            f"{strangers[0]!r} is {type(weights[strangers[0]]).__name__}" if strangers else "nothing there"
        )
        raise ValueError(f"{path!r} does not hold weights by name: {found}.")
    _strip_prefix_if_present(weights, "module.")
    checkpoint["model"] = {name: _float32(weight) for name, weight in weights.items()}
    return checkpoint


def is_torchscript(path: str) -> bool:
    """Whether a file is a TorchScript archive: of those who give CLIP out, OpenAI alone does it this way."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def is_safetensors(path: str) -> bool:
    """Whether a file begins as safetensors do: the length of a header, and the header."""
    with Path(path).open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def _reader(path: str) -> Callable[[str], dict]:
    if is_torchscript(path):
        return _read_torchscript
    if is_safetensors(path):
        return _read_safetensors
    with Path(path).open("rb") as file:
        start = file.read(64)
    if zipfile.is_zipfile(path) or start.startswith(_LEGACY_TORCH):
        return _read_torch
    if start.startswith(b"PK"):
        raise ValueError("it begins as an archive and has no end")
    if start.startswith(b"\x80"):
        return _read_pickle
    hints = [hint for beginning, hint in _NOT_WEIGHTS.items() if start.lstrip().startswith(beginning)]
    raise ValueError(f"it is {hints[0]}" if hints else f"no format begins with {start[:8]!r}")


def _read_torchscript(path: str) -> dict:
    return {"model": torch.jit.load(path, map_location="cpu").state_dict()}


def _read_safetensors(path: str) -> dict:
    with safe_open(path, framework="pt") as file:
        return {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  (no dict)


def _read_torch(path: str) -> dict:
    dtypes = {type(np.dtype(code)) for code in np.typecodes["All"]}
    arrays = [(kind, name) for name, kind in _ARRAYS.items() if kind]
    # Opened here, for given a path torch.load heeds its extension.
    with torch.serialization.safe_globals([*arrays, *dtypes]), Path(path).open("rb") as file:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"it holds {type(checkpoint).__name__}, not weights by name")
    if isinstance(checkpoint.get("model_state"), Mapping):  # pycls
        return {"model": dict(checkpoint["model_state"]), "__author__": "pycls", "matching_heuristics": True}
    if isinstance(checkpoint.get("state_dict"), Mapping):  # open_clip's trainer, MMDetection, MMSegmentation
        return {"model": dict(checkpoint["state_dict"])}
    return dict(checkpoint) if isinstance(checkpoint.get("model"), Mapping) else {"model": dict(checkpoint)}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and plain values, and refuses everything else before it is looked up."""

    def find_class(self, module: str, name: str):
        if f"{module}.{name}" not in _ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _ARRAYS[f"{module}.{name}"] or super().find_class(module, name)


def _read_pickle(path: str) -> dict:
    with Path(path).open("rb") as file:
        data = _ArrayUnpickler(file, encoding="latin1").load()
    if "model" in data and "__author__" in data:  # Detectron2's model zoo
        return data
    weights = {k: v for k, v in data.get("blobs", data).items() if not k.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _refusal(path: str, error: pickle.UnpicklingError) -> str:
    return (
        f"{path!r} is not opened: it is damaged, or is a pickle that holds more than tensors and plain "
        f"values, and unpickling can run any code ({str(error).splitlines()[0]}). Ask for .safetensors; or, "
        "where you trust it, load it once yourself and save its tensors alone."
    )


def _float32(weight: torch.Tensor | np.ndarray) -> torch.Tensor:
    tensor = torch.as_tensor(weight)
    return tensor.float() if tensor.is_floating_point() else tensor
