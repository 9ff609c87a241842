import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..utils.atomic import atomic_write
from .runs import TrainingJob
from .sweep import Sweep, Variant

Results = Mapping[TrainingJob, Mapping[str, Any]]


def write_table(ablation: Sweep, results: Results, output: Path, note: str = "") -> None:
    """Write ``output/table.csv``, a line for each run, and ``table.md``, a line for each row.

    Means are over the finished runs, with the standard deviation of a sample. If a row is against another
    row, brackets have the mean and the standard deviation of the differences between runs of the same seed.
    Such runs share what the seed draws, for example the images of a subset.

    Args:
        note: text below the Markdown table.
    """
    order = {row: i for i, row in enumerate(ablation.rows)}
    with atomic_write(output / "table.csv", "w", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["row", "seed", *ablation.metrics, "seconds"])
        for run in sorted(results, key=lambda run: (order[run.row], run.seed)):
            result = results[run]
            values = [result[metric] for metric in ablation.metrics]
            table.writerow([run.row.name, run.seed, *values, result["seconds"]])
    with atomic_write(output / "table.md", "w", encoding="utf-8") as file:
        file.write(_markdown(ablation, results) + (f"\n{note}\n" if note else ""))


def _markdown(ablation: Sweep, results: Results) -> str:
    columns = ["", "seeds", *ablation.metrics]
    lines = [f"**{ablation.title}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in ablation.rows:
        own = [result for run, result in results.items() if run.row == row]
        count = f"{len(own)}" if len(own) == len(row.seeds) else f"{len(own)} of {len(row.seeds)}"
        cells = [
            _with_spread([result[metric] for result in own]) + _difference(row, metric, results)
            for metric in ablation.metrics
        ]
        lines.append(f"| {' | '.join([row.name, count, *cells])} |")
    return "\n".join(lines) + "\n"


def _with_spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return "–"
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _difference(row: Variant, metric: str, results: Results) -> str:
    """Return the differences from the row that this one is against, in brackets; "" if there are none."""
    own, other = (
        {run.seed: result[metric] for run, result in results.items() if run.row.name == name}
        for name in (row.name, row.against)
    )
    differences = [own[seed] - other[seed] for seed in own if seed in other]
    return f" ({_with_spread(differences, '+')})" if differences else ""
