"""Data of one's own: what is held out of them, and folders of label images."""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog


@dataclass(frozen=True)
class OwnData:
    """Own data, as registered with Detectron2.

    Attributes:
        train, test: names of the datasets; without test where nothing is held out.
        class_names: in the order of the class ids.
        num_images: what is trained on.
    """

    train: str
    test: tuple[str, ...]
    class_names: tuple[str, ...]
    num_images: int


def own_labels(folder: str, *, held_out: float, seed: int) -> OwnData:
    """Own data with labels of pixels, of a folder in ``DATASETS.SEMANTIC_FOLDERS``: its "train" and "val".

    Args:
        held_out, seed: as for :func:`own_boxes`, where there is no "val".

    Raises:
        ValueError: there is no "train", or no image in it; images cannot be shared.
    """
    root = Path(folder).expanduser().resolve()
    name = f"{root.name}_train"
    test: tuple[str, ...] = (f"{root.name}_val",)
    if name not in DatasetCatalog:
        raise ValueError(f"DATASETS.OWN.SEMANTIC (--train-semantic): {folder} has no images/train.")
    metadata = MetadataCatalog.get(name)
    images = [str(Path(r["file_name"]).relative_to(metadata.image_root)) for r in DatasetCatalog.get(name)]
    if test[0] not in DatasetCatalog:
        name, test, images = _hold_out(name, images, held_out, seed)
    return OwnData(name, test, tuple(metadata.stuff_classes), len(images))


def held_out_images(images: Collection[str], part: float, seed: int) -> set[str]:
    """The images that are not trained on: the same for the same seed, and nearly so when some are added.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(images) < 2:
        raise ValueError(
            f"{len(images)} training image: none can be held out to evaluate on. Give images to evaluate on "
            "(--val, or images/val), or set DATASETS.OWN.HELD_OUT to 0."
        )

    def draw(image: str) -> bytes:
        # A name in another encoding than the file system's has surrogates.
        return hashlib.sha256(f"{seed}/{image}".encode(errors="surrogatepass")).digest()

    order = sorted(images, key=draw)
    return set(order[: min(max(round(part * len(order)), 1), len(order) - 1)])


def _hold_out(
    whole: str, images: list[str], part: float, seed: int
) -> tuple[str, tuple[str, ...], list[str]]:
    """Register what is trained on and what is held out of a registered dataset; without a file of their own.

    Returns: the dataset to train on, what is held out of it, and the images to train on.
    """
    if not part:
        return whole, (), images
    held_out = held_out_images(images, part, seed)
    metadata = MetadataCatalog.get(whole).as_dict()
    root = metadata["image_root"]
    # Without "json_file", Detectron2's evaluator writes the part it needs into OUTPUT_DIR.
    shared = {key: value for key, value in metadata.items() if key not in ("name", "json_file", "source")}
    train, test = (f"{whole}_{kind}_{100 * part:g}_seed{seed}" for kind in ("without", "held_out"))
    for name, is_held_out in ((train, False), (test, True)):

        def load(is_held_out: bool = is_held_out) -> list[dict]:
            records = DatasetCatalog.get(whole)
            names = (str(Path(record["file_name"]).relative_to(root)) for record in records)
            return [r for r, n in zip(records, names, strict=True) if (n in held_out) == is_held_out]

        register(name, load, root, **shared)
    return train, (test,), [image for image in images if image not in held_out]


def register(name: str, load: Callable[[], list[dict]], source: str, **metadata) -> None:
    """Register a dataset, again where the file may have changed since.

    Raises:
        ValueError: another dataset has this name.
    """
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("source") != source:
            raise ValueError(
                f"Own data: {source} would be registered as {name!r}, which is the name of another "
                "dataset. Rename the file or its folder."
            )
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(source=source, **metadata)
