from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from detectron2.evaluation import LVISEvaluator as _LVISEvaluator


class LVISEvaluator(_LVISEvaluator):
    """Detectron2's evaluator of LVIS: AP, and that of rare, common and frequent classes."""

    def evaluate(self) -> dict | None:
        with readable_by_lvis():
            return super().evaluate()


@contextmanager
def readable_by_lvis() -> Iterator[None]:
    """numpy as the newest release of the package lvis, 0.5.3, wants it: with a name that 1.24 took away."""
    with patch.object(np, "float", float, create=True):
        yield
