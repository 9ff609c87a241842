"""A ``CfgNode`` that takes a number however a person writes it, and config files with clear errors."""

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

from ..utils.text import read_text

# Keys of earlier versions, which a config file may still have.
_WITHOUT_EFFECT = ("MODEL.KEEP_MEMORY",)

# The file whose bases are being read, after those that it is a base of.
_above: ContextVar[tuple[str, ...]] = ContextVar("_above", default=())


class CfgNode(_CfgNode):
    """Detectron2's ``CfgNode``, with whole numbers for fractions, and config files that are checked.

    yacs takes no other type than the default's: no 0 for 0.2. In lists it leaves YAML's 1e-4 a string.
    """

    def merge_from_other_cfg(self, cfg_other: _CfgNode) -> None:
        """
        Raises:
            ValueError, KeyError: a value of another type than the default's; no such key.
        """
        super().merge_from_other_cfg(_fit(cfg_other, self, ""))

    def merge_from_list(self, cfg_list: Sequence) -> None:
        """
        Raises:
            ValueError, AssertionError: a value of another type than the default's, or no such key; a key
                without value.
        """
        pairs = list(cfg_list)
        if options := [text for text in pairs if isinstance(text, str) and text.startswith("--")]:
            raise ValueError(f"{options[0]} stands among the config keys: options go before KEY VALUE pairs.")
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
        if isinstance(default, str) and isinstance(text, str) and type(value) in (int, float):
            return repr(text)  # a folder may be called 2024; this is decoded once more
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
            ValueError: not YAML, or not keys and values; the file is its own base, maybe by others.
            OSError: the file, or a base, cannot be read.
        """
        with _reading(filename):
            try:
                return super().load_yaml_with_base(filename, allow_unsafe)
            except yaml.YAMLError as error:
                raise ValueError(_words_of(error, filename)) from error


@contextmanager
def _reading(filename: str) -> Iterator[None]:
    above = _above.get()
    path = filename if "://" in filename else str(Path(filename).resolve())
    if path in above:
        circle = " -> ".join([*above[above.index(path) :], path])
        raise ValueError(f"A config file is its own _BASE_: {circle}. Take _BASE_ out of one of them.")
    if above and "://" not in filename and not PathManager.isfile(filename):
        raise FileNotFoundError(
            f"{above[-1]}: there is no file {filename}, its _BASE_. A relative path counts from the folder "
            "of the file that names it."
        )
    token = _above.set((*above, path))
    try:
        yield
    finally:
        _above.reset(token)


def _fit(value, default, key: str):
    """Return a value as a fraction where the default is one; in sections too, but not in lists.

    Detectron2 tells pixels from parts by the type in some lists, such as ``INPUT.CROP.SIZE``.
    """
    if isinstance(default, dict):
        if not isinstance(value, dict):
            raise ValueError(_is_section(key, default, value))
        below = f"{key}." if key else ""
        value = {name: each for name, each in value.items() if f"{below}{name}" not in _WITHOUT_EFFECT}
        if unknown := [name for name in value if name not in default]:
            raise KeyError(_no_such_key(f"{below}{unknown[0]}", unknown[0], default))
        # Of the default's type, for yacs compares those of sections too.
        return type(default)({k: _fit(v, default.get(k), f"{below}{k}") for k, v in value.items()})
    if isinstance(value, dict) and default is not None:
        raise ValueError(f"{key} has keys below it, and is no section: its default is {default!r}.")
    value = _decoded(value, default)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    _check_type(CfgNode._decode_cfg_value(value), default, key)
    return value


def _check_type(value, default, key: str) -> None:
    """
    Raises:
        ValueError: a value, decoded, has another type than the default; lists and tuples are one type.
    """
    kinds = [list if isinstance(each, tuple) else type(each) for each in (value, default)]
    if kinds[0] is kinds[1] or None in (value, default):
        return
    # In both quotes, for a shell as for YAML.
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
    """Return a value with the numbers that YAML has left strings: those in lists, such as 1e-4."""
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
        ValueError: a config file's content is no mapping, or one with a key twice, or ``_BASE_`` is no path.
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
            raise ValueError(f"{filename}, line {line}: the key {key.value!r} is no word.")
        if key.value in seen:  # YAML would forget what is below the first
            raise ValueError(
                f"{filename}, line {line}: {key.value} is there already, in line {seen[key.value]}. "
                "Put what is below both into one."
            )
        seen[key.value] = line
        if isinstance(value, yaml.MappingNode):
            _check_keys(value, filename)


def _words_of(error: yaml.YAMLError, filename: str) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{filename}, line {mark.line + 1}" if mark else filename
    parts = [getattr(error, name, None) for name in ("context", "problem")]
    problem = " ".join((", ".join(filter(None, parts)) or str(error)).split())
    return f"{where}: {problem}. A config file is YAML, indented by spaces."
