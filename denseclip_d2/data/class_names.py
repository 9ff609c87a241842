import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from .checks import check_class_names, check_registered, explained_annotation_errors
from .tasks import is_semantic, labels_by_score_map, reads_stuff_names, takes_any_names


def get_class_names(cfg: CfgNode) -> tuple[str, ...]:
    """Return the class names that the model reads, in the order of the class ids.

    ``MODEL.DENSECLIP.CLASS_NAMES``, or if that is empty, the names in the metadata of the first training set
    in the form of :func:`clean_class_names`. Without training sets, the first test set is asked.

    Raises:
        ValueError: neither has names, or the dataset is not registered.
    """
    names, datasets = cfg.MODEL.DENSECLIP.CLASS_NAMES, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    return tuple(names) if names else class_names_of_datasets(cfg, datasets)


def class_names_of_datasets(cfg: CfgNode, datasets: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the first dataset's classes of the model's kind, as :func:`get_class_names` does.

    Raises:
        ValueError: the dataset has no names, or is not registered.
    """
    for name in datasets[:1]:
        check_registered(name)
        metadata = MetadataCatalog.get(name)
        if "thing_classes" not in metadata.as_dict() and metadata.get("json_file"):
            with explained_annotation_errors([name]):
                DatasetCatalog.get(name)  # Detectron2 learns the names of a COCO-format dataset by reading it
        kinds = ("stuff_classes", "thing_classes") if is_semantic(cfg) else ("thing_classes", "stuff_classes")
        for names in filter(None, map(metadata.get, kinds)):
            check_class_names(name, names)
            return clean_class_names(names, synonyms=takes_any_names(cfg))
    raise ValueError(
        f"No class names: MODEL.DENSECLIP.CLASS_NAMES is empty, and {datasets[:1] or 'DATASETS.TRAIN'} has "
        "no thing_classes or stuff_classes in its metadata. Set one of them."
    )


def names_to_find(cfg: CfgNode, dataset: str) -> tuple[str, ...]:
    """Return the names by which a model that takes any names finds the classes of a dataset.

    They are the names of the dataset, or ``MODEL.DENSECLIP.CLASS_NAMES`` if these are other words for the
    same classes: the dataset has the classes of the training set.

    Raises:
        ValueError: the dataset has no names, or is not registered.
    """
    found, own = class_names_of_datasets(cfg, [dataset]), tuple(cfg.MODEL.DENSECLIP.CLASS_NAMES)
    if len(own) == len(found) and own != found and cfg.DATASETS.TRAIN:
        with suppress(ValueError, OSError):  # the training set need not be on this machine
            return own if class_names_of_datasets(cfg, cfg.DATASETS.TRAIN) == found else found
    return found


def get_stuff_names(cfg: CfgNode) -> tuple[str, ...]:
    """Return the names of stuff that a panoptic model, or a CLIP alone, reads; none for other models.

    ``MODEL.DENSECLIP.STUFF_NAMES``, or if that is empty, those of the datasets as of :func:`get_class_names`.

    Raises:
        ValueError: neither has names, or the dataset is not registered.
    """
    names, datasets = cfg.MODEL.DENSECLIP.STUFF_NAMES, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if names and (reads_stuff_names(cfg) or labels_by_score_map(cfg)):
        return tuple(names)
    return stuff_names_of_datasets(cfg, datasets)


def stuff_names_of_datasets(cfg: CfgNode, datasets: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the first dataset's stuff for a panoptic model, as :func:`get_stuff_names` does.

    The first of the ``stuff_classes`` is left out: Detectron2's label of all things.

    Raises:
        ValueError: the dataset has no names, or is not registered.
    """
    if not reads_stuff_names(cfg):
        return ()
    for name in datasets[:1]:
        check_registered(name)
        if names := MetadataCatalog.get(name).get("stuff_classes", ())[1:]:
            check_class_names(name, names)
            return clean_class_names(names, synonyms=takes_any_names(cfg))
    raise ValueError(
        f"No names of stuff: MODEL.DENSECLIP.STUFF_NAMES is empty, and {datasets[:1] or 'DATASETS.TRAIN'} "
        'has no stuff_classes after "things" in its metadata. Set one of them.'
    )


def words_of_datasets(datasets: Sequence[str]) -> tuple[str, ...]:
    """Return every word for a class of datasets once, synonyms and "background" among them.

    Args:
        datasets: registered datasets whose metadata have names, or "imagenet", with ImageNet's 1000 classes.

    Raises:
        ValueError: a dataset is not registered.
    """
    words = {"background": None} if datasets else {}
    for dataset in datasets:
        names = [IMAGENET_CLASSNAMES]
        if dataset != "imagenet":
            check_registered(dataset)
            metadata = MetadataCatalog.get(dataset)
            names = [metadata.get("thing_classes", ()), metadata.get("stuff_classes", ())]
        for name in chain(*(clean_class_names(kind, synonyms=True) for kind in names)):
            words.update(dict.fromkeys(word.lower() for word in name.split("|")))
    return tuple(words)


def clean_class_names(names: Sequence[str], *, synonyms: bool = False) -> tuple[str, ...]:
    """Return the names of a dataset as a sentence has them, because the text encoder reads them.

    Of a list of synonyms, such as ADE20K's "road, route", the first is kept. LVIS's "bow_(weapon)" becomes
    "bow weapon", because the word in parentheses tells the senses apart. A name stays as it is if two classes
    would share its short form.

    Args:
        synonyms: keep all synonyms that no other class has, "road|route", for a model that takes any names.
    """
    words = [[" ".join(re.sub(r"[_()]", " ", word).split()) for word in name.split(",")] for name in names]
    every, first = Counter(chain(*words)), Counter(of_class[0] for of_class in words)

    def cleaned(name: str, of_class: list[str]) -> str:
        own = [word for word in of_class if synonyms and word and every[word] == 1]
        as_it_is = " ".join(name.replace(",", " ").split()) if synonyms else name  # a comma separates names
        return "|".join(own) or (of_class[0] if first[of_class[0]] == 1 else as_it_is)

    return tuple(map(cleaned, names, words))
