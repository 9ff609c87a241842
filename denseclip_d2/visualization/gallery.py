"""Predictions for many images and videos: an image or a video of each, and one COCO file."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice, starmap, tee
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.class_names import names_to_find
from ..inference import Predictor
from ..utils.atomic import atomic_write
from .coco_file import coco_file, ids_of_dataset
from .panels import Panel, grid, image_panels, names_in, strip
from .sources import Source
from .video import frame_rate, write_video

OVERVIEW, DETECTIONS = "overview.png", "detections.json"
IN_OVERVIEW = 4
"""Number of images in the overview."""


class Outcome(NamedTuple):
    """The result of :func:`draw_sources`.

    Attributes:
        seen: number of images and frames.
        errors: an error message for each source that was skipped, or was read in part.
    """

    seen: int
    errors: list[str]


class _Item(NamedTuple):
    """An image (H, W, 3), BGR, its entry in the COCO file, and the names of its score maps."""

    source: Source
    entry: dict
    image: np.ndarray
    names: Sequence[str]


def check_outputs(sources: Sequence[Source], output: str, *, overwrite: bool) -> None:
    """Check that :func:`draw_sources` can write its files.

    Raises:
        FileExistsError: a file exists and ``overwrite`` is false, or a file is a source.
        ValueError: two files would have the same name.
    """
    names = [source.output for source in sources] + [DETECTIONS]
    if any(source.kind == "image" for source in sources):
        names.append(OVERVIEW)
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"{times} output files would have the same name {name!r}. Rename an input, or run the inputs "
            "one after the other with different --output."
        )
    inputs = {Path(source.path).resolve() for source in sources}
    for path in (Path(output, name) for name in names):
        if path.resolve() in inputs:
            raise FileExistsError(f"{path} is an input and would be overwritten. Choose another --output.")
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
    """Write a PNG of every image, an MP4 of every video, an overview and detections.json to a folder.

    Sources that cannot be read are skipped. If none can be read, nothing is written. detections.json has all
    predictions in COCO's format.

    Args:
        names: names whose score maps are drawn. By default, up to three classes of the ground truth.
        threshold: lowest score drawn.
        count: maximal number of images and frames.
        dataset: dataset whose category ids detections.json uses. By default, it uses the model's class ids.

    Raises:
        OSError: the folder cannot be written.
    """
    class_names = true_names = predictor.class_names
    if dataset and predictor.takes_names:
        true_names = names_to_find(predictor.cfg, dataset)
    ids = ids_of_dataset(dataset if class_names == true_names else "", len(class_names))
    errors: list[str] = []
    items, images = tee(islice(_items(predictor, sources, names, true_names, errors), count))
    predicted = zip(items, predictor.stream((x.image, x.names) for x in images), strict=True)
    first = next(predicted, None)
    if first is None:
        return Outcome(0, errors)
    with coco_file(Path(output, DETECTIONS), class_names, ids) as add, _progress(sources, count) as progress:

        def panels(item: _Item, outputs: dict) -> dict[str, Panel]:
            add(item.entry, outputs)
            progress.update()
            return image_panels(
                item.image[:, :, ::-1], outputs, class_names, record=item.source.record,
                true_names=true_names, names=item.names, threshold=threshold,
            )  # fmt: skip

        _write(chain([first], predicted), panels, output)
    return Outcome(progress.n, errors)


def _write(
    predicted: Iterable[tuple[_Item, dict]], panels: Callable[[_Item, dict], dict[str, Panel]], output: str
) -> None:
    """Write an image or a video of each source, and the overview."""
    overview: list[dict[str, Panel]] = []
    for source, group in groupby(predicted, key=lambda pair: pair[0].source):
        path, rows = Path(output, source.output), starmap(panels, group)
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.kind == "image":
            row = next(rows)
            _save(grid([row]), path)
            overview += [row][: IN_OVERVIEW - len(overview)]
        else:
            write_video(path, map(strip, rows), frame_rate(source.path))
    if overview:
        _save(grid(overview), Path(output, OVERVIEW))


def _items(
    predictor: Predictor,
    sources: Sequence[Source],
    names: Sequence[str],
    true_names: Sequence[str],
    errors: list[str],
) -> Iterator[_Item]:
    for source in sources:
        record = source.record
        wanted = names or (names_in(record, true_names) if predictor.guidance else [])
        try:
            for number, image in enumerate(source.frames()):
                entry = {"file_name": source.path, "height": image.shape[0], "width": image.shape[1]}
                if "image_id" in record:
                    entry["id"] = record["image_id"]
                if source.kind != "image":
                    entry["frame"] = number
                yield _Item(source, entry, image, wanted)
        except (ValueError, OSError) as error:
            errors.append(str(error))


def _progress(sources: Sequence[Source], count: int | None) -> tqdm:
    """Return a progress bar of images and frames. It has no total if a source does not know its length."""
    lengths = [len(source) for source in sources]
    known = sum(lengths) if all(lengths) else None
    return tqdm(total=known if count is None else min(count, known or count), unit="image")


def _save(image: np.ndarray, path: Path) -> None:
    with atomic_write(path, "wb") as file:
        Image.fromarray(image).save(file, "PNG")
