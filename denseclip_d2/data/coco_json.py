import gc
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

CONVERT = "docs/own_data.md says what files and folders can be read."


def read_json(path: Path) -> object:
    """Read a JSON file in UTF-8, with a byte order mark or without, or in UTF-16 or UTF-32.

    Raises:
        ValueError: the file is no JSON, or in another encoding.
    """
    try:
        return json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not encoded in UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is not in COCO's format, and no JSON: {error}. {CONVERT}") from error


def nameless_category(categories: Iterable[dict]) -> str:
    """Return what is wrong with the first category that has no name of type string; empty if all have one."""
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
    """Halve the time of making a million objects, none of which are garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
