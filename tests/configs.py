"""Configs for tests."""

from collections.abc import Sequence

from detectron2.config import CfgNode

from denseclip_d2.config import prepare_run


def prepared_cfg(config_file: str, opts: Sequence = ()) -> CfgNode:
    """Return the config of a run: its datasets registered, its class names and schedule set."""
    return prepare_run(config_file, [*opts]).cfg
