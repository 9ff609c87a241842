"""Inputs of the demo: image files, folders, globs, videos, a camera, the images of a dataset."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import numpy as np

from ..data.checks import load_datasets
from ..data.coco_source import find_files, is_image
from ..data.image_io import OTHER_SUFFIXES, read_image
from .video import VIDEO_SUFFIXES, frame_count, read_frames


@dataclass(frozen=True, eq=False)
class Source:
    """One image file, one video or one camera.

    Attributes:
        path: path of a file; number or address of a camera.
        name: path of the output without suffix. It may include folders.
        kind: "image", "video", or "camera", which may be endless.
        record: ground truth in Detectron2's dataset format.
    """

    path: str
    name: str
    kind: str = "image"
    record: dict = field(default_factory=dict)

    @property
    def output(self) -> str:
        """Path of the output in the output folder."""
        return f"{self.name}.png" if self.kind == "image" else f"{self.name}.mp4"

    def __len__(self) -> int:
        """Number of images; 0 if it is unknown."""
        return {"image": 1, "video": frame_count(self.path), "camera": 0}[self.kind]

    def frames(self) -> Iterator[np.ndarray]:
        """Yield images (H, W, 3) uint8, BGR.

        Raises:
            OSError, ValueError: the source is missing, unreadable or truncated.
        """
        if self.kind == "image":
            yield read_image(self.path)
        else:
            yield from read_frames(self.path, live=self.kind == "camera")


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Return the sources of files, folders (images and videos below them) and globs, in their order.

    Outputs of a folder keep its subfolders. Image files that Pillow cannot read are included, so that reading
    them raises an error with their name.

    Raises:
        FileNotFoundError: an input does not exist, or its folder has no image and no video.
    """
    sources = []
    for given in inputs:
        found = list(_find(given))
        if not found and Path(given).is_dir():
            raise FileNotFoundError(f"--input {given}: the folder has no image and no video in it.")
        if not found:
            raise FileNotFoundError(f"--input {given}: there is no such file.")
        sources += found
    return sources


def camera(device: str) -> Source:
    """Return the source of a camera (by number) or a stream (by address)."""
    return Source(device, "camera", "camera")


def of_dataset(name: str, count: int) -> list[Source]:
    """Return the first images of a registered dataset with their ground truth.

    Outputs keep the images' subfolders below the folder that all images of the dataset share.

    Raises:
        ValueError, FileNotFoundError, ImportError: see :func:`denseclip_d2.data.checks.load_datasets`.
    """
    records = load_datasets([name], filter_empty=False, check_images=False)
    files = [Path(os.path.abspath(record["file_name"])) for record in records]  # noqa: PTH100 (removes "..")
    root = os.path.commonpath([file.parent for file in files])
    names = [str(file.relative_to(root).with_suffix("")) for file in files[:count]]
    return [Source(x["file_name"], name, record=x) for x, name in zip(records, names, strict=False)]


def _find(given: str) -> Iterator[Source]:
    path = Path(given)
    if path.is_dir():
        for file in find_files(path):
            below = file.relative_to(path)
            if any(part.startswith(".") for part in below.parts):
                continue
            if is_image(file) or file.suffix.lower() in VIDEO_SUFFIXES:
                yield _file(str(file), str(below.with_suffix("")))
            elif file.suffix.lower() in OTHER_SUFFIXES:
                yield Source(str(file), str(below))  # with suffix: the folder may have its JPEG too
    elif path.is_file() or "://" in given:
        yield _file(given, path.stem)
    else:
        for match in sorted(glob(given, recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute patterns)
            yield from _find(match)


def _file(path: str, name: str) -> Source:
    return Source(path, name, "video" if Path(path).suffix.lower() in VIDEO_SUFFIXES else "image")
