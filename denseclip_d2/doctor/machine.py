import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ..utils.memory import available_memory
from .finding import Finding

GIB = 2**30
NEEDED_MEMORY = 2 * GIB
"""What training of the small models takes, loaders' processes included."""
USUAL_DISK = 20 * GIB
"""What the checkpoints of a COCO recipe take, some 20 of 1 GB, if SOLVER.KEEP_CHECKPOINTS keeps all."""
NEEDED_DISK = GIB
NEEDED_SHARED = GIB
NEEDED_GPU = 4 * GIB


def look_at_gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield _without_gpu()
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about, name = f"GPU {i}", torch.cuda.get_device_name(i)
        try:
            free, total = torch.cuda.mem_get_info(i)
            torch.ones(8, 8, device=f"cuda:{i}").matmul(torch.ones(8, 8, device=f"cuda:{i}")).sum().item()
        except RuntimeError as error:
            yield Finding(
                about, "wrong", f"{name} cannot compute: {str(error).splitlines()[0]}",
                "Install a torch for this GPU's generation and driver, or take other GPUs by "
                "CUDA_VISIBLE_DEVICES, or MODEL.DEVICE cpu.",
            )  # fmt: skip
            continue
        text = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        if free < NEEDED_GPU:
            yield Finding(
                about, "note", text, "See by nvidia-smi what holds it, or lower SOLVER.IMS_PER_BATCH."
            )
        else:
            yield Finding(about, "ok", text)


def look_at_memory() -> Iterator[Finding]:
    available = available_memory()
    if available is None:
        return
    text = f"{available / GIB:.1f} GiB available"
    if available < NEEDED_MEMORY:
        yield Finding(
            "memory", "wrong", text,
            f"Training a small model takes about {NEEDED_MEMORY / GIB:.0f} GiB: end other programs, or "
            "give the container more.",
        )  # fmt: skip
    else:
        yield Finding("memory", "ok", text)


def look_at_shared_memory() -> Iterator[Finding]:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return
    free = shutil.disk_usage(shared).free
    text = f"{free / GIB:.1f} GiB free in {shared}, through which loaders hand images over"
    if free < NEEDED_SHARED:
        way_out = "Give the container more (docker run --shm-size 8g), or set DATALOADER.NUM_WORKERS 0."
        yield Finding("shared memory", "note", text, way_out)
    else:
        yield Finding("shared memory", "ok", text)


def look_at_disk(output: Path) -> Finding:
    """The disk that checkpoints go to; ``output`` need not exist."""
    absolute = output.expanduser().absolute()
    there = next(path for path in (absolute, *absolute.parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / GIB:.1f} GiB free for checkpoints in {output}"
    other = "Set OUTPUT_DIR to a folder elsewhere"
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Finding("disk", "wrong", f"{output} cannot be written", f"{other}.")
    if free < NEEDED_DISK:
        return Finding("disk", "wrong", text, f"A checkpoint of a COCO model takes 1 GB. {other}.")
    if free < USUAL_DISK:
        way_out = f"A COCO recipe writes about 20 GB: SOLVER.KEEP_CHECKPOINTS 3 keeps three. Or: {other}."
        return Finding("disk", "note", text, way_out)
    return Finding("disk", "ok", text)


def _without_gpu() -> Finding:
    if torch.version.cuda is None and torch.version.hip is None:
        return Finding(
            "GPU", "note", "this torch is for processors alone", "For GPUs, install another torch."
        )
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return Finding("GPU", "note", "CUDA_VISIBLE_DEVICES hides them", "Unset it.")
    if Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        return Finding(
            "GPU", "wrong", f"there is an NVIDIA driver, and torch {torch.__version__} cannot use it",
            f"This torch is for CUDA {torch.version.cuda}: compare with what nvidia-smi shows, and update "
            "the driver or install a torch for an older CUDA. A container has to be given the GPUs "
            "(docker run --gpus all).",
        )  # fmt: skip
    return Finding("GPU", "note", "none: everything runs on the processor, and MODEL.DEVICE becomes cpu")
