"""The memory that a process can use."""

from pathlib import Path


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
