"""How long training waits for a checkpoint."""

import os
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import hooks

from ..checkpoint import DenseCLIPCheckpointer
from ..engine.hooks import PeriodicCheckpointer
from .detectors import Contender, contending_configs
from .measure import Row, Step, compare
from .settings import Settings


def checkpoint(settings: Settings) -> Iterator[list[Row]]:
    """Weights and the optimizer's state, saved as training does, against Detectron2's own way.

    Either keeps one checkpoint: the one before is removed when the next is there. They go to the folder for
    temporary files (``TMPDIR``), and nothing waits to be written to its disk when a run begins.
    """
    number = settings.classes[0]
    cfg = contending_configs(settings.cfg, number)["DenseCLIP"]
    trained = Contender(cfg, settings.batch, settings.sizes[0], number, training=True)
    trained.step()  # before its first, the optimizer has no state
    ways = {
        "Detectron2": (DetectionCheckpointer, hooks.PeriodicCheckpointer),
        "this project": (DenseCLIPCheckpointer, PeriodicCheckpointer),
    }
    with TemporaryDirectory() as folder:
        steps: dict[str, Step] = {}
        for name, (checkpointer, hook) in ways.items():
            place = Path(folder, name)
            place.mkdir()
            saver = hook(
                checkpointer(trained.model, str(place), optimizer=trained.optimizer), 1, max_to_keep=1
            )
            steps[name] = partial(_save_next, saver, count())
        case = f"{trained.held_bytes() / 1e6:.0f} MB"
        yield compare("checkpoint", case, steps, settings.repeats, torch.device("cpu"), before=os.sync)


def _save_next(saver: hooks.PeriodicCheckpointer, iterations: Iterator[int]) -> None:
    saver.step(next(iterations))
