import json
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..utils.atomic import atomic_write
from ..utils.old_keys import update_pairs
from .sweep import Sweep, Variant

RESULT, LOG = "result.json", "output.txt"


@dataclass(frozen=True)
class TrainingJob:
    """A row with one of its seeds, in its own folder."""

    row: Variant
    seed: int
    folder: Path

    @property
    def options(self) -> list[str]:
        return [*self.row.options, "SEED", str(self.seed)]

    def result(self) -> dict[str, Any] | None:
        """Return the metrics and the ``seconds`` of a finished run, None of another.

        ``seconds`` is None if the run was killed and resumed.

        Raises:
            ValueError: the folder has the result of other options.
        """
        path = self.folder / RESULT
        if not path.exists():
            return None
        found = json.loads(path.read_bytes())
        if (
            update_pairs(found["options"]) != update_pairs(self.options)
            or found["config"] != self.row.config.name
        ):
            raise ValueError(
                f"{self.folder} has a run of other options, {found['config']} {' '.join(found['options'])}. "
                "Remove it, or choose another --output."
            )
        return found["metrics"]


def all_runs(ablation: Sweep, output: Path) -> list[TrainingJob]:
    """Return the runs seed by seed, so that an unfinished table has runs of every row."""
    most = max(len(row.seeds) for row in ablation.rows)
    return [
        TrainingJob(row, row.seeds[i], output / row.folder / f"seed{row.seeds[i]}")
        for i in range(most)
        for row in ablation.rows
        if i < len(row.seeds)
    ]


def finished(ablation: Sweep, output: Path) -> dict[TrainingJob, dict[str, Any]]:
    """Return the metrics of the finished runs.

    Raises:
        ValueError: see :meth:`TrainingJob.result`.
    """
    results = {run: run.result() for run in all_runs(ablation, output)}
    return {run: result for run, result in results.items() if result is not None}


def run_all(
    ablation: Sweep,
    output: Path,
    train: Sequence[str],
    *,
    jobs: int = 1,
    after_each: Callable[[], None] = lambda: None,
) -> list[TrainingJob]:
    """Train the runs that are not finished, each in its own process. A killed run is resumed.

    Args:
        train: the command that trains; options are appended.
        jobs: number of runs at the same time.
        after_each: called after each run.

    Returns: the failed runs, whose folders have an ``output.txt``.
    Raises:
        ValueError: see :meth:`TrainingJob.result`.
    """
    done, failed = finished(ablation, output), []
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(_train, run, train, ablation.metrics): run
            for run in all_runs(ablation, output)
            if run not in done
        }
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
                if not future.result():
                    failed.append(futures[future])
                after_each()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _train(run: TrainingJob, train: Sequence[str], metrics: Sequence[str]) -> bool:
    """Train a run and write its result. Return whether it has the metrics."""
    resumed = (run.folder / "metrics.json").exists()
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [*train, "--config-file", str(run.row.config), "--resume", *run.options]
    command += ["OUTPUT_DIR", str(run.folder)]
    start = time.monotonic()
    with (run.folder / LOG).open("a", encoding="utf-8") as log:
        print("$", *command, file=log, flush=True)
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        reached = _last_metrics(run.folder / "metrics.json", metrics) if status == 0 else None
        if reached is None:
            print(f"! status {status}; needed metrics: {', '.join(metrics)}", file=log)
            return False
    reached["seconds"] = None if resumed else round(time.monotonic() - start)
    with atomic_write(run.folder / RESULT, "w", encoding="utf-8") as file:
        json.dump({"config": run.row.config.name, "options": run.options, "metrics": reached}, file, indent=2)
    return True


def _last_metrics(path: Path, names: Sequence[str]) -> dict[str, Any] | None:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in map(json.loads, reversed(lines)):
        if all(name in line for name in names):
            return {name: line[name] for name in names}
    return None
