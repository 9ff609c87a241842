import ctypes
import sys

from detectron2.config import CfgNode

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, LARGEST = -1, -4, 2**31 - 1


def keep_memory(cfg: CfgNode) -> bool:
    """Let this process keep the memory that tensors gave back, on CPUs (``MODEL.KEEP_MEMORY``).

    glibc hands large blocks back to the system, which gives them out again emptied, page by page: at each
    layer's maps. It is for programs to call, and not for a library, since it is the whole process's matter.

    Returns: whether it does so now: not on GPUs, nor without glibc.
    """
    if cfg.MODEL.DEVICE != "cpu" or not cfg.MODEL.KEEP_MEMORY or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))
