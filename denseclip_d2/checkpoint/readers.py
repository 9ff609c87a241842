"""Files of weights, told apart by what is in them, and read without running code that may be in them."""

import codecs
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from fvcore.common.checkpoint import _strip_prefix_if_present
from safetensors import safe_open
from torch import Tensor

from ..config.header import is_safetensors
from .arrays import NUMPY, PickledArray

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote archives
_NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` where it came from",
    b"<": "a web page: the download asked for a log-in, or the link is not the file's",
}
# What a TorchScript archive's code runs when it is loaded; weights need neither.
_RUN_ON_LOAD = (b"__setstate__", b"__torch__.torch.classes")


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
        checkpoint["model"] = _by_name(checkpoint["model"])
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, error)) from error
    except Exception as error:  # of a damaged file, readers raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path!r} cannot be read as weights: {reason}. If it was copied or downloaded, do so again: "
            f"{Path(path).stat().st_size:,} bytes may not be all of it."
        ) from error
    return checkpoint


def is_torchscript(path: str) -> bool:
    """Whether a file is a TorchScript archive: of those who give CLIP out, OpenAI alone does it this way."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


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
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith(".debug_pkl") and any(x in archive.read(name) for x in _RUN_ON_LOAD):
                raise pickle.UnpicklingError(f"{name} has code that runs on loading")
    return {"model": torch.jit.load(path, map_location="cpu").state_dict()}


def _read_safetensors(path: str) -> dict:
    with safe_open(path, framework="pt") as file:
        return {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  (no dict)


def _read_torch(path: str) -> dict:
    # Of a path, torch.load heeds the extension; of an open file, the content alone.
    with (
        torch.serialization.safe_globals([(c, name) for name, c in NUMPY.items()]),
        Path(path).open("rb") as file,
    ):
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(checkpoint.get("model_state"), Mapping):  # pycls
        return {"model": checkpoint["model_state"], "__author__": "pycls", "matching_heuristics": True}
    if isinstance(checkpoint.get("state_dict"), Mapping):  # open_clip's trainer, MMDetection, MMSegmentation
        return {"model": checkpoint["state_dict"]}
    return dict(checkpoint) if isinstance(checkpoint.get("model"), Mapping) else {"model": checkpoint}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and plain values, and refuses everything else before it is looked up."""

    allowed = {**NUMPY, "_codecs.encode": codecs.encode, "collections.OrderedDict": OrderedDict}

    def find_class(self, module: str, name: str):
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return self.allowed[f"{module}.{name}"]


def _read_pickle(path: str) -> dict:
    with Path(path).open("rb") as file:
        data = _ArrayUnpickler(file, encoding="latin1").load()
    if "model" in data and "__author__" in data:  # Detectron2's model zoo
        return data
    weights = {k: v for k, v in data.get("blobs", data).items() if not k.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _by_name(weights: Mapping) -> dict[str, Tensor]:
    """
    Raises:
        ValueError: these are not weights by name.
    """
    weights = {k: _tensor(v) if isinstance(v, PickledArray) else v for k, v in weights.items()}
    strangers = [k for k, v in weights.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if strangers or not weights:
        found = (
            f"{strangers[0]!r} is a {type(weights[strangers[0]]).__name__}" if strangers else "it is empty"
        )
        raise ValueError(f"it does not hold weights by name ({found})")
    _strip_prefix_if_present(weights, "module.")
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }


def _tensor(array: PickledArray) -> Tensor:
    return torch.from_numpy(array.value)


def _refusal(path: str, error: pickle.UnpicklingError) -> str:
    return (
        f"{path!r} is not opened: it is damaged, or holds more than tensors and plain values, and reading "
        f"that can run any code ({str(error).splitlines()[0]}). Ask for .safetensors; or, where you trust "
        "it, load it once yourself and save its tensors alone."
    )
