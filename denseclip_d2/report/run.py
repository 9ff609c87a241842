"""What a training leaves in its OUTPUT_DIR, also while it runs or after a kill."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from detectron2.config import CfgNode

from ..config import prepare_run
from ..engine.run_record import Start, read_starts

Records = dict[int, dict[str, float]]
"""Metrics by iteration."""


@dataclass(frozen=True)
class TrainingRun:
    """
    Attributes:
        folder: the OUTPUT_DIR; it may have been moved.
        cfg: the config of the training, with the newest weights as ``MODEL.WEIGHTS``.
        records: of ``metrics.json``; empty without a training.
        starts: of ``run.json``; empty for a run of a version without this file.
    """

    folder: Path
    cfg: CfgNode
    records: Records
    starts: list[Start]

    @property
    def iterations(self) -> int:
        """The number of iterations in ``metrics.json``."""
        return min(max(self.records, default=-1) + 1, self.cfg.SOLVER.MAX_ITER)

    @property
    def ended(self) -> bool:
        return (self.folder / "model_final.pth").is_file() and self.iterations == self.cfg.SOLVER.MAX_ITER

    @property
    def start(self) -> Start:
        """The latest start; empty if unknown."""
        return self.starts[-1] if self.starts else {}

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric."""
        return {name: value for record in self.records.values() for name, value in record.items()}

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return the values of a metric, with their iterations."""
        return [(i, record[name]) for i, record in self.records.items() if name in record]


def read_run(folder: Path) -> TrainingRun:
    """Read an OUTPUT_DIR.

    Raises:
        FileNotFoundError: the folder is not an OUTPUT_DIR, or has no measurements yet.
        ValueError: its config is not of this project, or its data cannot be used.
    """
    config, metrics, last = (folder / name for name in ("config.yaml", "metrics.json", "last_checkpoint"))
    if not config.is_file():
        raise FileNotFoundError(f"{folder} is no OUTPUT_DIR of tools/train_net.py: it has no config.yaml.")
    records = read_records(metrics) if metrics.is_file() else {}
    if not records and not (folder / "inference").is_dir():
        raise FileNotFoundError(
            f"{folder} has nothing to report yet: neither metrics.json, which training writes every 20 "
            "iterations, nor inference/, which evaluation writes."
        )
    cfg = prepare_run(str(config), []).cfg
    if last.is_file():
        cfg.MODEL.WEIGHTS = str(folder / last.read_text(encoding="utf-8").strip())
    elif records:  # killed before the first checkpoint
        cfg.MODEL.WEIGHTS = ""
    return TrainingRun(folder, cfg, records, read_starts(folder))


def read_records(path: Path) -> Records:
    """Return the lines of a metrics.json, merged by iteration.

    A resumed run repeats the iterations after its last checkpoint: the later lines count. A line that a kill
    has cut off is left out, with what a resumed run has written behind it.
    """
    records: Records = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if not isinstance(found, dict) or not isinstance(found.get("iteration"), int):
            continue
        iteration = found.pop("iteration")
        if iteration < next(reversed(records), -1):
            records = {i: record for i, record in records.items() if i < iteration}
        records.setdefault(iteration, {}).update(found)
    return records
