import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from ..utils.atomic import atomic_write
from .rows import Ablation, Row
from .runs import Run

TABLE = "table"


def write_table(
    ablation: Ablation, results: Mapping[Run, Mapping[str, Any]], output: Path, note: str = ""
) -> None:
    """Writes ``output/table.csv``, a line a run, ``table.md``, a line a row, and ``table.png``.

    Means are over the runs that ended, and how many is said; the spread is the standard deviation of a
    sample. Of a row that is against another, brackets have the mean and the spread of the differences between
    runs of one seed, which share what the seed draws: the images of a subset, say.

    Args:
        note: put below the Markdown table.
    """
    with atomic_write(output / f"{TABLE}.csv", "w", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["row", "seed", *ablation.metrics, "seconds"])
        for run, result in sorted(
            results.items(), key=lambda item: (_place(ablation, item[0]), item[0].seed)
        ):
            table.writerow(
                [run.row.name, run.seed, *(result[m] for m in ablation.metrics), result["seconds"]]
            )
    values = [
        [[result[metric] for run, result in results.items() if run.row == row] for metric in ablation.metrics]
        for row in ablation.rows
    ]
    with atomic_write(output / f"{TABLE}.md", "w", encoding="utf-8") as file:
        file.write(_markdown(ablation, values, results) + (f"\n{note}\n" if note else ""))
    _draw(ablation, values, output / f"{TABLE}.png")


def _place(ablation: Ablation, run: Run) -> int:
    return ablation.rows.index(run.row)


def _markdown(
    ablation: Ablation,
    values: Sequence[Sequence[Sequence[float]]],
    results: Mapping[Run, Mapping[str, Any]],
) -> str:
    columns = ["", "seeds", *ablation.metrics]
    lines = [f"**{ablation.title}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row, of_metrics in zip(ablation.rows, values, strict=True):
        ended, wanted = len(of_metrics[0]), len(row.seeds)
        count = str(ended) if ended == wanted else f"{ended} of {wanted}"
        cells = [
            _with_spread(found) + _difference(row, metric, results)
            for metric, found in zip(ablation.metrics, of_metrics, strict=True)
        ]
        lines.append(f"| {' | '.join([row.name, count, *cells])} |")
    return "\n".join(lines) + "\n"


def _with_spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return "–"
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _difference(row: Row, metric: str, results: Mapping[Run, Mapping[str, Any]]) -> str:
    """The differences from the row that this one is against, in brackets; empty where there are none."""
    by_seed: dict[str, dict[int, float]] = {row.name: {}, row.against: {}}
    for run, result in results.items():
        if run.row.name in by_seed:
            by_seed[run.row.name][run.seed] = result[metric]
    own, other = by_seed[row.name], by_seed[row.against]
    differences = [own[seed] - other[seed] for seed in own if seed in other]
    return f" ({_with_spread(differences, '+')})" if row.against and differences else ""


def _draw(ablation: Ablation, values: Sequence[Sequence[Sequence[float]]], path: Path) -> None:
    """A panel a metric: points for the runs, and a bar from one deviation below their mean to one above."""
    rows, metrics = len(ablation.rows), len(ablation.metrics)
    figure = Figure(figsize=(3 + 4 * metrics, 1 + 0.4 * rows), layout="constrained")
    axes = figure.subplots(1, metrics, sharey=True, squeeze=False)
    for column, (metric, panel) in enumerate(zip(ablation.metrics, axes[0], strict=True)):
        for y, of_metrics in enumerate(values):
            found = of_metrics[column]
            panel.plot(found, [y] * len(found), "o", color="0.6", markersize=4)
            if found:
                spread = stdev(found) if len(found) > 1 else 0.0
                panel.errorbar(
                    mean(found), y, xerr=spread, fmt="D", color="tab:blue", markersize=5, capsize=3
                )
        panel.set_xlabel(metric)
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
    axes[0][0].set_yticks(range(rows), [row.name for row in ablation.rows])
    axes[0][0].set_ylim(rows - 0.5, -0.5)
    figure.suptitle(ablation.title)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
