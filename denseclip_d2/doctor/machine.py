import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ..utils.memory import available_memory
from .check_result import CheckResult, judge

GIB = 2**30
NEEDED_MEMORY, NEEDED_SHARED, NEEDED_GPU = 2 * GIB, GIB, 4 * GIB
"""For the training of small models: memory with the loaders' processes, shared memory, and a GPU's memory."""
NEEDED_DISK, USUAL_DISK = GIB, 20 * GIB
"""One checkpoint of a COCO model, and all 20 checkpoints of a training."""


def check_gpus() -> Iterator[CheckResult]:
    if not torch.cuda.is_available():
        unused = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")
        yield judge(
            "GPU", not unused or os.environ.get("CUDA_VISIBLE_DEVICES") == "",
            f"torch {torch.__version__} sees none" + ("" if unused else ": MODEL.DEVICE becomes cpu"),
            "wrong",
            f"There is an NVIDIA driver. This torch is for CUDA {torch.version.cuda}: compare nvidia-smi. "
            "Update the driver, or install a torch for that CUDA. In a container, use docker run --gpus all.",
        )  # fmt: skip
        return
    for i in range(torch.cuda.device_count()):
        about, name = f"GPU {i}", torch.cuda.get_device_name(i)
        try:
            free, total = torch.cuda.mem_get_info(i)
            torch.ones(8, 8, device=f"cuda:{i}").matmul(torch.ones(8, 8, device=f"cuda:{i}")).sum().item()
        except RuntimeError as error:
            yield CheckResult(
                about, "wrong", f"{name} cannot compute: {str(error).splitlines()[0]}",
                "Install a torch for this GPU and driver, or set CUDA_VISIBLE_DEVICES or MODEL.DEVICE cpu.",
            )  # fmt: skip
            continue
        yield judge(
            about, free >= NEEDED_GPU, f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free", "note",
            "nvidia-smi lists what uses it. Or lower SOLVER.IMS_PER_BATCH.",
        )  # fmt: skip


def check_memory() -> Iterator[CheckResult]:
    """Check memory and shared memory, each where Linux tells of it."""
    if (available := available_memory()) is not None:
        yield judge(
            "memory", available >= NEEDED_MEMORY, f"{available / GIB:.1f} GiB available", "wrong",
            f"Training a small model takes about {NEEDED_MEMORY / GIB:.0f} GiB. End other programs, or give "
            "the container more.",
        )  # fmt: skip
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        yield judge(
            "shared memory", free >= NEEDED_SHARED, f"{free / GIB:.1f} GiB free in {shared}, for loaders",
            "note", "Give the container more (docker run --shm-size 8g), or set DATALOADER.NUM_WORKERS 0.",
        )  # fmt: skip


def check_disk(output: Path) -> CheckResult:
    """Check the disk for checkpoints."""
    absolute = output.expanduser().absolute()
    there = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return CheckResult("disk", "wrong", f"{output} cannot be written", "Choose another OUTPUT_DIR.")
    free = shutil.disk_usage(there).free
    return judge(
        "disk", free >= USUAL_DISK, f"{free / GIB:.1f} GiB free for checkpoints in {output}",
        "wrong" if free < NEEDED_DISK else "note",
        "A COCO model writes 20 checkpoints of 1 GB. Set SOLVER.MAX_TO_KEEP 3, or another OUTPUT_DIR.",
    )  # fmt: skip
