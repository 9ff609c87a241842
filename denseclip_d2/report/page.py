"""The report of a run: one HTML file that needs no other file."""

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
from ..data.class_names import names_to_find
from ..data.tasks import predicts_masks
from ..inference import Predictor
from ..model_zoo.card import METRIC
from ..utils.atomic import atomic_write
from ..version import __version__
from ..visualization.drawing import HEAT
from . import detections, labels
from .charts import Chart, line_chart
from .detections import read_detections
from .images import best_and_worst, show
from .labels import read_labeled
from .run import TrainingRun, read_run
from .sections import BESIDE, Section, box_section, label_map_section, number

logger = logging.getLogger(__name__)

FILE = "report.html"
IMAGES = 4
"""How many of the best images are shown, and of the worst; several test sets share them."""
MAX_IMAGE_BYTES = 3_600_000
"""The most bytes of all images, so that the page stays below 5 MB."""
FEW = 20
"""The most classes that are listed at once. A longer list is folded, below its best and worst classes."""
HEAT_STOPS = [to_hex(HEAT(i / 10)) for i in range(11)]
MAIN = ("AP", "AP50", "mIoU", "PQ")
"""The metrics that are drawn over time."""


def report_training(cfg: CfgNode) -> None:
    """Write the report of an ended training, in the main process, if ``TEST.REPORT`` is set.

    An error becomes a warning, because the training is complete without a report.
    """
    if not (cfg.TEST.REPORT and comm.is_main_process()):
        return
    try:
        logger.info("The report of this run: %s", write_report(Path(cfg.OUTPUT_DIR)))
    except Exception as error:
        logger.warning(
            "%s could not be written (%s: %s); the run is complete without it. Repair the cause, then write "
            "the report by `tools/report.py %s`, or set TEST.REPORT to False.",
            FILE, type(error).__name__, error, cfg.OUTPUT_DIR,
        )  # fmt: skip


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run atomically, and return the file.

    Args:
        folder: the run's OUTPUT_DIR.
        output: the file; None: ``report.html`` in the folder.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_run`.
        OSError: the file cannot be written.
    """
    run = read_run(folder)
    output = output or folder / FILE
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    parts, missing = _parts(run)
    page = environment.get_template("page.html").render(
        run=run, parts=parts, missing=missing, charts=_training_charts(run),
        few=FEW, beside=BESIDE, heat=HEAT_STOPS,
        name=folder.resolve().name, folder=folder.resolve(), weights=Path(run.cfg.MODEL.WEIGHTS).name,
        state=_state(run), date=_date(run), facts=_facts(run), metrics=_metrics(run), start=run.start,
        overrides=[*_overrides(run.cfg)],
        version=__version__, written=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
    )  # fmt: skip
    # UTF-8 lacks some characters of file names in another encoding than the file system's.
    with atomic_write(output, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(page)
    return output


def _state(run: TrainingRun) -> str:
    if not run.records:
        return "evaluated"
    done = f"{run.iterations} of {run.cfg.SOLVER.MAX_ITER} iterations"
    return f"ended: {run.iterations} iterations" if run.ended else f"not ended: {done}"


def _date(run: TrainingRun) -> str:
    """Return when the run last wrote metrics, or its config."""
    files = [path for path in (run.folder / "metrics.json", run.folder / "config.yaml") if path.is_file()]
    return f"{datetime.datetime.fromtimestamp(files[0].stat().st_mtime):%Y-%m-%d %H:%M}"


def _parts(run: TrainingRun) -> tuple[list[Section], list[str]]:
    """Return the evaluated test sets, and a line for each that cannot be shown."""
    tasks = ("bbox", "segm") if predicts_masks(run.cfg) else ("bbox",)
    read_objects = partial(read_detections, tasks=tasks)
    kinds = (
        (detections.RESULTS.values(), read_objects, box_section, "image_id"),
        ([labels.RESULTS], read_labeled, label_map_section, "file_name"),
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
            part.notes += _disagreements(run, name, found.metrics)
            _add_images(part, predictor, fault, name, key, found, len(evaluated))
        except (ImportError, OSError, ValueError) as error:
            missing.append(f"{name}: {error}")
        else:
            parts.append(part)
    return parts, missing


def _predictor(run: TrainingRun) -> tuple[Predictor | None, str]:
    """Return the model as last saved, or the reason why there is none."""
    if not run.cfg.MODEL.WEIGHTS:
        return None, "There is no checkpoint yet."
    try:
        return Predictor(run.cfg), ""
    except (OSError, RuntimeError, ValueError) as error:
        return None, f"The model cannot be read: {error}"


def _add_images(
    part: Section, predictor: Predictor | None, fault: str, name: str, key: str, found, share: int
) -> None:
    """Add the best and the worst images to a part, or the reason why there are none.

    Args:
        key: of a dataset's record, whose value identifies the image in ``found``.
        share: how many parts share the bytes of all images.
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
        if predictor.takes_names:
            predictor.set_names(names_to_find(predictor.cfg, name))
        shown = show(
            predictor, [records[i] for i in chosen], [quality[i][0] for i in chosen],
            threshold=getattr(found, "threshold", 0.5), max_bytes=MAX_IMAGE_BYTES // share,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        part.no_images = str(error)
    else:
        part.best, part.worst = shown[: len(best)], shown[len(best) :]


def _disagreements(run: TrainingRun, name: str, metrics: Mapping[str, float]) -> list[str]:
    """Return a note if metrics.json has other values for a test set than its evaluation's files."""
    prefix = f"{name}/" if len(run.cfg.DATASETS.TEST) > 1 else ""  # as Detectron2 logs several test sets
    logged = {key: run.metrics.get(prefix + key, value) for key, value in metrics.items()}
    differ = [
        f"{key} {number(logged[key], 2)} there, {number(value, 2)} here"
        for key, value in metrics.items()
        if abs(logged[key] - value) > 0.05
    ]
    note = f"inference/{name} is not from the last evaluation in metrics.json: {', '.join(differ)}."
    return [note] if differ else []


def _training_charts(run: TrainingRun) -> list[Chart]:
    """Return the curves of losses, periodic evaluations, learning rate and time, if any."""
    names = sorted(run.metrics)
    losses = [name for name in names if "loss" in name]
    losses.sort(key=lambda name: name != "total_loss")
    main = [name for name in names if METRIC.fullmatch(name) and name.split("/")[-1] in MAIN]
    wanted: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Losses", losses, "", {"smooth": True, "log": True, "broad": True}),
        ("Metrics of the periodic evaluations", main, "%", {"marker": "o"}),
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


def _metrics(run: TrainingRun) -> list[tuple[str, str]]:
    return [(name, number(value, 2)) for name, value in run.metrics.items() if METRIC.fullmatch(name)]


def _facts(run: TrainingRun) -> list[tuple[str, str]]:
    """Return names and values of what is known of the training."""
    facts = [(name, value) for name, value in run.start.get("settings", [])]
    if times := [value for _, value in run.series("time")]:
        facts.append(("speed", f"{statistics.median(times):.3g} s an iteration (median)"))
    if parts := [start["seconds"] for start in run.starts if "seconds" in start]:
        facts.append(("training time", ", then ".join(_duration(seconds) for seconds in parts)))
    if memory := [value for _, value in run.series("max_gpu_memory_mb")]:
        facts.append(("peak GPU memory", f"{max(memory):.0f} MB"))
    if run.start:
        facts.append(("command", run.start["command"]))
    return facts


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _overrides(cfg: CfgNode) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and default of each key with another value than its default."""
    defaults = dict(leaves(default_config(cfg.MODEL.DENSECLIP.PROJECTS)))
    for key, value in leaves(cfg):
        if value != defaults[key]:
            yield key, str(value), str(defaults[key])
