import json
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as _COCOEvaluator
from iopath.common.file_io import file_lock

from ..utils.atomic import atomic_write
from .coco_eval import evaluate_coco
from .ground_truth import Content, category_ids, finite, with_category_ids
from .seen import base_and_novel


class COCOEvaluator(_COCOEvaluator):
    """Detectron2's evaluator of COCO's boxes and masks, with the metrics of :func:`.coco_eval.evaluate_coco`.

    Ids may be of any kind. The results have the ids of the ground truth. Detections with NaN are left out.
    With novel classes, the results have :func:`.seen.base_and_novel`.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Any = None,
        distributed: bool = True,
        output_dir: str | None = None,
        novel_classes: Collection[str] = (),
        **kwargs,
    ):
        """
        Args:
            dataset_name: of a dataset whose metadata have ``json_file``, or ``coco_content``: a function that
                returns the ground truth in COCO's format. The evaluator writes this ground truth into
                ``output_dir``, as ``json_file``. Without both, Detectron2 converts the records.
            novel_classes: names of novel classes; empty: ``novel_classes`` of the metadata.
            tasks, distributed, output_dir, kwargs: as for Detectron2's.
        """
        metadata = vars(MetadataCatalog.get(dataset_name))  # as attributes, values could not be replaced
        if output_dir and "coco_content" in metadata:
            path = Path(output_dir, f"{dataset_name}_coco_format.json")
            # An evaluation during training finds the file of the one before. Data registered anew do not.
            if metadata.get("json_file") != str(path) or not path.is_file():
                _write_ground_truth(path, metadata["coco_content"]())
            metadata["json_file"] = str(path)
        self._novel_classes = novel_classes or metadata.get("novel_classes", ())
        super().__init__(dataset_name, tasks, distributed, output_dir, **{"use_fast_impl": False, **kwargs})

    def _eval_predictions(self, predictions: list[dict], img_ids: list | None = None) -> None:
        """Replace Detectron2's method, which has no place for another evaluation."""
        content = self._coco_api.dataset
        results, ids, tasks = prepared(self, predictions, content, "coco_instances_results.json")
        for task in tasks:
            evaluated = precision = None  # Detectron2's word for no detections at all
            if results:
                limit = self._max_dets_per_image[-1]
                evaluation = evaluate_coco(
                    content, results, task, ids, image_ids=img_ids, max_detections=limit
                )
                precision = evaluation.precision
                curves = {"precision": precision[..., None, None]}
                evaluated = SimpleNamespace(stats=[*evaluation.metrics.values()], eval=curves)
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(evaluated, task, class_names=names)
            if self._novel_classes:
                ap50 = np.full(len(names), np.nan) if precision is None else precision[0].mean(axis=0)
                ap50 = np.where(ap50 < 0, np.nan, 100 * ap50)  # -1: no object
                self._results[task] |= base_and_novel("AP50", ap50, names, self._novel_classes)


def prepared(
    evaluator: Any, predictions: list[dict], content: Content, file_name: str
) -> tuple[list[dict], list, list[str]]:
    """Write the finite detections into the evaluator's folder, if it has one.

    Args:
        evaluator: Detectron2's evaluator of COCO or LVIS.
        content: the ground truth.

    Returns: the detections with the ids of the ground truth; the ids of the categories by class; the tasks to
        evaluate, none if the ground truth has no annotations.
    """
    found = finite([result for prediction in predictions for result in prediction["instances"]])
    ids = category_ids(content, evaluator._metadata)
    results = with_category_ids(found, ids)
    if evaluator._output_dir:
        with atomic_write(Path(evaluator._output_dir, file_name), "w", encoding="utf-8") as file:
            file.write(json.dumps(results))
    if not evaluator._do_evaluation:
        evaluator._logger.info("Annotations are not available for evaluation.")
        return results, ids, []
    return results, ids, sorted(evaluator._tasks or evaluator._tasks_from_predictions(results))


def _write_ground_truth(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # All processes of a run write the same file, one after the other.
    with file_lock(str(path)), atomic_write(path, "w", encoding="utf-8") as file:
        json.dump(content, file)
