"""Many images through a model: a picture or a video of each, and what was found in a file."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice, tee
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..inference import Predictor
from ..utils.atomic import atomic_write
from .coco_file import CocoFile, coco_file, ids_of_dataset
from .panels import Panel, grid, image_panels, names_in, strip
from .sources import Source
from .video import frame_rate, written_video

OVERVIEW, DETECTIONS = "overview.png", "detections.json"
IN_OVERVIEW = 4
"""Images in the overview."""

Row = dict[str, Panel]


class Outcome(NamedTuple):
    """What became of some sources.

    Attributes:
        seen: number of images and frames.
        faults: what is wrong with each source that was skipped, or broke off.
    """

    seen: int
    faults: list[str]


class _Shot(NamedTuple):
    """An image (H, W, 3), BGR, its number in its source, and the names whose score maps it is to have."""

    source: Source
    number: int
    image: np.ndarray
    names: Sequence[str]


def check_outputs(sources: Sequence[Source], output: str, *, overwrite: bool) -> None:
    """See that what :func:`draw_sources` will write can be written.

    Raises:
        FileExistsError: a file is there already, and is not to be overwritten; or it is a source itself.
        ValueError: two would have the same name.
    """
    names = [source.output for source in sources] + [DETECTIONS]
    if any(source.kind == "image" for source in sources):
        names.append(OVERVIEW)
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"{times} of what is to be written would be called {name!r}. Rename an input, or give them one "
            "after the other, each with an --output of its own."
        )
    inputs = {Path(source.path).resolve() for source in sources}
    for path in (Path(output, name) for name in names):
        if path.resolve() in inputs:
            raise FileExistsError(f"{path} is an input, and would be overwritten. Choose another --output.")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists. Choose another --output, or add --overwrite.")


def draw_sources(
    predictor: Predictor,
    sources: Sequence[Source],
    output: str,
    *,
    names: Sequence[str] = (),
    threshold: float = 0.5,
    count: int | None = None,
    dataset: str = "",
) -> Outcome:
    """Write a picture of every image, an MP4 of every video, an overview, and detections.json, to a folder.

    What cannot be read is skipped; if that is everything, nothing is written. detections.json has everything
    the model gives, in COCO's format.

    Args:
        names: whose score maps to draw; none: of some classes in the ground truth, where there is any.
        threshold: lowest score drawn.
        count: of images and frames at most; None: all.
        dataset: whose ids the categories in detections.json have; none: the model's own.

    Raises:
        OSError: the folder cannot be written.
    """
    class_names = predictor.class_names
    ids = ids_of_dataset(dataset, len(class_names))
    faults: list[str] = []
    shots = islice(_shots(predictor, sources, names, faults), count)
    overview: list[Row] = []
    seen_by_model = _looked_at(predictor, shots)
    first = next(seen_by_model, None)
    if first is None:
        return Outcome(0, faults)
    with (
        coco_file(Path(output, DETECTIONS), class_names, ids) as coco,
        tqdm(total=_total(sources, count), unit="image") as progress,
    ):
        for source, seen in groupby(chain([first], seen_by_model), key=lambda pair: pair[0].source):
            path = Path(output, source.output)
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = (_row(predictor, shot, outputs, threshold, coco, progress) for shot, outputs in seen)
            if source.kind == "image":
                row = next(rows)
                _save(grid([row]), path)
                overview += [row] if len(overview) < IN_OVERVIEW else []
                continue
            with written_video(path, frame_rate(source.path)) as write:
                for row in rows:
                    write(strip(row))
    if overview:
        _save(grid(overview), Path(output, OVERVIEW))
    return Outcome(progress.n, faults)


def _shots(
    predictor: Predictor, sources: Sequence[Source], names: Sequence[str], faults: list[str]
) -> Iterator[_Shot]:
    class_names = predictor.class_names
    for source in sources:
        wanted = names or (names_in(source.record, class_names) if predictor.guidance else [])
        try:
            for number, image in enumerate(source.frames()):
                yield _Shot(source, number, image, wanted)
        except (ValueError, OSError) as error:
            faults.append(str(error))


def _looked_at(predictor: Predictor, shots: Iterable[_Shot]) -> Iterator[tuple[_Shot, dict]]:
    """Shots, each with what the model makes of it; a few are kept, where several go through it at once."""
    shown, given = tee(shots)
    outputs = predictor.stream((shot.image, shot.names) for shot in given)
    return zip(shown, outputs, strict=True)


def _row(
    predictor: Predictor, shot: _Shot, outputs: dict, threshold: float, coco: CocoFile, progress: tqdm
) -> Row:
    """The panels of a shot, once it is in the file and counted."""
    source = shot.source
    height, width = shot.image.shape[:2]
    image = {"file_name": source.path, "height": height, "width": width}
    if "image_id" in source.record:
        image["id"] = source.record["image_id"]
    if source.kind != "image":
        image["frame"] = shot.number
    coco.add(image, outputs)
    progress.update()
    return image_panels(
        shot.image[:, :, ::-1], outputs, coco.class_names, record=source.record, names=shot.names,
        tau=predictor.tau, threshold=threshold,
    )  # fmt: skip


def _total(sources: Sequence[Source], count: int | None) -> int | None:
    """How many images and frames there will be; None where a source does not say."""
    lengths = [len(source) for source in sources]
    known = sum(lengths) if all(lengths) else None
    return known if count is None else min(count, known or count)


def _save(picture: np.ndarray, path: Path) -> None:
    with atomic_write(path, "wb") as file:
        Image.fromarray(picture).save(file, "PNG")
