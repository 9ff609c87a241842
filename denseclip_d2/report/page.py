"""The report of a run: one HTML file that needs nothing beside it."""

import datetime
import logging
import statistics
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.colors import to_hex

from ..config.checks import leaves
from ..config.projects import default_config
from ..data.checks import check_registered, explained_annotation_errors
from ..data.tasks import finds_masks
from ..inference import Predictor
from ..model_zoo.card import FIGURE
from ..utils.atomic import atomic_write
from ..version import __version__
from ..visualization.drawing import HEAT
from . import detections, labels
from .charts import Chart, line_chart
from .detections import read_detections
from .labels import read_labeled
from .parts import BESIDE, Part, number, part_of_objects, part_of_pixels
from .pictures import best_and_worst, show
from .run import Run, read_run

logger = logging.getLogger(__name__)

FILE = "report.html"
IMAGES = 4
"""Of the best, and as many of the worst; of several test sets together, too."""
MAX_PICTURES = 3_600_000
"""Bytes of all pictures, so that the page stays below 5 MB."""
FEW = 20
"""Classes that are listed at once; of more, the best and the worst, and all of them folded away."""
HEAT_STOPS = [to_hex(HEAT(i / 10)) for i in range(11)]
MAIN = ("AP", "AP50", "mIoU", "PQ")
"""Figures that are drawn over time."""


def report_training(cfg: CfgNode) -> None:
    """Write the report of a training that has ended, by the main process, where ``TEST.REPORT`` asks for it.

    What goes wrong is a warning: the training is whole without.
    """
    if not (cfg.TEST.REPORT and comm.is_main_process()):
        return
    try:
        logger.info("The report of this run: %s", write_report(Path(cfg.OUTPUT_DIR)))
    except Exception as error:
        logger.warning(
            "No %s could be written (%s: %s); the run is whole without. Once that is mended, write it by "
            "`tools/report.py %s`, or leave it out by TEST.REPORT False.",
            FILE, type(error).__name__, error, cfg.OUTPUT_DIR,
        )  # fmt: skip


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run, whole or not at all.

    Args:
        folder: the run's OUTPUT_DIR.
        output: the file; None: ``report.html`` in the folder.

    Returns: the file.
    Raises:
        FileNotFoundError, ValueError: see :func:`read_run`.
        OSError: the file cannot be written.
    """
    run = read_run(folder)
    output = output or folder / FILE
    parts, missing = _parts(run)
    page = _template().render(
        run=run, parts=parts, missing=missing, charts=_training_charts(run),
        few=FEW, beside=BESIDE, heat=HEAT_STOPS,
        name=folder.resolve().name, folder=folder.resolve(), weights=Path(run.cfg.MODEL.WEIGHTS).name,
        state=_state(run), date=_date(run), facts=_facts(run), figures=_figures(run),
        recipe=[row[0] for row in run.logged_table("Departures from the config file:")],
        departures=[*_departures(run.cfg)], environment=run.logged_table("Environment info:"),
        version=__version__, written=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
    )  # fmt: skip
    # A file name in another encoding than the file system's has what UTF-8 has not.
    with atomic_write(output, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(page)
    return output


def _state(run: Run) -> str:
    if not run.records:
        return "evaluated"
    done = f"{run.iterations} of {run.cfg.SOLVER.MAX_ITER} iterations"
    return f"ended: {run.iterations} iterations" if run.ended else f"not ended: {done}"


def _date(run: Run) -> str:
    """When the run last wrote something down."""
    files = [path for path in (run.folder / "metrics.json", run.folder / "config.yaml") if path.is_file()]
    return f"{datetime.datetime.fromtimestamp(files[0].stat().st_mtime):%Y-%m-%d %H:%M}"


def _template():
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html")


def _parts(run: Run) -> tuple[list[Part], list[str]]:
    """What was evaluated, and what of it cannot be shown."""
    tasks = ("bbox", "segm") if finds_masks(run.cfg) else ("bbox",)
    read_objects = partial(read_detections, tasks=tasks)
    kinds = (
        (detections.RESULTS.values(), read_objects, part_of_objects, "image_id"),
        ([labels.RESULTS], read_labeled, part_of_pixels, "file_name"),
    )
    evaluated = [
        (name, run.folder / "inference" / name, *kind)
        for name in run.cfg.DATASETS.TEST
        for files, *kind in kinds
        if any((run.folder / "inference" / name / file).is_file() for file in files)
    ]
    parts, missing = [], []
    predictor, fault = _predictor(run) if evaluated else (None, "")
    for name, folder, read, describe, key in evaluated:
        try:
            check_registered(name)
            found = read(name, folder)
            part = describe(name, found)
            part.notes += _disagreements(run, name, found.figures)
            _add_images(part, predictor, fault, name, key, found, len(evaluated))
        except (ImportError, OSError, ValueError) as error:
            missing.append(f"{name}: {error}")
        else:
            parts.append(part)
    return parts, missing


def _predictor(run: Run) -> tuple[Predictor | None, str]:
    """The model as last saved, or why there is none."""
    if not run.cfg.MODEL.WEIGHTS:
        return None, "There is no checkpoint yet."
    try:
        return Predictor(run.cfg), ""
    except (OSError, RuntimeError, ValueError) as error:
        return None, f"The model cannot be read: {error}"


def _add_images(
    part: Part, predictor: Predictor | None, fault: str, name: str, key: str, found, share: int
) -> None:
    """
    Args:
        key: what a record of the data set has of its image, by which ``found`` knows it.
        share: how many parts share what pictures may take.
    """
    part.no_images = fault
    if predictor is None:
        return
    try:
        with explained_annotation_errors([name]):
            records = {record[key]: record for record in DatasetCatalog.get(name)}
        quality = {image: value for image, value in found.quality.items() if image in records}
        best, worst = best_and_worst(quality, max(IMAGES // share, 1))
        chosen = [*best, *worst]
        shown = show(
            predictor, [records[i] for i in chosen], [quality[i][0] for i in chosen],
            threshold=getattr(found, "threshold", 0.5), max_bytes=MAX_PICTURES // share,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        part.no_images = str(error)
    else:
        part.best, part.worst = shown[: len(best)], shown[len(best) :]


def _disagreements(run: Run, name: str, figures: Mapping[str, float]) -> list[str]:
    """What of a test set is not as metrics.json has it, which names the set where there are several."""
    prefix = f"{name}/" if len(run.cfg.DATASETS.TEST) > 1 else ""
    logged = {key: run.figures.get(prefix + key, value) for key, value in figures.items()}
    differ = [
        f"{key} {number(logged[key], 2)} there, {number(value, 2)} here"
        for key, value in figures.items()
        if abs(logged[key] - value) > 0.05
    ]
    note = f"inference/{name} is not of the last evaluation in metrics.json: {', '.join(differ)}."
    return [note] if differ else []


def _training_charts(run: Run) -> list[Chart]:
    """Losses, rates, time and figures of periodic evaluations, as far as there are any."""
    names = sorted(run.figures)
    losses = [name for name in names if "loss" in name]
    losses.sort(key=lambda name: name != "total_loss")
    main = [name for name in names if FIGURE.fullmatch(name) and name.split("/")[-1] in MAIN]
    wanted: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Losses", losses, "", {"smooth": True, "log": True, "broad": True}),
        ("Figures of the periodic evaluations", main, "%", {"marker": "o"}),
        ("Learning rate", ["lr"], "", {}),
        ("Time of an iteration", ["time", "data_time"], "seconds", {"smooth": True}),
    )
    charts = []
    for title, metrics, unit, how in wanted:
        curves = {metric: run.series(metric) for metric in metrics}
        curves = {metric: points for metric, points in curves.items() if len(points) > 1}
        if curves:
            charts.append(line_chart(title, curves, "iteration", unit, **how))
    return charts


def _figures(run: Run) -> list[tuple[str, str]]:
    return [(name, number(value, 2)) for name, value in run.figures.items() if FIGURE.fullmatch(name)]


def _facts(run: Run) -> list[tuple[str, str]]:
    """How the run went, as far as it has said so."""
    facts = [(row[0], row[-1]) for row in run.logged_table("This run:")]
    if times := [value for _, value in run.series("time")]:
        seconds = statistics.median(times)
        facts.append(("speed", f"{seconds:.3g} s an iteration (median)"))
    parts = run.logged(r"Total training time: (.+?) \(")
    if parts:
        facts.append(("training time", ", then ".join(parts)))
    if memory := run.logged(r"max_mem: (\d+)M"):
        facts.append(("most GPU memory", f"{max(map(int, memory))} MB"))
    facts += [("command", command) for command in run.logged(r"Command: (.+)")[-1:]]
    return facts


def _departures(cfg: CfgNode) -> Iterator[tuple[str, str, str]]:
    """Keys, values and defaults, where these differ."""
    defaults = dict(leaves(default_config(cfg.MODEL.DENSECLIP.PROJECTS)))
    for key, value in leaves(cfg):
        if value != defaults[key]:
            yield key, str(value), str(defaults[key])
