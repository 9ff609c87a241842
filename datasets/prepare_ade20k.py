"""Convert ADE20K's label images for Detectron2: class k of 150 becomes k - 1, and "other" (0) becomes 255.

The dataset is ADEChallengeData2016 of the scene parsing benchmark. Files that exist are kept.
"""

import argparse
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installation

from denseclip_d2.utils.atomic import atomic_dir, atomic_write  # noqa: E402

NAME = "ADEChallengeData2016"
URL = f"http://data.csail.mit.edu/places/ADEchallenge/{NAME}.zip"
NUM_IMAGES = {"training": 20210, "validation": 2000}
NUM_CLASSES = 150


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line: ``argv``, or ``sys.argv`` if it is None."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python datasets/prepare_ade20k.py --zip ~/Downloads/ADEChallengeData2016.zip",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / NAME,
        help="the downloaded folder with images/ and annotations/, or the folder to unpack to; "
        "by default in $DETECTRON2_DATASETS or ./datasets, where Detectron2 looks",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--zip", type=Path, help="file to unpack if there is no such folder")
    source.add_argument("--download", action="store_true", help=f"download {URL} if there is no such folder")
    parser.add_argument(
        "--allow-partial", action="store_true", help="accept fewer images than the whole dataset has"
    )
    return parser.parse_args(argv)


def unpack(file: Path, root: Path) -> None:
    """Unpack the dataset to ``root`` atomically.

    Raises:
        ValueError: the file is another dataset, or damaged.
    """
    with atomic_dir(root) as partial:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [x for x in archive.infolist() if x.filename.startswith(f"{NAME}/")]
                for member in tqdm(members, unit="file", desc="Unpacking"):
                    archive.extract(member, partial)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(
                f"{file} is damaged or no zip file ({error}). Delete it and download it again."
            ) from error
        unpacked = partial / NAME
        if not (unpacked / "annotations").is_dir():
            raise ValueError(f"{file} has no {NAME}/annotations in it: it is another dataset.")
        for path in unpacked.iterdir():
            path.rename(partial / path.name)
        unpacked.rmdir()


def download(file: Path) -> None:
    """Download the dataset to ``file`` atomically.

    Raises:
        OSError: the download or the writing failed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urlopen(URL, timeout=60) as source, atomic_write(file, "wb") as target:
            size = int(source.headers.get("Content-Length", 0)) or None
            with tqdm.wrapattr(source, "read", total=size, desc="Downloading") as counted:
                shutil.copyfileobj(counted, target, 1 << 20)
            if size and target.tell() != size:
                raise OSError(f"the connection ended after {target.tell()} of {size} bytes")
    except OSError as error:
        raise OSError(
            f"{URL} could not be downloaded to {file} ({error}). Download it yourself and give --zip FILE."
        ) from error


def find_labels(root: Path, split: str, allow_partial: bool) -> list[Path]:
    """Return the label images of a split.

    Raises:
        ValueError: an image or a label image is missing.
    """
    images = {path.stem for path in (root / "images" / split).glob("*.jpg")}
    labels = sorted((root / "annotations" / split).glob("*.png"))
    unpaired = sorted(images ^ {path.stem for path in labels})
    if unpaired:
        raise ValueError(
            f"{root}: {len(unpaired)} of the {len(images)} images and {len(labels)} label images of {split} "
            f"have no counterpart, such as {unpaired[0]}. Download or unpack the dataset again."
        )
    expected = NUM_IMAGES[split]
    if not labels or (len(labels) != expected and not allow_partial):
        raise ValueError(
            f"{root} has {len(labels)} of the {expected} {split} images (images/{split}/*.jpg and "
            f"annotations/{split}/*.png). Download or unpack the dataset again, or give --allow-partial."
        )
    return labels


def convert(source: Path, target: Path) -> None:
    """Write a label image for Detectron2 to ``target`` atomically.

    Raises:
        ValueError: ``source`` is broken, or no label image of the dataset.
    """
    try:
        with Image.open(source) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{source} is broken ({error}). Download or unpack the dataset again.") from error
    if mode != "L" or labels.max(initial=0) > NUM_CLASSES:
        raise ValueError(f"{source} has other labels than 0 to {NUM_CLASSES}: it is of another dataset.")
    with atomic_write(target, "wb") as file:
        Image.fromarray(labels - np.uint8(1)).save(file, "PNG")  # 0 becomes 255


def main(argv: Sequence[str] | None = None) -> None:
    """Write the missing label images. Exit with an error if this fails."""
    args = parse_args(argv)
    root = args.root.expanduser().resolve()
    try:
        if not root.exists() and (args.zip or args.download):
            file = args.zip.expanduser() if args.zip else root.with_name(f"{NAME}.zip")
            if args.download and not file.exists():
                download(file)
            unpack(file, root)
        if not root.is_dir():
            sys.exit(f"error: {root} does not exist. Give --zip FILE or --download, or unpack {URL} there.")
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
