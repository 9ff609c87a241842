"""What there is to look at: image files, folders, globs, videos, a camera, the images of a dataset."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.checks import load_datasets
from ..data.pictures import OTHER_SUFFIXES, read_picture
from .video import VIDEO_SUFFIXES, frame_count, read_frames


@dataclass(frozen=True, eq=False)
class Source:
    """One image file, one video or one camera.

    Attributes:
        path: of the file; of a camera, its number or its address.
        name: of what is written of it, which has no suffix and may have folders.
        kind: "image", "video", or "camera", which need not end.
        record: of a dataset, in Detectron2's format.
    """

    path: str
    name: str
    kind: str = "image"
    record: dict = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The file that is written of it, in the folder for all."""
        return f"{self.name}.png" if self.kind == "image" else f"{self.name}.mp4"

    def __len__(self) -> int:
        """Number of images; 0 where it is not known."""
        return {"image": 1, "video": frame_count(self.path), "camera": 0}[self.kind]

    def frames(self) -> Iterator[np.ndarray]:
        """Images, (H, W, 3) uint8, BGR.

        Raises:
            OSError, ValueError: it is not there, cannot be read, or not to its end.
        """
        if self.kind == "image":
            yield read_picture(self.path)
        else:
            yield from read_frames(self.path, live=self.kind == "camera")


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Files, the images and videos below folders, and what globs match, in the order given.

    Of a folder, files keep the folders that they are in. Images of kinds that Pillow does not read are among
    them: reading one raises an error that names it.

    Raises:
        FileNotFoundError: there is nothing of that name, or in that folder.
    """
    sources = []
    for given in inputs:
        found = list(_below(given))
        if not found:
            raise FileNotFoundError(
                f"--input {given}: "
                + (
                    "there is no image and no video in it."
                    if Path(given).is_dir()
                    else "there is no such file."
                )
            )
        sources += found
    return sources


def camera(device: str) -> Source:
    """A camera by its number, or a stream by its address."""
    return Source(device, "camera", "camera")


def of_dataset(name: str, count: int) -> list[Source]:
    """Return the first images of a registered dataset, with their ground truth.

    As those of a folder, they keep the folders that they are in, below the one that all images of the dataset
    are in.

    Raises:
        ValueError, FileNotFoundError, ImportError: see :func:`denseclip_d2.data.checks.load_datasets`.
    """
    records = load_datasets([name], filter_empty=False, check_images=False)
    files = [Path(os.path.abspath(record["file_name"])) for record in records]  # noqa: PTH100 (".." taken away)
    root = os.path.commonpath([file.parent for file in files])
    names = [str(file.relative_to(root).with_suffix("")) for file in files[:count]]
    return [Source(x["file_name"], name, record=x) for x, name in zip(records, names, strict=False)]


def _below(given: str) -> Iterator[Source]:
    path = Path(given)
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            below = file.relative_to(path)
            hidden = any(part.startswith(".") for part in below.parts)
            suffix = file.suffix.lower()
            if hidden or not file.is_file():
                continue
            if suffix in _image_suffixes() | VIDEO_SUFFIXES:
                yield _file(str(file), str(below.with_suffix("")))
            elif suffix in OTHER_SUFFIXES:  # nothing is written of it; its JPEG may lie beside it
                yield _file(str(file), str(below))
    elif path.is_file() or "://" in given:
        yield _file(given, path.stem)
    else:
        for match in sorted(glob(given, recursive=True)):  # noqa: PTH207 (Path's takes no absolute ones)
            yield from _below(match)


def _file(path: str, name: str) -> Source:
    return Source(path, name, "video" if Path(path).suffix.lower() in VIDEO_SUFFIXES else "image")


def _image_suffixes() -> set[str]:
    return {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
