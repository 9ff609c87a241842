import logging
from collections.abc import Collection

import numpy as np
from detectron2.evaluation import SemSegEvaluator as _SemSegEvaluator
from tabulate import tabulate

from ..data.semantic import read_labels
from .seen import base_and_novel

logger = logging.getLogger(__name__)

COLUMNS = 3
"""Number of classes in a line of the table."""


class SemSegEvaluator(_SemSegEvaluator):
    """Detectron2's evaluator of label maps, with a table of the classes' IoU in the log.

    It has no BoundaryIoU: Detectron2's is that of differences between the numbers of adjacent classes.
    With novel classes, the results have :func:`.seen.base_and_novel`.
    """

    def __init__(self, dataset_name: str, output_dir: str, novel_classes: Collection[str] = ()):
        """
        Args:
            dataset_name, output_dir: as for Detectron2's.
            novel_classes: names of novel classes.
        """
        self._novel_classes = novel_classes
        super().__init__(dataset_name, output_dir=output_dir, sem_seg_loading_fn=_read_labels)
        self._compute_boundary_iou = False

    def evaluate(self) -> dict | None:
        results = super().evaluate()
        if results:  # in the main process
            metrics = results["sem_seg"]
            rows = [[name, metrics[f"IoU-{name}"]] for name in self._class_names]
            lines = [sum(rows[i : i + COLUMNS], []) for i in range(0, len(rows), COLUMNS)]
            table = tabulate(lines, ["class", "IoU"] * COLUMNS, tablefmt="pipe", floatfmt=".2f")
            if self._novel_classes:
                names, values = zip(*rows, strict=True)
                metrics |= base_and_novel("IoU", np.array(values), names, self._novel_classes)
            logger.info("IoU of each class of %s:\n%s", self._dataset_name, table)
        return results


def _read_labels(file_name: str, dtype: type) -> np.ndarray:
    # Detectron2's own function asks NumPy 2 for a conversion that NumPy refuses.
    return read_labels(file_name).astype(dtype)
