import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config import load_config
from ..utils.text import read_text

_OURS = ("OUTPUT_DIR", "SEED")
_FILE_KEYS = ("title", "config", "metrics", "seeds", "set", "rows")
_ROW_KEYS = ("name", "config", "seeds", "set", "against")


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: what the table calls it.
        config: path of the config file.
        options: keys and values over it, in turn, as a command line has them.
        seeds: a run for each.
        against: the name of the row that this one is compared with, seed by seed; empty: none.
    """

    name: str
    config: Path
    options: tuple[str, ...]
    seeds: tuple[int, ...]
    against: str = ""

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Ablation:
    """
    Attributes:
        title: of the table.
        metrics: the columns, by their names in a run's ``metrics.json``, such as "bbox/AP".
        rows: in the table's order.
    """

    title: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]


def read_ablation(path: Path) -> Ablation:
    """Reads an ablation's YAML, and sees that every row's config can be loaded.

    The file has ``title``, ``metrics``, ``rows`` and, for all rows, ``config`` (relative to the file),
    ``seeds`` (how many, or a list) and ``set`` (values by config key). A row has a ``name`` and may have its
    own ``config``, ``seeds`` and ``set``, which goes over the file's, and be ``against`` another by name.

    Raises:
        ValueError: not such a file; two rows of one name; a config key or a value that cannot be.
        FileNotFoundError: the file, or a config, is not there.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} has no rows. It needs {', '.join(_FILE_KEYS)}.")
    _check_keys(content, _FILE_KEYS, ("title", "metrics", "rows"), str(path))
    _check_list(content["rows"], dict, f"{path}: rows")
    _check_list(content["metrics"], str, f"{path}: metrics")
    rows = tuple(_row(row, content, path) for row in content["rows"])
    folders = [row.folder for row in rows]
    for row in rows:
        if folders.count(row.folder) > 1:
            raise ValueError(f"{path}: another row has the name of {row.name!r}, but for signs and case.")
        if row.against and row.against not in {other.name for other in rows if other != row}:
            raise ValueError(f"{path}: row {row.name!r} is against {row.against!r}, which is no other row.")
    return Ablation(str(content["title"]), tuple(content["metrics"]), rows)


def _row(row: dict, common: dict, path: Path) -> Row:
    where = f"{path}: row {row.get('name', '')!r}"
    _check_keys(row, _ROW_KEYS, ("name",), where)
    config = row.get("config", common.get("config"))
    if not isinstance(config, str):
        raise ValueError(f"{where} has no config: the path of a config file, from the table's.")
    values = {**_mapping(common, f"{path}: set"), **_mapping(row, f"{where}: set")}
    for key in _OURS:
        if key in values:
            raise ValueError(f"{where} sets {key}, which is each run's own. Leave it out.")
    options = [part for key, value in values.items() for part in (key, _text(value))]
    made = Row(
        str(row["name"]),
        path.parent / config,
        tuple(options),
        _seeds(row.get("seeds", common.get("seeds", 1)), where),
        str(row.get("against", "")),
    )
    if not made.folder:
        raise ValueError(f"{where}: a name needs a letter or a digit.")
    try:
        load_config(str(made.config), list(options))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return made


def _seeds(seeds: Any, where: str) -> tuple[int, ...]:
    found = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not isinstance(found, list) or not found or any(type(s) is not int or s < 0 for s in found):
        raise ValueError(f"{where}: seeds = {seeds!r} is neither a number of them nor a list of them.")
    if len(set(found)) < len(found):
        raise ValueError(f"{where}: seeds = {seeds!r} has one twice.")
    return tuple(found)


def _mapping(content: dict, where: str) -> Mapping[str, Any]:
    values = content.get("set", {})
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be config keys with values, KEY: value.")
    return values


def _text(value: Any) -> str:
    """A value as a command line has it."""
    return value if isinstance(value, str) else repr(value)


def _check_keys(content: dict, known: Iterable[str], needed: Iterable[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise ValueError(f"{where} has {key!r}, which is none of {', '.join(known)}.")
    for key in needed:
        if not content.get(key):
            raise ValueError(f"{where} has no {key}.")


def _check_list(content: Any, kind: type, where: str) -> None:
    if not isinstance(content, list) or not all(isinstance(part, kind) for part in content):
        raise ValueError(f"{where} must be a list.")
