"""Metrics of seen classes, which a model was trained on, and of unseen ones, apart."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from ..data.class_names import clean_class_names
from ..language.prompts import split_synonyms

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


def _means(
    metrics: Mapping[str, float], seen: Collection[str], ignored: Collection[str]
) -> Iterator[tuple[str, float]]:
    words = _words(seen)
    for prefix in PER_CLASS:
        names = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
        values = defaultdict(list)
        for name, read in zip(names, clean_class_names(names, synonyms=True), strict=True):
            if name not in ignored and math.isfinite(value := metrics[prefix + name]):
                values["unseen" if words.isdisjoint(_words([read])) else "seen"].append(value)
        for kind in sorted(values):
            yield f"{prefix[:-1]}_{kind}", sum(values[kind]) / len(values[kind])


def _words(names: Collection[str]) -> set[str]:
    return {word.lower() for word in split_synonyms([*names])[0]}
