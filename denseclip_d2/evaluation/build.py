import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluators
from detectron2.modeling.meta_arch import SemanticSegmentor
from detectron2.utils import comm

from ..config.projects import GET_PANOPTICAPI
from ..data.checks import check_classes, load_datasets
from ..data.tasks import has_sem_seg_head, is_panoptic, is_semantic, labels_by_score_map, predicts_masks
from .coco import COCOEvaluator
from .lvis import LVISEvaluator
from .regions import CropClassifier, RegionEvaluator
from .sem_seg import SemSegEvaluator

logger = logging.getLogger(__name__)

# The held-out part of a dataset has no file of its own. A file of an earlier run may be of another part.
_COCO = partial(COCOEvaluator, allow_cached_coco=False)
# By the evaluator_type of datasets with instances.
_INSTANCES: dict[str, Callable] = {"coco": _COCO, "coco_panoptic_seg": _COCO, "lvis": LVISEvaluator}
# The evaluator_type of datasets with label maps.
_LABEL_MAPS = ("sem_seg", "cityscapes_sem_seg", "coco_panoptic_seg")


def check_test_sets(cfg: CfgNode) -> None:
    """Check that the datasets in ``DATASETS.TEST`` can be read and evaluated.

    Raises:
        ValueError, FileNotFoundError: a dataset cannot be used, or has no evaluator, or none has a class of
            ``DATASETS.NOVEL_CLASSES``.
        ImportError: the package of an evaluator is not installed.
    """
    check_images = cfg.DATASETS.CHECK_IMAGES and comm.is_main_process()
    for name in cfg.DATASETS.TEST:
        load_datasets([name], filter_empty=False, check_images=check_images)
        evaluator_type = MetadataCatalog.get(name).get("evaluator_type")
        if evaluator_type not in (*_INSTANCES, *_LABEL_MAPS):
            raise ValueError(
                f"No evaluator for {name!r}: its evaluator_type is {evaluator_type!r}, not 'coco', 'lvis' or "
                "'sem_seg'. Register the dataset with detectron2.data.datasets.register_coco_instances or "
                "register_lvis_instances. For label maps, set evaluator_type in its metadata to 'sem_seg'."
            )
    check_classes(cfg, cfg.DATASETS.TEST)
    metadata = [MetadataCatalog.get(name) for name in cfg.DATASETS.TEST]
    kinds = ("thing_classes", "stuff_classes")
    known = {name for test_set in metadata for kind in kinds for name in test_set.get(kind, ())}
    if metadata and (unknown := [name for name in cfg.DATASETS.NOVEL_CLASSES if name not in known]):
        raise ValueError(
            f"DATASETS.NOVEL_CLASSES has {unknown[0]!r}, which is no class of "
            f"{', '.join(cfg.DATASETS.TEST)}. Write the name as the dataset has it, or leave it out."
        )


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str, model: SemanticSegmentor | None = None
) -> DatasetEvaluators:
    """Return the evaluators of a dataset for the outputs of the config's model.

    Args:
        output_folder: the folder for detections and other files of the evaluators.
        model: a CLIP alone, which also classifies crops of a dataset with objects.
    """
    metadata, evaluators = MetadataCatalog.get(dataset_name), []
    evaluator_type = metadata.evaluator_type
    if is_semantic(cfg) and evaluator_type in _INSTANCES and evaluator_type not in _LABEL_MAPS:
        crops = None
        if model and labels_by_score_map(cfg):
            crops = CropClassifier(model, cfg.TEST.SLIDING_WINDOW.SIZE, cfg.INPUT.FORMAT)
        evaluators.append(RegionEvaluator(dataset_name, crops, cfg.TEST.MIN_BOX_SIZE))
    elif evaluator_type in _INSTANCES and not is_semantic(cfg):
        # Detectron2 would read the tasks off the predictions, and there may be none.
        tasks = ("bbox", "segm") if predicts_masks(cfg) else ("bbox",)
        kind = _INSTANCES[evaluator_type]
        novel = {"novel_classes": cfg.DATASETS.NOVEL_CLASSES} if kind is _COCO else {}  # LVIS has its own
        evaluators.append(kind(dataset_name, tasks=tasks, output_dir=output_folder, **novel))
    has_label_maps = evaluator_type != "coco_panoptic_seg" or metadata.get("sem_seg_root")
    if evaluator_type in _LABEL_MAPS and has_label_maps and has_sem_seg_head(cfg):
        evaluators.append(SemSegEvaluator(dataset_name, output_folder, cfg.DATASETS.NOVEL_CLASSES))
    if is_panoptic(cfg) and metadata.get("panoptic_json"):
        if has_panopticapi():
            evaluators.append(COCOPanopticEvaluator(dataset_name, output_folder))
        else:
            logger.warning("No panoptic quality (PQ), which needs panopticapi: %s.", GET_PANOPTICAPI)
    return DatasetEvaluators(evaluators)


def has_panopticapi() -> bool:
    """Return whether the package that computes the panoptic quality is installed."""
    try:
        return find_spec("panopticapi.evaluation") is not None
    except ModuleNotFoundError:  # of the package itself
        return False
