from unittest.mock import patch

import numpy as np
from detectron2.evaluation import LVISEvaluator as _LVISEvaluator


class LVISEvaluator(_LVISEvaluator):
    """Detectron2's evaluator of LVIS: AP, and that of rare, common and frequent classes."""

    def evaluate(self) -> dict | None:
        # The newest release of the package lvis, 0.5.3, asks numpy for a name that numpy 1.24 took away.
        with patch.object(np, "float", float, create=True):
            return super().evaluate()
