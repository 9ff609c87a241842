from detectron2.evaluation import LVISEvaluator as _LVISEvaluator
from detectron2.utils.logger import create_small_table

from .coco import prepared
from .coco_eval import LVIS_METRICS, evaluate_lvis


class LVISEvaluator(_LVISEvaluator):
    """Detectron2's evaluator of LVIS, with the metrics of :func:`.coco_eval.evaluate_lvis`.

    Detections with NaN are left out.
    """

    def _eval_predictions(self, predictions: list[dict]) -> None:
        """Replace Detectron2's method, which has no place for another evaluation."""
        content = self._lvis_api.dataset
        results, ids, tasks = prepared(self, predictions, content, "lvis_instances_results.json")
        limit = 300 if self._max_dets_per_image is None else self._max_dets_per_image
        for task in tasks:
            metrics = dict.fromkeys(LVIS_METRICS, float("nan"))
            if results:
                evaluation = evaluate_lvis(content, results, task, ids, max_detections=limit)
                metrics = {name: 100 * value for name, value in evaluation.metrics.items()}
            self._logger.info("Evaluation results for %s:\n%s", task, create_small_table(metrics))
            self._results[task] = metrics
