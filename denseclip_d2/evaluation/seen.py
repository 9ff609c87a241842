"""Metrics of classes that a model was trained on, and of other classes, apart."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from ..data.class_names import clean_class_names

PER_CLASS = ("AP-", "IoU-")
"""How the names of metrics of one class begin."""


def with_seen_and_unseen(
    results: Mapping[str, dict], seen: Collection[str], ignored: Collection[str] = ()
) -> dict:
    """Return results with the means over seen and over unseen classes, such as "AP_seen" and "IoU_unseen".

    Args:
        results: an evaluation's metrics by task; those of classes are "AP-NAME" and "IoU-NAME".
        seen: names of the classes that the model was trained on, as :func:`clean_class_names` has them.
        ignored: classes that are neither, such as "background".

    Classes without objects in the test set, whose metrics are NaN, do not count.
    """
    return {task: {**metrics, **dict(_means(metrics, seen, ignored))} for task, metrics in results.items()}


def base_and_novel(
    precision: np.ndarray | None, names: Sequence[str], novel: Collection[str]
) -> dict[str, float]:
    """Return "AP50_base" and "AP50_novel", 0 to 100: AP50 over two kinds of a dataset's classes.

    The kinds are those of the dataset's protocol, whatever the model was trained on. NaN: the kind has no
    object, or nothing was detected.

    Args:
        precision: as in :class:`.coco_eval.Evaluation`; None without detections.
        names: K class names.
        novel: the names of novel classes. The others are base classes.
    """
    ap50 = np.full(len(names), -1.0) if precision is None else precision[0].mean(axis=0)
    is_novel = np.isin(names, [*novel])
    kinds = {"AP50_base": ap50[~is_novel], "AP50_novel": ap50[is_novel]}
    means = {kind: values[values >= 0] for kind, values in kinds.items()}
    return {kind: float(100 * v.mean()) if len(v) else math.nan for kind, v in means.items()}


def _means(
    metrics: Mapping[str, float], seen: Collection[str], ignored: Collection[str]
) -> Iterator[tuple[str, float]]:
    for prefix in PER_CLASS:
        names = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
        of_classes = {
            read: metrics[prefix + name]
            for read, name in zip(clean_class_names(names), names, strict=True)
            if name not in ignored and math.isfinite(metrics[prefix + name])
        }
        for kind, is_seen in (("seen", True), ("unseen", False)):
            values = [value for name, value in of_classes.items() if (name in seen) is is_seen]
            if values:
                yield f"{prefix[:-1]}_{kind}", sum(values) / len(values)
