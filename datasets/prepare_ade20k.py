"""Makes ADE20K's label images as Detectron2 reads them: class k of 150 as k - 1, and "other" (0) as 255.

The dataset is that of the scene parsing benchmark, ADEChallengeData2016. What is done already is left alone.
"""

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image
from tqdm import tqdm

URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
NUM_IMAGES = {"training": 20210, "validation": 2000}
NUM_CLASSES = 150


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line, ``sys.argv`` if ``argv`` is None."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python datasets/prepare_ade20k.py --zip ~/Downloads/ADEChallengeData2016.zip",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "ADEChallengeData2016",
        help="the folder as downloaded, with images/ and annotations/, or where to unpack it; "
        "by default in $DETECTRON2_DATASETS, or in ./datasets, where Detectron2 looks",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--zip", type=Path, help="file to unpack if there is no such folder")
    source.add_argument("--download", action="store_true", help=f"fetch {URL} if there is no such folder")
    parser.add_argument(
        "--allow-partial", action="store_true", help="take fewer images than the whole dataset"
    )
    return parser.parse_args(argv)


def unpack(file: Path, root: Path) -> None:
    """Unpacks the dataset to ``root``, which appears when all is there.

    Raises:
        ValueError: the file is no such dataset, or damaged.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.", suffix=".partial") as partial:
        try:
            with zipfile.ZipFile(file) as archive:
                for member in tqdm(archive.infolist(), unit="file", desc="Unpacking"):
                    archive.extract(member, partial)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(
                f"{file} is damaged or no zip file ({error}): delete it and fetch it again"
            ) from error
        unpacked = Path(partial) / "ADEChallengeData2016"
        if not (unpacked / "annotations").is_dir():
            raise ValueError(f"{file} has no ADEChallengeData2016/annotations in it: it is another dataset")
        unpacked.rename(root)


def download(file: Path) -> None:
    """Fetches the dataset into ``file``, which appears when all is there.

    Raises:
        OSError: it cannot be fetched, or written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with urlopen(URL, timeout=60) as source, partial.open("wb") as target:
            size = int(source.headers.get("Content-Length", 0)) or None
            with tqdm.wrapattr(source, "read", total=size, desc="Downloading") as counted:
                shutil.copyfileobj(counted, target, 1 << 20)
            if size and target.tell() != size:
                raise OSError(f"the connection ended after {target.tell()} of {size} bytes")
        partial.rename(file)
    except OSError as error:
        raise OSError(
            f"{URL} could not be fetched to {file} ({error}): fetch it by other means and give --zip FILE"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def find_labels(root: Path, split: str, allow_partial: bool) -> list[Path]:
    """The label images of a split, each of which has its image.

    Raises:
        ValueError: files are missing.
    """
    images = {path.stem for path in (root / "images" / split).glob("*.jpg")}
    labels = sorted((root / "annotations" / split).glob("*.png"))
    unpaired = sorted(images ^ {path.stem for path in labels})
    if unpaired:
        raise ValueError(
            f"{root}: {len(unpaired)} of the {len(images)} images and {len(labels)} label images of {split} "
            f"have no counterpart, such as {unpaired[0]}: fetch or unpack the dataset again"
        )
    expected = NUM_IMAGES[split]
    if not labels or (len(labels) != expected and not allow_partial):
        raise ValueError(
            f"{root} has {len(labels)} of the {expected} {split} images (images/{split}/*.jpg and "
            f"annotations/{split}/*.png): fetch or unpack the dataset again, or give --allow-partial"
        )
    return labels


def convert(source: Path, target: Path) -> None:
    """Writes a label image as Detectron2 reads it; ``target`` appears when it is written.

    Raises:
        ValueError: ``source`` is no label image of the dataset.
    """
    try:
        with Image.open(source) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{source} is broken ({error}): fetch or unpack the dataset again") from error
    if mode != "L" or labels.max(initial=0) > NUM_CLASSES:
        raise ValueError(f"{source} has other labels than 0 to {NUM_CLASSES}: it is of another dataset")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        Image.fromarray(labels - np.uint8(1)).save(partial, format="png")  # 0 becomes 255
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Makes what is not there of the dataset; exits with an error if it cannot."""
    args = parse_args(argv)
    root = args.root.expanduser().resolve()
    try:
        if not root.exists() and (args.zip or args.download):
            file = args.zip.expanduser() if args.zip else root.with_name("ADEChallengeData2016.zip")
            if args.download and not file.exists():
                download(file)
            unpack(file, root)
        if not root.is_dir():
            sys.exit(f"error: no {root}: give --zip FILE or --download, or unpack {URL} there")
        pairs = [
            (source, root / "annotations_detectron2" / split / source.name)
            for split in NUM_IMAGES
            for source in find_labels(root, split, args.allow_partial)
        ]
        todo = [(source, target) for source, target in pairs if not target.exists()]
        for folder in {target.parent for _, target in todo}:
            folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(tqdm(pool.map(lambda pair: convert(*pair), todo), total=len(todo), unit="file"))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{root}/annotations_detectron2 has the labels of {len(pairs)} images, {len(todo)} of them new")


if __name__ == "__main__":
    main()
