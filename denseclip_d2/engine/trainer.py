import weakref
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..checkpoint import DenseCLIPCheckpointer
from ..data.checks import check_classes, load_datasets
from ..data.mapper import DatasetMapper
from .optimizer import build_optimizer


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with the recipe's optimiser, checked data and strict loading."""

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ValueError, FileNotFoundError: a dataset, to train or to test on, cannot be used.
        """
        self.check_test_sets(cfg)  # their faults should not wait for the end of training
        super().__init__(cfg)
        check_classes(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])

    @staticmethod
    def check_test_sets(cfg: CfgNode) -> None:
        """See that ``DATASETS.TEST`` can be evaluated on.

        Raises:
            ValueError, FileNotFoundError: a dataset cannot be used, or has no evaluator.
        """
        check_images = cfg.DATASETS.CHECK_IMAGES and comm.is_main_process()
        for name in cfg.DATASETS.TEST:
            load_datasets([name], filter_empty=False, check_images=check_images)
            evaluator_type = MetadataCatalog.get(name).get("evaluator_type")
            if evaluator_type != "coco":
                raise ValueError(
                    f"No evaluator for {name!r}: its evaluator_type is {evaluator_type!r}, not 'coco'. "
                    "Register it with detectron2.data.datasets.register_coco_instances."
                )
        check_classes(cfg, cfg.DATASETS.TEST)

    def build_hooks(self) -> list[HookBase]:
        # DefaultTrainer makes its checkpointer itself, and its hooks directly after.
        self.checkpointer = DenseCLIPCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            allow_partial=self.cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        return super().build_hooks()

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        dataset = load_datasets(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            check_images=cfg.DATASETS.CHECK_IMAGES and comm.is_main_process(),
        )
        return build_detection_train_loader(cfg, mapper=DatasetMapper(cfg), dataset=dataset)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = DatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR, "inference", dataset_name)))
