"""Tables of images and captions, as open_clip's trainer reads them."""

import csv
import io
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from ..utils.text import read_text
from .pictures import read_image

COLUMNS = ("filepath", "title")


class CaptionTable(Dataset):
    """Images and captions of a file with the columns ``filepath``, from the file's folder, and ``title``.

    Columns have a tab between them. All images are looked for at once, and opened one by one.
    """

    def __init__(self, path: Path):
        """
        Raises:
            FileNotFoundError: there is no such file, or images are not there.
            ValueError: no table, one without these columns or rows, or a row without a caption.
        """
        self.rows = _read(path)
        if not self.rows:
            raise ValueError(f"{path} has no rows below its first line.")
        if bare := [image for image, title in self.rows if not title]:
            raise ValueError(f"{path}: no caption beside {bare[0]} and {len(bare) - 1} more.")
        self.rows = [(path.parent / image, title) for image, title in self.rows]
        if missing := [image for image, _ in self.rows if not image.is_file()]:
            raise FileNotFoundError(
                f"{path} names {len(missing)} images of {len(self.rows)} that are not there, such as "
                f"{missing[0]}. Paths count from the table's folder."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        """Return an image, RGB, and its caption.

        Raises:
            ImageError: see :func:`denseclip_d2.data.pictures.read_image`.
        """
        path, title = self.rows[index]
        return Image.fromarray(read_image(path, "RGB")), title


def _read(path: Path) -> list[tuple[Path, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such table of captions. "
            "`datasets/prepare_shapes.py --captions N` makes one."
        )
    try:
        table = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t")
        missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
        rows = [] if missing else [(Path(row["filepath"]), row["title"] or "") for row in table]
    except csv.Error as error:
        raise ValueError(f"{path} is not a table of text: {error}.") from error
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}. Its first line names the columns, "
            f"{' and '.join(COLUMNS)}, with a tab between them."
        )
    return rows
