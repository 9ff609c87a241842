import logging

import numpy as np
from detectron2.evaluation import SemSegEvaluator as _SemSegEvaluator
from tabulate import tabulate

from ..data.semantic import read_labels

logger = logging.getLogger(__name__)

COLUMNS = 3
"""Number of classes in a line of the table."""


class SemSegEvaluator(_SemSegEvaluator):
    """Detectron2's evaluator of label maps, with a table of the classes' IoU in the log."""

    def __init__(self, dataset_name: str, output_dir: str):
        super().__init__(dataset_name, output_dir=output_dir, sem_seg_loading_fn=_read_labels)

    def evaluate(self) -> dict | None:
        results = super().evaluate()
        if results:  # in the main process
            metrics = results["sem_seg"]
            rows = [[name, metrics[f"IoU-{name}"]] for name in self._class_names]
            lines = [sum(rows[i : i + COLUMNS], []) for i in range(0, len(rows), COLUMNS)]
            table = tabulate(lines, ["class", "IoU"] * COLUMNS, tablefmt="pipe", floatfmt=".2f")
            logger.info("IoU of each class of %s:\n%s", self._dataset_name, table)
        return results


def _read_labels(file_name: str, dtype: type) -> np.ndarray:
    # Detectron2's own function asks NumPy 2 for a conversion that NumPy refuses.
    return read_labels(file_name).astype(dtype)
