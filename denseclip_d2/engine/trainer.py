import logging
import weakref
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluators, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..builder import build_model
from ..checkpoint import DenseCLIPCheckpointer
from ..data.checks import check_classes, load_datasets
from ..data.class_names import (
    class_names_of_datasets,
    clean_class_names,
    names_to_find,
    stuff_names_of_datasets,
)
from ..data.mapper import build_mapper
from ..data.tasks import labels_by_score_map, num_classes_section, takes_any_names
from ..data.train_loader import TrainLoader
from ..data.unused_annotations import check_learnable
from ..evaluation.build import build_evaluator, check_test_sets
from ..evaluation.seen import only_seen_and_unseen, with_seen_and_unseen
from ..inference.tta import with_tta
from ..language.precomputed import precomputed_text
from ..meta_arch import PixelTextSupervision
from .hooks import BestCheckpointer, BestWeights, EvalHook, PeriodicCheckpointer, RunState
from .lr_scheduler import build_lr_scheduler
from .optimizer import build_gradient_clipper, build_optimizer
from .run_checks import check_run, distributed
from .run_record import RunRecord
from .summary import format_summary, summarize_run
from .train_loop import TrainLoop

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with this project's model, data, optimizer, hooks and training step."""

    def __init__(self, cfg: CfgNode, recipe: CfgNode | None = None):
        """
        Args:
            recipe: the config to log overrides from, such as the config file alone; None: ``cfg``.

        Raises:
            ValueError, FileNotFoundError: a dataset cannot be used, or this config cannot be trained here,
                see :func:`.check_run`.
        """
        check_run(cfg)
        check_test_sets(cfg)  # an error should not wait for the end of training
        # Not DefaultTrainer's constructor, which has no method to override for the trainer of one step.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        given, cfg = cfg, self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg, self.start_iter, self.max_iter = cfg, 0, cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        model = distributed(model, cfg.MODEL.DEVICE, broadcast_buffers=False)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DenseCLIPCheckpointer.from_config(
            cfg, model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self), data=loader
        )
        self._trainer = TrainLoop(
            model, loader, optimizer, device=cfg.MODEL.DEVICE, checkpointer=self.checkpointer,
            precision=cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "float32",
            clip=build_gradient_clipper(cfg),
        )  # fmt: skip
        self.register_hooks(self.build_hooks())
        check_classes(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        summary = summarize_run(cfg, recipe or given, model, optimizer, loader)
        logger.info(format_summary(summary))
        self.register_hooks([RunRecord(cfg.OUTPUT_DIR, summary)] if comm.is_main_process() else [])

    def build_hooks(self) -> list[HookBase]:
        """Return Detectron2's hooks and this project's, in the order in which they run.

        Evaluation comes before the checkpoint of the same iteration. So a checkpoint has the whole iteration
        behind it, and a resumed run repeats nothing and leaves nothing out.
        """
        cfg, main = self.cfg, comm.is_main_process()
        found: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            found.append(self._precise_bn())
        found.append(EvalHook(cfg.TEST.EVAL_PERIOD, self._test))
        if cfg.TEST.AUG.ENABLED:
            augmented = with_tta(cfg, self.model)  # an error should not wait for the end of training
            found.append(EvalHook(0, lambda: self._test_with_tta(augmented)))
        if cfg.SOLVER.BEST_METRIC and main:
            best = BestWeights(self.model, cfg.OUTPUT_DIR)
            found.append(BestCheckpointer(cfg.TEST.EVAL_PERIOD, best, cfg.SOLVER.BEST_METRIC))
        found.append(RunState(cfg.SEED))
        if main:
            keep = cfg.SOLVER.MAX_TO_KEEP or None
            period = cfg.SOLVER.CHECKPOINT_PERIOD
            found.append(PeriodicCheckpointer(self.checkpointer, period, max_to_keep=keep))
            found.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return found

    def resume_or_load(self, resume: bool = True) -> None:
        """Load weights, or resume a run, in either case at the learning rates of the config."""
        rates = [*self.scheduler.base_lrs]
        super().resume_or_load(resume)
        if self.scheduler.base_lrs == rates:
            return
        logger.warning("The learning rates of the config replace others in the checkpoint.")
        self.scheduler.base_lrs = rates
        groups = self.optimizer.param_groups
        for group, initial, rate in zip(groups, rates, self.scheduler.get_lr(), strict=True):
            group.update(initial_lr=initial, lr=rate)

    def train(self) -> dict | None:
        # After its first calls in a process, TorchScript rewrites a function such as the focal loss.
        # The new function rounds otherwise, so that a resumed run would differ. GPUs gain by the fusion.
        with torch.jit.optimized_execution(torch.device(self.cfg.MODEL.DEVICE).type != "cpu"):
            return super().train()

    def _precise_bn(self) -> HookBase:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # as in Detectron2, to save memory
        # A loader of its own, for the training loader counts what it has given.
        loader = self.build_train_loader(cfg)
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

    def _test(self) -> dict:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _test_with_tta(self, augmented: nn.Module) -> dict:
        results = self.test_with_tta(self.cfg, augmented)
        self._last_eval_results.update(results)
        return results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
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
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, folder: str = "inference", model: nn.Module | None = None
    ) -> DatasetEvaluators:
        return build_evaluator(cfg, dataset_name, str(Path(cfg.OUTPUT_DIR, folder, dataset_name)), model)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict:
        """Evaluate a model on ``DATASETS.TEST``, one that takes any names with the names of each dataset."""
        if not takes_any_names(cfg):
            with precomputed_text(model):
                return super().test(cfg, model, evaluators)
        guided = next(m for m in model.modules() if isinstance(m, PixelTextSupervision))
        language = guided.backbone.language
        trained = clean_class_names(language.names, synonyms=True)
        learned = cfg.MODEL.DENSECLIP.PROMPT.LEARNED_NAME
        results = {}
        for i, name in enumerate(cfg.DATASETS.TEST):
            own = cfg.clone()
            own.defrost()
            own.DATASETS.TEST = (name,)
            names, stuff = names_to_find(cfg, name), stuff_names_of_datasets(cfg, [name])
            # Metrics have the names of the dataset, for which the model may have other words.
            seen = class_names_of_datasets(cfg, [name]) if names == language.class_names else ()
            ignored = {learned, MetadataCatalog.get(name).stuff_classes[0]} if stuff else {learned}
            own.MODEL[num_classes_section(cfg)].NUM_CLASSES = len(names)
            evaluator = evaluators[i] if evaluators else cls.build_evaluator(own, name, model=guided)
            with guided.given_names(names, stuff_names=stuff or None), precomputed_text(model):
                metrics = super().test(own, model, [evaluator])
            if labels_by_score_map(cfg):
                results[name] = metrics  # no class was trained
                continue
            results[name] = with_seen_and_unseen(metrics, (*trained, *seen), ignored)
            print_csv_format(only_seen_and_unseen(results[name]))  # Detectron2 has printed the others
        return results if len(results) != 1 else results[name]

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, augmented: nn.Module) -> dict:
        """Evaluate a model that :func:`with_tta` made, into ``OUTPUT_DIR/inference_TTA``.

        Returns: the dict of ``test``, with "_TTA" at the end of each outer key.
        """
        evaluators = [cls.build_evaluator(cfg, name, "inference_TTA") for name in cfg.DATASETS.TEST]
        return {f"{key}_TTA": result for key, result in cls.test(cfg, augmented, evaluators).items()}
