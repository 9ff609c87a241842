"""Read tables of images and captions in the format of open_clip's trainer."""

import csv
import io
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from ..utils.text import read_text
from .coco_source import listed
from .image_io import read_image

COLUMNS = ("filepath", "title")


class CaptionTable(Dataset):
    """Images and captions of a file with the columns ``filepath``, from the file's folder, and ``title``.

    Tabs separate the columns. The constructor checks that all images exist.
    """

    def __init__(self, path: Path):
        """
        Raises:
            FileNotFoundError: the file or images are missing.
            ValueError: the file is not a table, or lacks a column, rows, or a caption.
        """
        self.rows = [(path.parent / image, title) for image, title in _read(path)]
        if not self.rows:
            raise ValueError(f"{path} has no rows below its first line.")
        if bare := [image.name for image, title in self.rows if not title]:
            raise ValueError(f"{path}: there is no caption beside {listed(bare, 1)}.")
        if missing := [image for image, _ in self.rows if not image.is_file()]:
            raise FileNotFoundError(
                f"{path} names {len(missing)} images of {len(self.rows)} that are missing, such as "
                f"{missing[0]}. Paths begin at the table's folder."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        """Return an image, RGB, and its caption. Raise as :func:`.image_io.read_image` does."""
        path, title = self.rows[index]
        return Image.fromarray(read_image(path, "RGB")), title


def _read(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such table of captions. "
            "`datasets/prepare_shapes.py --captions N` makes one."
        )
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    try:
        missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
        rows = [] if missing else [(row["filepath"], row["title"] or "") for row in table]
    except csv.Error as error:
        raise ValueError(f"{path} is not a table of text: {error}.") from error
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}. Its first line names the columns, "
            f"{' and '.join(COLUMNS)}, with a tab between them."
        )
    return rows
