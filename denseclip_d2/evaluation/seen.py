"""Metrics of classes that a model was trained on, and of other classes, apart."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from ..data.class_names import clean_class_names
from ..language.prompts import plain_name, seen_names

PER_CLASS = ("AP-", "IoU-")
"""How the names of metrics of one class begin."""


def with_seen_and_unseen(
    results: Mapping[str, dict], seen: Collection[str], ignored: Collection[str] = ()
) -> dict:
    """Return results with the means over seen and over unseen classes, such as "AP_seen" and "IoU_unseen".

    Args:
        results: an evaluation's metrics by task; those of classes are "AP-NAME" and "IoU-NAME".
        seen: names of the classes that the model was trained on, as :func:`clean_class_names` has them.
            A class with synonyms is seen if the model was trained on one of them.
        ignored: classes that are neither, such as "background".

    Classes without objects in the test set, whose metrics are NaN, do not count.
    """
    return {task: {**metrics, **dict(_means(metrics, seen, ignored))} for task, metrics in results.items()}


def only_seen_and_unseen(results: Mapping[str, dict]) -> dict:
    """Return the means that :func:`with_seen_and_unseen` added to results."""
    return {
        task: {name: value for name, value in metrics.items() if name.endswith(("_seen", "_unseen"))}
        for task, metrics in results.items()
    }


def base_and_novel(
    metric: str, values: np.ndarray, names: Sequence[str], novel: Collection[str]
) -> dict[str, float]:
    """Return the means of a metric over two kinds of classes, such as "AP50_base" and "AP50_novel".

    The kinds are those of the dataset's protocol, whatever the model was trained on. NaN: no class of the
    kind has an object, or nothing was detected.

    Args:
        metric: "AP50" or "IoU".
        values: (K,), of the classes. NaN, for a class without objects, does not count.
        names: K class names.
        novel: the names of novel classes. The others are base classes.
    """
    is_novel = np.isin(names, [*novel])
    kinds = {"base": values[~is_novel], "novel": values[is_novel]}
    means = {kind: found[np.isfinite(found)] for kind, found in kinds.items()}
    return {f"{metric}_{kind}": float(v.mean()) if len(v) else math.nan for kind, v in means.items()}


def _means(
    metrics: Mapping[str, float], seen: Collection[str], ignored: Collection[str]
) -> Iterator[tuple[str, float]]:
    ignored = {plain_name(name) for name in ignored}
    for prefix in PER_CLASS:
        names = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
        values = defaultdict(list)
        were_seen = seen_names(clean_class_names(names, synonyms=True), seen)
        for name, was_seen in zip(names, were_seen, strict=True):
            if plain_name(name) not in ignored and math.isfinite(value := metrics[prefix + name]):
                values["seen" if was_seen else "unseen"].append(value)
        for kind in sorted(values):
            yield f"{prefix[:-1]}_{kind}", sum(values[kind]) / len(values[kind])
