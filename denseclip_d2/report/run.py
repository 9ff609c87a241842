"""What a training leaves in its OUTPUT_DIR; also one that was killed, or is still at it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from detectron2.config import CfgNode

from ..config import prepare_run

Records = dict[int, dict[str, float]]
"""What was measured, by iteration."""


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        folder: the OUTPUT_DIR, wherever it is by now.
        cfg: as it was trained, with the weights that there are as ``MODEL.WEIGHTS``.
        records: of metrics.json; empty where nothing was trained.
        log: the text of log.txt; empty where there is none.
    """

    folder: Path
    cfg: CfgNode
    records: Records
    log: str

    @property
    def iterations(self) -> int:
        """How many were done, as far as metrics.json knows."""
        return min(max(self.records, default=-1) + 1, self.cfg.SOLVER.MAX_ITER)

    @property
    def ended(self) -> bool:
        return (self.folder / "model_final.pth").is_file() and self.iterations == self.cfg.SOLVER.MAX_ITER

    @cached_property
    def figures(self) -> dict[str, float]:
        """The last value of everything."""
        return {name: value for record in self.records.values() for name, value in record.items()}

    def series(self, name: str) -> list[tuple[int, float]]:
        """The values of one metric, with their iterations."""
        return [(i, record[name]) for i, record in self.records.items() if name in record]

    def logged_table(self, title: str) -> list[list[str]]:
        """The rows of the last table below a line of the log that ends in this title, cell by cell."""
        blocks = re.findall(rf"{re.escape(title)}\n(?:-[ -]*\n)?((?:(?!\[|-|\S.*:\n).+\n)*)", self.log)
        rows = blocks[-1].splitlines() if blocks else []
        return [re.split(r"\s{2,}", row.strip(), maxsplit=1) for row in rows]

    def logged(self, pattern: str) -> list[str]:
        """What the group of a regular expression is, each time that it is in the log."""
        return re.findall(pattern, self.log)


def read_run(folder: Path) -> Run:
    """
    Raises:
        FileNotFoundError: this is no folder of a run, or one that has measured nothing yet.
        ValueError: its config is not one of this project's; its data cannot be used.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"{folder} is no OUTPUT_DIR of tools/train_net.py: there is no config.yaml in it."
        )
    metrics, log = folder / "metrics.json", folder / "log.txt"
    records = read_records(metrics) if metrics.is_file() else {}
    if not records and not (folder / "inference").is_dir():
        raise FileNotFoundError(
            f"{folder} has nothing to report yet: neither metrics.json, which training writes every 20 "
            "iterations, nor inference/, which evaluation does."
        )
    cfg = prepare_run(str(config), []).cfg
    last = folder / "last_checkpoint"
    if last.is_file():
        cfg.MODEL.WEIGHTS = str(folder / last.read_text(encoding="utf-8").strip())
    elif records:  # killed before its first checkpoint
        cfg.MODEL.WEIGHTS = ""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return Run(folder, cfg, records, re.sub(r"\x1b\[[\d;]*m", "", text))


def read_records(path: Path) -> Records:
    """The lines of a metrics.json, merged by iteration.

    A run that goes on does again what came after its last checkpoint: the later lines count. A line that a
    kill cut off is left out, with what a run that went on has written behind it.
    """
    records: Records = {}
    for found in _lines(path):
        iteration = found.pop("iteration")
        if iteration < next(reversed(records), -1):
            records = {i: record for i, record in records.items() if i < iteration}
        records.setdefault(iteration, {}).update(found)
    return records


def _lines(path: Path) -> Iterator[dict]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("iteration"), int):
            yield found
