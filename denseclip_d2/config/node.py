"""A ``CfgNode`` that accepts whole numbers as fractions, and config files with clear errors."""

import difflib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO

import yaml
from detectron2.config import CfgNode as _CfgNode
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from ..utils.old_keys import update_content, update_pairs
from ..utils.text import read_text

# The files being read: each is a ``_BASE_`` of the one before.
_above: ContextVar[tuple[str, ...]] = ContextVar("_above", default=())


class CfgNode(_CfgNode):
    """Detectron2's ``CfgNode``, which accepts whole numbers as fractions and checks config files.

    yacs accepts the default's type alone: no 0 for 0.2. In lists it leaves YAML's 1e-4 a string.
    """

    def merge_from_other_cfg(self, cfg_other: _CfgNode) -> None:
        """
        Raises:
            ValueError, KeyError: a value has another type than the default, or a key does not exist.
        """
        super().merge_from_other_cfg(_fit(type(self)(update_content(cfg_other)), self, ""))

    def merge_from_list(self, cfg_list: Sequence) -> None:
        """
        Raises:
            ValueError, AssertionError: a value has another type than the default, a key does not exist or
                has no value.
        """
        pairs = list(cfg_list)
        if options := [text for text in pairs if isinstance(text, str) and text.startswith("--")]:
            raise ValueError(f"{options[0]} stands among the config keys: options go before KEY VALUE pairs.")
        if len(pairs) % 2 == 0:
            pairs = update_pairs(pairs)
        pairs[1::2] = map(self._fit_to, pairs[::2], pairs[1::2])
        super().merge_from_list(pairs)

    def _fit_to(self, key: str, text: object) -> object:
        default: object = self
        for name in key.split("."):
            if not isinstance(default, dict) or name not in default:
                raise ValueError(_no_such_key(key, name, default))
            default = default[name]
        value = self._decode_cfg_value(text)
        if isinstance(default, dict):
            raise ValueError(_is_section(key, default, value))
        if isinstance(default, str) and isinstance(text, str) and type(value) in (int, float, dict):
            # A folder can have the name 2024, and a template is "{}"; yacs decodes the text again.
            return repr(text)
        if isinstance(value, int | list | tuple):
            return _fit(value, default, key)
        _check_type(value, default, key)
        return text

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        text = read_text(filename)
        _check_content(yaml.compose(text, Loader=yaml.SafeLoader), filename)
        return io.StringIO(text)

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        """
        Raises:
            ValueError: the content is not YAML, or not keys and values; the file is its own base.
            OSError: the file, or a base, cannot be read.
        """
        with _reading(filename):
            try:
                return super().load_yaml_with_base(filename, allow_unsafe)
            except yaml.YAMLError as error:
                raise ValueError(_describe(error, filename)) from error


@contextmanager
def _reading(filename: str) -> Iterator[None]:
    above = _above.get()
    path = filename if "://" in filename else str(Path(filename).resolve())
    if path in above:
        circle = " -> ".join([*above[above.index(path) :], path])
        raise ValueError(f"A config file is its own _BASE_: {circle}. Remove _BASE_ from one of them.")
    if above and "://" not in filename and not PathManager.isfile(filename):
        raise FileNotFoundError(
            f"{above[-1]}: there is no file {filename}, its _BASE_. A relative path starts at the folder of "
            "the file that names it."
        )
    token = _above.set((*above, path))
    try:
        yield
    finally:
        _above.reset(token)


def _fit(value, default, key: str):
    """Return a value, or the values of a section, as fractions if the defaults are fractions.

    Lists stay: in ``INPUT.CROP.SIZE``, Detectron2 tells pixels from fractions by the type.
    """
    if isinstance(default, dict):
        if not isinstance(value, dict):
            raise ValueError(_is_section(key, default, value))
        below = f"{key}." if key else ""
        if unknown := [name for name in value if name not in default]:
            raise KeyError(_no_such_key(f"{below}{unknown[0]}", unknown[0], default))
        # The default's type, because yacs compares the types of sections too.
        return type(default)({k: _fit(v, default.get(k), f"{below}{k}") for k, v in value.items()})
    if isinstance(value, dict) and default is not None:
        raise ValueError(f"{key} has keys below it, but is no section: its default is {default!r}.")
    value = _decoded(value, default)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    _check_type(CfgNode._decode_cfg_value(value), default, key)
    return value


def _check_type(value, default, key: str) -> None:
    """
    Raises:
        ValueError: a decoded value has another type than the default; lists and tuples are one type.
    """
    kinds = [list if isinstance(each, tuple) else type(each) for each in (value, default)]
    if kinds[0] is kinds[1] or None in (value, default):
        return
    # Both kinds of quotes, because a shell removes one of them.
    if kinds[1] is list:
        parts = str(value).strip("()[] ").split(",")
        needed = f'a list, such as "{tuple(CfgNode._decode_cfg_value(part.strip()) for part in parts)!r}"'
    elif kinds[1] is str:
        needed = f'a string, such as "{str(value)!r}"'
    else:
        kind = {bool: "True or False", int: "a whole number"}.get(kinds[1], "a number")
        needed = f"{kind}, such as {default!r}"
    raise ValueError(f"{key} is {value!r}; it has to be {needed}.")


def _decoded(value, default):
    """Return a value with numbers for what YAML leaves as strings in lists, such as 1e-4."""
    if isinstance(default, list | tuple) and default and isinstance(value, list | tuple):
        return type(value)(_decoded(item, default[0]) for item in value)
    return CfgNode._decode_cfg_value(value) if isinstance(default, int | float) else value


def _no_such_key(key: str, name: str, section: object) -> str:
    near = difflib.get_close_matches(name, section if isinstance(section, dict) else (), n=3)
    hint = f". In place of {name}, did you mean {' or '.join(near)}?" if near else ""
    return f"Non-existent key: {key}{hint}"


def _is_section(key: str, section: dict, value: object) -> str:
    return f"{key} is {value!r}, and a section: set one of its keys, such as {key}.{min(section)}."


def _check_content(root: yaml.Node | None, filename: str) -> None:
    """
    Raises:
        ValueError: the content of a config file is no mapping, has a key twice, or ``_BASE_`` is no path.
    """
    if not isinstance(root, yaml.MappingNode):
        kinds = {yaml.SequenceNode: "holds a list", yaml.ScalarNode: "holds one value"}
        what = kinds.get(type(root), "is empty")
        raise ValueError(f"{filename} {what}; a config file holds keys with values, such as SEED: 1.")
    _check_keys(root, filename)
    for key, value in root.value:
        paths = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if key.value == BASE_KEY and any(path.tag != "tag:yaml.org,2002:str" for path in paths):
            raise ValueError(f"{filename}: _BASE_ has to be the path of a config file, or a list of paths.")


def _check_keys(node: yaml.MappingNode, filename: str) -> None:
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise ValueError(f"{filename}, line {line}: the key {key.value!r} is not a word.")
        if key.value in seen:  # YAML would ignore the first
            raise ValueError(
                f"{filename}, line {line}: {key.value} is in line {seen[key.value]} already. "
                "Merge the two sections."
            )
        seen[key.value] = line
        if isinstance(value, yaml.MappingNode):
            _check_keys(value, filename)


def _describe(error: yaml.YAMLError, filename: str) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{filename}, line {mark.line + 1}" if mark else filename
    parts = [getattr(error, name, None) for name in ("context", "problem")]
    problem = " ".join((", ".join(filter(None, parts)) or str(error)).split())
    return f"{where}: {problem}. A config file is YAML, indented with spaces."
