"""Convert ADE20K's label images for Detectron2: class k of 150 becomes k - 1, and "other" (0) becomes 255.

The dataset is ADEChallengeData2016 of the scene parsing benchmark. Files that exist are kept.
"""

import argparse
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installation

from denseclip_d2.data.label_maps import DATASETS, convert_label_maps  # noqa: E402
from denseclip_d2.utils.atomic import atomic_dir, atomic_write  # noqa: E402

NAME = "ADEChallengeData2016"
URL = f"http://data.csail.mit.edu/places/ADEchallenge/{NAME}.zip"


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
        print(convert_label_maps(DATASETS["ade20k"], root, args.allow_partial))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
