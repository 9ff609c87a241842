import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config import load_config
from ..utils.text import read_text

_PER_RUN = ("OUTPUT_DIR", "SEED")
_FILE_KEYS = ("title", "config", "metrics", "seeds", "set", "rows")
_ROW_KEYS = ("name", "config", "seeds", "set", "against")


@dataclass(frozen=True)
class Variant:
    """One line of a table.

    Attributes:
        name: its name in the table.
        config: path of the config file.
        options: config keys and values in turn, as on a command line.
        seeds: one run for each.
        against: name of the row to compare with, seed by seed; empty for none.
    """

    name: str
    config: Path
    options: tuple[str, ...]
    seeds: tuple[int, ...]
    against: str = ""

    @property
    def folder(self) -> str:
        """The name as a folder's name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Sweep:
    """
    Attributes:
        title: the table's title.
        metrics: the columns, named as in a run's ``metrics.json``, such as "bbox/AP".
        rows: in the table's order.
    """

    title: str
    metrics: tuple[str, ...]
    rows: tuple[Variant, ...]


def read_sweep(path: Path) -> Sweep:
    """Read an ablation's YAML, and load every row's config as a check.

    The file has ``title``, ``metrics`` and ``rows``. ``config`` (relative to the file), ``seeds`` (a number
    or a list) and ``set`` (values by config key) hold for all rows. A row has a ``name``. It may have its own
    ``config``, ``seeds`` and ``set``, which override the file's, and be ``against`` another row's name.

    Raises:
        ValueError: the file is invalid, two rows have the same name, or a config key or value is invalid.
        FileNotFoundError: the file or a config does not exist.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} has no rows. It needs {', '.join(_FILE_KEYS)}.")
    _check_keys(content, _FILE_KEYS, ("title", "metrics", "rows"), str(path))
    for key, kind in (("rows", dict), ("metrics", str)):
        if not isinstance(content[key], list) or not all(isinstance(part, kind) for part in content[key]):
            raise ValueError(f"{path}: {key} must be a list.")
    rows = tuple(_row(row, content, path) for row in content["rows"])
    folders = [row.folder for row in rows]
    for row in rows:
        if folders.count(row.folder) > 1:
            raise ValueError(f"{path}: another row has the name {row.name!r}. Signs and case do not count.")
        if row.against and row.against not in {other.name for other in rows if other != row}:
            raise ValueError(f"{path}: row {row.name!r} is against {row.against!r}, which is no other row.")
    return Sweep(str(content["title"]), tuple(content["metrics"]), rows)


def _row(row: dict, common: dict, path: Path) -> Variant:
    where = f"{path}: row {row.get('name', '')!r}"
    _check_keys(row, _ROW_KEYS, ("name",), where)
    config = row.get("config", common.get("config"))
    if not isinstance(config, str):
        raise ValueError(f"{where} has no config: set the path of a config file, relative to this one.")
    values: dict[str, Any] = {}
    for overrides in (common.get("set", {}), row.get("set", {})):
        if not isinstance(overrides, dict):
            raise ValueError(f"{where}: set must have config keys with values, KEY: value.")
        values |= overrides
    if own := [key for key in _PER_RUN if key in values]:
        raise ValueError(f"{where} sets {own[0]}, which differs for each run. Remove it.")
    texts = {key: value if isinstance(value, str) else repr(value) for key, value in values.items()}
    options = [part for pair in texts.items() for part in pair]
    seeds = _seeds(row.get("seeds", common.get("seeds", 1)), where)
    made = Variant(str(row["name"]), path.parent / config, tuple(options), seeds, str(row.get("against", "")))
    if not made.folder:
        raise ValueError(f"{where}: a name needs a letter or a digit.")
    try:
        load_config(str(made.config), options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return made


def _seeds(seeds: Any, where: str) -> tuple[int, ...]:
    found = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not isinstance(found, list) or not found or any(type(s) is not int or s < 0 for s in found):
        raise ValueError(f"{where}: seeds = {seeds!r} is neither a number of seeds nor a list of them.")
    if len(set(found)) < len(found):
        raise ValueError(f"{where}: seeds = {seeds!r} has one twice.")
    return tuple(found)


def _check_keys(content: dict, known: Iterable[str], needed: Iterable[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise ValueError(f"{where} has {key!r}, which is none of {', '.join(known)}.")
    for key in needed:
        if not content.get(key):
            raise ValueError(f"{where} has no {key}.")
