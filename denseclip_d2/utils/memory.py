"""The memory of a process."""

import ctypes
import os
import sys
from pathlib import Path

import torch

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _LARGEST = -1, -4, 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep freed memory, if it computes on the CPU and its C library is glibc.

    glibc returns large blocks to the system. The system hands them out again zeroed, page by page, for the
    maps of each layer. Programs call this function, and libraries do not. ``MALLOC_TRIM_THRESHOLD_`` in the
    environment, glibc's own setting, switches it off.

    Returns: whether the process keeps memory now.
    """
    if torch.cuda.is_available() or "MALLOC_TRIM_THRESHOLD_" in os.environ or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return bool(mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the available bytes of memory, within the limit of a container; None without Linux.

    Args:
        root: the folder that contains ``proc`` and ``sys``.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return None
    lines = meminfo.read_text(encoding="utf-8").splitlines()
    available = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    limit, used = root / "sys/fs/cgroup/memory.max", root / "sys/fs/cgroup/memory.current"
    bound = limit.read_text(encoding="utf-8").strip() if limit.is_file() and used.is_file() else ""
    if bound.isdecimal():
        available = min(available, max(int(bound) - int(used.read_text(encoding="utf-8")), 0))
    return available
