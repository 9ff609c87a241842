"""Public names, config keys and flags, as recorded in tests/public_api.txt."""

import os
from pathlib import Path

from detectron2.config import get_cfg
from test_config import leaves

import denseclip_d2
from denseclip_d2 import cli

SNAPSHOT = Path(__file__).with_name("public_api.txt")
UPDATE = "UPDATE_PUBLIC_API"


def names() -> set[str]:
    return {f"name denseclip_d2.{name}" for name in denseclip_d2.__all__}


def keys() -> set[str]:
    """Return every config key that Detectron2 does not have."""
    cfg = get_cfg()
    theirs = dict(leaves(cfg)).keys()
    denseclip_d2.add_denseclip_config(cfg)
    return {f"key {key}" for key in dict(leaves(cfg)).keys() - theirs}


def flags() -> set[str]:
    """Return every command with its options, including both names of an option with two names."""
    found = set()
    for command, module in cli.COMMANDS.items():
        parser = cli.command_module(module).build_parser()
        found |= {f"flag {command} {flag}" for flag in parser._option_string_actions}
    return found


def test_what_is_public_is_what_it_was():
    now = sorted(names() | keys() | flags())
    if os.environ.get(UPDATE):
        SNAPSHOT.write_text("\n".join(now) + "\n", encoding="utf-8")
    before = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    assert now == before, (
        f"No longer public: {', '.join(gone) or 'nothing'}. New: {', '.join(new) or 'nothing'}.\n"
        "Whoever uses a name, a key or a flag has to follow a rename: decide on it, and write it into "
        f"CHANGELOG.md. Then `{UPDATE}=1 pytest {Path(__file__).name}` writes {SNAPSHOT.name} anew."
    )


def test_every_public_name_is_there():
    assert all(hasattr(denseclip_d2, name) for name in denseclip_d2.__all__)
    assert denseclip_d2.__all__ == sorted(denseclip_d2.__all__)
