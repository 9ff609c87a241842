"""Checks of exported weights against the model that they are loaded into."""

import json
from dataclasses import replace

from torch import nn

from ..guidance import guidance_of
from ..guidance.model_settings import ModelSettings, settings_of
from ..utils.safetensors_file import read_header
from .load_report import first


def names_in_header(path: str) -> list[str]:
    """Return the class names in the header of exported weights; empty for other files."""
    return json.loads(read_header(path).get("class_names", "[]"))


def check_header(path: str, model: nn.Module, *, start: bool = False) -> None:
    """Check that exported weights were made for the model, where their tensors do not show it.

    Args:
        start: training begins from the weights. Other class names and precomputed text are then fine.

    Raises:
        ValueError: other class names or settings.
    """
    theirs = ModelSettings.from_keys(json.loads(read_header(path).get("settings", "{}")))
    if start:
        theirs = replace(theirs, precomputed_text=None)
    other, guided, names = theirs.differences(settings_of(model)), guidance_of(model), names_in_header(path)
    if names and guided and not start and names != (ours := list(guided.language.class_names)):
        differ = [f"{a!r} instead of {b!r}" for a, b in zip(names, ours, strict=False) if a != b]
        other += f"; class names: {first(differ, 3)}"
    if other:
        raise ValueError(
            f"{path!r} was exported with {other.removeprefix('; ')}. Set them so, or give the file as "
            "--config-file without these keys: its header holds its config."
        )
