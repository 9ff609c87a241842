"""The page of config keys, made from the defaults, their comments and their rules."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from html import escape
from types import ModuleType
from typing import NamedTuple


class Key(NamedTuple):
    """A config key.

    Attributes:
        name: with all its sections, such as "MODEL.DENSECLIP.CLIP_MODEL".
        default: as Python writes it; empty for a section.
        comment: what stands above it.
    """

    name: str
    default: str
    comment: str


def read_keys(defaults: ModuleType) -> Iterator[Key]:
    """Yield the keys and sections that ``add_denseclip_config`` sets, in its order."""
    source = textwrap.dedent(inspect.getsource(defaults.add_denseclip_config))
    lines = source.splitlines()
    aliases = {"cfg": ""}
    for statement in ast.walk(ast.parse(source)):
        if not isinstance(statement, ast.Assign):
            continue
        (target,) = statement.targets
        if isinstance(target, ast.Name):
            aliases[target.id] = _name(statement.value, aliases)
            continue
        is_section = isinstance(statement.value, ast.Call)
        value = "" if is_section else repr(ast.literal_eval(statement.value))
        yield Key(_name(target, aliases), value, _comment_above(lines, statement.lineno - 1))


def _name(node: ast.expr, aliases: dict[str, str]) -> str:
    path, _, rest = ast.unparse(node).partition(".")
    return ".".join(filter(None, [aliases[path], rest]))


def _comment_above(lines: list[str], index: int) -> str:
    comment: list[str] = []
    while index and lines[index - 1].strip().startswith("#"):
        index -= 1
        comment.insert(0, lines[index].strip().lstrip("# "))
    return " ".join(comment)


def config_keys_page() -> str:
    """Return the page as Markdown: a table for each section, with default, rule and comment of each key."""
    from denseclip_d2.config import defaults, rules

    page = [
        "# Config keys\n",
        "These keys are added to Detectron2's config. Set them in a config file, or as `KEY VALUE` after a "
        "command. A value that breaks its rule is refused before a model is built.\n",
    ]
    sections: dict[str, list[Key]] = {}
    comments: dict[str, str] = {}
    for key in read_keys(defaults):
        if key.default:
            sections.setdefault(key.name.rpartition(".")[0], []).append(key)
        else:
            comments[key.name] = key.comment
    for section, keys in sections.items():
        page += [
            f"## {section}\n",
            f"{_cell(comments.get(section, ''))}\n",
            "| key | default | value | meaning |",
        ]
        page += ["|---|---|---|---|"]
        for name, default, comment in keys:
            rule = rules.rule_of(name, ast.literal_eval(default))
            words = _cell(rule.words) if rule else ""
            page += [f"| `{name.rpartition('.')[2]}` | `{_cell(default)}` | {words} | {_cell(comment)} |"]
        page += [""]
    return "\n".join(page)


def _cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("*", "\\*") if text else text
