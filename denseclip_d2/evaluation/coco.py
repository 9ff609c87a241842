import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as _COCOEvaluator
from iopath.common.file_io import file_lock

from ..utils.atomic import atomic_write
from .coco_eval import evaluate_coco
from .ground_truth import category_ids, finite, with_category_ids


class COCOEvaluator(_COCOEvaluator):
    """Detectron2's evaluator of COCO's boxes and masks, with the figures of :func:`.coco_eval.evaluate_coco`.

    Ids may be of any kind; the results have those of the ground truth. Detections with NaN are left out.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Any = None,
        distributed: bool = True,
        output_dir: str | None = None,
        **kwargs,
    ):
        """
        Args:
            dataset_name: of a dataset whose metadata have ``json_file``, or ``coco_content``: a function that
                returns the ground truth in COCO's format. The evaluator writes that into ``output_dir`` and
                reads no other file. Without both, Detectron2 converts the records.
            tasks, distributed, output_dir, kwargs: as for Detectron2's.
        """
        metadata = vars(MetadataCatalog.get(dataset_name))
        ground_truth: AbstractContextManager = nullcontext()
        if output_dir and "coco_content" in metadata:
            path = Path(output_dir, f"{dataset_name}_coco_format.json")
            # An evaluation during training finds the file of the one before. Data registered anew do not.
            if metadata.get("json_file") != str(path) or not path.is_file():
                _write_ground_truth(path, metadata["coco_content"]())
            if str(metadata.get("json_file", path.name)).endswith(
                path.name
            ):  # none, or an earlier evaluator's
                metadata["json_file"] = str(path)
            ground_truth = patch.dict(metadata, json_file=str(path))
        with ground_truth:
            super().__init__(
                dataset_name, tasks, distributed, output_dir, **{"use_fast_impl": False, **kwargs}
            )

    def _eval_predictions(self, predictions: list[dict], img_ids: list | None = None) -> None:
        """Replace Detectron2's method, which has no place for another evaluation."""
        found = finite([result for prediction in predictions for result in prediction["instances"]])
        tasks = self._tasks or self._tasks_from_predictions(found)
        content = self._coco_api.dataset
        ids = category_ids(content, self._metadata)
        results = with_category_ids(found, ids)
        if self._output_dir:
            write_results(results, Path(self._output_dir, "coco_instances_results.json"))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        for task in sorted(tasks):
            evaluated = None  # Detectron2's word for no detections at all
            if results:
                limit = self._max_dets_per_image[-1]
                evaluation = evaluate_coco(
                    content, results, task, ids, image_ids=img_ids, max_detections=limit
                )
                curves = {"precision": evaluation.precision[..., None, None]}
                evaluated = SimpleNamespace(stats=[*evaluation.figures.values()], eval=curves)
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(evaluated, task, class_names=names)


def write_results(results: list[dict], path: Path) -> None:
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(results))


def _write_ground_truth(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # All processes of a run write the same: one after the other, beside those that read.
    with file_lock(str(path)), atomic_write(path, "w", encoding="utf-8") as file:
        json.dump(content, file)
