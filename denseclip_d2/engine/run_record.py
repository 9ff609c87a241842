"""``OUTPUT_DIR/run.json``: the command, environment and settings of each start of a run."""

import json
import shlex
import sys
import time
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info

from ..utils.atomic import atomic_write
from ..version import __version__
from .summary import rows_of

FILE = "run.json"

Start = dict[str, Any]
"""``version``, ``time``, ``command`` and ``environment``; of a training also the tables of ``summarize_run``,
and ``seconds`` once it has ended."""


class RunRecord(HookBase):
    """Write ``run.json`` when training starts, and how long it took when it ends.

    A resumed run adds its start to the file. A new run replaces the file. On GPUs, ``metrics.json`` gets the
    peak memory, ``max_gpu_memory_mb``.
    """

    def __init__(self, folder: str, summary: dict[str, list]):
        """
        Args:
            folder: the OUTPUT_DIR.
            summary: the tables of ``summarize_run``.
        """
        self.folder, self.summary = Path(folder), summary
        self.starts: list[Start] = []

    def before_train(self) -> None:
        earlier = read_starts(self.folder) if self.trainer.start_iter else []
        self.starts = [*earlier, describe_start() | self.summary]
        write_starts(self.folder, self.starts)
        self.began = time.perf_counter()

    def before_step(self) -> None:
        if torch.cuda.is_initialized():
            peak = torch.cuda.max_memory_allocated() / 2**20
            self.trainer.storage.put_scalar("max_gpu_memory_mb", peak, smoothing_hint=False)

    def after_train(self) -> None:
        if self.starts:
            self.starts[-1]["seconds"] = time.perf_counter() - self.began
            write_starts(self.folder, self.starts)


def record_evaluation(folder: str) -> None:
    """Write the start of an evaluation, in the main process, unless the folder has a ``run.json``."""
    if comm.is_main_process() and not Path(folder, FILE).is_file():
        write_starts(Path(folder), [describe_start()])


def describe_start() -> Start:
    """Return the command of this process, its time, and the environment."""
    return {
        "version": __version__,
        "time": datetime.now().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "environment": _environment(),
    }


def read_starts(folder: Path) -> list[Start]:
    """Return the starts of a run, the latest last; empty without a ``run.json``."""
    path = folder / FILE
    return json.loads(path.read_bytes())["starts"] if path.is_file() else []


def write_starts(folder: Path, starts: list[Start]) -> None:
    with atomic_write(folder / FILE, "w", encoding="utf-8") as file:
        json.dump({"starts": starts}, file, indent=1)


@cache
def _environment() -> list[list[str]]:
    return rows_of(collect_env_info())
