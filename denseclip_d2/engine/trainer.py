import logging
import weakref
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.utils import comm
from torch import nn

from ..builder import build_model
from ..checkpoint import DenseCLIPCheckpointer
from ..config.projects import GET_PANOPTICAPI
from ..data.checks import check_classes, load_datasets
from ..data.mapper import build_mapper
from ..data.semantic import read_labels
from ..data.tasks import finds_masks, is_panoptic, is_semantic, labels_pixels
from ..data.train_loader import TrainLoader
from ..data.unused import check_learnable
from ..evaluation.coco import COCOEvaluator
from ..evaluation.lvis import LVISEvaluator
from ..inference.tta import with_tta
from ..language.prompting import FOLDED_CANNOT_TRAIN
from .hooks import check_survival, with_survival
from .lr_scheduler import build_lr_scheduler
from .optimizer import build_optimizer
from .precision import check_precision
from .run_record import RunRecord
from .scale import check_processes, fitting_trainer_parts
from .summary import format_summary, summarize_run

logger = logging.getLogger(__name__)

# What is held out of own data has no file of its own, and the one of an earlier run is not to be trusted.
_COCO = partial(COCOEvaluator, allow_cached_coco=False)
# Evaluator types of datasets with instances, with their evaluators, and of those with label maps.
INSTANCES: dict[str, Callable] = {"coco": _COCO, "coco_panoptic_seg": _COCO, "lvis": LVISEvaluator}
LABELS = ("sem_seg", "cityscapes_sem_seg", "coco_panoptic_seg")


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with the recipe's optimizer, checked data and strict loading."""

    def __init__(self, cfg: CfgNode, recipe: CfgNode | None = None):
        """
        Args:
            recipe: the config to log departures from, such as the config file's alone; None: ``cfg``.

        Raises:
            ValueError, FileNotFoundError: a dataset, to train or to test on, cannot be used, or the config
                does not fit the processes or the device, or is of a model that cannot be trained.
        """
        check_precision(cfg)
        check_processes(cfg)
        check_survival(cfg)
        if cfg.MODEL.DENSECLIP.PROMPT.FOLDED:
            raise ValueError(FOLDED_CANNOT_TRAIN)
        self.check_test_sets(cfg)  # their faults should not wait for the end of training
        with fitting_trainer_parts(cfg):
            super().__init__(cfg)
        check_classes(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        summary = summarize_run(self.cfg, recipe or cfg, self.model, self.optimizer, self.data_loader)
        logger.info(format_summary(summary))
        self.register_hooks([RunRecord(cfg.OUTPUT_DIR, summary)] if comm.is_main_process() else [])

    @staticmethod
    def check_test_sets(cfg: CfgNode) -> None:
        """See that ``DATASETS.TEST`` can be evaluated on.

        Raises:
            ValueError, FileNotFoundError: a dataset cannot be used, or has no evaluator.
            ImportError: the evaluator's package is not installed.
        """
        check_images = cfg.DATASETS.CHECK_IMAGES and comm.is_main_process()
        for name in cfg.DATASETS.TEST:
            load_datasets([name], filter_empty=False, check_images=check_images)
            evaluator_type = MetadataCatalog.get(name).get("evaluator_type")
            if evaluator_type not in (*INSTANCES, *LABELS):
                raise ValueError(
                    f"No evaluator for {name!r}: its evaluator_type is {evaluator_type!r}, not 'coco', "
                    "'lvis' or 'sem_seg'. Register it with detectron2.data.datasets.register_coco_instances "
                    "or register_lvis_instances, or, if it has label maps, set its metadata's evaluator_type "
                    "to 'sem_seg'."
                )
        check_classes(cfg, cfg.DATASETS.TEST)

    def build_hooks(self) -> list[HookBase]:
        # DefaultTrainer makes its checkpointer itself, and its hooks directly after.
        self.checkpointer = DenseCLIPCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            allow_partial=self.cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
            trainer=weakref.proxy(self),
            data=self.data_loader,
        )
        hooks = with_survival(self, super().build_hooks())
        if self.cfg.TEST.AUG.ENABLED:
            # After the evaluation without augmentation, and before the writer, which closes metrics.json.
            position = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook)) + 1
            hooks.insert(position, self._build_tta_hook())
        return hooks

    def _build_tta_hook(self) -> HookBase:
        augmented = with_tta(self.cfg, self.model)  # fails, if it must, before training

        def test_and_save_results() -> dict:
            results = self.test_with_tta(self.cfg, augmented)
            self._last_eval_results.update(results)
            return results

        return EvalHook(0, test_and_save_results)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        dataset = load_datasets(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            check_images=cfg.DATASETS.CHECK_IMAGES and comm.is_main_process(),
        )
        unused = check_learnable(cfg.DATASETS.TRAIN, dataset)
        parts = build_detection_train_loader.from_config(cfg, mapper=build_mapper(cfg), dataset=dataset)
        return TrainLoader(**parts, unused=unused)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = build_mapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, folder: str = "inference") -> DatasetEvaluators:
        output_dir = str(Path(cfg.OUTPUT_DIR, folder, dataset_name))
        metadata, evaluators = MetadataCatalog.get(dataset_name), []
        evaluator_type = metadata.evaluator_type
        if evaluator_type in INSTANCES and not is_semantic(cfg):
            # The evaluator would otherwise read the tasks off the predictions, and there may be none.
            tasks = ("bbox", "segm") if finds_masks(cfg) else ("bbox",)
            evaluator = INSTANCES[evaluator_type]
            evaluators.append(evaluator(dataset_name, tasks=tasks, output_dir=output_dir))
        has_labels = evaluator_type != "coco_panoptic_seg" or metadata.get("sem_seg_root")
        if evaluator_type in LABELS and labels_pixels(cfg) and has_labels:

            def read(file_name: str, dtype: type) -> np.ndarray:  # Detectron2's asks numpy 2 for too much
                return read_labels(file_name).astype(dtype)

            evaluators.append(SemSegEvaluator(dataset_name, output_dir=output_dir, sem_seg_loading_fn=read))
        if is_panoptic(cfg) and metadata.get("panoptic_json"):
            if has_panopticapi():
                evaluators.append(COCOPanopticEvaluator(dataset_name, output_dir))
            else:
                logger.warning("No panoptic quality (PQ), which needs panopticapi: %s.", GET_PANOPTICAPI)
        return DatasetEvaluators(evaluators)

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, augmented: nn.Module) -> dict:
        """Evaluate a model that :func:`with_tta` made, into ``OUTPUT_DIR/inference_TTA``.

        Returns: what ``test`` returns, its outer keys with "_TTA" at their ends.
        """
        evaluators = [cls.build_evaluator(cfg, name, "inference_TTA") for name in cfg.DATASETS.TEST]
        return {f"{key}_TTA": result for key, result in cls.test(cfg, augmented, evaluators).items()}


def has_panopticapi() -> bool:
    """Whether what computes the panoptic quality is installed."""
    try:
        return find_spec("panopticapi.evaluation") is not None
    except ModuleNotFoundError:  # of the package itself
        return False
