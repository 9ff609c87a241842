import fcntl
import json
import os
import queue
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..utils.atomic import atomic_write
from .rows import Ablation, Row

RESULT, LOG = "result.json", "output.txt"


@dataclass(frozen=True)
class Run:
    """A row with one of its seeds, in a folder of its own."""

    row: Row
    seed: int
    folder: Path

    @property
    def options(self) -> list[str]:
        return [*self.row.options, "SEED", str(self.seed)]

    def result(self) -> dict[str, Any] | None:
        """The metrics that it reached and its ``seconds`` (None if it was killed between); None before its
        end.

        Raises:
            ValueError: the folder has the result of other options.
        """
        path = self.folder / RESULT
        if not path.exists():
            return None
        found = json.loads(path.read_bytes())
        if found["options"] != self.options or found["config"] != self.row.config.name:
            raise ValueError(
                f"{self.folder} has a run of other options, {found['config']} {' '.join(found['options'])}. "
                "Remove it, or choose another --output."
            )
        return found["metrics"]


def all_runs(ablation: Ablation, output: Path) -> list[Run]:
    """Seed by seed, so that a table that is not finished has something of every row."""
    most = max(len(row.seeds) for row in ablation.rows)
    return [
        Run(row, row.seeds[i], output / row.folder / f"seed{row.seeds[i]}")
        for i in range(most)
        for row in ablation.rows
        if i < len(row.seeds)
    ]


def finished(ablation: Ablation, output: Path) -> dict[Run, dict[str, Any]]:
    """The metrics of the runs that have ended.

    Raises:
        ValueError: see :meth:`Run.result`.
    """
    results = {run: run.result() for run in all_runs(ablation, output)}
    return {run: result for run, result in results.items() if result is not None}


def run_all(
    ablation: Ablation,
    output: Path,
    train: Sequence[str],
    *,
    jobs: int = 1,
    gpus_per_job: int = 0,
    after_each: Callable[[], None] = lambda: None,
) -> list[Run]:
    """Trains what has not ended, each run in a process of its own that goes on where it was killed.

    Args:
        train: the command to train by, to which the options are added.
        jobs: runs at once, each with its part of the processor's cores.
        gpus_per_job: how many each has, of those that are visible; 0 leaves that alone.
        after_each: called whenever a run has ended.

    Returns: the runs that failed, whose folders have an ``output.txt``.
    Raises:
        ValueError: see :meth:`Run.result`.
        BlockingIOError: ``output`` is being written by another.
    """
    done = finished(ablation, output)
    waiting = [run for run in all_runs(ablation, output) if run not in done]
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    failed = []
    with _alone(output) as lock, ThreadPoolExecutor(jobs) as pool:

        def work(run: Run) -> bool:
            slot = slots.get()
            try:
                return _train(run, train, ablation.metrics, _environment(slot, jobs, gpus_per_job), lock)
            finally:
                slots.put(slot)

        futures = {pool.submit(work, run): run for run in waiting}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
                if not future.result():
                    failed.append(futures[future])
                after_each()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _train(
    run: Run, train: Sequence[str], metrics: Sequence[str], environment: Mapping[str, str], lock: int
) -> bool:
    """Whether the run reached its end, and has a result."""
    whole = not (run.folder / "metrics.json").exists()
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [*train, "--config-file", str(run.row.config), "--resume", *run.options]
    start = time.monotonic()
    with (run.folder / LOG).open("a", encoding="utf-8") as log:
        print("$", *command, file=log, flush=True)
        ended = subprocess.run(
            [*command, "OUTPUT_DIR", str(run.folder)],
            stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=(lock,), check=False,
        )  # fmt: skip
        reached = _last_metrics(run.folder / "metrics.json", metrics) if ended.returncode == 0 else None
        if reached is None:
            print(f"! status {ended.returncode}; wanted: {', '.join(metrics)}", file=log)
            return False
    reached["seconds"] = round(time.monotonic() - start) if whole else None
    with atomic_write(run.folder / RESULT, "w", encoding="utf-8") as file:
        json.dump({"config": run.row.config.name, "options": run.options, "metrics": reached}, file, indent=2)
    return True


def _last_metrics(path: Path, names: Sequence[str]) -> dict[str, Any] | None:
    lines = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )
    for line in reversed(lines):
        if all(name in line for name in names):
            return {name: line[name] for name in names}
    return None


def _environment(slot: int, jobs: int, gpus: int) -> dict[str, str]:
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // jobs, 1)))
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        own = range(slot * gpus, (slot + 1) * gpus)
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[i] if any(visible) else str(i) for i in own)
    return environment


@contextmanager
def _alone(output: Path) -> Iterator[int]:
    """A lock that the runs inherit: where one outlives who began it, its folder is not written twice."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{output} is being written: by another ablation, or by a run that outlived one. "
                "Wait for its end, or end it."
            ) from error
        yield file.fileno()
