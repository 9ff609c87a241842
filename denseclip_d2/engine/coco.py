from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from detectron2.evaluation import COCOEvaluator as _COCOEvaluator
from detectron2.evaluation import coco_evaluation


class COCOEvaluator(_COCOEvaluator):
    """Detectron2's evaluator of COCO, by faster-coco-eval where that is installed, else by pycocotools.

    The figures are the same up to the last bit of a double, the time is a fraction: docs/performance.md.
    """

    def __init__(self, *args, **kwargs):
        """
        Args:
            args, kwargs: as for Detectron2's.
        """
        with fast_coco_api():
            super().__init__(*args, **kwargs)

    def evaluate(self, img_ids: list[int] | None = None) -> dict | None:
        with fast_coco_api():
            return super().evaluate(img_ids)


@contextmanager
def fast_coco_api() -> Iterator[None]:
    """Fill Detectron2's place for a fast ``COCOeval``, which its wheel leaves empty, where we can."""
    try:
        from faster_coco_eval.core.faster_eval_api import COCOeval
    except ImportError:
        yield
        return
    with patch.object(coco_evaluation, "COCOeval_opt", COCOeval):
        yield
