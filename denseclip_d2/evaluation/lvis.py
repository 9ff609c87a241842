from pathlib import Path

from detectron2.evaluation import LVISEvaluator as _LVISEvaluator
from detectron2.utils.logger import create_small_table

from .coco import write_results
from .coco_eval import LVIS_FIGURES, evaluate_lvis
from .ground_truth import category_ids, finite, with_category_ids


class LVISEvaluator(_LVISEvaluator):
    """Detectron2's evaluator of LVIS, with the figures of :func:`.coco_eval.evaluate_lvis`.

    Detections with NaN are left out.
    """

    def _eval_predictions(self, predictions: list[dict]) -> None:
        """Replace Detectron2's method, which has no place for another evaluation."""
        found = finite([result for prediction in predictions for result in prediction["instances"]])
        tasks = self._tasks or self._tasks_from_predictions(found)
        content = self._lvis_api.dataset
        ids = category_ids(content, self._metadata)
        results = with_category_ids(found, ids)
        if self._output_dir:
            write_results(results, Path(self._output_dir, "lvis_instances_results.json"))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        limit = 300 if self._max_dets_per_image is None else self._max_dets_per_image
        for task in sorted(tasks):
            figures = dict.fromkeys(LVIS_FIGURES, float("nan"))
            if results:
                evaluation = evaluate_lvis(content, results, task, ids, max_detections=limit)
                figures = {name: 100 * value for name, value in evaluation.figures.items()}
            self._logger.info("Evaluation results for %s:\n%s", task, create_small_table(figures))
            self._results[task] = figures
