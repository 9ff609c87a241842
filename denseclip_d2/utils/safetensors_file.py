"""Files of safetensors, and the header in which exported weights describe themselves."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .atomic import atomic_write


def is_safetensors(path: str) -> bool:
    """Return whether a file begins with the length of a safetensors header and the header."""
    with Path(path).open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def read_header(path: str) -> dict[str, str]:
    """Return the header of exported weights; empty for any other file.

    Raises:
        ValueError: the file is damaged.
    """
    if not Path(path).is_file() or not is_safetensors(path):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path!r} is damaged: {error}.") from error
    return header if "denseclip_d2_version" in header else {}


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None, *, half: bool = False
) -> None:
    """Write a state dict atomically.

    Args:
        half: write float16 instead of float32, rounded.

    Raises:
        ValueError: a value is too large for float16.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    rounded = {name: t.half() if half and t.is_floating_point() else t for name, t in tensors.items()}
    for name, tensor in rounded.items() if half else ():
        if not torch.isfinite(tensor).all():
            largest = tensors[name].abs().max()
            raise ValueError(f"{name} has values up to {largest:.3g}, too large for float16.")
    content = save(rounded, dict(header or {}))
    with atomic_write(path, "wb") as file:
        file.write(content)


def sha256(path: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
