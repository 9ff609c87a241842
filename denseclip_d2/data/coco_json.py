import gc
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.text import read_text

CONVERT = "docs/own_data.md says what files and folders can be read."


def read_json(path: Path) -> object:
    """Read a JSON file in an encoding that :func:`read_text` reads.

    Raises:
        ValueError: the file is not JSON, or is in another encoding.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not in COCO's format, and not JSON: {error}. {CONVERT}") from error


def nameless_category(categories: Iterable[dict]) -> str:
    """Return what is wrong with the first category whose name is not a string; "" if all are."""
    for category in categories:
        if not isinstance(category.get("name"), str):
            has = f"the name {category['name']!r}" if "name" in category else "no name"
            return (
                f"category {category.get('id')} has {has}. The model reads the names of the categories: give "
                'each a word, such as "person".'
            )
    return ""


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Halve the time to make a million objects, none of which is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
