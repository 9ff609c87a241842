"""How long a command takes until it begins."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import torch

from .measure import Row, compare
from .settings import Settings

DETECTRON2 = "checkpoint", "data", "engine", "evaluation", "model_zoo", "modeling"
"""Its packages that this project uses."""
IMPORTS = {
    "torch": ["torch"],
    "and torchvision": ["torchvision"],
    "and Detectron2": [f"detectron2.{name}" for name in DETECTRON2],
    "and open_clip": ["open_clip"],
    "and denseclip_d2": ["denseclip_d2.engine"],
}
"""Each imports what is above it too."""


def imports(settings: Settings) -> Iterator[list[Row]]:
    """Importing this package, and what of it is others', each in a new process of Python."""
    steps, modules = {}, list[str]()
    for name, added in IMPORTS.items():
        modules = [*modules, *added]
        command = [sys.executable, "-W", "ignore", "-c", f"import {', '.join(modules)}"]
        steps[name] = partial(subprocess.run, command, check=True)
    yield compare("imports", "a new process", steps, settings.repeats, torch.device("cpu"))
